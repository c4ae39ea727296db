"""Stages, encodings, workers and links are measured, and the way of sending is chosen by what was measured."""

import json
import math

import numpy as np
import pytest
import torch

from eex.models.network import make
from eex.policies.core.errors import EexError
from eex.stream.planning import measure
from eex.stream.planning.measure import (
    Candidate,
    LinkSpeed,
    candidates,
    cheapest,
    measure_link,
    stage_times,
    worker_times,
)
from eex.stream.wire.encoding import Encoding, parse_encoding
from eex.stream.wire.offload import InMemoryOffloader, Reply

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return make("resnet", ["a", "b", "c"], shares=(0.2, 0.6), input_shape=(3, 16, 16), width=8).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand((20, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def test_stage_times(net, images):
    stage_ms, exit_ms = stage_times(net, images, at_once=4)
    assert stage_ms.shape == exit_ms.shape == (3,)
    assert (stage_ms > 0).all()
    assert (exit_ms > 0).all()


def test_every_way_of_sending_is_compared(net, images):
    found = {str(c.encoding): c for c in candidates(net, images, 1)}
    features = net.costs().feature_bytes[0]
    assert found["fp32"].bytes == features
    assert found["fp16"].bytes == features / 2
    assert found["int8"].bytes == features / 4 + 8
    assert found["input"].bytes == 3 * 16 * 16
    assert {c.stage for c in found.values()} == {0, 1}
    assert found["fp32"].agreement == found["fp32+zstd"].agreement == 1.0
    assert all(c.encode_ms >= 0 and c.decode_ms >= 0 for c in found.values())
    assert {str(c.encoding) for c in candidates(net, images, 0, agreement=False)} == {"input", "input+zstd"}
    assert all(math.isnan(c.agreement) and c.agrees for c in candidates(net, images, 0, agreement=False))


class Timed(InMemoryOffloader):
    """Says that a message took so long for its bytes, and its model so long for its stage."""

    def __init__(self, round_trip_ms=50.0, mbit=8.0):
        super().__init__(lambda stage, expert, x: (np.ones(len(x)), np.zeros(len(x))))
        self.link = LinkSpeed(round_trip_ms, mbit)

    def _reply(self, id, stage, expert, features):
        size = self.bytes_sent - self.before
        reply = super()._reply(id, stage, expert, features)
        took = self.link.round_trip_ms + size / (125 * self.link.mbit) + 10 - stage
        return Reply(id, reply.confidence, reply.prediction, 10.0 - stage, took, reply.failed)

    def submit(self, *arguments):
        self.before = self.bytes_sent
        return super().submit(*arguments)


def test_a_worker_and_its_link_are_measured(net, images, monkeypatch):
    assert worker_times(Timed(), net, images, [0, 1, 2]) == {0: 10.0, 1: 9.0, 2: 8.0}
    link = measure_link(Timed(), net, images, 1)
    assert (link.round_trip_ms, link.mbit) == (pytest.approx(50), pytest.approx(8))
    assert measure_link(Timed(mbit=1e9), net, images, 1).mbit == math.inf
    assert measure_link(Timed(), net, images[:1], 1).mbit == math.inf
    broken = Timed()
    broken.lose = range(1 << 62)
    with pytest.raises(EexError, match="the worker and the link cannot be measured: no reply within"):
        worker_times(broken, net, images, [0])
    first = Timed()
    first.lose = range(1 << 40, next(measure._IDS) + 2)  # the first a worker runs may be late
    assert worker_times(first, net, images, [0]) == {0: 10.0}
    nobody = Timed()
    nobody.connected = False
    monkeypatch.setattr(measure, "PATIENCE_S", 0.1)
    with pytest.raises(EexError, match="it takes no requests"):
        worker_times(nobody, net, images, [0])


def candidate(name, bytes, agreement=1.0, encode_ms=0.0):
    encoding = parse_encoding(name)
    return Candidate(encoding, 0 if encoding.kind == "input" else 2, bytes, encode_ms, 0.0, agreement)


WAYS = [
    candidate("fp32", 32_768),
    candidate("int8", 8_200, 0.99),
    candidate("int8+zstd", 5_000, 0.99, encode_ms=0.1),
    candidate("input", 3_072, 0.95),
]


def test_the_cheapest_way_that_leaves_the_answers_alone():
    cloud = {0: 3.0, 2: 1.0}
    slow = cheapest(WAYS, LinkSpeed(213.0, 0.5), cloud)
    assert str(slow.encoding) == "int8+zstd"  # the input is smaller, but changes answers
    assert "99.0 % of its answers are fp32's" in slow.why
    assert "fp32's 32,768 bytes would take" in slow.why
    assert [row["send"] for row in slow.candidates] == ["fp32", "int8", "int8+zstd", "input"]
    assert cheapest(WAYS, LinkSpeed(0.0, math.inf), cloud).encoding == Encoding()
    allowed = [*WAYS[:3], candidate("input", 3_072, 0.99)]
    assert str(cheapest(allowed, LinkSpeed(213.0, 0.5), cloud).encoding) == "input"
    assert str(cheapest(allowed, LinkSpeed(5.0, 1000.0), {0: 30.0, 2: 1.0}).encoding) != "input"  # the cloud is slow
    assert json.dumps(slow.candidates)
    blind = measure.smallest(WAYS, "the link is down")
    assert (str(blind.encoding), blind.why) == ("int8+zstd", "5,000 bytes per frame, the fewest; the link is down")


def test_the_first_condition_of_a_link():
    from eex.policies.core.link import parse_link

    assert measure.first_condition(parse_link("down:5s, paris:1s, wifi:1s")) == LinkSpeed(213.0, 42.0)
    with pytest.raises(EexError, match="always down"):
        measure.first_condition(parse_link("down"))
    assert LinkSpeed(100.0, 8.0).trip_ms(1000) == pytest.approx(101)
