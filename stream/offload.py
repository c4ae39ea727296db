"""The seam between the engine and the cloud: `submit`, `poll`, and an in-memory twin of the network.

Offloader            what the engine needs
├── ZmqOffloader     a worker at the other end of a ZeroMQ socket
├── InMemoryOffloader   a function; replies come reversed, held or not at all, as a test wants
└── NoOffloader      no worker
"""

import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.errors import OffloadError
from eex.stream.protocol import (
    MAX_FRAMES,
    Buffer,
    Hello,
    ReplyHeader,
    Request,
    Welcome,
    one_line,
    pack,
    readable_id,
    unpack,
)

SEND_QUEUE = 8
"""Most messages that wait in the socket for the link; more cannot be sent."""

HELLO_AGAIN_S = 0.5
LINK_WEIGHT = 0.2
"""Of the newest round trip in the link's estimate."""

Tail = Callable[[int, str, NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""What a worker runs: (stage, expert, features (n, ...)) to the final exit's confidence (n,) and prediction (n,)."""


@dataclass(frozen=True)
class Reply:
    """What became of one submitted message.

    Attributes
    ----------
    id
        As submitted.
    confidence, prediction
        Of the final exit, (n,); empty where the message failed.
    compute_ms
        What the model took on the worker; NaN where the message failed.
    round_trip_ms
        From `submit` until `poll` had the reply, or gave it up.
    failed
        Why there is no answer: the deadline passed or the worker refused; empty if there is one.
    """

    id: int
    confidence: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    prediction: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    compute_ms: float = math.nan
    round_trip_ms: float = math.nan
    failed: str = ""


class Offloader(Protocol):
    """Sends features to the cloud and collects the answers; used by one thread."""

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent so far, headers included."""

    @property
    def link_ms(self) -> float:
        """Estimate of the round trip, in which a missed deadline counts as the deadline; NaN before the first."""

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any]) -> bool:
        """Send features to go on from a stage, without waiting; each message that is sent yields exactly one reply.

        Parameters
        ----------
        id
            Never used before.
        stage
            First stage the worker has to run, counted from 0.
        expert
            Whose side branch answers.
        features
            float32 or float16, (n, ...). May be sent after the call returns: must not be written to any more.

        Returns
        -------
        sent
            False if there is no worker or too much is under way already; then no reply comes.
        """

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """What came in and what is overdue; waits for the first of it, but not where nothing is awaited."""

    def close(self) -> None:
        """Give up what is awaited and let go of the network."""


@dataclass(frozen=True)
class _Pending:
    sent: float
    frames: int


class ZmqOffloader:
    """A worker at the other end of a ZeroMQ socket. Nothing here waits for it longer than asked.

    A reply counts if `poll` reads it within the deadline; one that comes later, or twice, is dropped. The connection is
    made and made again in the background; `connect` checks, once, that the right worker is there.

    Parameters
    ----------
    endpoint
        Of the worker, "tcp://host:port".
    fingerprint
        Of the edge's model; a worker with another one refuses.
    deadline_ms
        After which a message has failed.
    window
        Most messages awaited at a time.

    Raises
    ------
    OffloadError
        If the endpoint is none.
    ValueError
        If the deadline or the window is not positive.
    """

    def __init__(self, endpoint: str, fingerprint: str, deadline_ms: float = 1000.0, window: int = 16) -> None:
        if not (deadline_ms > 0 and window > 0):
            raise ValueError(f"deadline_ms and window must be positive, got {deadline_ms} and {window}")
        self.endpoint, self.fingerprint = endpoint, fingerprint
        self.deadline_ms, self.window = deadline_ms, window
        self.bytes_sent, self.link_ms = 0, math.nan
        self._classes: float = math.inf
        self._pending: dict[int, _Pending] = {}  # in the order sent, which is the order of the deadlines
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue for a live connection only: what waits for a dead one would come too late
            zmq.SNDHWM: min(window, SEND_QUEUE),
            zmq.RCVHWM: 2 * window + 16,
            zmq.MAXMSGSIZE: 4 * MAX_FRAMES,
            zmq.HEARTBEAT_IVL: 1000,  # ms; notices a link that is cut without a word
            zmq.HEARTBEAT_TIMEOUT: 3000,
            zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 2000,
        }.items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OffloadError(f"{endpoint}: not a worker's endpoint, expected tcp://host:port ({error})") from None

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""
        return len(self._pending)

    def connect(self, timeout_s: float = 5.0) -> Welcome:
        """Wait until the worker answers, and check that it has the same model; call it before the first `submit`.

        Raises
        ------
        OffloadError
            If no worker answers in time, or it has another model or speaks another version; the offloader is closed.
        """
        try:
            return self._greet(timeout_s)
        except OffloadError as error:
            self.close()
            raise OffloadError(f"{self.endpoint}: {error}") from None

    def _greet(self, timeout_s: float) -> Welcome:
        end = time.monotonic() + timeout_s
        hello = pack(Hello())
        while (left := end - time.monotonic()) > 0:
            wait_ms = math.ceil(1000 * min(left, HELLO_AGAIN_S))
            if not self._send(hello):
                self._socket.poll(wait_ms, zmq.POLLOUT)
            elif self._socket.poll(wait_ms):
                header, _ = unpack(self._receive())
                if isinstance(header, ReplyHeader) and header.error:
                    raise OffloadError(f"the worker refused: {one_line(header.error)}")
                if not isinstance(header, Welcome):
                    continue
                if header.model != self.fingerprint:
                    raise OffloadError(
                        f"the worker has model {one_line(header.model)}, the edge {self.fingerprint}; "
                        f"start both with the same --model"
                    )
                self._classes = len(header.classes)
                return header
        raise OffloadError(f"no eex-worker answered within {timeout_s:g} s; is it running there, and reachable?")

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any]) -> bool:
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
        if len(self._pending) >= self.window:
            return False
        request = Request(id, self.fingerprint, stage, expert, features.dtype.name, features.shape)  # type: ignore[arg-type]
        if not self._send(pack(request, features)):
            return False
        self._pending[id] = _Pending(time.monotonic(), len(features))
        return True

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """What came in and what is overdue; waits for the first of it, but not where nothing is awaited."""
        end = time.monotonic() + timeout_ms / 1000
        replies: list[Reply] = []
        for _ in range(2 * self.window + 16):  # a worker that floods the edge must not hold it
            now = time.monotonic()
            wait_ms = 0
            if self._pending and not replies:
                first = next(iter(self._pending.values()))
                wait_ms = max(0, math.ceil(1000 * (min(end, first.sent + self.deadline_ms / 1000) - now)))
            if self._socket.poll(wait_ms):
                reply = self._accept(self._receive())
                replies += [] if reply is None else [reply]
            elif not wait_ms:
                break
        return replies + self._overdue()

    def close(self) -> None:
        """Give up what is awaited and close the socket."""
        self._pending.clear()
        self._socket.close(linger=0)
        self._context.term()

    def _send(self, frames: list[Buffer]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self.bytes_sent += sum(memoryview(f).nbytes for f in frames)
        return True

    def _receive(self) -> list[Buffer]:
        return [frame.buffer for frame in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)]

    def _accept(self, frames: list[Buffer]) -> Reply | None:
        """The reply in a message, if it is one to something awaited and in time."""
        try:
            header, arrays = unpack(frames)
        except OffloadError as error:
            id = readable_id(frames)
            if id is None:
                return None
            header, arrays = ReplyHeader(id, error=f"bad reply: {error}"), []
        if not isinstance(header, ReplyHeader) or header.id not in self._pending:
            return None
        pending = self._pending[header.id]
        round_trip_ms = 1000 * (time.monotonic() - pending.sent)
        if round_trip_ms > self.deadline_ms:
            return None  # left for _overdue
        del self._pending[header.id]
        self._estimate(round_trip_ms)
        failed = header.error
        if not failed:
            confidence, prediction = arrays[0].astype(np.float64), arrays[1].astype(np.int64)
            if header.frames != pending.frames:
                failed = f"bad reply: {header.frames} answers to {pending.frames} frames"
            elif not ((confidence >= 0) & (confidence <= 1)).all():
                failed = "bad reply: a confidence is not in [0, 1]"
            elif not ((prediction >= 0) & (prediction < self._classes)).all():
                failed = "bad reply: a prediction is no class of the model"
        if failed:
            return Reply(header.id, round_trip_ms=round_trip_ms, failed=one_line(failed))
        return Reply(header.id, confidence, prediction, header.compute_ms, round_trip_ms)

    def _overdue(self) -> list[Reply]:
        now = time.monotonic()
        waited = {id: 1000 * (now - pending.sent) for id, pending in self._pending.items()}
        overdue = {id: ms for id, ms in waited.items() if ms > self.deadline_ms}
        for id in overdue:
            del self._pending[id]
            self._estimate(self.deadline_ms)
        reason = f"no reply within {self.deadline_ms:g} ms"
        return [Reply(id, round_trip_ms=ms, failed=reason) for id, ms in overdue.items()]

    def _estimate(self, round_trip_ms: float) -> None:
        old = self.link_ms
        self.link_ms = round_trip_ms if math.isnan(old) else old + LINK_WEIGHT * (round_trip_ms - old)


class InMemoryOffloader:
    """A twin of the network without one: a function answers, and a test says when and in which order.

    Knows no clock, so that a test sees the same each time: a message in `lose` fails at the next `poll`.

    Parameters
    ----------
    answer
        Called on `submit`; an `OffloadError` it raises is the worker's refusal.
    window
        Most messages awaited at a time.
    reverse
        `poll` gives the newest reply first.
    held
        Replies wait for `release`.
    lose
        Ids whose reply never comes.
    round_trip_ms
        What every reply is said to have taken.

    Attributes
    ----------
    connected
        Set it to False and nothing can be sent.

    Examples
    --------
    >>> cloud = InMemoryOffloader(lambda stage, expert, x: (np.full(len(x), 0.9), np.arange(len(x))), lose={8})
    >>> [cloud.submit(id, 1, "pristine", np.zeros((2, 3), dtype=np.float32)) for id in (7, 8)]
    [True, True]
    >>> [(reply.id, reply.prediction.tolist(), reply.failed) for reply in cloud.poll()]
    [(7, [0, 1], ''), (8, [], 'no reply within 1 ms')]
    """

    def __init__(
        self,
        answer: Tail,
        *,
        window: int = 16,
        reverse: bool = False,
        held: bool = False,
        lose: Container[int] = (),
        round_trip_ms: float = 1.0,
    ) -> None:
        self.answer, self.window, self.reverse, self.held, self.lose = answer, window, reverse, held, lose
        self.round_trip_ms = round_trip_ms
        self.connected = True
        self.bytes_sent, self.link_ms = 0, math.nan
        self._held: list[Reply] = []
        self._ready: list[Reply] = []

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""
        return len(self._held) + len(self._ready)

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any]) -> bool:
        """Answer features at once and keep the reply for `poll`; see `Offloader`."""
        if any(reply.id == id for reply in self._held + self._ready):
            raise ValueError(f"id {id} is awaited already")
        if not self.connected or self.outstanding >= self.window:
            return False
        self.bytes_sent += features.nbytes
        (self._held if self.held else self._ready).append(self._reply(id, stage, expert, features))
        return True

    def release(self, count: int | None = None) -> None:
        """Let the `count` oldest held replies, or all, be seen by the next `poll`."""
        count = len(self._held) if count is None else count
        self._ready += self._held[:count]
        del self._held[:count]

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """All replies that are not held; never waits."""
        replies = self._ready[::-1] if self.reverse else self._ready
        self._ready = []
        if replies:
            self.link_ms = self.round_trip_ms
        return replies

    def close(self) -> None:
        """Give up what is awaited."""
        self._held, self._ready = [], []

    def _reply(self, id: int, stage: int, expert: str, features: NDArray[Any]) -> Reply:
        if id in self.lose:
            return Reply(id, round_trip_ms=self.round_trip_ms, failed=f"no reply within {self.round_trip_ms:g} ms")
        try:
            confidence, prediction = self.answer(stage, expert, features)
        except OffloadError as error:
            return Reply(id, round_trip_ms=self.round_trip_ms, failed=str(error))
        return Reply(
            id,
            np.asarray(confidence, dtype=np.float64),
            np.asarray(prediction, dtype=np.int64),
            0.0,
            self.round_trip_ms,
        )


class NoOffloader:
    """No worker: nothing can be sent."""

    outstanding, bytes_sent, link_ms = 0, 0, math.nan

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any]) -> bool:
        """False."""
        return False

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""
