"""Random numbers of a frame's pixels: functions of seed and frame, the same in every batch and on every device."""

import functools
import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy

if TYPE_CHECKING:
    import torch

PURPOSE = 0x632BE59BD9B4E019
"""What sets apart the draws of one seed and frame that serve different purposes; odd, so that no two coincide."""


def uniform(frame: Any, count: int, seed: int, purpose: int) -> NDArray[np.float64]:
    """`count` draws from [0, 1) for each frame, (B, count), of 24 bits each, from (seed, purpose, frame) alone.

    Parameters
    ----------
    frame
        Frame numbers, (B,) int64, numpy's or torch's.
    purpose
        Draws for different purposes are independent; 0 is `standard_normal`'s.
    """
    frame = to_numpy(frame)
    bits = _bits(frame, math.ceil(count / 2), seed + purpose * PURPOSE)
    picked: NDArray[np.int64] = (bits[:, :, None] >> np.arange(0, 64, 32)) & 0xFFFFFF
    return picked.reshape(len(frame), -1)[:, :count] / (1 << 24)


def standard_normal(frame: Any, count: int, seed: int) -> Any:
    """`count` standard normal draws for each frame, (B, count) float32, from (seed, frame) alone.

    A counter is mixed into 64 random bits, which select four of 65,536 equally likely values. Integers and a table give
    the same bits in every batch and on every device. The values end at ±4.3.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function.
    """
    words = math.ceil(count / 4)
    bits = _bits(frame, words, seed)
    picked = (bits[:, :, None] >> like(frame, np.arange(0, 64, 16))) & 0xFFFF  # (B, words, 4)
    values = _normal_values() if isinstance(frame, np.ndarray) else _on_device(str(frame.device))
    return values[picked.reshape(len(frame), 4 * words)[:, :count]]


def _bits(frame: Any, words: int, seed: int) -> Any:
    """64 random bits each, (B, words) int64."""
    counter = frame[:, None] * words + like(frame, np.arange(words))  # no two frames overlap
    return _mix(_mix(counter) + _signed(seed * 0x9E3779B97F4A7C15))


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
