"""A micro-batch: the input of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eex.policies.core.base import Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of distorted images.

    Attributes
    ----------
    images
        (B, C, H, W) in [0, 1], on the network's device, already distorted.
    names
        Names of the B images.
    labels
        True classes, (B,); -1 if unknown.
    levels
        Levels of each kind of distortion, (B, kinds).
    """

    images: "Tensor"
    names: Sequence[str]
    labels: Ints
    levels: Floats

    def __len__(self) -> int:
        return len(self.images)
