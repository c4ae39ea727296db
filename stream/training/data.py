"""The images of a training: labelled, a part of them held out, and a test split to measure on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Ints
from eex.policies.core.errors import EexError
from eex.stream.frames.sources import Source, load_all, open_source
from eex.stream.training.options import TrainConfig

HELD_OUT = 0
"""Seed of which images are held out, whatever --seed: a training that starts from another's model must not train on
images that the other held out."""


@dataclass(frozen=True)
class Data:
    """What a model is trained on.

    Attributes
    ----------
    images, labels
        Shape (N, C, H, W) uint8 and (N,).
    classes
        Class names, in the order of the labels.
    kept, held
        Indices of the images to train on, and of those held out for validation and calibration.
    skipped
        Name and reason of each image that could not be used.
    test
        Images to measure the model on; None where there are none, or none are wanted.
    """

    images: NDArray[np.uint8]
    labels: Ints
    classes: tuple[str, ...]
    kept: Ints
    held: Ints
    skipped: tuple[tuple[str, str], ...]
    test: Source | None


def read_data(config: TrainConfig, shape: tuple[int, int, int] | None) -> Data:
    """Read the images of a training.

    Parameters
    ----------
    shape
        Input shape of the network, (C, H, W); by default, the size given by --size.

    Raises
    ------
    EexError
        If there are no labelled images, or too few to hold some out.
    """
    fitted: dict[str, Any] = {}
    if shape is not None or config.size:
        fitted = {"shape": shape or (3, config.size, config.size), "resize": True}
    source = open_source(config.data, split="train", **fitted)
    images, labels, skipped = load_all(source)
    if not source.classes or labels.min() < 0:
        raise EexError(f"{config.data}: training needs labelled images, in a folder for each class")
    if not 0 < config.holdout < len(images):
        raise EexError(f"--holdout must be between 1 and {len(images) - 1}, got {config.holdout}")
    order = np.random.default_rng(HELD_OUT).permutation(len(images))
    return Data(
        images,
        labels,
        source.classes,
        kept=order[config.holdout :],
        held=order[: config.holdout],
        skipped=tuple((frame.name, frame.reason) for frame in skipped),
        test=_test_split(config.data, source, fitted) if config.measure else None,
    )


def _test_split(data: str, train: Source, fitted: dict[str, Any]) -> Source | None:
    """The images to measure a model on; None where there are none but those it is trained on."""
    try:
        test = open_source(data, split="test", **fitted)
    except EexError:
        return None
    return None if list(test.names) == list(train.names) else test
