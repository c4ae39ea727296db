"""`check_source`: a check of the contract of sources, for authors of their own."""

from collections.abc import Callable
from itertools import islice

import numpy as np

from eex.policies.core.errors import ContractError, ImageError
from eex.stream.frames.decoding import Image
from eex.stream.frames.sources import Frame, Skipped, Source, frames

LOOK = 64
"""Maximum number of images to read."""


def check_source(make: Callable[[], Source]) -> None:
    """Raise `ContractError` if a source breaks the contract of `eex.stream.frames.sources.Source`.

    Parameters
    ----------
    make
        Returns the source. It is called twice, to check that a repeated run gets the same frames.

    Examples
    --------
    >>> from eex.stream.frames.sources import open_source
    >>> check_source(lambda: open_source("sample"))
    """
    source = make()
    if len(set(source.classes)) != len(source.classes):
        raise ContractError(f"classes must differ from each other, got {source.classes}")
    if (source.read is None) == (source.stream is None):
        raise ContractError("a source needs either `read`, for images by index, or `stream`, for frames as they come")
    if source.stream is not None:
        _check_stream(source)
        return
    if not len(source):
        raise ContractError("names is empty: there is nothing to read")
    labels = source.labels
    if labels.dtype != np.int64 or labels.shape != (len(source),):
        raise ContractError(f"labels must be int64, one per name, ({len(source)},); got {labels.dtype} {labels.shape}")
    if labels.min() < -1 or labels.max() >= max(1, len(source.classes)):
        low, high = labels.min(), labels.max()
        raise ContractError(f"labels must be -1 or count {len(source.classes)} classes from 0, got {low}…{high}")
    first, second = (list(islice(frames(s, seed=None), min(LOOK, len(source)))) for s in (source, make()))
    for one, other in zip(first, second, strict=True):
        _check_frame(one, source)
        if isinstance(one, Frame) and not (
            isinstance(other, Frame) and one.name == other.name and np.array_equal(one.image, other.image)
        ):
            raise ContractError(f"{one.name}: the source gives another image when it is made a second time")
    for outside in (len(source), -len(source) - 1):
        _check_outside(source, outside)


def _check_stream(source: Source) -> None:
    assert source.stream is not None
    if len(source) or len(source.labels):
        raise ContractError("names and labels must be empty where frames come from `stream`")
    for frame in islice(source.stream(), LOOK):
        if not isinstance(frame, Frame | Skipped):
            raise ContractError(f"`stream` must yield Frame or Skipped, got {type(frame).__name__}")
        _check_frame(frame, source)


def _check_frame(frame: Frame | Skipped, source: Source) -> None:
    if isinstance(frame, Skipped):
        if not frame.reason:
            raise ContractError(f"{frame.name}: a skipped image needs a reason")
        return
    _check_image(frame.name, frame.image)
    if not -1 <= frame.label < max(1, len(source.classes)):
        raise ContractError(f"{frame.name}: label {frame.label} is none of {len(source.classes)} classes")


def _check_image(name: str, image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ContractError(f"{name}: an image must be (height, width, 3), got {image.shape}")
    if image.dtype == np.uint8:
        return
    if image.dtype != np.float32:
        raise ContractError(f"{name}: an image must be uint8 or float32, got {image.dtype}")
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ContractError(f"{name}: a float32 image must lie in [0, 1], got {image.min():g}…{image.max():g}")


def _check_outside(source: Source, index: int) -> None:
    assert source.read is not None
    try:
        source.read(index)
    except (IndexError, ImageError):
        return
    raise ContractError(f"reading image {index} of {len(source)} must raise IndexError")
