"""What lies between scene and sensor: fog, rain, dirt on the lens, something in the way, a tilted camera."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy
from eex.stream.frames.blurs import filtered, line, mirrored
from eex.stream.frames.pixel_draws import uniform

ROTATION, FOG, RAIN, RAIN_ANGLE, OCCLUSION, DIRT = 4, 5, 6, 7, 8, 9
"""Purposes of draws."""
AIRLIGHT = 0.9
"""Brightness of the fog itself."""
FOG_CELLS = 4
"""Cells of fog along each side of an image, of a density of their own."""
STREAK = 0.7
"""Brightness of a rain drop's streak."""
SPOTS = 8
"""Spots of dirt on a lens."""


def rotation(images: Any, degrees: Any, frame: Any, seed: int = 0) -> Any:
    """Turn each image around its middle, mirroring its borders; pixels are interpolated linearly.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    degrees
        (B,).
    frame, seed
        To which side is drawn from (seed, frame) alone.
    """
    sign = np.where(uniform(frame, 1, seed, ROTATION)[:, 0] < 0.5, -1.0, 1.0)
    angle = np.radians(sign * to_numpy(degrees).astype(float))[:, None, None]
    count, channels, height, width = images.shape
    y, x = np.arange(height)[:, None] - (height - 1) / 2, np.arange(width)[None] - (width - 1) / 2
    down = np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2
    right = np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
    top, left = np.floor(down), np.floor(right)
    below, beside = (like(images, (at - low).astype(np.float32))[:, None] for at, low in ((down, top), (right, left)))
    reach = height + width  # no point lies further away
    rows, columns = mirrored(height, reach), mirrored(width, reach)
    pixels = images.reshape(count, channels, height * width)
    image, channel = like(images, np.arange(count))[:, None, None], like(images, np.arange(channels))[None, :, None]

    def at(dy: int, dx: int) -> Any:
        index = rows[top.astype(int) + dy + reach] * width + columns[left.astype(int) + dx + reach]
        return pixels[image, channel, like(images, index.reshape(count, 1, -1))].reshape(images.shape)

    upper = at(0, 0) * (1 - beside) + at(0, 1) * beside
    lower = at(1, 0) * (1 - beside) + at(1, 1) * beside
    return (upper * (1 - below) + lower * below).clip(0, 1)


def fog(images: Any, depth: Any, frame: Any, seed: int = 0) -> Any:
    """Lay fog over each image, thicker in some places than in others.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    depth
        Mean optical depth, (B,): of the light of the scene, exp(-depth) comes through (Beer and Lambert).
    frame, seed
        Where it is thick, from half to one and a half times the mean, is drawn from (seed, frame) alone.
    """
    cells = FOG_CELLS + 1
    draws = uniform(frame, cells * cells, seed, FOG).reshape(-1, 1, cells, cells)
    through = np.exp(-to_numpy(depth).astype(float)[:, None, None, None] * (0.5 + draws))
    clear = _enlarged(_enlarged(through, images.shape[2], 2), images.shape[3], 3).astype(np.float32)
    clear = like(images, clear)
    return (images * clear + AIRLIGHT * (1 - clear)).clip(0, 1)


def _enlarged(x: NDArray[np.float64], size: int, axis: int) -> NDArray[np.float64]:
    """Interpolate linearly along an axis, from its first value to its last."""
    at = np.arange(size) * ((x.shape[axis] - 1) / max(size - 1, 1))
    low = np.minimum(at.astype(int), x.shape[axis] - 2)
    shape = [1] * x.ndim
    shape[axis] = size
    share = (at - low).reshape(shape)
    enlarged: NDArray[np.float64] = x.take(low, axis) * (1 - share) + x.take(low + 1, axis) * share
    return enlarged


def rain(images: Any, drops: Any, frame: Any, seed: int = 0) -> Any:
    """Draw the streaks of falling rain on each image.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    drops
        Streaks per 1,000 pixels, (B,). Each is a sixth of the image long.
    frame, seed
        Where they are, and how they slant (up to 20 degrees), are drawn from (seed, frame) alone.
    """
    height, width = images.shape[2:]
    draws = uniform(frame, height * width, seed, RAIN).reshape(-1, 1, height, width)
    begins = (draws < to_numpy(drops).astype(float)[:, None, None, None] / 1000).astype(np.float32)
    slants = uniform(frame, 1, seed, RAIN_ANGLE)[:, 0].tolist()
    length = max(2.0, height / 6)
    for k, slant in enumerate(slants):
        taps = line(length, math.pi / 2 + math.radians(40 * slant - 20))
        brightest = max(weight for _, _, weight in taps)
        begins[k] = filtered(begins[k], [(y, x, weight / brightest) for y, x, weight in taps])
    wet = like(images, STREAK * begins)
    return (images * (1 - wet) + wet).clip(0, 1)


def occlusion(images: Any, percent: Any, frame: Any, seed: int = 0) -> Any:
    """Cover so many per cent of each image with a grey rectangle of the image's proportions.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    percent
        (B,).
    frame, seed
        Where it lies is drawn from (seed, frame) alone.
    """
    covered = images * 1
    height, width = images.shape[2:]
    places = uniform(frame, 2, seed, OCCLUSION).tolist()
    for k, (level, (down, right)) in enumerate(zip(percent.tolist(), places, strict=True)):
        h, w = (round(side * math.sqrt(level / 100)) for side in (height, width))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        covered[k, :, top : top + h, left : left + w] = 0.5
    return covered


def dirt(images: Any, percent: Any, frame: Any, seed: int = 0) -> Any:
    """Darken round spots of each image, as dirt on the lens does; the spots are dark in the middle, and fade outwards.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    percent
        Area of the spots, if none overlapped, (B,).
    frame, seed
        Where they are is drawn from (seed, frame) alone.
    """
    height, width = images.shape[2:]
    places = uniform(frame, 2 * SPOTS, seed, DIRT)[:, :, None, None]
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    spot = to_numpy(percent).astype(float)[:, None, None] / 100 * height * width / (SPOTS * math.pi)  # radius, squared
    clear = np.ones((len(images), height, width))
    for k in range(SPOTS):
        down, right = places[:, 2 * k], places[:, 2 * k + 1]
        away = (y - down * (height - 1)) ** 2 + (x - right * (width - 1)) ** 2
        clear = np.minimum(clear, (away / np.maximum(spot, 1e-9)).clip(0.1, 1))
    return images * like(images, clear.astype(np.float32))[:, None]
