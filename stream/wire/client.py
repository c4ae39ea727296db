"""The edge's end of the ZeroMQ path: one or more workers, chosen by who has least to do; broken ones rest."""

import errno
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.breaker import Breaker
from eex.stream.wire.encoding import Encoded, as_they_are
from eex.stream.wire.keys import EdgeKeys
from eex.stream.wire.offload import Reply
from eex.stream.wire.protocol import (
    MAX_BYTES,
    MAX_FRAMES,
    Buffer,
    Hello,
    Ping,
    Pong,
    ReplyHeader,
    Request,
    Welcome,
    one_line,
    pack,
    readable_id,
    unpack,
)
from eex.stream.wire.security import (
    HANDSHAKE_EVENTS,
    HANDSHAKE_MS,
    check_plain,
    fatal,
    read_event,
    secure_edge,
    why_handshake_failed,
)
from eex.stream.wire.sockets import receive, send

MOST_PARTS = 8  # of a message; the protocol's have three

QUEUE = 8
"""Most messages that wait in a socket, in each direction."""

BEAT_S = 0.1
SILENT_S = 0.35
"""A worker that leaves a ping unanswered for so long is left alone; longer where pings usually take long."""

HELLO_AGAIN_S = 0.5
GIVE_UP_S = 1.2
"""Connections that break in the handshake for so long do so for a reason; one alone may be a worker that just ended."""

REOPEN_S = 0.5
"""A worker that turned us away is asked again after so long."""

HEDGE_AFTER = 3.0
"""A request is sent to a second worker after so many usual round trips of the quickest …"""
HEDGE_LEAST_S = 0.02
HEDGE_SHARE = 0.1
"""… but not more than this share of all requests, or overload would feed itself."""

LINK_WEIGHT = 0.2
"""Of the newest round trip in an estimate."""

HELLO_ID = (1 << 63) - 1
"""So that a hello's refusal is nobody's reply."""


@dataclass
class _Pending:
    """A request that is awaited."""

    request: Request
    arrays: tuple[NDArray[Any], ...]
    sent: float
    hedge_at: float
    links: list["_Link"]  # that may still answer
    asked: list["_Link"]  # ever


class _Link:
    """One worker: its socket, and what is known of it.

    Attributes
    ----------
    welcome
        What it said it is; None until it has, and after the connection broke.
    problem
        Why it cannot be used, where that is known; `turned_away` where waiting does not help.
    outstanding
        Requests that it may still answer.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, keys: EdgeKeys | None) -> None:
        self.context, self.endpoint, self.keys = context, endpoint, keys
        self.welcome: Welcome | None = None
        self.problem, self.turned_away = "", False
        self.connected = self.silent = self.hangs = self.draining = False
        self.breaker = Breaker()
        self.outstanding = 0
        self.round_trip_ms = self.ping_ms = math.nan
        self.counts: Counter[str] = Counter()
        self._refused_since = math.inf
        self._hello_at = self._ping_at = 0.0
        self._pings: dict[int, float] = {}  # unanswered, oldest first
        self._ping_id = 0
        self._reopen_at = self._silent_at = math.inf
        self.open()

    def open(self) -> None:
        """Make the socket and connect it, in the background."""
        self._reopen_at = math.inf
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue for a live connection only: what waits for a dead one would come too late
            zmq.SNDHWM: QUEUE,
            zmq.RCVHWM: QUEUE,
            zmq.MAXMSGSIZE: 4 * MAX_FRAMES,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.CONNECT_TIMEOUT: 1000,
            zmq.HEARTBEAT_IVL: 1000,  # ms; notices a link that is cut without a word
            zmq.HEARTBEAT_TIMEOUT: 3000,
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 400,
            zmq.IPV6: int("[" in self.endpoint),
        }.items():
            self.socket.setsockopt(option, value)
        if self.keys is not None:
            secure_edge(self.socket, self.keys)
        self.monitor = self.socket.get_monitor_socket(HANDSHAKE_EVENTS)
        self.monitor.linger = 0
        try:
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise OffloadError(
                f"{self.endpoint}: not a worker's endpoint, expected tcp://host:port ({error})"
            ) from None

    def close(self) -> None:
        """Let go of the socket."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close(linger=0)

    def alive(self, now: float) -> bool:
        """Whether it can be sent something."""
        well = self.welcome is not None and not (self.silent or self.hangs or self.draining)
        return well and self.breaker.allows(now)

    @property
    def state(self) -> str:
        """What is to be said of it in a summary."""
        if self.welcome is None:
            return self.problem or "not connected"
        if self.draining:
            return "is about to stop"
        return "does not answer" if self.silent or self.hangs or not self.breaker.closed else "up"

    def send(self, frames: list[Buffer]) -> bool:
        """Hand a message to the socket, unless its queue is full or there is no connection."""
        try:
            send(self.socket, frames)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[Buffer] | None:
        """The next message; None if there is none."""
        message = receive(self.socket, MOST_PARTS)
        return None if message is None else [frame.bytes for frame in message]

    def read_monitor(self, now: float) -> bool:
        """Take in what happened to the connection; whether it broke."""
        broke = False
        while self.monitor.poll(0):
            event, value = read_event(self.monitor.recv_multipart())
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected, self._refused_since = True, math.inf
                self._hello_at = 0.0
            elif event == zmq.EVENT_DISCONNECTED:
                broke |= self.connected
                self.counts["connections_lost"] += self.connected
                self._forget()
            else:
                self._refused_since = min(self._refused_since, now)
                self.problem = why_handshake_failed(event, value, self.keys)
                hangs = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EAGAIN
                self.turned_away = fatal(event) or (now - self._refused_since > GIVE_UP_S and not hangs)
                if fatal(event):  # libzmq does not try again
                    self._reopen_at = now + REOPEN_S
        return broke

    def _forget(self) -> None:
        """The connection is gone, and with it all that was said over it."""
        self.connected = self.silent = self.hangs = self.draining = False
        self.welcome = None
        self._pings.clear()

    def greeted(self, welcome: Welcome) -> None:
        """The worker said what it is, and it is the right one."""
        self.welcome, self.problem, self.turned_away = welcome, "", False
        self.draining = self.hangs = False
        self.breaker = Breaker()

    def refused(self, problem: str) -> None:
        """The worker said that it is of no use to us; it is asked again at times."""
        self.welcome, self.problem, self.turned_away = None, problem, True

    def answered(self, pong: Pong, deadline_ms: float, now: float) -> None:
        """A ping came back."""
        if sent := self._pings.get(pong.id):
            self.ping_ms = _moved(self.ping_ms, 1000 * (now - sent))
        self.hangs, self.draining = pong.busy_ms > deadline_ms, pong.draining

    def heard(self) -> None:
        """A message came: it lives."""
        self._pings.clear()
        self.silent = False

    def tend(self, now: float, fingerprint: str, longest_s: float) -> bool:
        """Greet, ping, try again, as it is due; whether it has fallen silent just now.

        Call it when all that has come was read: only then is silence the worker's fault.
        """
        if now >= self._reopen_at:
            self.close()
            self._forget()
            self.open()
        greets = self.connected and self.welcome is None and now - self._hello_at >= HELLO_AGAIN_S
        if greets and self.send(pack(Hello(HELLO_ID, fingerprint))):
            self._hello_at = now
        if self.welcome is None:
            return False
        if now - self._ping_at >= BEAT_S:
            self._ping_at = now
            self._ping_id += 1
            self.send(pack(Ping(self._ping_id)))
            self._pings[self._ping_id] = now
            if len(self._pings) > 64:
                self._pings.pop(list(self._pings)[1])  # the oldest one counts
        patience = SILENT_S if math.isnan(self.ping_ms) else max(SILENT_S, min(longest_s, 3 * self.ping_ms / 1000))
        self._silent_at = next(iter(self._pings.values())) + patience if self._pings else math.inf
        fell_silent = not self.silent and now >= self._silent_at
        self.counts["silences"] += fell_silent
        self.silent |= fell_silent
        return fell_silent

    def due(self) -> float:
        """When `tend` has something to do again."""
        if self.welcome is None:
            return min(self._reopen_at, self._hello_at + HELLO_AGAIN_S if self.connected else math.inf)
        return min(self._ping_at + BEAT_S, math.inf if self.silent else self._silent_at)


class ZmqOffloader:
    """Workers at the other ends of ZeroMQ sockets. Nothing here waits for them longer than asked.

    A request goes to the worker with the fewest outstanding. It goes to another one if that one goes away, or is slow,
    while the deadline still allows; the first reply counts, and one that comes later, or twice, is dropped. A worker is
    alive while it answers pings, its model does not hang, and its replies come in time; while none is, nothing can be
    sent and nothing waits. Connections are made, and made again, in the background; `connect` waits for the first.

    Parameters
    ----------
    endpoints
        Of the workers, "tcp://host:port", one or several.
    fingerprint
        Of the edge's model; workers that do not have it are left alone.
    deadline_ms
        After which a message has failed.
    window
        Most messages awaited of one worker at a time.
    keys
        The edge's, and the workers'; None sends plain text, which only goes to this machine, unless `anywhere`.

    Raises
    ------
    OffloadError
        If an endpoint is none, or plain text would leave the machine.
    ValueError
        If the deadline or the window is not positive.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        fingerprint: str,
        deadline_ms: float = 1000.0,
        window: int = 16,
        *,
        keys: EdgeKeys | None = None,
        anywhere: bool = False,
    ) -> None:
        if not (deadline_ms > 0 and window > 0):
            raise ValueError(f"deadline_ms and window must be positive, got {deadline_ms} and {window}")
        self.endpoints = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        self.fingerprint, self.deadline_ms, self.window = fingerprint, deadline_ms, window
        self.bytes_sent, self.link_ms = 0, math.nan
        self.counts: Counter[str] = Counter()
        self._pending: dict[int, _Pending] = {}  # in the order sent, which is the order of the deadlines
        self._context = zmq.Context()
        self._links: list[_Link] = []
        self._due = 0.0  # when something must be done though nothing comes in
        try:
            for endpoint in self.endpoints:
                if keys is None:
                    check_plain(endpoint, anywhere)
                self._links.append(_Link(self._context, endpoint, keys))
        except OffloadError:
            self._context.destroy(linger=0)
            raise
        self._watch()

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""
        return len(self._pending)

    @property
    def reachable(self) -> bool:
        """Whether a worker is alive, so that it makes sense to send or to wait for room."""
        now = time.monotonic()
        return any(link.alive(now) for link in self._links)

    @property
    def max_bytes(self) -> int:
        """Largest array of a message that all workers take."""
        return min((link.welcome.max_bytes for link in self._links if link.welcome), default=MAX_BYTES)

    def connect(self, timeout_s: float = 5.0) -> Welcome:
        """Wait until a worker answers that has the model; call it before the first `submit`.

        Raises
        ------
        OffloadError
            If none does in time, or all turn the edge away, with the reason; the offloader is closed.
        """
        end = time.monotonic() + timeout_s
        while (now := time.monotonic()) < end and not all(link.turned_away for link in self._links):
            if welcome := next((link.welcome for link in self._links if link.welcome), None):
                return welcome
            self._step(min(end, now + 0.1), [])
        problems = [f"{link.endpoint}: {link.problem or self._nobody(timeout_s)}" for link in self._links]
        self.close()
        raise OffloadError("; ".join(problems))

    @staticmethod
    def _nobody(timeout_s: float) -> str:
        return f"no eex-worker answered within {timeout_s:g} s; is it running there, and reachable?"

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """Send features to go on from a stage, without waiting; see `Offloader`.

        Raises
        ------
        OffloadError
            If the features are of another type or too large for a message.
        ValueError
            If a reply to the same id is awaited.
        """
        if id in self._pending:
            raise ValueError(f"id {id} is awaited already")
        now = time.monotonic()
        sent = features if isinstance(features, Encoded) else as_they_are(features)
        request = Request(
            id,
            self.fingerprint,
            stage,
            expert,
            sent.dtype,
            sent.shape,
            self.deadline_ms,
            sent.codec,
            sent.packed,
        )
        message = pack(request, *sent.arrays)
        link = self._send(message, now)
        if link is None:
            return False
        self.counts["requests"] += 1
        pending = self._pending[id] = _Pending(request, sent.arrays, now, self._hedge_at(now), [link], [link])
        self._due = min(self._due, now + self.deadline_ms / 1000, pending.hedge_at)
        return True

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """What came in and what is overdue; waits for the first of it, but not where nothing is awaited."""
        end = time.monotonic() + timeout_ms / 1000
        replies: list[Reply] = []
        self._step(end if self._pending else 0.0, replies)
        while self._pending and not replies and time.monotonic() < end:
            self._step(end, replies)
        return replies

    def report(self) -> dict[str, Any]:
        """What happened, for a summary, as plain JSON values."""
        workers = [
            {
                "endpoint": link.endpoint,
                "state": link.state,
                "round_trip_ms": None if math.isnan(link.round_trip_ms) else round(link.round_trip_ms, 3),
                **{name: link.counts[name] for name in ("requests", "replies", "connections_lost", "silences")},
            }
            for link in self._links
        ]
        names = "requests replies missed_deadlines lost failed sent_again hedged refused dropped"
        return {"workers": workers, **{name: self.counts[name] for name in names.split()}}

    def close(self) -> None:
        """Give up what is awaited and close the sockets."""
        self._pending.clear()
        for link in self._links:
            link.close()
        self._context.term()

    # ---- out

    def _send(self, message: list[Buffer], now: float, but: Sequence[_Link] = ()) -> _Link | None:
        """Send to the worker with the fewest outstanding; which it was, None if there is none."""
        links = [link for link in self._links if link not in but and link.alive(now) and self._has_room(link)]
        for link in sorted(links, key=lambda link: link.outstanding) if len(links) > 1 else links:
            if link.send(message):
                link.outstanding += 1
                link.counts["requests"] += 1
                link.breaker.tries(now)
                self.bytes_sent += sum(memoryview(frame).nbytes for frame in message)
                return link
        return None

    def _has_room(self, link: _Link) -> bool:
        assert link.welcome is not None
        return link.outstanding < min(self.window, link.welcome.window)

    def _send_again(self, pending: _Pending, now: float, why: str) -> bool:
        """Send a request to one more worker, if there is one and the deadline allows it."""
        left_ms = self.deadline_ms - 1000 * (now - pending.sent)
        usual_ms = [link.round_trip_ms for link in self._links if link not in pending.asked]
        least_ms = min((ms for ms in usual_ms if not math.isnan(ms)), default=0.0)
        if len(pending.asked) == len(self._links) or left_ms <= least_ms:
            return False
        r = pending.request
        request = msgspec.structs.replace(r, deadline_ms=left_ms)
        link = self._send(pack(request, *pending.arrays), now, but=pending.asked)
        if link is None:
            return False
        pending.links.append(link)
        pending.asked.append(link)
        pending.hedge_at = math.inf
        self.counts[why] += 1
        return True

    def _hedge_at(self, now: float) -> float:
        """When a request to a worker is late enough to ask another."""
        usual_ms = [link.round_trip_ms for link in self._links if not math.isnan(link.round_trip_ms)]
        if len(self._links) == 1 or not usual_ms:
            return math.inf
        return now + max(HEDGE_LEAST_S, HEDGE_AFTER * min(usual_ms) / 1000)

    # ---- in

    def _watch(self) -> None:
        self._poller = zmq.Poller()
        for link in self._links:
            self._poller.register(link.socket, zmq.POLLIN)
            self._poller.register(link.monitor, zmq.POLLIN)
        self._watched = [link.socket for link in self._links]

    def _step(self, until: float, replies: list[Reply]) -> None:
        """Wait for something to happen, at most until a time, and take in all that has."""
        wait_s = min(until, self._due) - time.monotonic()
        ready = dict(self._poller.poll(math.ceil(1000 * wait_s) if wait_s > 0 else 0))
        for link in self._links if ready else ():
            if link.socket in ready:
                self._read(link, replies)
            if link.monitor in ready:
                self._due = 0.0
                if link.read_monitor(time.monotonic()):
                    self._give_up(link, replies, "the connection to the worker broke")
        now = time.monotonic()
        if now >= self._due:  # all that had come by then was read
            self._tend(now, replies)
            self._due = self._next_due(now)

    def _next_due(self, now: float) -> float:
        """When something must be done though nothing comes in."""
        due = min(link.due() for link in self._links)
        for pending in self._pending.values():
            due = min(due, pending.sent + self.deadline_ms / 1000, pending.hedge_at)
            if not pending.links:
                due = now + 0.002  # a worker may have room by then
        return due

    def _read(self, link: _Link, replies: list[Reply]) -> None:
        for _ in range(2 * self.window + 16):  # a worker that floods the edge must not hold it
            frames = link.receive()
            if frames is None:
                return
            self._accept(link, frames, replies)
            link.heard()
            if replies and not self._pending:
                return  # nobody waits for more

    def _accept(self, link: _Link, frames: list[Buffer], replies: list[Reply]) -> None:
        """Take in one message."""
        now = time.monotonic()
        try:
            header, arrays = unpack(frames)
        except OffloadError as error:
            id = readable_id(frames)
            if link.welcome is None:
                link.refused(str(error))
            elif id in self._pending:
                self._fail(id, f"bad reply: {error}", replies)
            return
        if isinstance(header, Welcome):
            self._greet(link, header)
        elif isinstance(header, Pong):
            link.answered(header, self.deadline_ms, now)
        elif isinstance(header, ReplyHeader) and header.id == HELLO_ID:
            link.refused(f"the worker refused: {header.error}{self._advice(header)}")
        elif isinstance(header, ReplyHeader):
            pending = self._pending.get(header.id)
            if pending is None or link not in pending.links:
                self.counts["dropped"] += 1
            elif header.refusal:
                self._refused(link, pending, header, replies, now)
            elif 1000 * (now - pending.sent) <= self.deadline_ms:  # else left for _tend
                self._answer(link, pending, header, arrays, replies, now)

    @staticmethod
    def _advice(header: ReplyHeader) -> str:
        return "; start both with the same --model" if header.refusal == "model" else ""

    def _greet(self, link: _Link, welcome: Welcome) -> None:
        if welcome.model == self.fingerprint:
            link.greeted(welcome)
            self._due = 0.0  # the first ping
        else:
            link.refused(
                f"the worker has model {one_line(welcome.model)}, the edge {self.fingerprint}; start both with the "
                f"same --model"
            )

    def _refused(self, link: _Link, pending: _Pending, header: ReplyHeader, replies: list[Reply], now: float) -> None:
        self.counts["refused"] += 1
        if header.refusal == "failed":
            link.breaker.failed(now)
        elif header.refusal == "draining":
            link.draining = True
        elif header.refusal in ("model", "clients"):
            link.refused(f"the worker refused: {header.error}{self._advice(header)}")
        if header.refusal in ("busy", "draining", "model", "clients"):  # another one may not mind
            self._leave(link, pending)
            self._elsewhere(pending, header.error, replies, "failed")
        else:
            self._fail(header.id, header.error, replies)

    def _answer(
        self,
        link: _Link,
        pending: _Pending,
        header: ReplyHeader,
        arrays: list[NDArray[Any]],
        replies: list[Reply],
        now: float,
    ) -> None:
        assert link.welcome is not None
        confidence, prediction = arrays[0].astype(np.float64), arrays[1].astype(np.int64)
        classes = len(link.welcome.classes)
        if header.frames != pending.request.shape[0]:
            self._fail(header.id, f"bad reply: {header.frames} answers to {pending.request.shape[0]} frames", replies)
        elif not (confidence.min() >= 0 and confidence.max() <= 1):  # false of NaN, too
            self._fail(header.id, "bad reply: a confidence is not in [0, 1]", replies)
        elif not (prediction.min() >= 0 and prediction.max() < classes):
            self._fail(header.id, "bad reply: a prediction is no class of the model", replies)
        else:
            round_trip_ms = 1000 * (now - pending.sent)
            link.round_trip_ms = _moved(link.round_trip_ms, round_trip_ms)
            link.breaker.succeeded()
            link.counts["replies"] += 1
            self.counts["replies"] += 1
            self._done(pending, round_trip_ms)
            replies.append(Reply(header.id, confidence, prediction, header.compute_ms, round_trip_ms))

    def _done(self, pending: _Pending, round_trip_ms: float) -> None:
        """A request is awaited no more."""
        self.link_ms = _moved(self.link_ms, round_trip_ms)
        for link in list(pending.links):
            self._leave(link, pending)
        del self._pending[pending.request.id]

    @staticmethod
    def _leave(link: _Link, pending: _Pending) -> None:
        """A worker will not answer a request any more, or need not."""
        pending.links.remove(link)
        link.outstanding -= 1

    def _elsewhere(self, pending: _Pending, why: str, replies: list[Reply], kind: str) -> None:
        """A worker will not answer a request: ask another, or wait until one has room, or fail."""
        now = time.monotonic()
        if pending.links or self._send_again(pending, now, "sent_again"):
            return
        if any(link.alive(now) and link not in pending.asked for link in self._links):
            self._due = 0.0
        else:
            self._fail(pending.request.id, why, replies, kind)

    def _fail(self, id: int | None, why: str, replies: list[Reply], kind: str = "failed") -> None:
        """A request has failed: its deadline passed, its worker was lost, or the answer is of no use."""
        assert id is not None
        self.counts[kind] += 1
        pending = self._pending[id]
        round_trip_ms = 1000 * (time.monotonic() - pending.sent)
        self._done(pending, min(round_trip_ms, self.deadline_ms))
        replies.append(Reply(id, round_trip_ms=round_trip_ms, failed=one_line(why)))

    def _give_up(self, link: _Link, replies: list[Reply], why: str) -> None:
        """A worker is gone with all that it was asked: ask another, or fail."""
        for pending in [p for p in self._pending.values() if link in p.links]:
            self._leave(link, pending)
            self._elsewhere(pending, why, replies, "lost")

    def _tend(self, now: float, replies: list[Reply]) -> None:
        """Do what is due: deadlines, hedges, heartbeats."""
        for id, pending in list(self._pending.items()):
            if 1000 * (now - pending.sent) <= self.deadline_ms:
                break  # they are in the order sent
            for link in pending.links:
                link.breaker.failed(now)
            self._fail(id, f"no reply within {self.deadline_ms:g} ms", replies, "missed_deadlines")
        for link in self._links:
            if link.tend(now, self.fingerprint, self.deadline_ms / 1000):
                for pending in [p for p in self._pending.values() if p.links == [link]]:
                    self._send_again(pending, now, "sent_again")
        if self._watched != [link.socket for link in self._links]:
            self._watch()
        if len(self._links) > 1:
            for pending in list(self._pending.values()):
                if not pending.links:
                    self._elsewhere(pending, "no worker is left", replies, "lost")
                elif now >= pending.hedge_at and self.counts["hedged"] < 2 + HEDGE_SHARE * self.counts["requests"]:
                    self._send_again(pending, now, "hedged")
                    pending.hedge_at = math.inf


def _moved(estimate: float, newest: float) -> float:
    """An estimate that follows what is measured."""
    return newest if math.isnan(estimate) else estimate + LINK_WEIGHT * (newest - estimate)
