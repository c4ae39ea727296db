"""The worker's front: one socket for all clients, in front of one or more replicas of the models.

`Front` owns what the outside world is made of, the sockets and the clock, in the one thread that calls `serve`. What is
sent and when is decided by `eex.stream.worker.service.Service`; models run in the threads of a
`eex.stream.worker.pool.ReplicaPool`.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import zmq

from eex.stream.wire.keys import Known
from eex.stream.wire.protocol import Buffer, Welcome
from eex.stream.wire.security import answer_zap
from eex.stream.wire.sockets import receive, send
from eex.stream.worker.clients import Limits
from eex.stream.worker.pool import Replica, ReplicaPool
from eex.stream.worker.service import Service
from eex.stream.worker.stats import Stats

POLL_MS = 100  # how late a stop may be noticed
DRAIN_POLL_MS = 10
FLUSH_MS = 2  # between two attempts to send what a client has no room for
READ_AT_ONCE = 64  # messages that are read before batches are handed out
MOST_PARTS = 16  # of a message; the protocol's have three
LINES_A_SECOND = 20


class Front:
    """Answers clients on a bound ROUTER socket, which the caller opens and closes.

    Parameters
    ----------
    welcomes
        What each model is; the first is given to a client that asks for any.
    replicas
        Where batches run.
    shapes
        What each stage takes, (C, H, W) or (C,), by model; where unknown, the replica has to check.
    stats
        To count in, where the replicas count too.
    zap, known
        The socket on which libzmq asks about clients, and who is known.
    log
        Takes a line for each refusal and each lost replica, at most `LINES_A_SECOND`.

    Raises
    ------
    OffloadError
        If a welcome is beyond the protocol's limits.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        welcomes: Sequence[Welcome],
        replicas: Sequence[Replica],
        *,
        shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
        limits: Limits | None = None,
        stats: Stats | None = None,
        zap: zmq.Socket[bytes] | None = None,
        known: Known = lambda key: "",
        log: Callable[[str], None] = print,
    ) -> None:
        self.socket, self.stats, self.limits = socket, stats or Stats(), limits or Limits()
        self._zap, self._known = zap, known
        self._log = Throttled(log)
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        self.pool = ReplicaPool(replicas, self._wake, self._log)
        self.service = Service(
            welcomes,
            self._send,
            limits=self.limits,
            shapes=shapes or {},
            stats=self.stats,
            busy_ms=self.pool.busy_ms,
            log=self._log,
        )
        self._poller = zmq.Poller()
        for source in (socket, self._woken, *([zap] if zap is not None else [])):
            self._poller.register(source, zmq.POLLIN)

    @property
    def busy_ms(self) -> float:
        """For how long the longest call of a model has been running."""
        return self.pool.busy_ms(time.monotonic())

    def serve(self, stop: threading.Event) -> None:
        """Answer until `stop` is set, then what has been accepted by then."""
        self.pool.start()
        try:
            while not stop.is_set():
                self._turn(POLL_MS)
            for _ in range(READ_AT_ONCE):
                if not self._read():
                    break
            self.service.drain()
            end = time.monotonic() + self.limits.drain_s
            while time.monotonic() < end and self.service.busy:
                self._turn(DRAIN_POLL_MS)
        finally:
            self.service.drain()
            if self.pool.close():
                os.close(self._woken)
                os.close(self._waker)

    def _turn(self, wait_ms: float) -> None:
        """Wait for something to do, and do it."""
        if self.pool.free:
            wait_ms = min(wait_ms, self.service.waiting.due_in_ms(time.monotonic()))
        if self.service.clients.owed:
            wait_ms = min(wait_ms, FLUSH_MS)
        ready = dict(self._poller.poll(math.ceil(wait_ms)))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._zap is not None and self._zap in ready and (line := answer_zap(self._zap, self._known)):
            self.stats.strangers += 1
            self._log(line)
        if self.socket in ready:
            self._read()
        self._collect()
        self._hand_out()
        self.service.clients.flush(time.monotonic())

    def _read(self) -> int:
        """Take in what has come; how many messages."""
        for k in range(READ_AT_ONCE):
            message = receive(self.socket, MOST_PARTS)
            if message is None:
                return k
            key = "" if self._zap is None else str(message[-1].get("User-Id"))  # the name that `answer_zap` gave
            frames: list[Buffer] = [frame.buffer for frame in message[1:]]
            self.service.take_in(time.monotonic(), message[0].bytes, frames, key)
        return READ_AT_ONCE

    def _hand_out(self) -> None:
        """Give batches to the replicas that are free."""
        while self.pool.free and (batch := self.service.next_batch(time.monotonic())):
            if self.pool.run(batch):
                self._collect()
                return  # back to the socket first

    def _collect(self) -> None:
        """Send what the replicas have finished."""
        now = time.monotonic()
        for finished in self.pool.collect(now):
            self.service.finish(now, finished)

    def _send(self, id: bytes, message: list[Buffer]) -> bool:
        """See `eex.stream.worker.clients.Send`."""
        try:
            send(self.socket, [id, *message])
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from None
        return True

    def _wake(self) -> None:
        """Called by other threads: there is something to collect."""
        os.write(self._waker, b"\0")


class Throttled:
    """A log that takes a limited number of lines per second, so that strangers cannot fill a disk with it."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._times: deque[float] = deque(maxlen=LINES_A_SECOND)

    def __call__(self, line: str) -> None:
        """Log a line, unless there were too many within a second."""
        now = self._clock()
        if len(self._times) < LINES_A_SECOND or now - self._times[0] > 1:
            self._times.append(now)
            self._log(line)
