"""Frames that wait to be run, by stream: who comes next, what is run together, what is stale. No threads, no clock."""

import heapq
import itertools
import math
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.config import Keep


@dataclass(eq=False, slots=True)
class Waiting:
    """A frame that was submitted.

    Attributes
    ----------
    stream, frame, name, captured
        As in its `Answer`; `captured` in seconds since 1970.
    label
        Number of its true class, -1 if unknown.
    image
        (H, W, C), uint8, of the size that the network takes.
    since
        When it was captured, in seconds on the clock of `time.perf_counter`: latency counts from then.
    arrived
        When it was submitted, on the same clock.
    future
        Gets its answer or refusal.
    """

    stream: str
    frame: int
    name: str
    label: int
    image: NDArray[np.uint8]
    captured: float
    since: float
    arrived: float
    future: "Future[Answer | Refusal]"


@dataclass(eq=False)
class Queue:
    """What waits of one stream.

    Attributes
    ----------
    keep, most
        Keep the newest frame only, or all, at most so many.
    submitted
        Frames so far: the number of the next one.
    turn
        Number of the turn in which its last frame was taken.
    since
        When the wait for its next turn began, in seconds on the clock of `arrived`: a frame that is replaced by a newer
        one hands its wait on.
    """

    name: str
    keep: Keep = "all"  # "auto" is resolved
    most: int = 64
    submitted: int = 0
    turn: int = 0
    since: float = 0.0
    closing: bool = False
    frames: deque[Waiting] = field(default_factory=deque)
    extra: Any = None

    @property
    def full(self) -> bool:
        """Whether a frame that is kept has to wait for room."""
        return self.keep == "all" and len(self.frames) >= self.most


class Arrivals:
    """The frames that wait, taken in turns: the next is of the stream whose last one was taken longest ago.

    So under overload every stream gets the same share, and one with fewer frames than its share loses none. While
    frames are replaced by newer ones, only a quarter of the streams that wait are taken at once: a frame's answer waits
    for all that are run with it, and the others' next frames are newer. Fewer frames are answered so, each of them
    sooner.

    Parameters
    ----------
    batch
        Frames that are taken at once, at most.
    wait_s
        Seconds that a frame may wait for others, while several streams are open.
    """

    def __init__(self, batch: int, wait_s: float = 0.0) -> None:
        self.batch, self.wait_s = batch, wait_s
        self.waiting = 0
        self.streams = 0  # that are open
        self._turn = 0  # the latest
        self._replaced = False  # whether a frame was, since frames were last taken
        self._next: list[tuple[int, int, Queue]] = []  # those with frames, by their last turn; a heap
        self._ids = itertools.count()

    def put(self, queue: Queue, frame: Waiting) -> list[Waiting]:
        """Add a frame, which must have room; the frames that it made stale."""
        stale = []
        if queue.keep == "newest":
            stale = list(queue.frames)
            queue.frames.clear()
            self._replaced |= bool(stale)
        if not queue.frames and not stale:
            heapq.heappush(self._next, (queue.turn, next(self._ids), queue))
            queue.since = frame.arrived
        queue.frames.append(frame)
        self.waiting += 1 - len(stale)
        return stale

    def due(self) -> float:
        """When to take the next frames, in seconds on the clock of `arrived`: -inf for at once, inf for never."""
        if not self.waiting:
            return math.inf
        if not self.wait_s or self.streams < 2 or self.waiting >= self.batch:
            return -math.inf
        return min(queue.since for _, _, queue in self._next) + self.wait_s

    def take(self, most: int) -> list[Waiting]:
        """The next frames, in turns; at most `most`, and at most a batch."""
        taken: list[Waiting] = []
        most = min(most, self.batch, -(-len(self._next) // 4) if self._replaced else self.batch)
        self._replaced = False
        while self._next and len(taken) < most:
            queue = heapq.heappop(self._next)[2]
            taken.append(queue.frames.popleft())
            self._turn += 1
            queue.turn = self._turn
            if queue.frames:
                heapq.heappush(self._next, (queue.turn, next(self._ids), queue))
                queue.since = queue.frames[0].arrived
        self.waiting -= len(taken)
        return taken

    def clear(self) -> list[Waiting]:
        """All that waits, which waits no more."""
        left = [frame for _, _, queue in self._next for frame in queue.frames]
        for _, _, queue in self._next:
            queue.frames.clear()
        self._next.clear()
        self.waiting = 0
        return left
