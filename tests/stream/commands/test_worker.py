"""`eex-worker`: options that make no sense are refused before anything is loaded."""

from pathlib import Path

import pytest

from eex.policies.core.errors import EexError
from eex.stream.commands.worker import Worker

UPSTREAM = {"upstream": "tcp://127.0.0.1:5556", "partition": 2, "plain": True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"processes": 0}, "--processes must be at least 1, got 0"),
        ({"batch_frames": 0}, "--batch-frames must be at least 1"),
        ({"batch_wait_ms": -1.0}, "--batch-wait-ms must lie in"),
        ({"ray": 2, "processes": 2}, "one of the two"),
        ({"plain_beyond_loopback": True}, "goes with --plain"),
        ({"partition": 2}, "--partition goes with --upstream"),
        ({"p_tar": 0.5}, "--p-tar goes with --upstream"),
        (UPSTREAM | {"partition": 0}, "--upstream needs --partition"),
        (UPSTREAM | {"p_tar": 1.5}, "--p-tar must lie in"),
        (UPSTREAM | {"deadline_ms": 0.0}, "--deadline-ms must be more than 0"),
        (UPSTREAM | {"plain": False}, "--upstream needs --upstream-keys"),
        (UPSTREAM | {"upstream": "localhost:5555"}, "expected tcp://host:port"),
        (UPSTREAM | {"models": (Path("a"), Path("b"))}, "--upstream is for one model"),
        (UPSTREAM | {"processes": 2}, "--upstream runs its model in one process"),
    ],
)
def test_options_that_make_no_sense(options, says):
    with pytest.raises(EexError, match=says):
        Worker(**options).check()
