"""Two workers test side by side, and start processes: one thread each, set before anything loads torch."""

import logging
import os
import signal

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

# a shell's background jobs ignore Ctrl-C, and what they start would too: the tests interrupt commands with it
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("busy", deadline=None)  # a busy machine is no failure
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def _warnings_are_shown():
    """A command that runs in the tests' process with --quiet hushes no test after it."""
    yield
    logging.disable(logging.NOTSET)
