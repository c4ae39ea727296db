"""Gaussian blur and noise on batches of images. A frame's pixels depend neither on its batch nor on the device."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from eex.policies.core.schedule import KINDS, MAX_LEVEL


def distort(images: Tensor, levels: Tensor, frame: Tensor, seed: int) -> Tensor:
    """Apply each kind of distortion, in the order of `KINDS`, to the images with a level above 0.

    The pixels of a frame depend only on its image, levels, number and the seed. They are bit-identical in every batch
    and on every device.

    Parameters
    ----------
    images
        (B, C, H, W), floats in [0, 1].
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
    levels, frame = levels.to(images.device), frame.to(images.device)
    for kind, level in zip(KINDS, levels.unbind(1), strict=True):
        rows = (level > 0).nonzero()[:, 0]
        if len(rows):
            images = images.index_copy(0, rows, DISTORTIONS[kind](images[rows], level[rows], frame[rows], seed))
    return images


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma, mirroring its borders.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    sigma
        In pixels, (B,); 0 leaves an image unchanged.
    """
    kernels = [gaussian_kernel(s) for s in sigma.tolist()]
    blurred = images.clone()
    for taps in sorted({len(k) for k in kernels} - {1}):  # one kernel size at a time
        rows = torch.tensor([row for row, k in enumerate(kernels) if len(k) == taps], device=images.device)
        weights = torch.tensor([k for k in kernels if len(k) == taps], dtype=images.dtype, device=images.device)
        x = images[rows]
        for axis in (2, 3):
            size = x.shape[axis]
            x = x.index_select(axis, _mirrored(size, taps // 2, x.device))
            # a sum over taps in place of conv2d, whose rounding changes with the size of the batch
            x = sum(
                (weights[:, k, None, None, None] * x.narrow(axis, k, size) for k in range(taps)), start=x.new_zeros(())
            )
        blurred[rows] = x.clamp(0, 1)
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


def _mirrored(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices -radius … size + radius - 1, mirrored at the first and last pixel as often as needed."""
    period = max(2 * (size - 1), 1)
    at = torch.arange(-radius, size + radius, device=device) % period
    return torch.minimum(at, period - at) if size > 1 else at


def gaussian_noise(images: Tensor, sigma: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    normal = standard_normal(frame, math.prod(images.shape[1:]), seed).to(images.dtype).reshape(images.shape)
    scale = (sigma.double() / 255).to(images.dtype)  # dividing by a constant differs on a GPU in the last bit
    return (images + normal * scale[:, None, None, None]).clamp(0, 1)


def standard_normal(frame: Tensor, count: int, seed: int) -> Tensor:
    """`count` standard normal draws for each frame, (B, count) float32, from (seed, frame) alone.

    A counter is mixed into 64 random bits, which select four of 65,536 equally likely values. Integers and a table give
    the same bits in every batch and on every device. The values end at ±4.3.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function.
    """
    words = math.ceil(count / 4)
    counter = frame.to(torch.int64)[:, None] * words + torch.arange(words, device=frame.device)  # no two frames overlap
    bits = _mix(_mix(counter) + _signed(seed * 0x9E3779B97F4A7C15))
    shifts = torch.arange(0, 64, 16, device=frame.device)
    picked = (bits[:, :, None] >> shifts) & 0xFFFF  # (B, words, 4)
    values = _normal_values(str(frame.device))
    return values[picked.flatten(1)[:, :count]]


@functools.lru_cache(maxsize=8)
def _normal_values(device: str) -> Tensor:
    """The normal distribution's quantiles in the middle of 65,536 equal parts, scaled to a variance of 1."""
    values: Tensor = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return values.div(values.square().mean().sqrt()).float().to(device)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: int64's own keeps the sign."""
    return torch.bitwise_and(z >> bits, (1 << (64 - bits)) - 1)


DISTORTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "gaussian_blur": lambda images, sigma, frame, seed: gaussian_blur(images, sigma),
    "gaussian_noise": gaussian_noise,
}
"""Distortions by name: functions of images (B, C, H, W), levels (B,), frame numbers (B,) and a seed."""


def random_distortion(kind: str, low: float, high: float) -> Callable[[Tensor, torch.Generator], Tensor]:
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
    apply = DISTORTIONS[kind]

    def distort(images: Tensor, generator: torch.Generator) -> Tensor:
        level = low + (high - low) * torch.rand(len(images), generator=generator)
        frame = torch.randint(1 << 31, (len(images),), generator=generator)
        return apply(images, level.to(images.device), frame.to(images.device), 0)

    return distort
