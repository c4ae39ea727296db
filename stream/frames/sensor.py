"""What happens in the camera: noise, low light, low contrast, a colour cast, JPEG; to numpy's and torch's images."""

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

# Tables K.1 and K.2 of the JPEG standard (ITU-T T.81): steps of quantisation at quality 50
LUMINANCE = """
16 11 10 16 24 40 51 61      12 12 14 19 26 58 60 55      14 13 16 24 40 57 69 56      14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77    24 35 55 64 81 104 113 92    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMINANCE = """
17 18 24 47 99 99 99 99      18 21 26 66 99 99 99 99      24 26 56 99 99 99 99 99      47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99"""


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


def jpeg(images: Any, loss: Any) -> Any:
    """Compress each image as a JPEG file does, with full resolution of colours, and decompress it.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1], of 3 channels or 1.
    loss
        100 less the quality on libjpeg's scale of 1 to 100, (B,).

    References
    ----------
    ITU-T T.81 (1992), the JPEG standard; T.871 for the colours (JFIF). Quantisation is scaled as in libjpeg.
    """
    count, channels, height, width = images.shape
    x = (images * like(images, np.array([255.0]))).round()  # in double precision
    if channels == 3:
        r, g, b = x[:, 0], x[:, 1], x[:, 2]
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        blue = 128 - 0.168736 * r - 0.331264 * g + 0.5 * b
        red = 128 + 0.5 * r - 0.418688 * g - 0.081312 * b
        x[:, 0], x[:, 1], x[:, 2] = luma.round(), blue.round(), red.round()
    down, right = (np.minimum(np.arange(-(-n // 8) * 8), n - 1) for n in (height, width))
    x = x[:, :, like(images, down)][..., like(images, right)]  # the last row and column fill up the last blocks
    blocks = x.reshape(count, channels, len(down) // 8, 8, len(right) // 8, 8) - 128
    quality = 100 - to_numpy(loss).astype(float)
    tables = [LUMINANCE, *[CHROMINANCE] * (channels - 1)]
    steps = like(images, np.stack([_steps(table, quality) for table in tables], axis=1)[:, :, None, :, None, :])
    spectrum = (_transformed(blocks, _cosines()) / steps).round() * steps
    blocks = (_transformed(spectrum, _cosines().T) + 128).round().clip(0, 255)
    x = blocks.reshape(count, channels, len(down), len(right))[:, :, :height, :width]
    if channels == 3:
        luma, blue, red = x[:, 0] * 1, x[:, 1] - 128, x[:, 2] - 128
        x[:, 0] = luma + 1.402 * red
        x[:, 1] = luma - 0.344136 * blue - 0.714136 * red
        x[:, 2] = luma + 1.772 * blue
    compressed = images * 1
    compressed[:] = x.round().clip(0, 255) / 255
    return compressed


def _steps(table: str, quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steps of quantisation at a quality for each image, (B, 8, 8)."""
    base = np.array([int(word) for word in table.split()], dtype=float).reshape(8, 8)
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    return np.floor((base * scale[:, None, None] + 50) / 100).clip(1, 255)


def _cosines() -> NDArray[np.float64]:
    """The orthonormal cosine transform of 8 values, (8, 8): a row per frequency."""
    k, n = np.mgrid[:8, :8]
    rows: NDArray[np.float64] = np.where(k, 0.5, math.sqrt(1 / 8)) * np.cos(math.pi * (2 * n + 1) * k / 16)
    return rows


def _transformed(blocks: Any, matrix: NDArray[np.float64]) -> Any:
    """Blocks (B, C, rows, 8, columns, 8) times a matrix (8, 8) along both axes of 8."""
    # sums over columns in place of a product of matrices, whose rounding changes with the number of blocks
    columns = like(blocks, matrix.T.copy())
    once = sum(blocks[:, :, :, k : k + 1] * columns[k][:, None, None] for k in range(8))
    return sum(once[..., k : k + 1] * columns[k] for k in range(8))


def _factor(images: Any, values: NDArray[np.float64]) -> Any:
    """A number for each image, (B,), in single precision, (B, 1, 1, 1)."""
    return like(images, values.astype(np.float32))[:, None, None, None]
