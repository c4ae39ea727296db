"""Replicas at work: threads, but no sockets. One that is slow, wrong or gone does not spoil what others have."""

import threading
import time

import numpy as np
import pytest

from eex.policies.core.errors import OffloadError
from eex.stream.wire.protocol import Request, unpack
from eex.stream.worker import pool as pool_module
from eex.stream.worker.batches import Queued, RequestBatch
from eex.stream.worker.clients import Client
from eex.stream.worker.pool import LocalReplica, ReplicaLostError, ReplicaPool, answer

pytestmark = pytest.mark.timeout(60)

PATIENCE_S = 20.0


def batch_of(*values, started=0.0):
    """A batch of requests with one frame each."""
    requests = []
    for id, value in enumerate(values):
        features = np.full((1, 4), value, dtype=np.float32)
        requests.append(Queued(Client(b"a", 0.0), Request(id, "m", 1, "blur", "float32", (1, 4)), [features], 0.0))
    return RequestBatch(requests, started)


def local(tail):
    return LocalReplica({"m": tail})


def fine(stage, expert, x):
    return np.full(len(x), 0.5), x[:, 0].astype(int)


def heads(answers):
    return [unpack([bytes(frame) for frame in a.message])[0] for a in answers]


class Pool(ReplicaPool):
    """A pool that is started, whose results a test can wait for; ends with the `with` block."""

    def __init__(self, *replicas):
        self.woken, self.lines = threading.Event(), []
        super().__init__(replicas, self.woken.set, self.lines.append)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()

    def finished(self, count=1, now=0.0):
        found, end = [], time.monotonic() + PATIENCE_S
        while len(found) < count and time.monotonic() < end:
            self.woken.wait(0.05)
            self.woken.clear()
            found += self.collect(now)
        assert len(found) == count
        return found


# ---- one batch


def test_each_request_gets_its_rows():
    answers, seconds = answer(local(fine), batch_of(3, 1, 2))
    assert [unpack([bytes(f) for f in a.message])[1][1].tolist() for a in answers] == [[3], [1], [2]]
    assert 0 <= seconds < PATIENCE_S
    assert [head.compute_ms for head in heads(answers)] == [pytest.approx(1000 * seconds)] * 3


def test_one_bad_request_does_not_spoil_its_batch():
    def picky(stage, expert, x):
        if x.max() > 1:
            raise RuntimeError("too\nlarge")
        return fine(stage, expert, x)

    answers, _ = answer(local(picky), batch_of(0, 2, 1))
    assert [a.kind for a in answers] == [None, "failed", None]
    assert answers[1].text == heads(answers)[1].error == "RuntimeError: too large"
    assert [head.id for head in heads(answers)] == [0, 1, 2]


def test_features_that_do_not_fit_are_the_clients_fault():
    def strict(stage, expert, x):
        raise OffloadError("stage 1 takes something else")

    (refused,) = answer(local(strict), batch_of(0))[0]
    assert (refused.kind, refused.text) == ("message", "stage 1 takes something else")


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda *_: (np.ones(2), np.ones(2)),
        lambda *_: (np.ones((1, 1)), np.ones(1)),
        lambda *_: None,
        lambda *_: ("x", "y"),
    ],
)
def test_a_tail_that_answers_nonsense_is_a_failure(nonsense):
    (refused,) = answer(local(nonsense), batch_of(0))[0]
    assert refused.kind == "failed"


# ---- the pool


class Gate:
    """A tail that waits until it may go on."""

    def __init__(self):
        self.entered, self.open, self.threads = threading.Event(), threading.Event(), []

    def __call__(self, stage, expert, x):
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return fine(stage, expert, x)


def test_a_batch_runs_while_others_wait_and_how_long_is_known():
    gate = Gate()
    with Pool(local(gate)) as pool:
        assert (pool.free, pool.busy_ms(9.0)) == (True, 0.0)
        batch = batch_of(1, started=2.0)
        assert not pool.run(batch)
        assert gate.entered.wait(PATIENCE_S)
        assert (pool.free, pool.busy_ms(2.5), pool.collect(2.5)) == (False, 500.0, [])
        gate.open.set()
        (finished,) = pool.finished()
        assert (finished.batch, pool.free, pool.busy_ms(9.0)) == (batch, True, 0.0)


def test_a_pool_is_busy_while_no_replica_is_free():
    slow, gate = Gate(), Gate()
    with Pool(local(slow), local(gate)) as pool:
        pool.run(batch_of(1, started=2.0))
        assert pool.busy_ms(60.0) == 0.0  # one hangs, the other could take a batch
        pool.run(batch_of(2, started=50.0))
        assert pool.busy_ms(60.0) == 10_000.0
        slow.open.set()
        gate.open.set()


def test_a_quick_model_runs_where_it_is_called_once_that_is_known(monkeypatch):
    gate = Gate()
    gate.open.set()
    monkeypatch.setattr(pool_module, "INLINE_S", 0.9)
    with Pool(local(gate)) as pool:
        assert not pool.run(batch_of(1))
        pool.finished()
        assert pool.run(batch_of(1))
        assert len(pool.collect(0.0)) == 1
    assert gate.threads[0] is not threading.current_thread()
    assert gate.threads[1] is threading.current_thread()


def test_several_replicas_run_at_a_time():
    gates = [Gate(), Gate()]
    with Pool(*map(local, gates)) as pool:
        pool.run(batch_of(1))
        assert pool.free
        pool.run(batch_of(2))
        assert all(gate.entered.wait(PATIENCE_S) for gate in gates)
        assert not pool.free
        for gate in gates:
            gate.open.set()
        pool.finished(2)


class Lossy:
    """A replica that goes away `lost` times, and needs `tries` to come back."""

    def __init__(self, lost, tries=1):
        self.lost, self.tries, self.closed = lost, tries, False

    def run(self, model, stage, expert, x):
        if self.lost:
            self.lost -= 1
            raise ReplicaLostError("a process has\nended")
        return fine(stage, expert, x)

    def recover(self):
        self.tries -= 1
        if self.tries > 0:
            raise OSError("no memory")

    def close(self):
        self.closed = True


def test_what_a_lost_replica_had_is_given_to_another_and_it_comes_back(monkeypatch):
    monkeypatch.setattr(pool_module, "RECOVER_EVERY_S", 0.01)
    replica = Lossy(lost=1, tries=3)
    with Pool(replica) as pool:
        pool.run(batch_of(4, started=1.0))
        (finished,) = pool.finished(now=7.0)
        assert (finished.batch.lost, finished.batch.started) == (1, 7.0)
        assert [a.kind for a in finished.answers] == [None]
        assert (replica.tries, pool.ready) == (0, 1)
        assert pool.lines == ["a replica is gone: a process has ended"] + 2 * [
            "a replica does not come back: no memory"
        ]
    assert replica.closed


def test_what_two_replicas_lost_is_refused():
    with Pool(Lossy(lost=2)) as pool:
        pool.run(batch_of(1, 2))
        (finished,) = pool.finished()
        assert [(a.kind, a.text) for a in finished.answers] == [("failed", "the replicas that had this are gone")] * 2
        assert finished.seconds is None
        pool.run(batch_of(3))
        assert [a.kind for a in pool.finished()[0].answers] == [None]


def test_a_model_that_hangs_does_not_hold_the_end(monkeypatch):
    monkeypatch.setattr(pool_module, "JOIN_S", 0.01)
    gate = Gate()
    pool = Pool(local(gate))
    pool.start()
    pool.run(batch_of(1))
    assert gate.entered.wait(PATIENCE_S)
    assert not pool.close()
    gate.open.set()
    pool._threads[0].join(PATIENCE_S)
    assert not pool._threads[0].is_alive()
