"""What spoils images: every kind of distortion, applied to batches. A frame's pixels depend neither on its batch nor on
the device, nor on whether the images are numpy's or torch's. Imports no torch.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.models.arrays import like, to_numpy
from eex.policies.core.schedule import KINDS, MAX_LEVEL
from eex.stream.frames.blurs import defocus_blur, gaussian_blur, motion_blur
from eex.stream.frames.compression import jpeg, video
from eex.stream.frames.scene import dirt, fog, occlusion, rain, rotation
from eex.stream.frames.sensor import colour_cast, gaussian_noise, low_contrast, low_light

if TYPE_CHECKING:
    import torch


def distort(images: Any, levels: Any, frame: Any, seed: int) -> Any:
    """Apply each kind of distortion, in the order of `KINDS`, to the images with a level above 0.

    The pixels of a frame depend only on its image, levels, number and the seed. They are bit-identical in every
    batch, and the same on every device but for rounding.

    Parameters
    ----------
    images
        (B, C, H, W), floats in [0, 1]; numpy's or torch's, as the images that are returned.
    levels
        (B, kinds), as returned by `Schedule.levels`; level 0 leaves an image unchanged.
    frame
        Frame numbers, (B,) int64.
    seed
        Random seed.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    if levels.shape != (len(images), len(KINDS)) or frame.shape != (len(images),):
        raise ValueError(
            f"expected levels {(len(images), len(KINDS))} and frame {(len(images),)} for images {tuple(images.shape)}, "
            f"got {tuple(levels.shape)} and {tuple(frame.shape)}"
        )
    levels, frame = to_numpy(levels), to_numpy(frame)
    for kind, level in zip(KINDS, levels.T, strict=True):
        rows = np.flatnonzero(level > 0)
        if len(rows):
            index = like(images, rows)
            distorted = DISTORTIONS[kind](images[index], level[rows], frame[rows], seed)
            images = images * 1  # a copy, of numpy's and torch's alike
            images[index] = distorted
    return images


DISTORTIONS: dict[str, Callable[[Any, Any, Any, int], Any]] = {
    "rotation": rotation,
    "fog": fog,
    "rain": rain,
    "occlusion": occlusion,
    "dirt": dirt,
    "motion_blur": motion_blur,
    "defocus_blur": lambda images, radius, frame, seed: defocus_blur(images, radius),
    "gaussian_blur": lambda images, sigma, frame, seed: gaussian_blur(images, sigma),
    "low_light": low_light,
    "low_contrast": lambda images, percent, frame, seed: low_contrast(images, percent),
    "colour_cast": colour_cast,
    "gaussian_noise": gaussian_noise,
    "video": video,
    "jpeg": lambda images, loss, frame, seed: jpeg(images, loss),
}
"""Distortions by name: functions of images (B, C, H, W), levels (B,), frame numbers (B,) and a seed."""


def random_distortion(kind: str, low: float, high: float) -> "Callable[[torch.Tensor, torch.Generator], torch.Tensor]":
    """Return a function that distorts each image at its own level, drawn uniformly from [low, high]; for training.

    Raises
    ------
    ValueError
        If the kind is unknown or the levels are outside its range.
    """
    if kind not in KINDS or not 0 <= low <= high <= MAX_LEVEL[kind]:
        raise ValueError(
            f"expected one of {MAX_LEVEL} with 0 <= low <= high <= its highest level, got {kind}, {low}, {high}"
        )
    import torch

    apply = DISTORTIONS[kind]

    def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        level = low + (high - low) * torch.rand(len(images), generator=generator)
        frame = torch.randint(1 << 31, (len(images),), generator=generator)
        distorted: torch.Tensor = apply(images, level, frame, 0)
        return distorted

    return distort


def random_mixture(
    levels: Mapping[str, tuple[float, float]], share: float
) -> "Callable[[torch.Tensor, torch.Generator], torch.Tensor]":
    """Return a function that distorts a share of the images, each by one kind, drawn like its level; for training.

    Parameters
    ----------
    levels
        Lowest and highest level of each kind.
    share
        Probability that an image is distorted at all, in [0, 1].

    Raises
    ------
    ValueError
        If there is no kind, one is unknown, or levels or share are outside their range.
    """
    if not levels or not 0 <= share <= 1:
        raise ValueError(f"expected at least one kind and a share in [0, 1], got {dict(levels)} and {share}")
    import torch

    kinds = [random_distortion(kind, *bounds) for kind, bounds in levels.items()]

    def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(len(kinds), (len(images),), generator=generator)
        distorted = torch.rand(len(images), generator=generator) < share
        for number, kind in enumerate(kinds):
            rows = (distorted & (drawn == number)).nonzero()[:, 0]
            if len(rows):
                rows = rows.to(images.device)
                images = images.index_copy(0, rows, kind(images[rows], generator))
        return images

    return distort
