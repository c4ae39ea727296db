"""Random numbers of a frame's pixels: functions of seed and frame, the same in every batch and on every device."""

import functools
import math

import torch
from torch import Tensor

PURPOSE = 0x632BE59BD9B4E019
"""What sets apart the draws of one seed and frame that serve different purposes; odd, so that no two coincide."""


def uniform(frame: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """`count` draws from [0, 1) for each frame, (B, count) float32, from (seed, purpose, frame) alone.

    Parameters
    ----------
    frame
        Frame numbers, (B,) int64.
    purpose
        Draws for different purposes are independent; 0 is `standard_normal`'s.
    """
    bits = _bits(frame, math.ceil(count / 2), seed + purpose * PURPOSE)
    shifts = torch.arange(0, 64, 32, device=frame.device)
    picked = (bits[:, :, None] >> shifts) & 0xFFFFFF  # 24 bits, which a float32 holds exactly
    return picked.flatten(1)[:, :count].float() / (1 << 24)


def standard_normal(frame: Tensor, count: int, seed: int) -> Tensor:
    """`count` standard normal draws for each frame, (B, count) float32, from (seed, frame) alone.

    A counter is mixed into 64 random bits, which select four of 65,536 equally likely values. Integers and a table give
    the same bits in every batch and on every device. The values end at ±4.3.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function.
    """
    bits = _bits(frame, math.ceil(count / 4), seed)
    shifts = torch.arange(0, 64, 16, device=frame.device)
    picked = (bits[:, :, None] >> shifts) & 0xFFFF  # (B, words, 4)
    values = _normal_values(str(frame.device))
    return values[picked.flatten(1)[:, :count]]


def _bits(frame: Tensor, words: int, seed: int) -> Tensor:
    """64 random bits each, (B, words) int64."""
    counter = frame.to(torch.int64)[:, None] * words + torch.arange(words, device=frame.device)  # no two frames overlap
    return _mix(_mix(counter) + _signed(seed * 0x9E3779B97F4A7C15))


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
