"""What a worker counts of itself."""

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from eex.stream.worker.log import Throttled

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LATENCY_BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Histogram:
    """Counts by upper bound, as Prometheus has them, at a fraction of the cost of its own client.

    Examples
    --------
    >>> histogram = Histogram((1, 10))
    >>> for value in (1, 5, 50):
    ...     histogram.add(value)
    >>> histogram.counts, histogram.total
    ([1, 1, 1], 56.0)
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = list(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class Stats:
    """What a worker has done since it started; written by its thread, read by any.

    Attributes
    ----------
    requests
        Requests accepted, by model.
    refusals
        Messages refused, by kind.
    frames
        Frames that the models ran on.
    expired
        Requests whose deadline had passed before a model was free.
    unread
        Replies that their clients did not read.
    shared
        Messages with what an edge has learned.
    strangers
        Connections rejected for their keys.
    log
        Counts the lines that were not logged, if there is one.
    upstream
        Frames by what became of them where there is an upstream worker: here, forwarded, fallback (`tiers`).
    """

    requests: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    expired: int = 0
    unread: int = 0
    shared: int = 0
    strangers: int = 0
    log: Throttled | None = None
    upstream: Counter[str] = field(default_factory=Counter)
    batch_frames: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    latency_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_MS))
    compute_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_MS))
