"""Test, edge and cloud node: messages as pure functions, and what happens when a node ends."""

import signal
import time

import numpy as np
import pytest
import torch

from eex.experiments.papers.local_exit import network
from eex.experiments.papers.nodes import (
    CLOUD,
    DROPPED,
    EDGE,
    Begin,
    Classes,
    Images,
    LocalExit,
    Nodes,
    Resources,
    pack,
    unpack,
)
from eex.models.card import save
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError, OffloadError
from eex.policies.core.routing import drop, leave

BEGIN = Begin(3, 0.3, 0.6, "tcp://127.0.0.1:1", (b"public", b"secret", b"worker"))
BATCH = Images((2, 3, 4, 5), bytes(range(120)))


@pytest.mark.parametrize("message", [BEGIN, BATCH, Classes([(0, 7, EDGE), (1, -1, DROPPED)], 81.5)])
def test_messages_come_back_as_they_were(message):
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x80",
        pack(BEGIN) + b"more",
        pack(BATCH)[:-1],
        pack({"type": "Images", "shape": [1, 1, 1, 1], "pixels": b"\0\0"}),
        pack({"type": "Images", "shape": [-1, 3, -2, 2], "pixels": bytes(12)}),
        pack({"type": "Images", "shape": [1 << 20, 1 << 20, 1 << 20, 1], "pixels": b""}),
        pack({"type": "Classes", "rows": [[0, 1]], "peak_mb": 0.0}),
        pack({"type": "Other"}),
    ],
)
def test_strange_messages_are_refused(message):
    with pytest.raises(OffloadError, match="not a message between nodes"):
        unpack(message)


def test_an_entropy_that_equals_the_threshold_does_not_leave():
    chosen = LocalExit(0.25).choose(Context(frames=2))
    assert chosen.exit_at.shape == (1, 2, 2)
    at, below = chosen.exit_at[0, 0, 0], chosen.skip_below[0, 0, 0]
    assert [bool(leave(np.array(c), at, below)[0]) for c in (0.74, 0.75, 0.7501, 1.0)] == [False, False, True, True]
    assert chosen.exit_at[0, 0, 1] == 0  # the cloud answers whatever comes
    assert not drop(np.array(0.75), np.array(False), 1 - 0.25)
    with pytest.raises(EexError, match="threshold must lie in"):
        LocalExit(1.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save(network("abcd", [2], width=4, stride=2), folder, half=False)
    return folder


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)


@pytest.mark.process
def test_all_leave_or_go_on_or_are_dropped_and_a_dead_edge_node_is_reported(model):
    with Nodes([model], Resources(threads=1, share=0.5), cloud_threads=1) as nodes:
        here = nodes.measure(0, 1.0, IMAGES)
        assert (here.where == EDGE).all()
        there = nodes.measure(0, 0.0, IMAGES)
        assert (there.where == CLOUD).all()
        nobody = nodes.measure(0, 0.0, IMAGES, drop_above=0.0)
        assert (nobody.where == DROPPED).all()
        assert (nobody.prediction == -1).all()
        for told in (here, there, nobody):
            assert len(told.prediction) == len(IMAGES)
            assert (told.latency_ms > 0).all()
            assert told.latency_ms.max() <= 1000 * told.seconds
        started = time.monotonic()
        nodes.edge.signal(signal.SIGKILL)
        with pytest.raises(EexError, match="the edge node ended"):
            nodes.measure(0, 1.0, IMAGES)
        assert time.monotonic() - started < 10


@pytest.mark.process
def test_a_link_delays_what_the_cloud_answers_and_nothing_else(model):
    with Nodes([model], Resources(link="300"), cloud_threads=1) as nodes:
        there = nodes.measure(0, 0.0, IMAGES[:8])
        assert (there.where == CLOUD).all()
        assert there.latency_ms.min() >= 300
        here = nodes.measure(0, 1.0, IMAGES[:8])
        assert (here.where == EDGE).all()
        assert here.latency_ms.max() < 300


@pytest.mark.process
def test_too_little_memory_is_reported_in_one_line(model):
    nodes = Nodes([model], Resources(threads=1, memory_mb=40), cloud_threads=1)
    with (
        pytest.raises(
            EexError, match=r"the edge node did not start \(its memory is limited to 40 MB\): .* \(exit status \d+\): "
        ) as told,
        nodes,
    ):
        pass
    assert "\n" not in str(told.value)
