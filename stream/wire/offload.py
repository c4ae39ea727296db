"""The seam between the engine and the cloud: `submit`, `poll`, and an in-memory twin of the network.

Offloader                what the engine needs
├── client.ZmqOffloader  workers at the other ends of ZeroMQ sockets
├── InMemoryOffloader    a function; replies come reversed, held back or not at all, as a test wants
└── NoOffloader          no worker
"""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.encoding import Encoded, decode
from eex.stream.wire.protocol import MAX_BYTES

Tail = Callable[[int, str, NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""What a worker runs: (stage, expert, features (n, ...)) to confidence (n,) and prediction (n,) of the final exit."""
Answers = Callable[[Any], tuple[NDArray[Any], NDArray[Any]]]
"""Confidence and prediction (n,) of images (n, C, H, W), as a model in the cloud answers them."""


@dataclass(frozen=True)
class Reply:
    """What became of one submitted message.

    Attributes
    ----------
    id
        As submitted.
    confidence, prediction
        Of the final exit, (n,); empty if the message failed.
    compute_ms
        Milliseconds that the model took on the worker; NaN if the message failed.
    round_trip_ms
        Milliseconds from `submit` until `poll` had the reply, or gave it up.
    failed
        Why there is no answer, as when the deadline passed or the worker refused; empty if there is one.
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

    @property
    def reachable(self) -> bool:
        """Whether a worker is believed to be alive; while none is, nothing can be sent."""

    @property
    def max_bytes(self) -> int:
        """Largest array of features that one message may hold."""

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """Send features to go on from a stage, without waiting; each message that is sent yields exactly one reply.

        Parameters
        ----------
        id
            Must not have been used before.
        stage
            First stage the worker has to run, counted from 0.
        expert
            Name of the expert whose side branch answers.
        features
            float32 or float16, (n, ...), as they are or encoded. They may be sent after the call returns, so do not
            write to them any more.

        Returns
        -------
        sent
            False if no worker is reachable or has room; then no reply comes.
        """

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """The replies that came in and the messages that failed; waits for the first of them, if any is awaited."""

    def wake_on(self, descriptor: int) -> None:
        """Let `poll` return when something can be read from a file descriptor, too."""

    def report(self) -> dict[str, Any]:
        """What happened so far, as plain JSON values for a summary."""

    def close(self) -> None:
        """Give up what is awaited and release the network."""


class InMemoryOffloader:
    """A stand-in for network and worker: a function answers, and a test decides when and in which order.

    There is no clock, so that a test sees the same each time: a message in `lose` fails at the next `poll`.

    Parameters
    ----------
    answer
        Called on `submit`; an `OffloadError` that it raises becomes the worker's refusal.
    window
        Most messages awaited at a time.
    reverse
        Whether `poll` returns the newest reply first.
    held
        Whether replies wait for `release`.
    lose
        Ids of messages whose reply never comes.
    round_trip_ms
        Round trip that every reply reports.

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
        self.max_bytes = MAX_BYTES
        self._held: list[Reply] = []
        self._ready: list[Reply] = []

    @property
    def reachable(self) -> bool:
        """Whether `connected` is set."""
        return self.connected

    @property
    def outstanding(self) -> int:
        """Messages whose reply is awaited."""
        return len(self._held) + len(self._ready)

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """Answer features at once and keep the reply for `poll`; see `Offloader`."""
        if any(reply.id == id for reply in self._held + self._ready):
            raise ValueError(f"id {id} is awaited already")
        if not self.connected or self.outstanding >= self.window:
            return False
        self.bytes_sent += features.nbytes
        if isinstance(features, Encoded):
            features = decode(features.dtype, features.shape, features.codec, features.arrays)
        (self._held if self.held else self._ready).append(self._reply(id, stage, expert, features))
        return True

    def release(self, count: int | None = None) -> None:
        """Let the next `poll` return the `count` oldest held replies, or all."""
        count = len(self._held) if count is None else count
        self._ready += self._held[:count]
        del self._held[:count]

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """All replies that are not held back; never waits."""
        replies = self._ready[::-1] if self.reverse else self._ready
        self._ready = []
        if replies:
            self.link_ms = self.round_trip_ms
        return replies

    def wake_on(self, descriptor: int) -> None:
        """Nothing: `poll` never waits."""

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}

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
    reachable, max_bytes = False, MAX_BYTES

    def submit(self, id: int, stage: int, expert: str, features: NDArray[Any] | Encoded) -> bool:
        """False."""
        return False

    def poll(self, timeout_ms: float = 0) -> list[Reply]:
        """Nothing."""
        return []

    def wake_on(self, descriptor: int) -> None:
        """Nothing: `poll` never waits."""

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing to release."""
