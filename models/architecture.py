"""What a network is without its weights, and what the engine asks of whatever runs one. Imports no torch."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

PRISTINE = "pristine"
CUSTOM = "custom"
UNKNOWN = "unknown"
"""What a frame's distortion is called where the distortion classifier abstains; no expert can have this name."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes one of the size that a network takes.

    The image is scaled, keeping its proportions, so that its middle fills the network's input; the rest is cropped.

    Parameters
    ----------
    crop
        Share of the shorter side that is kept, in (0, 1]. Published networks are often measured on 224 of 256 pixels,
        which is 0.875.
    interpolation
        How pixels are interpolated; both take the mean over the pixels that become one.
    """

    crop: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def check(self) -> None:
        """Raise `ValueError` if a value is out of range."""
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must lie in (0, 1], got {self.crop:g}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got '{self.interpolation}'")

    def least(self, height: int, width: int) -> int:
        """Pixels that either side of an image must have for it not to be enlarged."""
        return math.ceil(max(height, width) / self.crop)


USUAL = Preprocessing()


@dataclass(frozen=True)
class Architecture:
    """Everything needed to make a network again, except its weights.

    Parameters
    ----------
    backbone
        A name in `BACKBONES`, or "custom" for a user's own module (which only its own code can make again; see
        `eex.models.cutting`).
    classes
        Class names, in the order of the logits.
    after
        Index of the block after which each side branch stands, rising; the final exit follows the last block. A custom
        backbone's blocks are its stages.
    structures
        Branch structure of each exit, the final one included; names in `BRANCHES`, and "custom" for the final exit of
        a user's own module.
    experts
        Names of the experts; each exit has a branch for each. The backbone is trained with the first.
    partition
        Stages that run on the edge; the rest run on the cloud worker. By default all but the last.
    input_shape
        Shape of one frame: (C, H, W) for images with pixels in [0, 1], (T,) for texts of T token ids.
    mean, std
        Mean and standard deviation of the pixels, per channel: the first stage normalises its input with them. Empty
        for texts, whose token ids go in as they are.
    options
        Arguments of the backbone.
    confidence
        What an exit's confidence is: "top", the largest softmax probability, or "entropy", 1 less the normalised
        entropy of all of them (`EarlyExitNet.confident`).
    preprocessing
        How images of other sizes become those that the network takes. This and the confidence are left out of `repr`,
        and are part of the fingerprint only where they are not the default: earlier models keep theirs.
    """

    backbone: str
    classes: tuple[str, ...]
    after: tuple[int, ...]
    structures: tuple[str, ...]
    experts: tuple[str, ...] = (PRISTINE,)
    partition: int = 0
    input_shape: tuple[int, ...] = (3, 32, 32)
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    options: dict[str, Any] = field(default_factory=dict)
    confidence: Literal["top", "entropy"] = field(default="top", repr=False)
    preprocessing: Preprocessing = field(default=USUAL, repr=False)

    @property
    def takes_images(self) -> bool:
        """Whether frames are images (C, H, W) with values in [0, 1], rather than texts (T,) of token ids."""
        return len(self.input_shape) == 3


@dataclass(frozen=True)
class Costs:
    """What one image costs at each stage and exit.

    Attributes
    ----------
    stage_macs
        Multiply-adds of each stage, shape (stages,).
    branch_macs
        Multiply-adds of one expert's branch at each exit, shape (stages,).
    feature_bytes
        Bytes of the features after each stage in float32, shape (stages,).
    """

    stage_macs: tuple[int, ...]
    branch_macs: tuple[int, ...]
    feature_bytes: tuple[int, ...]

    def of_exit(self, exit: int) -> int:
        """Multiply-adds of a frame that visits every exit up to this one (counted from 0) and leaves there."""
        return sum(self.stage_macs[: exit + 1]) + sum(self.branch_macs[: exit + 1])

    @property
    def whole(self) -> int:
        """Multiply-adds of the backbone and its final exit alone: the same network without side branches."""
        return sum(self.stage_macs) + self.branch_macs[-1]


class Network(Protocol):
    """A network as the engine sees it, whatever runs it: torch (`EarlyExitNet`), or ONNX Runtime (`OnnxNet`).

    Arrays are the backend's own, torch's or numpy's; `eex.models.arrays` has what else the engine does with them.
    """

    partition: int
    abstain_below: float
    fingerprint: str
    """Of the model: of all that decides its answers."""
    temperature: list[dict[str, float]]

    @property
    def tail_fingerprint(self) -> str:
        """Fingerprint of the model that a worker continues with: the model itself, or what it is a reduced form of."""

    @property
    def architecture(self) -> Architecture:
        """Names, shapes and normalisation."""

    @property
    def classifier(self) -> Callable[[Any], Any] | None:
        """The distortion classifier: images to logits, (B, experts); None if there is none."""

    @property
    def exits(self) -> int:
        """Exits, the final one included."""

    @property
    def edge_exits(self) -> int:
        """Exits that may answer on the edge: those up to the partition point, but for the final exit."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts that every exit has a branch for."""

    def stage(self, i: int, x: Any, /) -> Any:
        """Features after stage i, from the features after stage i - 1; stage 0 takes images (B, C, H, W) in [0, 1], or
        token ids (B, T)."""

    def branch(self, i: int, expert: str, x: Any, /) -> Any:
        """Calibrated logits (B, K) of one expert's branch at exit i."""

    def confident(self, logits: Any, /) -> tuple[Any, Any]:
        """Confidence, in [0, 1], and predicted class of calibrated logits (B, K), both (B,)."""

    def costs(self) -> Costs:
        """Multiply-adds and bytes of each stage and exit for one image."""

    def array(self, values: NDArray[Any], stage: int = 0, /) -> Any:
        """An array of numpy's (float32; token ids may be integers) as the backend's own, on its device."""

    def inferring(self) -> AbstractContextManager[Any]:
        """What the network has to run in."""


def check_expert(name: str) -> None:
    """Raise `ValueError` if an expert cannot have this name, which becomes part of the names of weights and files."""
    if not name.isprintable() or not name or any(c in name for c in "./\\"):
        raise ValueError(f"expert {name!r}: no possible name; expected printable characters without '.', '/' and '\\'")
    if name == UNKNOWN:
        raise ValueError(f"expert '{UNKNOWN}': no possible name; it stands for distortions that no expert is for")
