"""Requests under way: each yields exactly one reply, whatever happens. No sockets; the clock is moved by hand."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import WELCOME, World

from eex.policies.core.errors import OffloadError
from eex.stream.wire.peer import HELLO_ID, Peer
from eex.stream.wire.protocol import Pong, ReplyHeader, Request, Welcome, pack, refusal, unpack
from eex.stream.wire.requests import Requests


def frames(n=1):
    return np.zeros((n, 2, 2), dtype=np.float32)


class Edge:
    """`Requests` to workers that the test plays; `sent` holds what each was sent, by worker."""

    def __init__(self, workers=1, deadline_ms=1000.0, window=16, greet=True):
        self.sent = [[] for _ in range(workers)]
        self.room = [True] * workers
        self.peers = [Peer(f"tcp://w{k}:1", lambda message, k=k: self._send(k, message)) for k in range(workers)]
        self.requests = Requests(self.peers, "model-a", deadline_ms, window)
        for peer in self.peers if greet else ():
            peer.opened()
            self.give(peer, pack(WELCOME))

    def _send(self, k, message):
        if self.room[k]:
            self.sent[k].append(message)
        return self.room[k]

    def give(self, peer, message, now=0.0):
        self.requests.take_in(now, peer, [bytes(frame) for frame in message])

    def reply(self, peer, id, confidence=(0.5,), prediction=(1,), now=0.0):
        arrays = np.array(confidence, dtype=np.float32), np.array(prediction, dtype=np.int32)
        self.give(peer, pack(ReplyHeader(id, len(confidence), 2.0), *arrays), now)

    def submit(self, id, now=0.0, n=1):
        return self.requests.submit(now, id, 1, "blur", frames(n))

    def asked(self, k=0):
        """Ids of the requests that a worker was sent, in order."""
        headers = [unpack(message)[0] for message in self.sent[k]]
        return [header.id for header in headers if isinstance(header, Request)]


# ---- one worker


def test_a_request_goes_out_and_its_reply_comes_back():
    edge = Edge()
    assert edge.submit(7, now=1.0, n=2)
    (message,) = edge.sent[0]
    header, (features,) = unpack(message)
    assert header == Request(7, "model-a", 1, "blur", "float32", (2, 2, 2), 1000.0)
    assert features.shape == (2, 2, 2)
    assert edge.requests.bytes_sent == sum(memoryview(frame).nbytes for frame in message)
    assert (edge.requests.outstanding, edge.requests.replies()) == (1, [])
    edge.reply(edge.peers[0], 7, (0.5, 1.0), (1, 2), now=1.25)
    assert edge.requests.settled
    (reply,) = edge.requests.replies()
    assert (reply.id, reply.compute_ms, reply.round_trip_ms, reply.failed) == (7, 2.0, 250.0, "")
    assert (reply.confidence.dtype, reply.prediction.dtype) == (np.float64, np.int64)
    assert (reply.confidence.tolist(), reply.prediction.tolist()) == ([0.5, 1.0], [1, 2])
    assert (edge.requests.outstanding, edge.requests.link_ms, edge.peers[0].round_trip_ms) == (0, 250.0, 250.0)


def test_the_payload_is_not_copied_on_the_way_out():
    edge, x = Edge(), np.random.default_rng(0).random((2, 4, 3, 3), dtype=np.float32)
    assert edge.requests.submit(0.0, 1, 1, "blur", x)
    assert np.shares_memory(np.frombuffer(edge.sent[0][0][1], dtype=np.float32), x)


def test_the_link_estimate_follows_round_trips_and_missed_deadlines():
    edge = Edge(deadline_ms=100.0)
    assert math.isnan(edge.requests.link_ms)
    for id, took_s in enumerate((0.010, 0.020, 0.060)):
        edge.submit(id)
        edge.reply(edge.peers[0], id, now=took_s)
    assert edge.requests.link_ms == pytest.approx((10 * 0.8 + 20 * 0.2) * 0.8 + 60 * 0.2)
    before = edge.requests.link_ms
    edge.submit(9, now=1.0)
    edge.requests.tend(5.0)
    assert edge.requests.link_ms == pytest.approx(0.8 * before + 0.2 * 100)  # missed: as long as the deadline


def test_duplicates_and_strangers_are_dropped_and_order_does_not_matter():
    edge = Edge()
    (peer,) = edge.peers
    for id in (1, 2, 3):
        edge.submit(id)
    for id in (3, 3, 99, 1, 3, 1):
        edge.reply(peer, id)
    edge.give(peer, pack(WELCOME))
    edge.give(peer, [b"junk", b"", b"junk"])
    edge.reply(peer, 2)
    assert [reply.id for reply in edge.requests.replies()] == [3, 1, 2]
    assert edge.requests.counts["dropped"] == 4


def test_the_window_bounds_what_is_awaited():
    edge = Edge(window=2)
    assert [edge.submit(id) for id in (1, 2, 3)] == [True, True, False]
    edge.reply(edge.peers[0], 1)
    assert [edge.submit(id) for id in (3, 4)] == [True, False]
    narrow = Edge(window=99)
    narrow.peers[0].greeted(msgspec.structs.replace(WELCOME, window=1))
    assert [narrow.submit(id) for id in (1, 2)] == [True, False]
    narrow.room = [False]
    assert not Edge(greet=False).submit(1)


def test_a_full_socket_takes_nothing_and_no_reply_comes():
    edge = Edge()
    edge.room = [False]
    assert not edge.submit(1)
    assert (edge.requests.outstanding, edge.requests.bytes_sent, edge.requests.counts["requests"]) == (0, 0, 0)


def test_a_deadline_is_missed_when_it_has_passed_and_not_before():
    edge = Edge(deadline_ms=50.0)
    edge.submit(1, now=10.0)
    edge.submit(2, now=10.02)
    assert edge.requests.due <= 10.05
    edge.requests.tend(10.049)
    assert edge.requests.replies() == []
    edge.requests.tend(10.06)
    (missed,) = edge.requests.replies()
    assert (missed.id, missed.failed) == (1, "no reply within 50 ms")
    assert missed.round_trip_ms == pytest.approx(60.0)
    assert len(missed.confidence) == len(missed.prediction) == 0
    edge.reply(edge.peers[0], 1, now=10.061)  # late: dropped
    edge.reply(edge.peers[0], 2, now=10.061)
    assert [reply.id for reply in edge.requests.replies()] == [2]
    assert (edge.requests.counts["dropped"], edge.requests.counts["missed_deadlines"]) == (1, 1)


def test_a_reply_that_is_read_too_late_has_failed():
    edge = Edge(deadline_ms=50.0)
    edge.submit(1)
    edge.reply(edge.peers[0], 1, now=0.06)  # it came in time, but the edge was busy with something else
    assert edge.requests.replies() == []
    edge.requests.tend(0.06)
    assert [reply.failed for reply in edge.requests.replies()] == ["no reply within 50 ms"]


@pytest.mark.parametrize(
    ("confidence", "prediction", "says"),
    [
        ((0.5, 0.5), (1, 1), "bad reply: 2 answers to 1 frames"),
        ((math.nan,), (1,), "bad reply: a confidence is not in [0, 1]"),
        ((1.5,), (1,), "bad reply: a confidence is not in [0, 1]"),
        ((0.5,), (-1,), "bad reply: a prediction is no class of the model"),
        ((0.5,), (3,), "bad reply: a prediction is no class of the model"),
    ],
)
def test_replies_that_make_no_sense_have_failed(confidence, prediction, says):
    edge = Edge()
    edge.submit(1)
    edge.reply(edge.peers[0], 1, confidence, prediction)
    (failed,) = edge.requests.replies()
    assert failed.failed == says
    assert len(failed.confidence) == 0
    assert edge.requests.counts["failed"] == 1


def test_a_worker_whose_replies_make_no_sense_is_left_alone_for_a_while():
    edge = Edge()
    for id in range(3):
        assert edge.requests.reachable(0.0)
        edge.submit(id)
        edge.reply(edge.peers[0], id, (math.nan,), (1,))
    assert not edge.requests.reachable(0.0)


def test_a_damaged_reply_has_failed_at_once():
    edge = Edge()
    edge.submit(1)
    header = pack(ReplyHeader(1, 1, 2.0), np.ones(1, dtype=np.float32), np.ones(1, dtype=np.int32))[0]
    edge.give(edge.peers[0], [header, b"short", b""])
    (failed,) = edge.requests.replies()
    assert failed.failed == "bad reply: float32 (1,) takes 4 bytes, got 5"


def test_a_callers_mistakes_are_errors():
    edge = Edge()
    edge.submit(1)
    with pytest.raises(ValueError, match="id 1 is awaited already"):
        edge.submit(1)
    with pytest.raises(OffloadError, match="float64"):
        edge.requests.submit(0.0, 2, 1, "blur", frames().astype(np.float64))
    assert edge.requests.outstanding == 1


def test_what_is_given_up_has_no_reply():
    edge = Edge()
    edge.submit(1)
    edge.requests.forget()
    edge.requests.tend(99.0)
    assert (edge.requests.outstanding, edge.requests.replies()) == (0, [])


# ---- greeting


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refusal(HELLO_ID, "message", "too old\n"), "the worker refused: too old"),
        (refusal(HELLO_ID, "model", "it has b"), "the worker refused: it has b; start both with the same --model"),
        ([msgspec.msgpack.encode({"kind": "welcome", "version": 99, "news": 1})], "the message speaks version 99 of"),
        ([b"HTTP/1.1 400 Bad Request"], "not a header of eex"),
        (pack(Welcome("model-b", 4, ("a",), ("b",))), "the worker has model model-b, the edge model-a; start both"),
    ],
)
def test_another_kind_of_worker_is_not_used_and_says_why(answer, says):
    edge = Edge(greet=False)
    (peer,) = edge.peers
    peer.opened()
    edge.give(peer, answer)
    assert peer.turned_away
    assert peer.problem.startswith(says)
    assert not edge.submit(1)
    edge.give(peer, pack(WELCOME))  # it is another one by now
    assert not peer.turned_away
    assert edge.submit(1)


# ---- refusals


@pytest.mark.parametrize(("kind", "alive"), [("message", True), ("failed", True), ("busy", True), ("draining", False)])
def test_a_refused_request_has_failed_with_the_workers_reason(kind, alive):
    edge = Edge()
    edge.submit(1)
    edge.give(edge.peers[0], refusal(1, kind, "because"))
    (failed,) = edge.requests.replies()
    assert (failed.failed, edge.requests.counts["refused"]) == ("because", 1)
    assert edge.requests.reachable(0.0) == alive


def test_a_worker_that_has_another_model_by_now_is_not_used():
    edge = Edge()
    edge.submit(1)
    edge.give(edge.peers[0], refusal(1, "model", "the worker has model model-b, the edge model-a"))
    assert edge.requests.replies()[0].failed == "the worker has model model-b, the edge model-a"
    assert not edge.requests.reachable(0.0)
    assert "the worker has model model-b" in edge.peers[0].state


def test_a_model_that_fails_three_times_rests_until_a_trial_succeeds():
    edge = Edge()
    for id in range(3):
        edge.submit(id)
        edge.give(edge.peers[0], refusal(id, "failed", "RuntimeError"))
    assert (edge.submit(3, now=0.1), edge.peers[0].state) == (False, "does not answer")
    assert edge.submit(3, now=0.3)
    assert not edge.submit(4, now=0.31)  # one trial at a time
    edge.reply(edge.peers[0], 3, now=0.32)
    assert edge.submit(4, now=0.33)


# ---- several workers


def test_the_worker_with_the_fewest_outstanding_is_next():
    edge = Edge(workers=2)
    for id in range(4):
        edge.submit(id)
    assert (edge.asked(0), edge.asked(1)) == ([0, 2], [1, 3])
    edge.reply(edge.peers[1], 1)
    edge.submit(4)
    assert edge.asked(1) == [1, 3, 4]
    edge.room[1] = False  # its socket is full: the other one takes it
    edge.submit(5)
    assert edge.asked(0) == [0, 2, 5]


@pytest.mark.parametrize("kind", ["busy", "draining", "model", "clients"])
def test_what_a_worker_does_not_take_goes_to_another_with_the_time_that_is_left(kind):
    edge = Edge(workers=2)
    edge.submit(1)
    edge.give(edge.peers[0], refusal(1, kind, "not now"), now=0.4)
    assert edge.asked(1) == [1]
    assert unpack(edge.sent[1][-1])[0].deadline_ms == pytest.approx(600.0)
    edge.reply(edge.peers[1], 1, now=0.5)
    (reply,) = edge.requests.replies()
    assert not reply.failed
    assert reply.round_trip_ms == pytest.approx(500.0)
    assert edge.requests.counts["sent_again"] == 1


@pytest.mark.parametrize("kind", ["clients", "model"])
def test_a_worker_that_refuses_one_request_may_answer_another(kind):
    edge = Edge()
    edge.submit(1)
    edge.submit(2)
    edge.give(edge.peers[0], refusal(1, kind, "not you"), now=0.1)
    edge.reply(edge.peers[0], 2, (0.5,), (2,), now=0.2)
    refused, answered = edge.requests.replies()
    assert (refused.id, refused.failed, answered.id, answered.failed) == (1, "not you", 2, "")


def test_what_a_lost_worker_had_goes_to_another_and_then_has_failed():
    edge = Edge(workers=2)
    edge.submit(1)
    edge.peers[0].closed()
    edge.requests.lost(0.1, edge.peers[0])
    assert edge.asked(1) == [1]
    edge.peers[1].closed()
    edge.requests.lost(0.2, edge.peers[1])
    (failed,) = edge.requests.replies()
    assert failed.failed == "the connection to the worker broke"
    assert edge.requests.counts["lost"] == 1


def test_what_no_worker_has_room_for_waits_and_is_sent_when_one_has():
    edge = Edge(workers=2, window=1)
    edge.submit(1)
    edge.submit(2)
    edge.peers[0].closed()
    edge.requests.lost(0.0, edge.peers[0])
    assert edge.requests.outstanding == 2
    edge.requests.tend(0.01)
    assert edge.asked(1) == [2]
    assert edge.requests.due <= 0.013  # soon again
    edge.reply(edge.peers[1], 2, now=0.02)
    edge.requests.tend(0.021)
    assert edge.asked(1) == [2, 1]


def test_a_request_that_its_deadline_does_not_allow_is_not_sent_again():
    edge = Edge(workers=2, deadline_ms=100.0)
    edge.peers[1].round_trip_ms = 50.0
    edge.submit(1)
    edge.peers[0].closed()
    edge.requests.lost(0.06, edge.peers[0])  # 40 ms are left
    assert edge.asked(1) == []


def test_a_late_request_is_sent_to_a_second_worker_and_the_first_reply_counts():
    edge = Edge(workers=2)
    edge.submit(0)
    edge.reply(edge.peers[0], 0, now=0.010)
    edge.submit(1, now=1.0)
    edge.requests.tend(1.025)
    assert edge.asked(1) == []
    edge.requests.tend(1.031)  # three usual round trips
    assert edge.asked(1) == [1]
    edge.reply(edge.peers[1], 1, now=1.040)
    edge.reply(edge.peers[0], 1, now=1.041)
    assert [reply.id for reply in edge.requests.replies()] == [0, 1]
    assert (edge.requests.counts["hedged"], edge.requests.counts["dropped"]) == (1, 1)
    assert all(peer.outstanding == 0 for peer in edge.peers)


def test_only_a_share_of_requests_is_hedged_and_the_edge_does_not_spin():
    edge = Edge(workers=2, window=64)
    edge.submit(0)
    edge.reply(edge.peers[0], 0, now=0.001)
    for id in range(1, 16):
        edge.submit(id, now=1.0)
    edge.requests.tend(1.1)
    assert edge.requests.counts["hedged"] == math.ceil(2 + 0.1 * 16)
    assert edge.requests.due > 1.1
    for id in range(16, 31):
        edge.submit(id, now=1.11)
    edge.requests.tend(edge.requests.due)
    assert edge.requests.counts["hedged"] == math.ceil(2 + 0.1 * 31)


def test_the_report():
    edge = Edge(workers=2)
    edge.submit(1)
    edge.reply(edge.peers[0], 1, now=0.0125)
    report = edge.requests.report()
    known = {"state": "up", "breaker": "closed", "connections_lost": 0, "silences": 0}
    assert report["workers"] == [
        {"endpoint": "tcp://w0:1", "round_trip_ms": 12.5, "requests": 1, "replies": 1, **known},
        {"endpoint": "tcp://w1:1", "round_trip_ms": None, "requests": 0, "replies": 0, **known},
    ]
    rest = ("missed_deadlines", "lost", "failed", "sent_again", "hedged", "refused", "dropped")
    assert {k: v for k, v in report.items() if k != "workers"} == {"requests": 1, "replies": 1} | dict.fromkeys(rest, 0)


# ---- outages, by a clock that is moved (`tests/stream/run/test_faults.py` has one of each kind in real time)


def test_a_worker_is_killed_under_load_and_returns():
    world = World()
    world.stream(1.0)
    world.workers[0].kill()
    assert not world.reachable  # at once: the socket notices
    assert world.stream(5.0) == 0
    world.workers[0].start()
    before = world.answered()
    assert world.run_until(lambda: world.submit() and world.answered() > before) < 0.1
    report = world.end()
    assert report["missed_deadlines"] == 0
    assert (report["workers"][0]["connections_lost"], report["workers"][0]["state"]) == (1, "up")


@pytest.mark.parametrize("seconds", [0.2, 10.0, 600.0])
@pytest.mark.parametrize("how", ["the network is cut", "the worker is stopped"])
def test_a_silence_is_noticed_and_so_is_its_end(how, seconds):
    world = World()
    world.stream(1.0)
    worker = world.workers[0]
    if how == "the network is cut":
        world.cut = True
    else:
        worker.stopped = True
    sent = world.stream(min(seconds, 2.0))
    world.run(max(0.0, seconds - 2.0))
    if seconds < 0.3:  # shorter than anybody is patient
        assert world.reachable
        assert 15 <= sent <= 16
    else:
        assert not world.reachable
        assert 15 <= sent <= 16  # a window, one of which may have been under way
    before = world.answered()
    world.restore()
    worker.go_on()
    assert world.run_until(lambda: world.submit() and world.answered() > before) < 0.3
    report = world.end()
    assert report["workers"][0]["silences"] == (seconds > 0.3)
    assert report["missed_deadlines"] == (16 if seconds > 1 else 0)


def test_a_model_that_hangs():
    world = World(deadline_ms=300.0)
    world.stream(1.0)
    worker = world.workers[0]
    worker.hangs = True
    noticed = world.run_until(lambda: not (world.submit() or world.reachable))
    assert noticed < 0.45  # the deadline, and the next ping
    assert world.stream(60.0) == 0
    before = world.answered()
    worker.go_on()
    assert world.run_until(lambda: world.submit() and world.answered() > before) < 0.3
    assert world.end()["missed_deadlines"] > 0


def test_a_worker_that_takes_a_model_version_of_its_own():
    world = World()
    world.stream(0.5)
    (worker,) = world.workers
    worker.kill()
    worker.start(msgspec.structs.replace(WELCOME, model="model-b"))
    world.run(0.1)
    assert "the worker has model model-b, the edge model-a" in worker.peer.state
    assert world.stream(2.0) == 0
    worker.kill()
    worker.start(WELCOME)
    before = world.answered()
    world.run_until(lambda: world.submit() and world.answered() > before)
    world.end()


def test_one_of_two_workers_dies_and_comes_back_and_no_request_fails():
    world = World(compute_s=(0.002, 0.002))
    world.stream(0.5)
    first, _ = world.workers
    for _ in range(8):
        world.submit()
    first.kill()
    world.stream(2.0)
    first.start()
    before = first.peer.counts["replies"]
    world.stream(0.5)
    assert first.peer.counts["replies"] > before
    report = world.end()
    assert not any(reply.failed for reply in world.replies)
    assert 4 <= report["sent_again"] <= 5
    assert [w["state"] for w in report["workers"]] == ["up", "up"]


def test_a_slow_worker_is_helped_by_another():
    world = World(compute_s=(0.5, 0.001), deadline_ms=10_000.0)
    world.stream(20.0)
    report = world.end()
    assert not any(reply.failed for reply in world.replies)
    assert 0 < report["hedged"] <= 2 + 0.1 * report["requests"] + 1


def test_a_worker_is_drained_and_another_takes_over():
    world = World(compute_s=(0.010, 0.001), deadline_ms=10_000.0)
    world.stream(0.5)
    world.workers[0].service.drain()
    world.stream(0.5)
    assert world.workers[0].peer.state == "is about to stop"
    world.run_until(lambda: not world.workers[0].service.busy)
    world.workers[0].kill()
    world.stream(0.5)
    world.end()
    assert not any(reply.failed for reply in world.replies)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 3),
    lost=st.floats(0, 0.3),
    doubled=st.floats(0, 0.3),
    late=st.floats(0, 0.3),
)
def test_replies_are_lost_doubled_reordered_and_late(seed, workers, lost, doubled, late):
    rng = np.random.default_rng(seed)
    world = World(compute_s=(0.002,) * workers, deadline_ms=200.0)

    def fate(frames):
        if isinstance(unpack(frames)[0], Pong):
            return (0.0,)
        how = rng.random()
        if how < lost:
            return ()
        delay = rng.uniform(0, 0.5) if rng.random() < late else rng.uniform(0, 0.005)
        return (delay, rng.uniform(0, 0.4)) if how < lost + doubled else (delay,)

    for worker in world.workers:
        worker.fate = fate
    world.stream(1.5)
    event = rng.integers(3)
    if event == 0:
        world.workers[0].kill()
        world.stream(0.5)
        world.workers[0].start()
    elif event == 1:
        world.cut = True
        world.stream(1.0)
        world.restore()
    world.stream(1.0)
    world.end()  # each request had exactly one reply, and nothing is believed to be under way
    assert world.answered() > 0
