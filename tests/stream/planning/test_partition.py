"""Where to cut: the shortest path against brute force and by hand, what is measured, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from commands import call, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.models.network import make
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace, write_trace
from eex.stream.commands.partition import option
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
from eex.stream.planning.partition import Send, Times, best, every_plan, graph, leaving, plan, shortest_path
from eex.stream.wire.encoding import Encoding, parse_encoding
from eex.stream.wire.offload import InMemoryOffloader, Reply

pytestmark = pytest.mark.timeout(120)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def by_hand():
    """Three stages; the worked example of the tests below."""
    return Times(
        edge_ms=np.array([4.0, 6.0, 10.0]),
        exit_ms=np.array([1.0, 1.0, 1.0]),
        cloud_ms=np.array([0.4, 0.6, 1.0]),
        cloud_exit_ms=0.1,
        leave=np.array([0.5, 0.4]),
        sends=[
            [Send("input", 0, 12.0)],
            [Send("input", 0, 12.0), Send("fp32", 1, 30.0), Send("int8", 1, 11.0)],
            [Send("input", 0, 12.0), Send("fp32", 2, 20.0), Send("int8", 2, 10.0)],
        ],
    )


def test_the_example_worked_by_hand():
    """Of 100 frames, 50 leave at exit 1 and 20 of the others at exit 2.

    cut 0: 12 + 0.4 + 0.6 + 1 + 0.1                                  = 14.1
    cut 1: 5 + 0.5 (11 + 0.6 + 1 + 0.1) = 5 + 6.35                   = 11.35  (the input: 0.5 (12 + 2.1), more)
    cut 2: 5 + 0.5 · 7 + 0.3 (10 + 1 + 0.1) = 8.5 + 3.33             = 11.83
    cut 3: 5 + 0.5 · 7 + 0.3 · 11                                    = 11.8
    """
    times = by_hand()
    np.testing.assert_allclose(times.reach, [1, 0.5, 0.3])
    plans = every_plan(times)
    np.testing.assert_allclose([p.ms for p in plans], [14.1, 11.35, 11.83, 11.8])
    assert [p.send for p in plans] == ["input", "int8", "int8", ""]
    chosen = best(times)
    assert (chosen.cut, chosen.send) == (1, "int8")
    np.testing.assert_allclose([chosen.edge_ms, chosen.link_ms, chosen.cloud_ms], [5, 5.5, 0.85])
    assert option(chosen, 3) == "--partition 1 --send int8"
    total, path = shortest_path(graph(times), ("edge", 0), "answer")
    assert total == pytest.approx(11.35)
    assert [node for node, _ in path] == [
        *(("edge", 0), ("edge", 1), ("cloud", 1, 1), ("cloud", 1, 2), ("cloud", 1, 3), "answer")
    ]


def test_the_edge_alone_and_the_cloud_alone():
    times = by_hand()
    slow = Times(**{**vars(times), "sends": [[Send("input", 0, 1e6)]] * 3})
    assert (best(slow).cut, option(best(slow), 3)) == (3, "--partition 3")
    near = Times(**{**vars(times), "sends": [[Send("input", 0, 0.0)]] * 3})
    assert best(near, first=0).cut == 0
    assert best(near).cut == 1  # eex-stream runs a stage on the edge in any case
    with pytest.raises(ValueError, match="no path from a to z"):
        shortest_path({"a": [("b", 1.0, "")]}, "a", "z")
    with pytest.raises(ValueError, match="frames that continue from stage 1 must be sent"):
        plan(times, 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_the_shortest_path_against_all_cuts(seed, stages):
    rng = np.random.default_rng(seed)
    sends = [
        [Send(f"s{j}", int(rng.integers(0, k + 1)), float(rng.gamma(1, 30))) for j in range(int(rng.integers(1, 5)))]
        for k in range(stages)
    ]
    leave = rng.choice([0.0, 0.3, 0.7, 1.0], stages - 1)
    times = Times(rng.gamma(1, 10, stages), rng.gamma(1, 2, stages), rng.gamma(1, 5, stages), 0.5, leave, sends)
    for first in (0, 1):
        costs = {}
        for cut in range(first, stages + 1):
            for send in sends[cut] if cut < stages else [None]:
                total, here = 0.0, 1.0  # frame by frame, as it goes
                for k in range(cut):
                    total += here * (times.edge_ms[k] + times.exit_ms[k])
                    here *= 1 - leave[k] if k < stages - 1 else 0.0
                if send is not None:
                    total += here * (send.ms + times.cloud_ms[send.stage :].sum() + times.cloud_exit_ms)
                costs[cut, None if send is None else send.name] = total
        found = best(times, first)
        assert found.ms == pytest.approx(min(costs.values()))
        assert costs[found.cut, found.send or None] == pytest.approx(found.ms)
    if stages:
        least = {k: min(c for (cut, _), c in costs.items() if cut == k) for k in range(1, stages + 1)}
        np.testing.assert_allclose([p.ms for p in every_plan(times)[1:]], list(least.values()))


def test_shares_that_leave():
    confidence = np.array([[0.9, 0.1, 1], [0.1, 0.9, 1], [0.1, 0.1, 1], [0.8, 0.9, 1]])
    np.testing.assert_allclose(leaving(confidence, 0.8), [0.5, 0.5])
    np.testing.assert_allclose(leaving(confidence, 0.0), [1.0, 0.0])  # nobody comes to the second
    assert leaving(confidence[:, -1:], 0.8).size == 0


# ---- measuring


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


# ---- the command


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
        (["--at-once", 0], "--at-once must lie in 1…4096, got 0"),
        (["--link", "rio"], "link 'rio'"),
        (["--link", "paris", "--worker", "tcp://127.0.0.1:1"], "--link and --worker"),
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
