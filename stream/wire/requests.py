"""Requests that the edge awaits: who has them, until when, and what became of them. Neither sockets nor a clock."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.policies.core.fleet import Layout
from eex.stream.wire.encoding import Encoded, as_they_are
from eex.stream.wire.offload import Reply
from eex.stream.wire.peer import HELLO_ID, SUMS_ID, Peer, smoothed
from eex.stream.wire.protocol import (
    Buffer,
    FleetHeader,
    Pong,
    ReplyHeader,
    Request,
    Welcome,
    one_line,
    pack,
    readable_id,
    unpack,
)
from eex.stream.wire.shares import Shares

HEDGE_AFTER = 3.0
"""A request is sent to a second worker after this many usual round trips of the quickest …"""
HEDGE_LEAST_S = 0.02
HEDGE_SHARE = 0.1
"""… but not more than this share of all requests, or overload would feed itself."""

RETRY_S = 0.002
"""How long a request that should go to another worker, and cannot yet, waits before the next attempt."""

ELSEWHERE = ("busy", "draining", "model", "clients")
"""Refusals that concern the worker and not the request: another one may take it."""

PASSING = ("busy", "draining", "clients")
"""Refusals that may be over soon."""
TURNED_AWAY = ("model", "clients")
"""Refusals after which a worker is of no use to this edge, for now."""

COUNTS = ("requests", "replies", "missed_deadlines", "lost", "failed", "sent_again", "hedged", "refused", "dropped")
"""What `Requests.report` counts."""


@dataclass
class Awaited:
    """A request whose reply is awaited.

    Attributes
    ----------
    since
        When it was sent first.
    hedge_at
        When it is late enough to be sent to a second worker.
    at
        Workers that may still answer it.
    asked
        Workers that were ever sent it.
    """

    request: Request
    arrays: tuple[NDArray[Any], ...]
    since: float
    hedge_at: float
    at: list[Peer]
    asked: list[Peer]


class Requests:
    """The window of requests under way to one or more workers; each one taken yields exactly one reply.

    A request goes to the worker with the fewest outstanding. It is sent to another one if that one goes away, or is
    slow, while the deadline still allows; the first reply counts, and one that comes later, or twice, is dropped.

    Times are given, in seconds of any clock that does not go back. Whoever owns the connections calls `take_in` with
    each message, `lost` when a connection breaks, and `tend` when it is `due`; replies are collected with `replies`.

    Parameters
    ----------
    peers
        The workers.
    fingerprint, deadline_ms, window
        See `eex.stream.wire.client.ZmqOffloader`.

    Attributes
    ----------
    due
        When `tend` has something to do though nothing comes in.
    bytes_sent
        Bytes of all requests sent, headers included.
    link_ms
        Estimate of the round trip, in which a missed deadline counts as the deadline; NaN before the first.
    shares
        Sums for other edges, under way and come back.
    """

    def __init__(self, peers: Sequence[Peer], fingerprint: str, deadline_ms: float, window: int) -> None:
        self.peers = list(peers)
        self.fingerprint, self.deadline_ms, self.window = fingerprint, deadline_ms, window
        self.bytes_sent, self.link_ms, self.due = 0, math.nan, -math.inf
        self.counts: Counter[str] = Counter()
        self.shares = Shares()
        self._awaited: dict[int, Awaited] = {}  # in the order sent, which is the order of the deadlines
        self._replies: list[Reply] = []

    @property
    def outstanding(self) -> int:
        """Requests whose reply is awaited."""
        return len(self._awaited)

    @property
    def settled(self) -> bool:
        """Whether there are replies and no more to wait for."""
        return bool(self._replies) and not self._awaited

    def replies(self) -> list[Reply]:
        """The replies since the last call."""
        replies, self._replies = self._replies, []
        return replies

    def report(self) -> dict[str, Any]:
        """What happened so far, as plain JSON values."""
        return {
            "workers": [peer.report() for peer in self.peers],
            **{name: self.counts[name] for name in COUNTS},
        }

    def forget(self) -> None:
        """Give up everything that is awaited, without a reply."""
        self._awaited.clear()

    # ---- out

    def submit(self, now: float, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """Send a request; False if no worker is alive and has room. See `eex.stream.wire.offload.Offloader`.

        Raises
        ------
        OffloadError
            If the features are of another type or too large for a message.
        ValueError
            If a reply to the same id is awaited.
        """
        if id in self._awaited:
            raise ValueError(f"id {id} is awaited already")
        encoded = features if isinstance(features, Encoded) else as_they_are(features)
        request = Request(
            id,
            self.fingerprint,
            stage,
            expert,
            encoded.dtype,
            encoded.shape,
            self.deadline_ms,
            encoded.codec,
            encoded.packed,
        )
        peer = self._send(pack(request, *encoded.arrays), now)
        if peer is None:
            return False
        self.counts["requests"] += 1
        awaited = self._awaited[id] = Awaited(request, encoded.arrays, now, self._hedge_at(now), [peer], [peer])
        self.due = min(self.due, now + self.deadline_ms / 1000, awaited.hedge_at)
        return True

    def _send(self, message: list[Buffer], now: float, but: Sequence[Peer] = ()) -> Peer | None:
        """Send to the worker with the fewest outstanding; which one took it, None if there is none."""
        peers = [peer for peer in self.peers if peer not in but and peer.alive(now) and self._has_room(peer)]
        for peer in sorted(peers, key=lambda peer: peer.outstanding) if len(peers) > 1 else peers:
            if peer.send(message):
                peer.outstanding += 1
                peer.counts["requests"] += 1
                peer.breaker.tries(now)
                self.bytes_sent += sum(memoryview(frame).nbytes for frame in message)
                return peer
        return None

    def _has_room(self, peer: Peer) -> bool:
        assert peer.welcome is not None
        return peer.outstanding < min(self.window, peer.welcome.window)

    def _send_again(self, awaited: Awaited, now: float, why: str) -> bool:
        """Send a request to one more worker, if there is one and the deadline allows it."""
        left_ms = self.deadline_ms - 1000 * (now - awaited.since)
        usual_ms = [peer.round_trip_ms for peer in self.peers if peer not in awaited.asked]
        least_ms = min((ms for ms in usual_ms if not math.isnan(ms)), default=0.0)
        if len(awaited.asked) == len(self.peers) or left_ms <= least_ms:
            return False
        request = msgspec.structs.replace(awaited.request, deadline_ms=left_ms)
        peer = self._send(pack(request, *awaited.arrays), now, but=awaited.asked)
        if peer is None:
            return False
        awaited.at.append(peer)
        awaited.asked.append(peer)
        awaited.hedge_at = math.inf
        self.counts[why] += 1
        return True

    def _hedge_at(self, now: float) -> float:
        """When a request that is sent now is late enough to be sent to a second worker."""
        usual_ms = [peer.round_trip_ms for peer in self.peers if not math.isnan(peer.round_trip_ms)]
        if len(self.peers) == 1 or not usual_ms:
            return math.inf
        return now + max(HEDGE_LEAST_S, HEDGE_AFTER * min(usual_ms) / 1000)

    def share(self, now: float, policy: str, edge: str, layout: Layout, sums: NDArray[np.float32]) -> bool:
        """Send what was learned to the first worker that is alive; whether it was sent."""
        peer = next((peer for peer in self.peers if peer.alive(now)), None)
        message = [] if peer is None else self.shares.send(peer, self.fingerprint, policy, edge, layout, sums)
        self.bytes_sent += sum(memoryview(frame).nbytes for frame in message)
        return bool(message)

    # ---- in

    def take_in(self, now: float, peer: Peer, parts: list[Buffer]) -> None:
        """One message of a worker."""
        self._take_in(now, peer, parts)
        peer.spoke()

    def _take_in(self, now: float, peer: Peer, parts: list[Buffer]) -> None:
        try:
            header, arrays = unpack(parts)
        except OffloadError as error:
            id = readable_id(parts)
            if peer.welcome is None:
                peer.rejected(str(error))
            elif id is not None and (awaited := self._awaited.get(id)):
                peer.breaker.failed(now)
                self._fail(awaited, now, f"bad reply: {error}")
            return
        if isinstance(header, Welcome):
            self._greeted(peer, header)
        elif isinstance(header, Pong):
            peer.answered_ping(header, self.deadline_ms, now)
        elif isinstance(header, ReplyHeader) and header.id == HELLO_ID:
            peer.rejected(_refusal(header), final=header.refusal not in PASSING)
        elif isinstance(header, FleetHeader) or (isinstance(header, ReplyHeader) and header.id == SUMS_ID):
            self.shares.answered(header, arrays)
        elif isinstance(header, ReplyHeader):
            awaited = self._awaited.get(header.id)
            if awaited is None or peer not in awaited.at:
                self.counts["dropped"] += 1
            elif header.refusal:
                self._refused(peer, awaited, header, now)
            elif 1000 * (now - awaited.since) <= self.deadline_ms:  # else left for `tend`
                self._answered(peer, awaited, header, arrays, now)

    def _greeted(self, peer: Peer, welcome: Welcome) -> None:
        if welcome.model == self.fingerprint:
            peer.greeted(welcome)
            self.shares.restarted()
            self.due = -math.inf  # the first ping
        else:
            peer.rejected(
                f"the worker has model {one_line(welcome.model)}, the edge {self.fingerprint}; start both with the "
                f"same --model"
            )

    def _refused(self, peer: Peer, awaited: Awaited, header: ReplyHeader, now: float) -> None:
        self.counts["refused"] += 1
        if header.refusal == "failed":
            peer.breaker.failed(now)
        elif header.refusal == "draining":
            peer.draining = True
        elif header.refusal in TURNED_AWAY:
            peer.rejected(_refusal(header), final=header.refusal not in PASSING)
        if header.refusal in ELSEWHERE:
            self._leave(peer, awaited)
            self._elsewhere(awaited, now, header.error, "failed")
        else:
            self._fail(awaited, now, header.error)

    def _answered(
        self, peer: Peer, awaited: Awaited, header: ReplyHeader, arrays: list[NDArray[Any]], now: float
    ) -> None:
        confidence, prediction = arrays[0].astype(np.float64), arrays[1].astype(np.int64)
        problem = _problem(confidence, prediction, awaited.request.shape[0], peer.classes)
        if problem:
            peer.breaker.failed(now)
            self._fail(awaited, now, f"bad reply: {problem}")
            return
        round_trip_ms = 1000 * (now - awaited.since)
        peer.round_trip_ms = smoothed(peer.round_trip_ms, round_trip_ms)
        peer.breaker.succeeded()
        peer.counts["replies"] += 1
        self.counts["replies"] += 1
        self._done(awaited, round_trip_ms)
        self._replies.append(Reply(header.id, confidence, prediction, header.compute_ms, round_trip_ms))

    def lost(self, now: float, peer: Peer) -> None:
        """The connection to a worker broke: what it was sent goes to another one, or has failed."""
        for awaited in [a for a in self._awaited.values() if peer in a.at]:
            self._leave(peer, awaited)
            self._elsewhere(awaited, now, "the connection to the worker broke", "lost")

    def _elsewhere(self, awaited: Awaited, now: float, why: str, kind: str) -> None:
        """A worker will not answer a request: send it to another one, wait until one has room, or fail."""
        if awaited.at or self._send_again(awaited, now, "sent_again"):
            return
        if any(peer.alive(now) and peer not in awaited.asked for peer in self.peers):
            self.due = -math.inf
        else:
            self._fail(awaited, now, why, kind)

    def _fail(self, awaited: Awaited, now: float, why: str, kind: str = "failed") -> None:
        """A request has failed: its deadline passed, its worker was lost, or the answer is of no use."""
        self.counts[kind] += 1
        round_trip_ms = 1000 * (now - awaited.since)
        self._done(awaited, min(round_trip_ms, self.deadline_ms))
        self._replies.append(Reply(awaited.request.id, round_trip_ms=round_trip_ms, failed=one_line(why)))

    def _done(self, awaited: Awaited, round_trip_ms: float) -> None:
        """A request is awaited no more."""
        self.link_ms = smoothed(self.link_ms, round_trip_ms)
        for peer in list(awaited.at):
            self._leave(peer, awaited)
        del self._awaited[awaited.request.id]

    @staticmethod
    def _leave(peer: Peer, awaited: Awaited) -> None:
        """A worker will not answer a request any more, or need not."""
        awaited.at.remove(peer)
        peer.outstanding -= 1

    # ---- time

    def reachable(self, now: float) -> bool:
        """Whether a worker is alive, so that it makes sense to send or to wait for room."""
        return any(peer.alive(now) for peer in self.peers)

    def tend(self, now: float) -> None:
        """Do what is due: deadlines, heartbeats, hedges. Call it when everything that has arrived was taken in."""
        self._expire(now)
        for peer in self.peers:
            if peer.tend(now, self.fingerprint, self.deadline_ms / 1000):
                for awaited in [a for a in self._awaited.values() if a.at == [peer]]:
                    self._send_again(awaited, now, "sent_again")
        if len(self.peers) > 1:
            self._hedge(now)
        self.due = self._next_due(now)

    def _expire(self, now: float) -> None:
        for awaited in list(self._awaited.values()):
            if 1000 * (now - awaited.since) <= self.deadline_ms:
                break  # they are in the order sent
            for peer in awaited.at:
                peer.breaker.failed(now)
            self._fail(awaited, now, f"no reply within {self.deadline_ms:g} ms", "missed_deadlines")

    def _hedge(self, now: float) -> None:
        for awaited in list(self._awaited.values()):
            if not awaited.at:
                self._elsewhere(awaited, now, "no worker is left", "lost")
            elif now >= awaited.hedge_at and self.counts["hedged"] < 2 + HEDGE_SHARE * self.counts["requests"]:
                self._send_again(awaited, now, "hedged")
                awaited.hedge_at = math.inf

    def _next_due(self, now: float) -> float:
        due = min(peer.due() for peer in self.peers)
        for awaited in self._awaited.values():
            due = min(due, awaited.since + self.deadline_ms / 1000)
            if awaited.hedge_at > now:
                due = min(due, awaited.hedge_at)
            if awaited.hedge_at <= now or not awaited.at:
                due = min(due, now + RETRY_S)  # more may be hedged, or a worker may have room by then
        return due


def _problem(confidence: NDArray[np.float64], prediction: NDArray[np.int64], frames: int, classes: int) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if len(confidence) != frames:
        return f"{len(confidence)} answers to {frames} frames"
    if not (confidence.min() >= 0 and confidence.max() <= 1):  # false of NaN, too
        return "a confidence is not in [0, 1]"
    if not (prediction.min() >= 0 and prediction.max() < classes):
        return "a prediction is no class of the model"
    return ""


def _refusal(header: ReplyHeader) -> str:
    advice = "; start both with the same --model" if header.refusal == "model" else ""
    return f"the worker refused: {header.error}{advice}"
