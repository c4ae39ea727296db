"""One worker as the edge knows it: greeted, alive, silent, turned away. It knows neither sockets nor a clock."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from eex.stream.wire.breaker import Breaker
from eex.stream.wire.protocol import Buffer, Hello, Ping, Pong, Welcome, pack

PING_EVERY_S = 0.1
SILENT_S = 0.35
"""A worker that leaves a ping unanswered for this long is not used; for longer where pings usually take long."""

HELLO_EVERY_S = 0.5
GIVE_UP_S = 1.2
"""Handshakes that fail for this long do so for a reason; a single one may be a worker that has just ended."""

REOPEN_S = 0.5
"""How long to wait before connecting again to a worker that rejected the handshake."""

MOST_PINGS = 64
"""Unanswered pings that are remembered."""

NEWEST_WEIGHT = 0.2
"""Weight of the newest measurement in an estimate of a round trip."""

HELLO_ID = (1 << 63) - 1
"""Id of every hello, so that its refusal is not mistaken for the reply to a request."""

SUMS_ID = HELLO_ID - 1
"""Id of every message of sums, likewise."""


class Peer:
    """One worker: its handshake, heartbeats, circuit breaker and round trip.

    Times are given, in seconds of any clock that does not go back.

    Parameters
    ----------
    endpoint
        Where the worker listens; for reports only.
    send
        Hands a message to the connection; False if there is no room for it or no connection.

    Attributes
    ----------
    welcome
        The worker's description of itself; None before the greeting and after the connection broke.
    problem, turned_away
        Why the worker cannot be used, where that is known; whether waiting will not help.
    outstanding
        Requests that it may still answer.
    reopen_at
        When its connection must be made anew; infinite while it need not be.

    Examples
    --------
    >>> sent = []
    >>> peer = Peer("tcp://worker:5555", lambda message: not sent.append(message))
    >>> peer.opened()
    >>> peer.tend(0.0, "model-a", longest_s=1.0), len(sent)  # the hello
    (False, 1)
    >>> peer.greeted(Welcome("model-a", 4, ("pristine",), ("cat", "dog")))
    >>> peer.tend(0.1, "model-a", longest_s=1.0), len(sent)  # a ping
    (False, 2)
    >>> peer.alive(0.3), peer.tend(0.5, "model-a", longest_s=1.0), peer.alive(0.5)  # which has no answer
    (True, True, False)
    """

    def __init__(self, endpoint: str, send: Callable[[list[Buffer]], bool]) -> None:
        self.endpoint, self.send = endpoint, send
        self.welcome: Welcome | None = None
        self.classes = 0  # of the latest welcome: replies to requests may come after a refusal
        self.answerers: list[str] = []  # fingerprints of the models that have answered images, the present one last
        self.problem, self.turned_away = "", False
        self.connected = self.silent = self.hangs = self.draining = False
        self.breaker = Breaker()
        self.outstanding = 0
        self.round_trip_ms = self.ping_ms = math.nan
        self.counts: Counter[str] = Counter()
        self.reopen_at = self._silent_at = self._failing_since = math.inf
        self._hello_at = self._ping_at = -math.inf
        self._pings: dict[int, float] = {}  # unanswered: when they were sent, oldest first
        self._ping_id = 0

    def alive(self, now: float) -> bool:
        """Whether requests may be sent to it."""
        well = self.welcome is not None and not (self.silent or self.hangs or self.draining)
        return well and self.breaker.allows(now)

    @property
    def state(self) -> str:
        """One or a few words for a summary."""
        if self.welcome is None:
            return self.problem or "not connected"
        if self.draining:
            return "is about to stop"
        return "does not answer" if self.silent or self.hangs or not self.breaker.closed else "up"

    def report(self) -> dict[str, Any]:
        """What it did so far, as plain JSON values."""
        found = {
            "endpoint": self.endpoint,
            "state": self.state,
            "breaker": "closed" if self.breaker.closed else "open",
            "round_trip_ms": None if math.isnan(self.round_trip_ms) else round(self.round_trip_ms, 3),
            **{name: self.counts[name] for name in ("requests", "replies", "connections_lost", "silences")},
        }
        return found | ({"answerers": list(self.answerers)} if self.answerers else {})

    # ---- the connection

    def opened(self) -> None:
        """The handshake succeeded; the next `tend` greets."""
        self.connected, self._failing_since = True, math.inf
        self._hello_at = -math.inf

    def closed(self) -> bool:
        """The connection ended, and all that is known through it; whether it had been open."""
        broke = self.connected
        self.counts["connections_lost"] += broke
        self._forget()
        return broke

    def handshake_failed(self, now: float, problem: str, *, final: bool, hangs: bool) -> None:
        """A connection could not be made.

        Parameters
        ----------
        problem
            Why, for the user.
        final
            libzmq does not try again.
        hangs
            Nobody answered in time, which may change.
        """
        self._failing_since = min(self._failing_since, now)
        self.problem = problem
        self.turned_away = final or (now - self._failing_since > GIVE_UP_S and not hangs)
        if final:
            self.reopen_at = now + REOPEN_S

    def reopened(self) -> None:
        """A new connection is being made."""
        self.reopen_at = math.inf
        self._forget()

    def _forget(self) -> None:
        self.connected = self.silent = self.hangs = self.draining = False
        self.welcome = None
        self._pings.clear()

    # ---- its messages

    def greeted(self, welcome: Welcome) -> None:
        """It welcomed the edge, with the right model."""
        self.welcome, self.problem, self.turned_away = welcome, "", False
        self.classes = len(welcome.classes)
        if welcome.answerer != (self.answerers[-1] if self.answerers else ""):
            self.answerers.append(welcome.answerer)
        self.draining = self.hangs = False
        self.breaker = Breaker()

    def rejected(self, problem: str, *, final: bool = True) -> None:
        """It cannot serve this edge, or not now; it is greeted again every now and then."""
        self.welcome, self.problem, self.turned_away = None, problem, final

    def answered_ping(self, pong: Pong, deadline_ms: float, now: float) -> None:
        """A ping came back; a model that has been running for longer than the deadline hangs."""
        if (sent_at := self._pings.get(pong.id)) is not None:
            self.ping_ms = smoothed(self.ping_ms, 1000 * (now - sent_at))
        self.hangs, self.draining = pong.busy_ms > deadline_ms, pong.draining

    def spoke(self) -> None:
        """Some message came, so it lives."""
        self._pings.clear()
        self.silent = False

    # ---- time

    def tend(self, now: float, fingerprint: str, longest_s: float) -> bool:
        """Greet and ping when due; whether the worker has fallen silent just now.

        Call it when everything that has arrived was read: only then is silence the worker's fault.

        Parameters
        ----------
        fingerprint
            Of the edge's model, to ask for.
        longest_s
            Upper limit of the patience with a worker whose pings usually take long.
        """
        if self.welcome is None:
            greets = self.connected and now - self._hello_at >= HELLO_EVERY_S
            if greets and self.send(pack(Hello(HELLO_ID, fingerprint))):
                self._hello_at = now
            return False
        if now - self._ping_at >= PING_EVERY_S:
            self._ping_at = now
            self._ping_id += 1
            self.send(pack(Ping(self._ping_id)))
            self._pings[self._ping_id] = now
            if len(self._pings) > MOST_PINGS:
                self._pings.pop(list(self._pings)[1])  # the oldest one counts
        patience = SILENT_S if math.isnan(self.ping_ms) else max(SILENT_S, min(longest_s, 3 * self.ping_ms / 1000))
        self._silent_at = next(iter(self._pings.values())) + patience if self._pings else math.inf
        fell_silent = not self.silent and now >= self._silent_at
        self.counts["silences"] += fell_silent
        self.silent |= fell_silent
        return fell_silent

    def due(self) -> float:
        """When `tend` has something to do again, or the connection must be made anew."""
        if self.welcome is None:
            return min(self.reopen_at, self._hello_at + HELLO_EVERY_S if self.connected else math.inf)
        return min(self._ping_at + PING_EVERY_S, math.inf if self.silent else self._silent_at)


def smoothed(estimate: float, newest: float) -> float:
    """An estimate that follows its measurements; NaN before the first.

    >>> smoothed(smoothed(float("nan"), 10.0), 20.0)
    12.0
    """
    return newest if math.isnan(estimate) else estimate + NEWEST_WEIGHT * (newest - estimate)
