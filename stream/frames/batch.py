"""A micro-batch: what sources give and the engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eex.policies.core.base import Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch, as a source gives it.

    Attributes
    ----------
    images
        (B, C, H, W) in [0, 1], on the network's device, with the distortion that is to be seen.
    names
        Of the images, B of them.
    labels
        True classes, (B,); -1 where unknown.
    levels
        Levels of each kind of distortion, (B, kinds).
    """

    images: "Tensor"
    names: Sequence[str]
    labels: Ints
    levels: Floats

    def __len__(self) -> int:
        return len(self.images)
