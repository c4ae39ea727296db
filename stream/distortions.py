"""Gaussian blur and noise on batches of images, seeded per frame."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

MAX_SIGMA = {"gaussian_blur": 20.0, "gaussian_noise": 255.0}


def gaussian_blur(images: Tensor, sigma: Tensor, frame: Tensor | None = None, seed: int = 0) -> Tensor:
    """Blur each image by its own sigma: a Gaussian kernel of 2·⌈2σ⌉ + 1 pixels a side (4σ + 1 for whole σ).

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    sigma
        In pixels, (B,); 0 leaves an image as it is.
    frame, seed
        Not used: blur draws nothing.

    References
    ----------
    Pacheco, Oliveira and Couto (2021), Early-exit deep neural networks for distorted images, section IV.
    """
    batch, channels = images.shape[:2]
    radius = math.ceil(2 * float(sigma.max())) if batch else 0
    if radius == 0:
        return images
    at = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    wide = sigma.to(images.dtype)[:, None]
    kernel = torch.exp(-0.5 * (at / wide.clamp(min=1e-3)) ** 2)
    kernel = torch.where(at.abs() <= torch.ceil(2 * wide), kernel, 0.0)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (B·C, 2·radius + 1)
    flat = images.reshape(1, batch * channels, *images.shape[-2:])
    flat = _padded(flat, radius)
    flat = conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    flat = conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return flat.reshape(images.shape)


def _padded(x: Tensor, radius: int) -> Tensor:
    # mirroring needs images larger than the kernel's radius
    mode = "reflect" if radius < min(x.shape[-2:]) else "replicate"
    return pad(x, (radius, radius, radius, radius), mode=mode)


def gaussian_noise(images: Tensor, sigma: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
    """Add noise of each image's own standard deviation, and clip to [0, 1].

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    sigma
        On the 0–255 scale, (B,).
    frame, seed
        The noise of a frame depends on (seed, frame) alone, whatever batch it comes in, on any device: (B,) integers.
    """
    normal = standard_normal(frame, images[0].numel(), seed).to(images.dtype).reshape(images.shape)
    return (images + normal * (sigma.to(images.dtype) / 255)[:, None, None, None]).clamp(0, 1)


def standard_normal(frame: Tensor, count: int, seed: int) -> Tensor:
    """`count` standard normal draws for each frame, (B, count), by a counter-based generator and Box–Muller.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function.
    """
    pairs = (count + 1) // 2
    # one 64-bit draw gives two uniforms of 32 bits; a frame's counters never overlap another's
    counter = frame.to(torch.int64)[:, None] * (1 << 32) + torch.arange(pairs, device=frame.device)
    bits = _mix(_mix(counter) + _signed(seed * 0x9E3779B97F4A7C15))
    high = ((bits >> 32) & 0xFFFFFFFF).to(torch.float32)
    low = (bits & 0xFFFFFFFF).to(torch.float32)
    radius = torch.sqrt(-2 * torch.log((high + 0.5) / 4294967808.0))
    angle = low * (2 * math.pi / 4294967296.0)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


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
    return (z >> bits) & ((1 << (64 - bits)) - 1)


DISTORTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "gaussian_blur": gaussian_blur,
    "gaussian_noise": gaussian_noise,
}
"""Distortions by name: functions of images (B, C, H, W), levels (B,), frame numbers (B,) and a seed."""


def random_distortion(kind: str, low: float, high: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A function that distorts each image at its own level, drawn uniformly from [low, high]; for training."""
    apply = DISTORTIONS[kind]

    def distort(images: Tensor, generator: torch.Generator) -> Tensor:
        level = low + (high - low) * torch.rand(len(images), generator=generator)
        frame = torch.randint(1 << 31, (len(images),), generator=generator)
        return apply(images, level, frame, 0)

    return distort
