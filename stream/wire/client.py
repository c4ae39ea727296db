"""The edge's end of the ZeroMQ path: one or more workers, chosen by who has least to do; broken ones rest.

`ZmqOffloader` owns what the outside world is made of, the sockets and the clock. What is sent and when is decided by
`eex.stream.wire.requests.Requests`, which owns the window of requests, and `eex.stream.wire.peer.Peer`, one per worker.
"""

import math
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.policies.core.fleet import Layout
from eex.stream.wire.channel import Channel, timed_out
from eex.stream.wire.encoding import Encoded
from eex.stream.wire.keys import EdgeKeys
from eex.stream.wire.offload import Reply
from eex.stream.wire.peer import REOPEN_S, Peer
from eex.stream.wire.protocol import MAX_BYTES, Welcome
from eex.stream.wire.reach import UnreachableError, why_unreachable
from eex.stream.wire.requests import Requests
from eex.stream.wire.security import check_plain, fatal, why_handshake_failed

CONNECT_STEP_S = 0.1  # how late `connect` may notice that all workers turned the edge away


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
        Of the edge's model; workers that do not have it are not used.
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
        named: Sequence[str] = (),
    ) -> None:
        if not (deadline_ms > 0 and window > 0):
            raise ValueError(f"deadline_ms and window must be positive, got {deadline_ms} and {window}")
        self.endpoints = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        self._context = zmq.Context()
        self._channels: list[Channel] = []
        try:
            for endpoint in self.endpoints:
                if keys is None:
                    check_plain(endpoint, anywhere)
                self._channels.append(Channel(self._context, endpoint, keys))
        except OffloadError:
            self._context.destroy(linger=0)
            raise
        self._peers = [
            Peer(name, channel.send) for name, channel in zip(named or self.endpoints, self._channels, strict=True)
        ]
        self._requests = Requests(self._peers, fingerprint, deadline_ms, window)
        self._wake: int | None = None
        self._watch()

    @property
    def fingerprint(self) -> str:
        """Of the edge's model."""
        return self._requests.fingerprint

    @property
    def deadline_ms(self) -> float:
        """After which a message has failed."""
        return self._requests.deadline_ms

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""
        return self._requests.outstanding

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent so far, headers included."""
        return self._requests.bytes_sent

    @property
    def link_ms(self) -> float:
        """Estimate of the round trip, in which a missed deadline counts as the deadline; NaN before the first."""
        return self._requests.link_ms

    @property
    def reachable(self) -> bool:
        """Whether a worker is alive, so that it makes sense to send or to wait for room."""
        return self._requests.reachable(time.monotonic())

    @property
    def max_bytes(self) -> int:
        """Largest array of a message that all workers take."""
        return min((peer.welcome.max_bytes for peer in self._peers if peer.welcome), default=MAX_BYTES)

    def connect(self, timeout_s: float = 5.0) -> Welcome:
        """Wait until a worker answers that has the model; call it before the first `submit`.

        Raises
        ------
        UnreachableError
            If none does in time, with the reason; the offloader is closed.
        OffloadError
            If all turn the edge away, as they do when they do not know its key.
        """
        end = time.monotonic() + timeout_s
        while (now := time.monotonic()) < end and not all(peer.turned_away for peer in self._peers):
            if welcome := next((peer.welcome for peer in self._peers if peer.welcome), None):
                return welcome
            self._step(min(end, now + CONNECT_STEP_S))
        refused = all(peer.turned_away for peer in self._peers)
        self.close()
        nobody = f"no eex-worker answered within {timeout_s:g} s"
        text = "; ".join(
            f"{peer.endpoint}: {peer.problem or f'{nobody}; {why_unreachable(peer.endpoint)}'}" for peer in self._peers
        )
        raise OffloadError(text) if refused else UnreachableError(text)

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """Send features to go on from a stage, without waiting; see `Offloader`.

        Raises
        ------
        OffloadError
            If the features are of another type or too large for a message.
        ValueError
            If a reply to the same id is awaited.
        """
        return self._requests.submit(time.monotonic(), id, stage, expert, features)

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """The replies that came in and the messages that failed; waits for the first of them, if any is awaited."""
        end = time.monotonic() + timeout_ms / 1000
        self._step(end if self.outstanding else 0.0)
        while not (replies := self._requests.replies()) and self.outstanding and time.monotonic() < end:
            if self._step(end):
                break
        return replies

    def share(self, policy: str, edge: str, layout: Layout, sums: NDArray[np.float32]) -> bool:
        """Send what was learned to the first worker that is alive, without waiting; whether it was sent.

        Parameters
        ----------
        policy, edge
            Name of the policy that learned; a text by which this edge is told from others with the same key.
        layout, sums
            See `eex.policies.core.fleet`; (size,).
        """
        return self._requests.share(time.monotonic(), policy, edge, layout, sums)

    def take_fleet(self) -> tuple[int, NDArray[Any]] | None:
        """How many other edges share, and their sums, if the answer to `share` has come and was not taken yet."""
        return self._requests.shares.take()

    @property
    def share_problem(self) -> str:
        """Why the worker refused what was shared last; empty if it did not."""
        return self._requests.shares.problem

    @property
    def shares_under_way(self) -> int:
        """How many sums the worker has not answered yet."""
        return self._requests.shares.under_way

    def wake_on(self, descriptor: int) -> None:
        """Let `poll` return when something can be read from a file descriptor, too."""
        self._wake = descriptor
        self._watch()

    def report(self) -> dict[str, Any]:
        """What happened so far, as plain JSON values for a summary."""
        return self._requests.report()

    def close(self) -> None:
        """Give up what is awaited and close the sockets."""
        self._requests.forget()
        for channel in self._channels:
            channel.close()
        self._context.term()

    def _watch(self) -> None:
        self._poller = zmq.Poller()
        for channel in self._channels:
            self._poller.register(channel.socket, zmq.POLLIN)
            self._poller.register(channel.monitor, zmq.POLLIN)
        if self._wake is not None:
            self._poller.register(self._wake, zmq.POLLIN)

    def _step(self, until: float) -> bool:
        """Wait for something to happen, at most until a time, and take in all that has; whether it is to wake up."""
        wait_s = min(until, self._requests.due) - time.monotonic()
        ready = dict(self._poller.poll(math.ceil(1000 * wait_s) if wait_s > 0 else 0))
        for peer, channel in zip(self._peers, self._channels, strict=True) if ready else ():
            if channel.socket in ready:
                self._read(peer, channel)
            if channel.monitor in ready:
                self._read_events(peer, channel)
        now = time.monotonic()
        for peer, channel in zip(self._peers, self._channels, strict=True):
            if channel.misses_ipv6:
                peer.reopen_at = self._requests.due = -math.inf
        if now >= self._requests.due:  # all that had come by then was read
            self._reopen(now)
            self._requests.tend(now)
        return self._wake in ready

    def _read(self, peer: Peer, channel: Channel) -> None:
        for _ in range(2 * self._requests.window + 16):  # a worker that floods the edge must not hold it
            frames = channel.receive()
            if frames is None:
                return
            self._requests.take_in(time.monotonic(), peer, frames)
            if self._requests.settled:
                return

    def _read_events(self, peer: Peer, channel: Channel) -> None:
        """Take in what happened to a connection."""
        self._requests.due = -math.inf
        now, broke = time.monotonic(), False
        for event, value in channel.events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                peer.opened()
            elif event == zmq.EVENT_DISCONNECTED:
                broke |= peer.closed()
            else:
                problem = why_handshake_failed(event, value, channel.keys, served=peer.classes > 0)
                peer.handshake_failed(now, problem, final=fatal(event), hangs=timed_out(event, value))
                peer.reopen_at += random.random() * REOPEN_S  # many edges that come back do not come at once
        if broke:
            self._requests.lost(now, peer)

    def _reopen(self, now: float) -> None:
        """Make connections anew where it is time to."""
        for peer, channel in zip(self._peers, self._channels, strict=True):
            if now >= peer.reopen_at:
                channel.close()
                channel.open()
                peer.reopened()
                self._watch()
