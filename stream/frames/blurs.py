"""Blur: by a Gaussian, by a lens out of focus, by motion; of numpy's and torch's images alike."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy
from eex.stream.frames.pixel_draws import uniform

MOTION = 1
"""Purpose of the draws of directions."""

Tap = tuple[int, int, float]
"""Of a filter: the pixel's offset down and to the right, and its weight."""


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
            at = like(images, mirrored(size, taps // 2))
            x = x[:, :, at] if axis == 2 else x[:, :, :, at]
            # a sum over taps in place of a convolution, whose rounding changes with the size of the batch
            x = sum(
                weights[:, k, None, None, None] * (x[:, :, k : k + size] if axis == 2 else x[..., k : k + size])
                for k in range(taps)
            )
        blurred[rows] = x.clip(0, 1)
    return blurred


def defocus_blur(images: Any, radius: Any) -> Any:
    """Blur each image with a disc, as a lens out of focus does, mirroring its borders.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    radius
        Of the circle of confusion, in pixels, (B,).
    """
    blurred, radii = images * 1, to_numpy(radius)
    for r in sorted(set(radii.tolist())):
        rows = like(images, np.flatnonzero(radii == r))
        blurred[rows] = filtered(images[rows], disc(r))
    return blurred


def motion_blur(images: Any, length: Any, frame: Any, seed: int = 0) -> Any:
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
    blurred, turns = images * 1, uniform(frame, 1, seed, MOTION)[:, 0].tolist()
    for k, (n, turn) in enumerate(zip(length.tolist(), turns, strict=True)):
        blurred[k] = filtered(images[k], line(n, math.pi * turn))
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


def filtered(images: Any, taps: Sequence[Tap]) -> Any:
    """Images (…, H, W) in [0, 1], each pixel the weighted sum of those at the taps; borders are mirrored."""
    height, width = images.shape[-2:]
    down, right = max(abs(y) for y, _, _ in taps), max(abs(x) for _, x, _ in taps)
    x = images[..., like(images, mirrored(height, down)), :]
    x = x[..., like(images, mirrored(width, right))]
    total = images * 0
    for dy, dx, weight in taps:  # a sum over taps in place of a convolution, whose rounding changes with the batch
        total = total + weight * x[..., down + dy : down + dy + height, right + dx : right + dx + width]
    return total.clip(0, 1)


def mirrored(size: int, radius: int) -> NDArray[np.int64]:
    """Indices -radius … size + radius - 1, mirrored at the first and last pixel as often as needed."""
    period = max(2 * (size - 1), 1)
    at = np.arange(-radius, size + radius) % period
    return np.minimum(at, period - at) if size > 1 else at
