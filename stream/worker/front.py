"""The worker's front: one socket for all clients, in front of one or more replicas of the models.

`Front` owns what the outside world is made of, the sockets and the clock, in the one thread that calls `serve`. What is
sent and when is decided by `eex.stream.worker.service.Service`; models run in the threads of a
`eex.stream.worker.pool.ReplicaPool`.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import zmq

from eex.stream.wire.keys import Known
from eex.stream.wire.protocol import Buffer, Welcome
from eex.stream.wire.security import Doorkeeper, still_known
from eex.stream.wire.sockets import receive, send
from eex.stream.worker.clients import Limits
from eex.stream.worker.connections import Connections
from eex.stream.worker.fleets import Fleets
from eex.stream.worker.log import Log, Throttled
from eex.stream.worker.pool import Replica, ReplicaPool
from eex.stream.worker.service import Service
from eex.stream.worker.stats import Stats

POLL_MS = 100  # how late a stop may be noticed
DRAIN_POLL_MS = 10
FLUSH_MS = 2  # between two attempts to send what a client has no room for
READ_AT_ONCE = 64  # messages that are read before batches are handed out
MOST_PARTS = 16  # of a message; the protocol's have three
SWEEP_S = 0.5  # how late it is noticed that a client's key is gone


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
    connections
        Of the socket; None if nobody bounds them.
    fleets
        What edges share; by default, new ones that are kept in memory.
    log
        Receives a line for each refusal and each lost replica, within the limits of `eex.stream.worker.log.Throttled`.

    Attributes
    ----------
    turned
        When `serve` last looked at its sockets.

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
        connections: Connections | None = None,
        fleets: Fleets | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.socket, self.stats, self.limits = socket, stats or Stats(), limits or Limits()
        self._door = None if zap is None else Doorkeeper(zap, known, self.limits.handshake_s)
        self._known, self._connections = known, connections
        self._swept = self.turned = time.monotonic()
        self._written, self._log = log, Throttled(log)
        self.stats.log = self._log
        self._unwritten_fleets = ""
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
            fleets=fleets,
        )
        self._poller = zmq.Poller()
        for source in (socket, self._woken, *([zap] if zap is not None else [])):
            self._poller.register(source, zmq.POLLIN)

    @property
    def busy_ms(self) -> float:
        """For how long the longest call of a model has been running."""
        return self.pool.busy_ms(time.monotonic())

    def unwritten(self) -> int:
        """Lines that the log could not write, where it counts them."""
        return self._written.dropped if isinstance(self._written, Log) else 0

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
            self.service.fleets.save()
            self._log_fleets()
            if self.pool.close():
                os.close(self._woken)
                os.close(self._waker)

    def _turn(self, wait_ms: float) -> None:
        """Wait for something to do, and do it."""
        if self.pool.free:
            wait_ms = min(wait_ms, self.service.waiting.due_in_ms(time.monotonic()))
        if self.service.clients.owed:
            wait_ms = min(wait_ms, FLUSH_MS)
        if self._door is not None:
            wait_ms = min(wait_ms, self._door.due_in_ms(time.monotonic()))
        ready = dict(self._poller.poll(math.ceil(wait_ms)))
        if self._woken in ready:
            os.read(self._woken, 4096)
        self.turned = now = time.monotonic()
        try:
            self._guard(now)
        except Exception as error:  # whatever strangers do, the known are served
            self._log(f"a connection could not be handled: {type(error).__name__}: {error}")
        if self.socket in ready:
            self._read()
        self._collect()
        self._hand_out()
        self.service.fleets.save_when_due()
        self._log_fleets()
        self.service.clients.flush(time.monotonic())

    def _log_fleets(self) -> None:
        """Say once why the file of what edges share cannot be written."""
        problem = self.service.fleets.problem
        if problem and problem != self._unwritten_fleets:
            self._log(problem)
        self._unwritten_fleets = problem

    def _guard(self, now: float) -> None:
        """Let clients in, and end connections that may not stay."""
        if self._connections is not None:
            for id in self._connections.update(now):
                self.service.clients.gone(id)
            self._connections.check(now, lambda: self._read() < READ_AT_ONCE)
        if self._door is None:
            return
        for line in self._door.answer(now):
            self.stats.strangers += 1
            self._log(line)
        if now - self._swept > SWEEP_S:
            self._swept = now
            for key in self.service.clients.served_keys:
                if not still_known(self._known, key):
                    self.service.clients.revoke(key)
                    self._log(f"the key '{key.partition(' ')[2]}' is not known any more; its connections are ended")
            if self._connections is not None:
                self._connections.end_strangers(lambda key: still_known(self._known, key))

    def _read(self) -> int:
        """Take in what has come; how many messages."""
        for k in range(READ_AT_ONCE):
            message = receive(self.socket, MOST_PARTS)
            if message is None:
                return k
            now = time.monotonic()
            key = "" if self._door is None else str(message[-1].get("User-Id"))  # see `client_id`
            if self._connections is not None:
                self._connections.took(message[-1], message[0].bytes, key, now)
            new = self.service.clients.get(message[0].bytes) is None
            if new and self._door is not None and not still_known(self._known, key):
                continue
            frames: list[Buffer] = [frame.buffer for frame in message[1:]]
            self.service.take_in(now, message[0].bytes, frames, key)
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
