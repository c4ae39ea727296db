"""`eex-partition` as a user types it."""

import json

import numpy as np
import pytest
from commands import call, play, refused

from eex.policies.core.trace import Trace, write_trace

pytestmark = pytest.mark.timeout(120)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_command(tmp_path):
    rng = np.random.default_rng(0)
    confidence = np.where(np.arange(4) < 3, rng.random((100, 4)) * 0.7, 1.0)
    write_trace(
        tmp_path / "t.arrow", Trace(confidence, rng.integers(0, 10, (100, 4)), np.zeros(100, dtype=int), CLASSES)
    )
    # nobody leaves early; the link is good and the cloud fast, so that little runs on the edge
    arguments = ["--trace", tmp_path / "t.arrow", "--frames", 32, "--link", "0.01@100000", "--cloud-speed", 1000]
    done = call("partition", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["leave"] == [0.0, 0.0, 0.0]
    assert [p["partition"] for p in found["plans"]] == [0, 1, 2, 3, 4]
    assert found["recommended"]["partition"] == 1
    assert found["option"].startswith("--partition 1 --send ")
    # everybody leaves at the first exit
    done = call("partition", "--frames", 32, "--threshold", 0, "--link", "paris")
    assert done.returncode == 0
    assert "100 % 0 % 0 % leave" in " ".join(done.stdout.split())
    assert "fastest: eex-stream --partition" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threshold", 2], "--threshold must lie in [0, 1], got 2"),
        (["--cloud-speed", 0], "--cloud-speed must be more than 0, got 0"),
        (["--partition", 2], "--partition is what eex-partition finds; leave it out"),
        (["--at-once", 0], "--at-once must lie in 1…4096, got 0"),
        (["--link", "rio"], "link 'rio'"),
        (["--link", "paris", "--worker", "tcp://127.0.0.1:1"], "--link and --worker"),
        (["--worker", "embedded"], "--worker embedded: expected tcp://host:port"),
        (["--worker", "none"], "--worker none: expected tcp://host:port"),
        (["--send", "int4"], "there is no encoding 'int4'"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, says):
    refused(call("partition", *arguments), says)


def test_a_trace_of_another_partition(tmp_path):
    write_trace(
        tmp_path / "t.arrow", Trace(np.ones((4, 3)), np.zeros((4, 3), dtype=int), np.zeros(4, dtype=int), CLASSES)
    )
    done = call("partition", "--trace", tmp_path / "t.arrow", "--frames", 32)
    refused(done, "holds 3 exits, the model has 4; record it with eex-record --partition 3")


@pytest.mark.process
def test_a_refusal_in_a_process_of_its_own(tmp_path):
    refused(play("partition", "--trace", tmp_path / "nothing.arrow", "--frames", 8), "cannot be read")
