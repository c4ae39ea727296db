"""Requests that wait for a model, and the batches that are made of them. No sockets, no threads, no clock."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from eex.stream.wire.protocol import Request
from eex.stream.worker.clients import Client

BatchKey = tuple[str, int, str, str, tuple[int, ...]]
"""Requests with the same model, stage, expert, type and shape of features can be run together."""


@dataclass
class Queued:
    """An accepted request."""

    client: Client
    header: Request
    arrays: list[NDArray[Any]]
    arrived: float

    @property
    def nbytes(self) -> int:
        """Bytes of its features once they are decoded."""
        return math.prod(self.header.shape) * (2 if self.header.dtype == "float16" else 4)

    @property
    def frames(self) -> int:
        """Images in it."""
        return self.header.shape[0]

    @property
    def group(self) -> BatchKey:
        """What it can be run together with."""
        header = self.header
        return header.model, header.stage, header.expert, header.dtype, header.shape[1:]


@dataclass(eq=False)
class RequestBatch:
    """Requests that are run together; `lost` counts the replicas that went away with it."""

    requests: list[Queued]
    started: float
    lost: int = 0

    @property
    def frames(self) -> int:
        """Images in it."""
        return sum(queued.frames for queued in self.requests)

    @property
    def group(self) -> BatchKey:
        """What its requests have in common."""
        return self.requests[0].group


def _longest_ms(queued: Queued, wait_ms: float) -> float:
    """How long a request waits for others at most: half of the time that is left for its answer, at most."""
    return min(wait_ms, queued.header.deadline_ms / 2) if queued.header.deadline_ms > 0 else wait_ms


class BatchQueue:
    """The requests that wait, oldest first, by what can be run together.

    Parameters
    ----------
    batch
        Most frames in a batch; a single request may have more.
    wait_ms
        How long a request waits for others to share a batch with, but not beyond half of its deadline.
    """

    def __init__(self, batch: int, wait_ms: float) -> None:
        self.batch, self.wait_ms = batch, wait_ms
        self._groups: dict[BatchKey, deque[Queued]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def put(self, queued: Queued) -> None:
        """Let a request wait."""
        self._groups.setdefault(queued.group, deque()).append(queued)

    def due_in_ms(self, now: float) -> float:
        """When the next batch should be run, as soon as a replica is free; infinite where nothing waits."""
        return min((self._due_in_ms(group, now) for group in self._groups), default=math.inf)

    def _due_in_ms(self, group: BatchKey, now: float) -> float:
        waiting = self._groups[group]
        if not self.wait_ms or sum(queued.frames for queued in waiting) >= self.batch:
            return 0.0
        return max(0.0, min(1000 * (queued.arrived - now) + _longest_ms(queued, self.wait_ms) for queued in waiting))

    def take(self, now: float) -> tuple[RequestBatch, list[Queued]]:
        """The batch that is due first, of those that are due the one with the oldest request; it may be empty. And
        requests whose deadline has passed."""
        group = min(self._groups, key=lambda group: (self._due_in_ms(group, now), self._groups[group][0].arrived))
        waiting, frames = self._groups[group], 0
        batch, expired = RequestBatch([], now), []
        while waiting and (not batch.requests or frames + waiting[0].frames <= self.batch):
            queued = waiting.popleft()
            if 0 < queued.header.deadline_ms < 1000 * (now - queued.arrived):
                expired.append(queued)
                continue
            batch.requests.append(queued)
            frames += queued.frames
        if not waiting:
            del self._groups[group]
        return batch, expired
