"""An edge and its workers without sockets, on a network that does what a test says, by a clock that it moves."""

import heapq
import itertools
import math

import numpy as np

from eex.stream.wire.peer import Peer
from eex.stream.wire.protocol import Welcome
from eex.stream.wire.requests import Requests
from eex.stream.worker.clients import Limits
from eex.stream.worker.pool import Finished, LocalReplica, answer
from eex.stream.worker.service import Service
from eex.stream.worker.stats import Stats

WELCOME = Welcome("model-a", 4, ("pristine", "blur"), ("cat", "dog", "ship"), window=32)
TURN_S = 1e-4  # what it takes an edge to do what is due


def tail(stage, expert, features):
    """Says what it was asked, so that a test can see it."""
    return np.full(len(features), 0.5 if expert == "blur" else 0.25), np.full(len(features), stage % 3)


class Worker:
    """A worker with one replica, which runs for `compute_s`.

    Attributes
    ----------
    up, stopped, hangs
        Whether the connection is there; whether the process stands still; whether the model never returns.
    fate
        Of each message to the edge: the delays, in seconds beyond the network's, after which a copy of it arrives.
    """

    def __init__(self, world, k, compute_s, welcome, limits):
        self.world, self.compute_s, self.welcome, self.limits = world, compute_s, welcome, limits
        self.peer = Peer(f"tcp://worker-{k}:5555", self._to_worker)
        self.up, self.fate = False, lambda frames: (0.0,)
        self.asked = []

    def start(self, welcome=None):
        """A new process, to which the edge connects."""
        self.welcome = welcome or self.welcome
        self.stopped = self.hangs = False
        self.held, self.started = [], None
        self.stats = Stats()
        options = {"limits": self.limits, "shapes": {}, "stats": self.stats}
        self.service = Service([self.welcome], self._to_edge, busy_ms=self.busy_ms, log=lambda line: None, **options)
        self.replica = LocalReplica({self.welcome.model: self._tail})
        self.up = True
        self.peer.opened()
        self.world.requests.due = -math.inf

    def kill(self):
        """The process ends, and the edge's socket notices."""
        self.up, self.service = False, None
        if self.peer.closed():
            self.world.requests.lost(self.world.now, self.peer)

    def go_on(self):
        """A stopped process, or a model that hung, goes on."""
        self.stopped = False
        held, self.held = self.held, []
        for frames in held:
            self._take_in(frames, self.service)
        if self.hangs:
            self.hangs = False
            self.world.after(0.0, self._finish, self.batch, self.service)

    def busy_ms(self, now):
        return 0.0 if self.started is None else 1000 * (now - self.started)

    def _tail(self, stage, expert, features):
        self.asked.append((stage, expert, len(features)))
        return tail(stage, expert, features)

    def _to_worker(self, frames):
        if self.up:
            self.world.after(self.world.delay_s, self._take_in, frames, self.service)
        return self.up

    def _take_in(self, frames, service):
        if service is not self.service or service is None:
            return  # of a process that is gone
        if self.stopped:
            self.held.append(frames)
            return
        service.take_in(self.world.now, b"edge", frames)
        self._run()

    def _run(self):
        if self.started is None and (batch := self.service.next_batch(self.world.now)):
            self.started, self.batch = self.world.now, batch
            if not self.hangs:
                self.world.after(self.compute_s, self._finish, batch, self.service)

    def _finish(self, batch, service):
        if service is not self.service or service is None:
            return
        if self.stopped:
            self.world.after(0.01, self._finish, batch, service)
            return
        self.started = None
        answers, _ = answer(self.replica, batch)
        service.finish(self.world.now, Finished(batch, answers, self.compute_s))
        self._run()

    def _to_edge(self, id, frames):
        frames = [bytes(frame) for frame in frames]
        for delay_s in self.fate(frames):
            self.world.after(self.world.delay_s + delay_s, self._arrive, frames, self.service)
        return True

    def _arrive(self, frames, service):
        if service is self.service and service is not None:
            self.world.requests.take_in(self.world.now, self.peer, frames)


class World:
    """`requests` of an edge to `workers`, connected and greeted, `delay_s` away each.

    Attributes
    ----------
    now
        The time, in seconds; it passes in `run` and `run_until` only.
    replies
        All so far.
    cut
        While set, nothing arrives on either side, as where packets are lost; later it all does.
    """

    def __init__(self, compute_s=(0.001,), delay_s=0.005, deadline_ms=1000.0, window=16, welcome=WELCOME, limits=None):
        self.now, self.delay_s, self.cut, self.replies = 100.0, delay_s, False, []
        self._events, self._order, self._held, self._ids = [], itertools.count(), [], itertools.count()
        self.workers = [Worker(self, k, s, welcome, limits or Limits()) for k, s in enumerate(compute_s)]
        self.requests = Requests([w.peer for w in self.workers], "model-a", deadline_ms, window)
        for worker in self.workers:
            worker.start()
        self.run(3 * delay_s)

    def after(self, delay_s, what, *arguments):
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), what, arguments))

    def restore(self):
        """End a cut: all that waited arrives."""
        self.cut = False
        held, self._held = self._held, []
        for what, arguments in held:
            what(*arguments)

    def run(self, seconds):
        """Let time pass."""
        end = self.now + seconds
        while True:
            due = max(self.requests.due, self.now) + TURN_S
            event = self._events[0][0] if self._events else math.inf
            if min(due, event) > end:
                self.now = end
                return
            self.now = max(self.now, min(due, event))
            if event <= due:
                _, _, what, arguments = heapq.heappop(self._events)
                travels = what.__name__ in ("_take_in", "_arrive")
                if self.cut and travels:
                    self._held.append((what, arguments))
                else:
                    what(*arguments)
            else:
                self.requests.tend(self.now)
            self.replies += self.requests.replies()

    def run_until(self, what, limit_s=60.0, step_s=0.001):
        """Let time pass until something is so; how many seconds did."""
        start = self.now
        while not what():
            assert self.now - start < limit_s
            self.run(step_s)
        return self.now - start

    def submit(self, frames=1, stage=1, expert="blur", id=None):
        """Submit a request with the next id; whether it was sent."""
        id = next(self._ids) if id is None else id
        return self.requests.submit(self.now, id, stage, expert, np.zeros((frames, 2, 2), dtype=np.float32))

    def stream(self, seconds, every_s=0.01):
        """Submit a request every so often, as far as there is a worker with room; how many were sent."""
        end, sent = self.now + seconds, 0
        while self.now < end:
            sent += self.submit()
            self.run(every_s)
        return sent

    @property
    def reachable(self):
        return self.requests.reachable(self.now)

    def answered(self):
        """Replies that are no failures."""
        return sum(not reply.failed for reply in self.replies)

    def end(self):
        """Let everything settle, and see that each request had one reply; what the edge reports."""
        self.run(self.requests.deadline_ms / 1000 + 1.0)
        report = self.requests.report()
        assert self.requests.outstanding == 0
        assert all(worker.peer.outstanding == 0 for worker in self.workers)
        assert len({reply.id for reply in self.replies}) == len(self.replies) == report["requests"]
        assert report["requests"] == report["replies"] + report["missed_deadlines"] + report["lost"] + report["failed"]
        return report
