"""What happens in the camera: noise, low light, low contrast, a colour cast, JPEG."""

import math

import torch
from torch import Tensor

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


def gaussian_noise(images: Tensor, sigma: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    normal = standard_normal(frame, math.prod(images.shape[1:]), seed).to(images.dtype).reshape(images.shape)
    scale = (sigma.double() / 255).to(images.dtype)  # dividing by a constant differs on a GPU in the last bit
    return (images + normal * scale[:, None, None, None]).clamp(0, 1)


def low_light(images: Tensor, stops: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    normal = standard_normal(frame, math.prod(images.shape[1:]), seed + LOW_LIGHT * PURPOSE).to(images.dtype)
    photons = images * images * _scaled(FULL_WELL * 2.0 ** -stops.double(), images)
    caught = (photons + photons.sqrt() * normal.reshape(images.shape)).clamp(min=0)
    return (caught * images.new_tensor(1 / FULL_WELL)).sqrt().clamp(0, 1)


def low_contrast(images: Tensor, percent: Tensor) -> Tensor:
    """Take away so many per cent of each image's contrast, around its mean.

    Parameters
    ----------
    images
        (B, C, H, W) in [0, 1].
    percent
        (B,).
    """
    mean = torch.stack([x.double().mean() for x in images]).to(images.dtype)[:, None, None, None]  # each on its own
    return (mean + (images - mean) * _scaled(1 - percent.double() / 100, images)).clamp(0, 1)


def colour_cast(images: Tensor, stops: Tensor, frame: Tensor, seed: int = 0) -> Tensor:
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
    sign = torch.where(uniform(frame, 1, seed, COLOUR_CAST)[:, 0] < 0.5, -1.0, 1.0).double()
    half = stops.double() / 2 * sign / 2  # of the light to each side, and of the square root
    gain = torch.stack([2.0**half, torch.ones_like(half), 2.0**-half], dim=1)
    return (images * gain.to(images.dtype)[:, :, None, None]).clamp(0, 1)


def jpeg(images: Tensor, loss: Tensor) -> Tensor:
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
    x = (images.double() * 255).round()
    if channels == 3:
        r, g, b = x.unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        blue = 128 - 0.168736 * r - 0.331264 * g + 0.5 * b
        red = 128 + 0.5 * r - 0.418688 * g - 0.081312 * b
        x = torch.stack([luma, blue, red], dim=1).round()
    down, right = (torch.arange(-(-n // 8) * 8, device=x.device).clamp(max=n - 1) for n in (height, width))
    x = x.index_select(2, down).index_select(3, right)  # the last row and column fill up the last blocks
    rows, columns = len(down) // 8, len(right) // 8
    blocks = x.reshape(count, channels, rows, 8, columns, 8).transpose(3, 4) - 128
    tables = [LUMINANCE, *[CHROMINANCE] * (channels - 1)]
    steps = torch.stack([_steps(table, 100 - loss.double()) for table in tables], dim=1).to(x.device)[:, :, None, None]
    cosines = _cosines().to(x.device)
    spectrum = (_transformed(blocks, cosines) / steps).round() * steps
    blocks = (_transformed(spectrum, cosines.T) + 128).round().clamp(0, 255)
    x = blocks.transpose(3, 4).reshape(count, channels, 8 * rows, 8 * columns)[:, :, :height, :width]
    if channels == 3:
        luma, blue, red = x[:, 0], x[:, 1] - 128, x[:, 2] - 128
        x = torch.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], dim=1)
    return (x.round().clamp(0, 255) / 255).to(images.dtype)


def _steps(table: str, quality: Tensor) -> Tensor:
    """Steps of quantisation at a quality for each image, (B, 8, 8)."""
    base = torch.tensor([int(word) for word in table.split()], dtype=torch.float64, device=quality.device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    return ((base.reshape(8, 8) * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 values, (8, 8): a row per frequency."""
    rows = [
        [math.sqrt((2 if k else 1) / 8) * math.cos(math.pi * (2 * n + 1) * k / 16) for n in range(8)] for k in range(8)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _transformed(blocks: Tensor, matrix: Tensor) -> Tensor:
    """Blocks (…, 8, 8) times a matrix (8, 8) along both axes."""
    # sums over columns in place of a product of matrices, whose rounding changes with the number of blocks
    once = sum((blocks[..., k, None, :] * matrix[:, k, None] for k in range(8)), start=blocks.new_zeros(()))
    return sum((once[..., k, None] * matrix[:, k] for k in range(8)), start=blocks.new_zeros(()))


def _scaled(factor: Tensor, images: Tensor) -> Tensor:
    """A factor for each image, (B,), in the type of the images, (B, 1, 1, 1)."""
    return factor.to(images.dtype)[:, None, None, None]
