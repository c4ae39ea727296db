"""Random draws keyed by seed, run and frame, so that neither batching nor sharding changes them."""

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Floats, Ints

Words = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, runs: Ints, frames: Ints, count: int, purpose: int = 0) -> Floats:
    """Uniform draws in (0, 1), shape (runs, frames, count).

    Parameters
    ----------
    seed
        Any integer.
    runs, frames
        Numbers of the runs (R,) and of the frames, (F,) or (R, F) where each run has its own.
    count
        Draws for each run and frame; the first ones do not depend on how many there are.
    purpose
        Separates draws of the same seed, run and frame that must be independent.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators (SplitMix64's finaliser).
    """
    key = _mixed(np.array([(seed + (purpose + 1) * int(_STEP)) % 2**64], dtype=np.uint64))
    key = _mixed(key + runs.astype(np.uint64) * _STEP)  # (R,)
    key = _mixed(key[:, None] + (frames.astype(np.uint64) + np.uint64(1)) * _STEP)  # (R, F)
    key = _mixed(key[:, :, None] + np.arange(count, dtype=np.uint64) * _STEP)
    draws: Floats = ((key >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.minimum(draws, 1 - 2.0**-53, out=draws)  # adding a half rounds the largest up to 1


def normal(seed: int, runs: Ints, frames: Ints, count: int, purpose: int = 0) -> Floats:
    """Standard normal draws, shape (runs, frames, count); arguments as for `uniform`. By Box and Muller (1958)."""
    u = uniform(seed, runs, frames, count + count % 2, purpose)
    radius = np.sqrt(-2 * np.log(u[..., 0::2]))
    angle = 2 * np.pi * u[..., 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(*u.shape)[..., :count]


def _mixed(x: Words) -> Words:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
