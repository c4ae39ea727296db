"""Two workers test side by side, and start processes: one thread each, set before anything loads torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
