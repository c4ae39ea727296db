"""An edge's part in a fleet: when it sends, what it takes, and what it says; then over real sockets."""

import contextlib
import threading
import time

import numpy as np
import pytest
from livenet import images, three_exits
from loopback import Cloud, until

from eex.policies.core.errors import EexError
from eex.policies.core.fleet import Layout, sharing
from eex.policies.core.learners import Learners
from eex.policies.registry import make_policy
from eex.stream.live.session import Session
from eex.stream.sharing import Sharing
from eex.stream.wire.offload import NoOffloader
from eex.stream.wire.protocol import SHARE_EVERY_S, Welcome
from eex.stream.worker.fleets import Fleets
from eex.stream.worker.pool import LocalReplica

pytestmark = pytest.mark.timeout(60)
LAYOUT = Layout(exits=2)


def some_sums(frames=50.0):
    flat = np.zeros(LAYOUT.size, dtype=np.float32)
    of = LAYOUT.views(flat)
    of["seen"][0, 20] = of["offloads"][0, 20] = frames
    of["gains"][0, 20], of["squares"][0] = 0.5 * frames, 0.25 * frames
    return flat


class Fake(NoOffloader):
    """Carries sums to the test."""

    def __init__(self):
        self.sent, self.fleet, self.share_problem, self.reachable = [], None, "", True
        self.shares_under_way = 0

    def share(self, policy, edge, layout, sums):
        if self.reachable:
            self.sent.append((policy, edge, layout, sums))
        return self.reachable

    def take_fleet(self):
        fleet, self.fleet = self.fleet, None
        return fleet


class Edge:
    def __init__(self, policy="stop-curve:memory=1000", kept=None):
        self.now, self.notes, self.offloader = 0.0, [], Fake()
        self.learners = Learners(lambda runs: make_policy(policy, exits=2, runs=runs))
        self.sharing = Sharing(self.learners, self.offloader, policy, self.notes.append, kept, lambda: self.now)

    def tend(self, now):
        self.now = now
        self.sharing.tend()


def test_an_edge_that_goes_on_is_the_same_one(tmp_path):
    names = [Edge(kept=kept).sharing.edge for kept in (None, None, tmp_path / "a", tmp_path / "b", tmp_path / "a")]
    assert len(set(names)) == 4
    assert names[2] == names[4]


def test_an_edge_whose_name_is_damaged_gets_a_new_one(tmp_path):
    (tmp_path / "state.npz.edge").write_bytes(b"\xff not a name")
    name = Edge(kept=tmp_path / "state.npz").sharing.edge
    assert Edge(kept=tmp_path / "state.npz").sharing.edge == name


def test_it_sends_at_once_and_then_less_and_less_often():
    edge = Edge()
    times = []
    for now in np.arange(0.0, 400.0, 0.5):
        before = len(edge.offloader.sent)
        edge.tend(now)
        times += [now] * (len(edge.offloader.sent) - before)
    assert times == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]
    policy, name, layout, sums = edge.offloader.sent[0]
    assert (policy, layout, sums.dtype, sums.any()) == ("stop-curve", LAYOUT, np.float32, False)
    assert {edge_name for _, edge_name, _, _ in edge.offloader.sent} == {name}


def test_while_no_worker_is_there_it_waits_for_one():
    edge = Edge()
    edge.offloader.reachable = False
    edge.tend(0.0)
    edge.offloader.reachable = True
    edge.tend(0.1)
    assert len(edge.offloader.sent) == 1


def test_learners_of_now_and_later_borrow_what_has_come():
    edge = Edge()
    edge.learners.add(1)
    edge.offloader.fleet = (3, some_sums())
    edge.tend(0.0)
    edge.learners.add(2)
    assert edge.sharing.edges == 3
    assert sharing(edge.learners.example)._lender is not None
    assert sharing(edge.learners._made(4))._lender is not None


@pytest.mark.parametrize("sums", [-some_sums(), np.full(LAYOUT.size, np.nan, np.float32), some_sums()[:-1]])
def test_nonsense_of_a_worker_is_not_used(sums):
    edge = Edge()
    edge.offloader.fleet = (3, sums)
    edge.tend(0.0)
    assert edge.notes == ["the worker sent what no fleet can have learned; it is not used"]
    assert sharing(edge.learners.example)._lender is None


class Busy(Fake):
    """A worker that finds sums too soon so many times, or refuses them."""

    def __init__(self, times, problem=""):
        super().__init__()
        self.times, self.problem = times, problem

    def share(self, *given):
        self.shares_under_way += 1
        return super().share(*given)

    def poll(self):
        if self.shares_under_way:
            self.shares_under_way = 0
            self.share_problem = self.problem
            if len(self.sent) > self.times and not self.problem:
                self.fleet = (1, some_sums())
        return []


@pytest.mark.parametrize(("busy", "sent"), [(Busy(0), 1), (Busy(2), 3), (Busy(0, "no stream has such sums"), 1)])
def test_an_edge_that_ends_tries_until_a_busy_worker_has_its_sums(busy, sent):
    edge = Edge()
    edge.sharing.offloader, edge.sharing.clock = busy, time.monotonic
    edge.sharing.finish()
    assert len(busy.sent) == sent
    assert len(edge.notes) == bool(busy.problem)


def test_an_edge_that_ends_waits_a_moment_for_a_worker_that_has_gone_away():
    edge, gone = Edge(), Busy(0)
    edge.sharing.offloader, edge.sharing.clock, gone.reachable = gone, time.monotonic, False
    threading.Timer(0.1, setattr, (gone, "reachable", True)).start()
    edge.sharing.finish()
    assert len(gone.sent) == 1
    gone.reachable = False
    started = time.monotonic()
    edge.sharing.finish()
    assert time.monotonic() - started < 2.0
    assert len(gone.sent) == 1


def test_a_refusal_is_noted_once():
    edge = Edge()
    edge.offloader.share_problem = "no stream has such sums"
    edge.tend(0.0)
    edge.tend(5.0)
    assert edge.notes == ["the worker refused what was to be shared: no stream has such sums"]


def test_what_cannot_share_is_said():
    with pytest.raises(EexError, match="this offloader cannot share"):
        Sharing(Edge().learners, NoOffloader(), "stop-curve", print)
    with pytest.raises(EexError, match="goes with a worker that other edges use"):
        Session(net=three_exits(), worker="none", share=True)
    with pytest.raises(EexError, match="what policy ucb learns cannot be shared; use stop-curve"):
        Session(net=three_exits(), worker="tcp://127.0.0.1:9", plain=True, policy="ucb", share=True)


# ---- real sockets


@pytest.fixture
def net():
    return three_exits()


def cloud(net, **options):
    """A worker that is surer than any edge."""

    def tail(stage, expert, features):
        return np.full(len(features), 0.99), np.full(len(features), 7)

    welcome = Welcome(net.fingerprint, 3, net.experts, net.classes)
    return Cloud([LocalReplica({net.fingerprint: tail})], [welcome], **options)


@contextlib.contextmanager
def edge(net, endpoint, **options):
    options = {"policy": "stop-curve", "worker": endpoint, "plain": True, "share": True, "send": "fp32"} | options
    with Session(net=net, **options) as session:
        yield session


def exchange(session):
    """Let an edge send what it has learned by now, and take what comes."""
    part = session._playing.sharing
    until(lambda: time.monotonic() > part._sent + 2 * SHARE_EVERY_S and not part.offloader.shares_under_way)
    started, part.edges = time.monotonic(), None

    def exchanged():
        if time.monotonic() > part._sent + 2 * SHARE_EVERY_S:  # also again, if the worker found it too soon
            part._due = 0.0
        return part._sent > started and (part.edges is not None or part.offloader.share_problem)

    until(exchanged)


def told(offloader):
    """Whether the worker answers to sums with those of the others."""
    fleets = []
    until(
        lambda: (
            fleets.extend(filter(None, [offloader.poll() or offloader.take_fleet()]))
            or fleets
            or offloader.share_problem
        )
    )
    return bool(fleets)


def lender_of(session):
    return sharing(session._playing.engine_streams.learners.example)._lender


def test_sums_that_came_too_soon_are_not_reported_as_refused(net):
    with cloud(net) as worker, worker.edge(net.fingerprint) as client:
        for _ in range(5):
            assert client.share("stop-curve", "hasty", LAYOUT, some_sums())
        assert told(client)
        time.sleep(2 * SHARE_EVERY_S)
        client.poll()
        assert client.share_problem == ""
        assert worker.front.service.stats.shared == 1


def test_two_edges_learn_from_each_other(net):
    with cloud(net) as worker, edge(net, worker.endpoint) as first:
        for image in images(200):
            first.answer(image, "door")
        exchange(first)
        assert lender_of(first) is None  # there is nobody else
        with edge(net, worker.endpoint) as second:
            exchange(second)
            learned = lender_of(second).sums["seen"][0, 0].sum()
            assert 150 < learned < 201
            assert second.answer(images(1)[0], "gate").label
    assert worker.lines == []


def test_an_edge_that_ends_leaves_what_it_learned_to_those_that_come(net, tmp_path):
    path = tmp_path / "fleet.msgpack"
    with cloud(net, fleets=Fleets(path)) as worker:
        with edge(net, worker.endpoint) as first:
            until(lambda: first._playing.sharing.edges is not None)
            for image in images(100):
                first.answer(image, "door")
        assert worker.front.service.fleets.edges == 1
    with cloud(net, fleets=Fleets(path)) as again, edge(net, again.endpoint) as second:  # the worker was restarted
        exchange(second)
        assert 75 < lender_of(second).sums["seen"][0, 0].sum() < 101


def test_an_edge_goes_on_sharing_with_a_worker_that_was_restarted(net, tmp_path):
    path = tmp_path / "fleet.msgpack"
    with cloud(net, fleets=Fleets(path)) as worker:
        endpoint = worker.endpoint
        with worker.edge(net.fingerprint) as other:
            assert other.share("stop-curve", "other", LAYOUT, some_sums(70.0))
            assert told(other)
        session = Session(net=net, policy="stop-curve", worker=endpoint, plain=True, share=True, send="fp32")
        exchange(session)
    with contextlib.closing(session):
        assert session.answer(images(1)[0], "door").label  # nobody answers now: the edge does
        with cloud(net, fleets=Fleets(path), endpoint=endpoint):
            exchange(session)
            assert session._playing.sharing.edges == 1
            assert lender_of(session).sums["seen"][0, 0].sum() == pytest.approx(70.0, rel=0.01)


def test_a_liar_moves_nobody_by_more_than_its_share_and_nonsense_is_refused(net):
    with cloud(net) as worker, edge(net, worker.endpoint) as honest:
        for image in images(100):
            honest.answer(image, "door")
        exchange(honest)
        with worker.edge(net.fingerprint) as liar:
            assert liar.share("stop-curve", "liar", LAYOUT, some_sums(1e9))
            assert told(liar)
            time.sleep(2 * SHARE_EVERY_S)
            assert liar.share("stop-curve", "liar", LAYOUT, -some_sums())
            assert not told(liar)
            assert liar.share_problem == "no stream has such sums: a sum is negative: -50"
        exchange(honest)
        assert lender_of(honest).sums["seen"][0, 0].sum() == pytest.approx(4000, rel=1e-3)
        assert honest.answer(images(1)[0], "door").label
