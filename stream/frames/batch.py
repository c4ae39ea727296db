"""A micro-batch: the input of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eex.policies.core.base import Floats, Ints


@dataclass(frozen=True)
class Batch:
    """A micro-batch of distorted images.

    Attributes
    ----------
    images
        (B, C, H, W) in [0, 1], already distorted: an array of the network's own (`Network.array`).
    names
        Names of the B images.
    labels
        True classes, (B,); -1 if unknown.
    levels
        Levels of each kind of distortion, (B, kinds); None if the images are not distorted.
    streams
        Number of each image's stream, (B,); None if there is only one.
    arrived
        When each image was captured or arrived, in seconds on the engine's clock, (B,): latency counts from then. None
        counts from when the engine is fed.
    """

    images: Any
    names: Sequence[str]
    labels: Ints
    levels: Floats | None = None
    streams: Ints | None = None
    arrived: Floats | None = None

    def __len__(self) -> int:
        return len(self.images)
