"""Blur: by a Gaussian, by a lens out of focus, by motion."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eex.stream.frames.pixel_draws import uniform

MOTION = 1
"""Purpose of the draws of directions."""

Tap = tuple[int, int, float]
"""Of a filter: the pixel's offset down and to the right, and its weight."""


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
            x = x.index_select(axis, mirrored(size, taps // 2, x.device))
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


def defocus_blur(images: Tensor, radius: Tensor) -> Tensor:
    """Blur each image with a disc, as a lens out of focus does, mirroring its borders.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    radius
        Of the circle of confusion, in pixels, (B,).
    """
    blurred = images.clone()
    for r in sorted(set(radius.tolist())):
        rows = (radius == r).nonzero()[:, 0]
        blurred[rows] = filtered(images[rows], disc(r))
    return blurred


def motion_blur(images: Tensor, length: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
    """Blur each image along a line, as a camera that moves during the exposure does, mirroring its borders.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    length
        Way of a point during the exposure, in pixels, (B,).
    frame, seed
        The direction of a frame's motion is drawn from (seed, frame) alone.
    """
    turns = uniform(frame, 1, seed, MOTION)[:, 0].tolist()
    lengths = length.tolist()
    return torch.stack(
        [filtered(x, line(n, math.pi * turn)) for x, n, turn in zip(images, lengths, turns, strict=True)]
    )


@functools.lru_cache(maxsize=256)
def disc(radius: float) -> tuple[Tap, ...]:
    """A disc around the middle of a pixel; each weight is the part of the pixel within it, at 8 by 8 points."""
    reach, points = math.ceil(radius + 0.5), [(k + 0.5) / 8 - 0.5 for k in range(8)]
    square = radius * radius + 1e-12
    counts = [
        (y, x, sum((y + v) ** 2 + (x + u) ** 2 <= square for v in points for u in points))
        for y in range(-reach, reach + 1)
        for x in range(-reach, reach + 1)
    ]
    total = sum(count for _, _, count in counts)
    if not total:
        return ((0, 0, 1.0),)
    return tuple((y, x, count / total) for y, x, count in counts if count)


@functools.lru_cache(maxsize=256)
def line(length: float, angle: float) -> tuple[Tap, ...]:
    """A line through the middle of a pixel, at an angle in radians.

    Its points lie half a pixel apart, or closer, and are shared among the pixels around them by bilinear interpolation.
    """
    steps = max(1, math.ceil(2 * length))
    weights: dict[tuple[int, int], float] = {}
    for k in range(steps + 1):
        at = length * (k / steps - 0.5)
        y, x = at * math.sin(angle), at * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        for dy, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
            for dx, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
                weights[dy, dx] = weights.get((dy, dx), 0.0) + wy * wx / (steps + 1)
    return tuple((y, x, w) for (y, x), w in sorted(weights.items()) if w > 0)


def filtered(images: Tensor, taps: Sequence[Tap]) -> Tensor:
    """Images (…, H, W) in [0, 1], each pixel the weighted sum of those at the taps; borders are mirrored."""
    height, width = images.shape[-2:]
    down, right = max(abs(y) for y, _, _ in taps), max(abs(x) for _, x, _ in taps)
    x = images.index_select(-2, mirrored(height, down, images.device))
    x = x.index_select(-1, mirrored(width, right, images.device))
    total = torch.zeros_like(images)
    for dy, dx, weight in taps:  # a sum over taps in place of conv2d, whose rounding changes with the size of the batch
        total = total + weight * x[..., down + dy : down + dy + height, right + dx : right + dx + width]
    return total.clamp(0, 1)


def mirrored(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices -radius … size + radius - 1, mirrored at the first and last pixel as often as needed."""
    period = max(2 * (size - 1), 1)
    at = torch.arange(-radius, size + radius, device=device) % period
    return torch.minimum(at, period - at) if size > 1 else at
