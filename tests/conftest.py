"""Two workers test side by side, and start processes: one thread each, set before anything loads torch."""

import logging
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

# tests are compiled, and their assertions rewritten, once and not in each worker and each process
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# a shell's background jobs ignore Ctrl-C, and what they start would too: the tests interrupt commands with it
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("busy", deadline=None)  # a busy machine is no failure
settings.load_profile("busy")


def pytest_collection_finish():
    """A session opens with a full garbage collection, which takes half a second among all that the tests hold: one test
    (`tests/stream/live/test_session.py`) sees to it, the others do without."""
    if session := sys.modules.get("eex.stream.live.session"):
        session.gc = SimpleNamespace(collect=int, freeze=int, unfreeze=int)


@pytest.fixture(autouse=True)
def _warnings_are_shown():
    """A command that runs in the tests' process with --quiet hushes no test after it."""
    yield
    logging.disable(logging.NOTSET)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """A failure whose message is no UTF-8, such as a file's odd name, reaches xdist's terminal as escapes; else the
    worker that reports it dies, and the whole run with it."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(its) for key, its in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_encodable, value))
    return value
