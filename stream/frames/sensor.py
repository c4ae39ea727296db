"""What happens in the camera: noise, low light, low contrast, a colour cast; to numpy's and torch's images."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy
from eex.stream.frames.pixel_draws import PURPOSE, standard_normal, uniform

LOW_LIGHT, COLOUR_CAST = 2, 3
"""Purposes of draws."""
FULL_WELL = 1000.0
"""Photons that a white pixel catches in good light: a small sensor's."""


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


def low_light(images: Any, stops: Any, frame: Any, seed: int = 0) -> Any:
    """Darken each image, and add the noise of the photons that are left.

    A pixel's value is the square root of its light. Of `FULL_WELL` photons in white, 2 to the minus `stops` remain, and
    their number scatters by its square root.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    stops
        Halvings of the light, (B,).
    frame, seed
        As for `gaussian_noise`.
    """
    frame = like(images, to_numpy(frame))
    normal = standard_normal(frame, math.prod(images.shape[1:]), seed + LOW_LIGHT * PURPOSE).reshape(images.shape)
    photons = images * images * _factor(images, FULL_WELL * 2.0 ** -to_numpy(stops).astype(float))
    caught = (photons + photons**0.5 * normal).clip(0, None)
    return ((caught * (1 / FULL_WELL)) ** 0.5).clip(0, 1)


def low_contrast(images: Any, percent: Any) -> Any:
    """Take away so many per cent of each image's contrast, around its mean.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    percent
        (B,).
    """
    each = np.array([to_numpy(x).astype(float).mean() for x in images])  # on its own, or the batch would change it
    mean = _factor(images, each)
    return (mean + (images - mean) * _factor(images, 1 - to_numpy(percent).astype(float) / 100)).clip(0, 1)


def colour_cast(images: Any, stops: Any, frame: Any, seed: int = 0) -> Any:
    """Shift the white balance of RGB images towards red or blue.

    Parameters
    ----------
    images
        (B, 3, H, W) in [0, 1]; images of one channel have no colour, and stay as they are.
    stops
        By which red gains on blue, or blue on red, (B,); half of it on either side. A pixel's value is the square root
        of its light.
    frame, seed
        Which of the two is drawn from (seed, frame) alone.
    """
    if images.shape[1] != 3:
        return images
    sign = np.where(uniform(frame, 1, seed, COLOUR_CAST)[:, 0] < 0.5, -1.0, 1.0)
    half = to_numpy(stops).astype(float) / 2 * sign / 2  # of the light to each side, and of the square root
    gain = np.stack([2.0**half, np.ones_like(half), 2.0**-half], axis=1).astype(np.float32)
    return (images * like(images, gain)[:, :, None, None]).clip(0, 1)


def _factor(images: Any, values: NDArray[np.float64]) -> Any:
    """A number for each image, (B,), in single precision, (B, 1, 1, 1)."""
    return like(images, values.astype(np.float32))[:, None, None, None]
