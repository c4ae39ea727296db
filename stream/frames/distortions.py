"""Gaussian blur and noise on batches of images. A frame's pixels depend neither on its batch nor on the device, nor on
whether the images are numpy's or torch's. Imports no torch.
"""

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy
from eex.policies.core.schedule import KINDS, MAX_LEVEL

if TYPE_CHECKING:
    import torch


def distort(images: Any, levels: Any, frame: Any, seed: int) -> Any:
    """Apply each kind of distortion, in the order of `KINDS`, to the images with a level above 0.

    The pixels of a frame depend only on its image, levels, number and the seed. They are bit-identical in every batch
    and on every device.

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


def gaussian_blur(images: Any, sigma: Any) -> Any:
    """Blur each image with its own sigma, mirroring its borders.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    sigma
        In pixels, (B,); 0 leaves an image unchanged.
    """
    kernels = [gaussian_kernel(s) for s in sigma.tolist()]
    blurred = images * 1
    for taps in sorted({len(k) for k in kernels} - {1}):  # one kernel size at a time
        rows = like(images, np.array([row for row, k in enumerate(kernels) if len(k) == taps]))
        weights = like(images, np.array([k for k in kernels if len(k) == taps], dtype=np.float32))
        x = images[rows]
        for axis in (2, 3):
            size = x.shape[axis]
            at = like(images, _mirrored(size, taps // 2))
            x = x[:, :, at] if axis == 2 else x[:, :, :, at]
            # a sum over taps in place of a convolution, whose rounding changes with the size of the batch
            x = sum(
                weights[:, k, None, None, None] * (x[:, :, k : k + size] if axis == 2 else x[..., k : k + size])
                for k in range(taps)
            )
        blurred[rows] = x.clip(0, 1)
    return blurred


@functools.lru_cache(maxsize=4096)
def gaussian_kernel(sigma: float) -> tuple[float, ...]:
    """Gaussian weights at 2·⌈2σ⌉ + 1 pixels (4σ + 1 for integer σ in pixels); they add up to 1.

    References
    ----------
    Pacheco, Oliveira and Couto (2021), Early-exit deep neural networks for distorted images, section IV.
    """
    radius = math.ceil(2 * sigma)
    weights = [math.exp(-0.5 * (at / sigma) * (at / sigma)) if at else 1.0 for at in range(-radius, radius + 1)]
    return tuple(w / math.fsum(weights) for w in weights)


def _mirrored(size: int, radius: int) -> NDArray[np.int64]:
    """Indices -radius … size + radius - 1, mirrored at the first and last pixel as often as needed."""
    period = max(2 * (size - 1), 1)
    at = np.arange(-radius, size + radius) % period
    return np.minimum(at, period - at) if size > 1 else at


def gaussian_noise(images: Any, sigma: Any, frame: Any, seed: int = 0) -> Any:
    """Add Gaussian noise with a standard deviation per image, and clip to [0, 1].

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    sigma
        On the 0–255 scale, (B,).
    frame, seed
        Frame numbers, (B,) int64, and any integer. The noise of a frame depends on (seed, frame) alone.
    """
    frame = like(images, to_numpy(frame))
    normal = standard_normal(frame, math.prod(images.shape[1:]), seed).reshape(images.shape)
    scale = (to_numpy(sigma).astype(float) / 255).astype(np.float32)  # a GPU's division differs in the last bit
    return (images + normal * like(images, scale)[:, None, None, None]).clip(0, 1)


def standard_normal(frame: Any, count: int, seed: int) -> Any:
    """`count` standard normal draws for each frame, (B, count) float32, from (seed, frame) alone.

    A counter is mixed into 64 random bits, which select four of 65,536 equally likely values. Integers and a table give
    the same bits in every batch and on every device. The values end at ±4.3.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function.
    """
    words = math.ceil(count / 4)
    counter = frame[:, None] * words + like(frame, np.arange(words))  # no two frames overlap
    bits = _mix(_mix(counter) + _signed(seed * 0x9E3779B97F4A7C15))
    picked = (bits[:, :, None] >> like(frame, np.arange(0, 64, 16))) & 0xFFFF  # (B, words, 4)
    values = _normal_values() if isinstance(frame, np.ndarray) else _on_device(str(frame.device))
    return values[picked.reshape(len(frame), 4 * words)[:, :count]]


@functools.lru_cache(maxsize=1)
def _normal_values() -> NDArray[np.float32]:
    """The normal distribution's quantiles in the middle of 65,536 equal parts, scaled to a variance of 1."""
    quantile = NormalDist().inv_cdf
    values = np.array([quantile((k + 0.5) / (1 << 16)) for k in range(1 << 16)])
    scaled: NDArray[np.float32] = (values / np.sqrt(np.square(values).mean())).astype(np.float32)
    return scaled


@functools.lru_cache(maxsize=8)
def _on_device(device: str) -> "torch.Tensor":
    import torch

    return torch.from_numpy(_normal_values()).to(device)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _mix(z: Any) -> Any:
    """SplitMix64's finaliser on int64, whose products wrap around."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Any, bits: int) -> Any:
    """Logical shift to the right: int64's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


DISTORTIONS: dict[str, Callable[[Any, Any, Any, int], Any]] = {
    "gaussian_blur": lambda images, sigma, frame, seed: gaussian_blur(images, sigma),
    "gaussian_noise": gaussian_noise,
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
