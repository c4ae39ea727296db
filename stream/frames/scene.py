"""What lies between the scene and the sensor: fog, rain, dirt on the lens, something in the way, a tilted camera."""

import math

import torch
from torch import Tensor

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


def rotation(images: Tensor, degrees: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    sign = torch.where(uniform(frame, 1, seed, ROTATION)[:, 0] < 0.5, -1.0, 1.0).double()
    angles = (sign * degrees.double()).tolist()
    cos, sin = (
        torch.tensor([f(math.radians(angle)) for angle in angles], dtype=torch.float64, device=images.device)
        for f in (math.cos, math.sin)
    )
    height, width = images.shape[2:]
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64, device=images.device)[None] - (width - 1) / 2
    down = cos[:, None, None] * y - sin[:, None, None] * x + (height - 1) / 2
    right = sin[:, None, None] * y + cos[:, None, None] * x + (width - 1) / 2
    top, left = down.floor(), right.floor()
    below, beside = (down - top).to(images.dtype)[:, None], (right - left).to(images.dtype)[:, None]
    reach = height + width  # no point lies further away
    rows, columns = mirrored(height, reach, images.device), mirrored(width, reach, images.device)
    pixels = images.flatten(2)

    def at(dy: int, dx: int) -> Tensor:
        index = rows[top.long() + dy + reach] * width + columns[left.long() + dx + reach]
        return pixels.gather(2, index.flatten(1)[:, None].expand_as(pixels)).reshape(images.shape)

    upper = at(0, 0) * (1 - beside) + at(0, 1) * beside
    lower = at(1, 0) * (1 - beside) + at(1, 1) * beside
    return (upper * (1 - below) + lower * below).clamp(0, 1)


def fog(images: Tensor, depth: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    draws = uniform(frame, cells * cells, seed, FOG).double().tolist()
    through = [
        [math.exp(-level * (0.5 + draw)) for draw in row] for level, row in zip(depth.tolist(), draws, strict=True)
    ]
    coarse = torch.tensor(through, dtype=images.dtype, device=images.device).reshape(-1, 1, cells, cells)
    clear = _enlarged(_enlarged(coarse, images.shape[2], 2), images.shape[3], 3)
    return (images * clear + AIRLIGHT * (1 - clear)).clamp(0, 1)


def _enlarged(x: Tensor, size: int, axis: int) -> Tensor:
    """Interpolate linearly along an axis, from its first value to its last."""
    at = torch.arange(size, dtype=torch.float64, device=x.device) * ((x.shape[axis] - 1) / max(size - 1, 1))
    low = at.floor().clamp(max=x.shape[axis] - 2)
    shape = [1] * x.dim()
    shape[axis] = size
    share = (at - low).to(x.dtype).reshape(shape)
    return x.index_select(axis, low.long()) * (1 - share) + x.index_select(axis, low.long() + 1) * share


def rain(images: Tensor, drops: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    begins = (draws < (drops / 1000).to(draws.device, draws.dtype)[:, None, None, None]).to(images.dtype)
    slants = uniform(frame, 1, seed, RAIN_ANGLE)[:, 0].tolist()
    length = max(2.0, height / 6)
    streaks = []
    for drop, slant in zip(begins, slants, strict=True):
        taps = line(length, math.pi / 2 + math.radians(40 * slant - 20))
        brightest = max(weight for _, _, weight in taps)
        streaks.append(filtered(drop, [(y, x, weight / brightest) for y, x, weight in taps]))
    wet = STREAK * torch.stack(streaks)
    return (images * (1 - wet) + wet).clamp(0, 1)


def occlusion(images: Tensor, percent: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    covered = images.clone()
    height, width = images.shape[2:]
    places = uniform(frame, 2, seed, OCCLUSION).double().tolist()
    for x, level, (down, right) in zip(covered, percent.tolist(), places, strict=True):
        h, w = (round(side * math.sqrt(level / 100)) for side in (height, width))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        x[:, top : top + h, left : left + w] = 0.5
    return covered


def dirt(images: Tensor, percent: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    places = uniform(frame, 2 * SPOTS, seed, DIRT).double()
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None]
    x = torch.arange(width, dtype=torch.float64, device=images.device)[None]
    spot = percent.double()[:, None, None] / 100 * height * width / (SPOTS * math.pi)  # square of a spot's radius
    clear = torch.ones(len(images), height, width, dtype=torch.float64, device=images.device)
    for k in range(SPOTS):
        down, right = places[:, 2 * k], places[:, 2 * k + 1]
        away = (y - down[:, None, None] * (height - 1)) ** 2 + (x - right[:, None, None] * (width - 1)) ** 2
        clear = torch.minimum(clear, (away / spot.clamp(min=1e-9)).clamp(0.1, 1))
    return images * clear.to(images.dtype)[:, None]
