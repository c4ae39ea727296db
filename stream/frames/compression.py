"""What compression does to images: JPEG and video; to numpy's and torch's images."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import like, to_numpy
from eex.stream.frames.blurs import mirrored
from eex.stream.frames.pixel_draws import uniform

VIDEO = 10
"""Purpose of the draws of the camera's motion between two frames of a video."""
MOTION = 4.0
"""Furthest that the camera moves between two frames of a video, along each axis, in pixels."""
INTRA, INTER = 1 / 3, 1 / 6
"""What is added before a coefficient is rounded down, in steps, in frames coded by themselves and in predicted ones:
less than a half, since coefficients that become 0 cost least. The choice of H.264's reference encoder."""

# Tables K.1 and K.2 of the JPEG standard (ITU-T T.81): steps of quantisation at quality 50
LUMINANCE = """
16 11 10 16 24 40 51 61      12 12 14 19 26 58 60 55      14 13 16 24 40 57 69 56      14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77    24 35 55 64 81 104 113 92    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMINANCE = """
17 18 24 47 99 99 99 99      18 21 26 66 99 99 99 99      24 26 56 99 99 99 99 99      47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99"""


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
    channels = images.shape[1]
    quality = 100 - to_numpy(loss).astype(float)
    tables = [LUMINANCE, *[CHROMINANCE] * (channels - 1)]
    steps = like(images, np.stack([_steps(table, quality) for table in tables], axis=1)[:, :, None, :, None, :])
    blocks = _blocks(_as_coded(images).round())
    spectrum = (_transformed(blocks, _cosines()) / steps).round() * steps
    x = _joined(_transformed(spectrum, _cosines().T), images.shape)
    return _as_shown(x.round(), images)


def video(images: Any, quantiser: Any, frame: Any, seed: int = 0) -> Any:
    """Compress each image as a predicted frame of a video, and decompress it.

    The video is of a still scene and a camera that moves a little: the frame before is the image itself, shifted. It is
    coded by itself first, in blocks of 8 by 8 pixels whose cosine transform is quantised. The image is then predicted
    from the decoded frame, moved back by the motion to half a pixel, and what the prediction lacks is transformed and
    quantised likewise. What is lost shows as blocks, as detail that the prediction blurred, and as remains of the frame
    before. The steps are those of MPEG-2 and its successors in their simplest form: one vector per image, colours at
    full resolution, the same step for all frequencies, no filter of the blocks' edges. Moving things within the scene,
    and errors that add up over many predicted frames, are left out.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1], of 3 channels or 1.
    quantiser
        H.264's quantisation parameter (QP), (B,): 6 more double the step, which is 1 of 255 grey levels at 4.
    frame, seed
        The camera's motion, up to `MOTION` pixels along each axis, is drawn from (seed, frame) alone.

    References
    ----------
    ITU-T H.262 (1995), MPEG-2 video: prediction to half a pixel. ITU-T H.264 (2003): the scale of steps.
    """
    step = like(images, 2.0 ** ((to_numpy(quantiser).astype(float) - 4) / 6))[:, None, None, None, None, None]
    motion = MOTION * (2 * uniform(frame, 2, seed, VIDEO) - 1)
    halves = np.round(2 * motion) / 2  # the vector that is sent
    coded = _as_coded(images)
    before = _coded(_shifted(coded, motion), step, INTRA)
    predicted = _shifted(before, -halves)
    return _as_shown(predicted + _coded(coded - predicted, step, INTER), images)


def _as_coded(images: Any) -> Any:
    """Images in [0, 1] as brightness and two colours on the scale of 0 to 255, less 128, in double precision."""
    x = (images * like(images, np.array([255.0]))).round()
    if images.shape[1] == 3:
        r, g, b = x[:, 0], x[:, 1], x[:, 2]
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        blue = 128 - 0.168736 * r - 0.331264 * g + 0.5 * b
        red = 128 + 0.5 * r - 0.418688 * g - 0.081312 * b
        x[:, 0], x[:, 1], x[:, 2] = luma, blue, red
    return x - 128


def _as_shown(x: Any, images: Any) -> Any:
    """The inverse of `_as_coded`, rounded to 256 values per channel, of the type of the images."""
    x = (x + 128).clip(0, 255)
    if images.shape[1] == 3:
        luma, blue, red = x[:, 0] * 1, x[:, 1] - 128, x[:, 2] - 128
        x[:, 0] = luma + 1.402 * red
        x[:, 1] = luma - 0.344136 * blue - 0.714136 * red
        x[:, 2] = luma + 1.772 * blue
    compressed = images * 1
    compressed[:] = x.round().clip(0, 255) / 255
    return compressed


def _blocks(x: Any) -> Any:
    """Images (B, C, H, W) as blocks (B, C, rows, 8, columns, 8); the last row and column fill up the last blocks."""
    count, channels, height, width = x.shape
    down, right = (np.minimum(np.arange(-(-n // 8) * 8), n - 1) for n in (height, width))
    x = x[:, :, like(x, down)][..., like(x, right)]
    return x.reshape(count, channels, len(down) // 8, 8, len(right) // 8, 8)


def _joined(blocks: Any, shape: tuple[int, ...]) -> Any:
    """The inverse of `_blocks`, for images of a shape (B, C, H, W)."""
    count, channels, rows, _, columns, _ = blocks.shape
    return blocks.reshape(count, channels, 8 * rows, 8 * columns)[:, :, : shape[2], : shape[3]]


def _coded(x: Any, step: Any, rounding: float) -> Any:
    """Images (B, C, H, W) after their blocks' spectra were quantised in steps, and rounded to whole grey levels."""
    spectrum = _transformed(_blocks(x), _cosines())
    lost = 0.5 - rounding  # what is nearer to 0 by that much is rounded towards it
    size = (abs(spectrum) / step - lost).round().clip(0, None)
    kept = size * step * ((spectrum > 0) * 2.0 - 1)
    return _joined(_transformed(kept, _cosines().T), x.shape).round()


def _shifted(x: Any, motion: NDArray[np.float64]) -> Any:
    """Images (B, C, H, W), each moved down and to the right by its row of (B, 2) pixels, mirroring their borders.

    Pixels are interpolated linearly.
    """
    height, width = x.shape[2:]
    reach = math.ceil(MOTION) + 1
    rows, columns = mirrored(height, reach), mirrored(width, reach)
    moved = x * 1
    for k, (down, right) in enumerate((-motion).tolist()):
        top, left = math.floor(down), math.floor(right)
        below, beside = down - top, right - left
        a, b = (like(x, rows[reach + at : reach + at + height]) for at in (top, top + 1))
        y = x[k][:, a] * (1 - below) + x[k][:, b] * below
        a, b = (like(x, columns[reach + at : reach + at + width]) for at in (left, left + 1))
        moved[k] = y[..., a] * (1 - beside) + y[..., b] * beside
    return moved


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
