"""Two workers test side by side, and start processes: one thread each, set before anything loads torch."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"

# a shell's background jobs ignore Ctrl-C, and what they start would too: the tests interrupt commands with it
signal.signal(signal.SIGINT, signal.default_int_handler)
