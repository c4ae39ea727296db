"""An image as somebody submits it, as the network takes it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import ImageError
from eex.stream.frames.decoding import as_uint8, check_finite, decode, grey, resized

Given = NDArray[Any] | bytes | bytearray | memoryview
"""An array (H, W, 3) or (H, W) of grey, of uint8, uint16 or floats in [0, 1]; or the bytes of a JPEG or PNG file."""


def as_taken(image: Given, shape: tuple[int, ...], preprocessing: Preprocessing = USUAL) -> NDArray[np.uint8]:
    """The image as a network takes it, uint8 (H, W, C); the caller may change its own afterwards.

    Other sizes are scaled so that the shorter side fits, and cropped at the middle. Grey becomes RGB, or RGB grey; 16
    bits and floats become 8 bits.

    Parameters
    ----------
    shape
        Input shape of the network, (C, H, W); of 3 channels, or 1 for grey.
    preprocessing
        How other sizes are scaled; part of a model's card.

    Raises
    ------
    ImageError
        If it is not an image.
    """
    channels, height, width = shape
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.shape == (height, width, 3)
        and channels == 3
    ):
        return image.copy()  # the usual case, before the many others are told apart
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise ImageError("expected an image, got 0 bytes")
        pixels: NDArray[Any] = decode(bytes(image), least=preprocessing.least(height, width))
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise ImageError(f"expected an array (H, W, 3) or the bytes of an image file, got {type(image).__name__}")
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(f"expected an array of shape (H, W, 3), got {pixels.shape}")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype.kind == "f":
        pixels = (check_finite(pixels) * 255).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ImageError(f"expected an array of uint8, uint16 or floats in [0, 1], got {pixels.dtype}")
    if pixels.shape[:2] != (height, width):
        pixels = resized(pixels, height, width, preprocessing)
    if channels == 1:
        pixels = as_uint8(grey(pixels))
    return pixels.copy() if pixels is image or pixels.base is not None else pixels
