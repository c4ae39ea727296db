"""Training data: labelled images, of which a part is held out, and a test split to measure the model on."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Ints
from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames.frames import matching
from eex.stream.frames.sources import Skipped, Source, load_all, open_source
from eex.stream.training.options import TrainConfig

HELD_OUT = 0
"""Seed of the choice of held-out images, regardless of --seed: a training that starts from an earlier model must not
train on images that were held out for that model."""

MOST_FRAMES = 10_000
"""Frames of a video or a camera that are learned from, at most."""

FEW_HELD = 100
"""Images by which confidences are calibrated, of which fewer are remarked on."""

NAMED = 10
"""Classes and skipped images that are named; the others are counted."""


@dataclass(frozen=True)
class Data:
    """The images that a model is trained, validated and measured on.

    Attributes
    ----------
    images, labels
        Shape (N, C, H, W) uint8 and (N,); labels are -1 with --teach, which does not look at them.
    classes
        Class names, in the order of the labels; with --teach, of the network's logits, and empty until it is known.
    kept, held
        Indices of the images to train on, and of those held out for validation and calibration.
    notes
        Sentences on what was found and what was left out.
    test
        Labelled images to measure the model on; None where there are none, or none are wanted.
    """

    images: NDArray[np.uint8]
    labels: Ints
    classes: tuple[str, ...]
    kept: Ints
    held: Ints
    notes: tuple[str, ...]
    test: Source | None


def read_data(config: TrainConfig, shape: tuple[int, ...] | None) -> Data:
    """Read the images of a training.

    Parameters
    ----------
    shape
        Input shape of the network, (C, H, W); by default, the size given by --size.

    Raises
    ------
    EexError
        If there are no labelled images, only one class, a class without a usable image, or too few images to hold
        some out; with --teach, if there are no images.
    """
    fitted: dict[str, Any] = {"preprocessing": config.preprocessing(), "truncated": config.truncated}
    if shape is not None or config.size:
        fitted |= {"shape": shape or (3, config.size, config.size), "resize": True}
    source = open_source(config.data, split="train", **fitted)
    if config.teach:
        return _unlabelled(config, source, fitted)
    for name, suffixes in source.unreadable.items():
        raise EexError(
            f"{source.name}: no image of class {name} can be read ({suffixes}); convert them, or move the class away"
        )
    images, labels, skipped = load_all(source)
    present = np.unique(source.labels[source.labels >= 0])
    if not len(present):
        raise EexError(f"{source.name}: training needs labelled images, in a folder for each class")
    classes = tuple(source.classes[i] for i in present)
    if len(classes) == 1:
        raise EexError(
            f"{source.name}: training needs at least two classes, and all images are in the folder of one, {classes[0]}"
        )
    if lost := set(present.tolist()) - set(labels.tolist()):
        name = source.classes[min(lost)]
        of = {source.names[i] for i in np.flatnonzero(source.labels == min(lost)).tolist()}
        why = next(frame for frame in skipped if frame.name in of)
        raise EexError(f"{source.name}: no image of class {name} can be used; the first, {why.name}: {why.reason}")
    labelled = labels >= 0
    images, labels = images if labelled.all() else images[labelled], np.searchsorted(present, labels[labelled])
    counts = np.bincount(labels, minlength=len(classes))
    notes = [
        f"{len(images):,} images of {len(classes)} classes to train on: {_counted(classes, counts)}",
        *source.notes,
    ]
    if not labelled.all():
        notes.append(f"{int((~labelled).sum()):,} images are left out, because they are in no class's folder")
    notes += _skipped(skipped)
    if others := sorted(set(source.classes) - set(classes)):
        notes.append(f"not among the training images, and so not learnt: {', '.join(others[:NAMED])}")
    kept, held = split(len(images), config.held_out(len(images)))
    if len(held) < FEW_HELD:
        notes.append(
            f"only {len(held):,} images are held out to calibrate confidences by, which may end far off; "
            f"{FEW_HELD} or more are better (--holdout)"
        )
    test = None
    if config.measure:
        test, why_not = _test_split(config.data, source, classes, {"shape": images.shape[1:]} | fitted)
        if why_not:
            notes.append(why_not)
    return Data(images, labels, classes, kept, held, tuple(notes), test)


def split(count: int, held: int) -> tuple[Ints, Ints]:
    """Indices of the images to train on, and of those held out, of `count` images."""
    order = np.random.default_rng(HELD_OUT).permutation(count)
    return order[held:], order[:held]


def _unlabelled(config: TrainConfig, source: Source, fitted: dict[str, Any]) -> Data:
    """The images of a training that looks at no labels."""
    images, _, skipped = load_all(source, MOST_FRAMES)
    notes = [f"{len(images):,} images to learn from, whatever their labels", *source.notes, *_skipped(skipped)]
    (kept, held), test = split(len(images), config.held_out(len(images))), None
    if config.measure and source.stream is None:
        with contextlib.suppress(EexError):
            test = open_source(config.data, split="test", **({"shape": images.shape[1:]} | fitted))
    if test is not None and list(test.names) == list(source.names):
        test = None
    if test is not None:
        _check_usable(test, range(len(test)), source.name)
    if test is None and config.measure:
        notes.append(f"{source.name} has no test split: agreement is measured on the held-out images")
    labels = np.full(len(images), -1, dtype=np.int64)
    return Data(images, labels, (), kept, held, tuple(notes), test)


def _check_usable(test: Source, known: Sequence[int], name: str) -> None:
    """Raise `EexError` before hours of training if no test image can be used, because of their size for example."""
    first: ImageError | None = None
    assert test.read is not None
    for k in known:
        try:
            test.read(k)
            return
        except ImageError as error:
            first = first or error
    raise EexError(
        f"{name}: none of its {len(known)} test images can be used; the first, {test.names[known[0]]}: {first}; "
        "--size N scales all images, --no-measure leaves these out"
    )


def _skipped(skipped: Sequence[Skipped]) -> list[str]:
    """Sentences on images that could not be used."""
    notes = [f"skipped {frame.name}: {frame.reason}" for frame in skipped[:NAMED]]
    if len(skipped) > NAMED:
        notes.append(f"skipped {len(skipped) - NAMED:,} more images")
    return notes


def _counted(classes: Sequence[str], counts: Ints) -> str:
    shown = [f"{name} {count:,}" for name, count in zip(classes, counts.tolist(), strict=True)]
    if len(shown) > NAMED:
        shown = [*shown[:NAMED], f"…; the smallest class has {counts.min():,}, the largest {counts.max():,}"]
    return ", ".join(shown)


def _test_split(data: str, train: Source, classes: Sequence[str], fitted: dict[str, Any]) -> tuple[Source | None, str]:
    """The labelled images of the test split, and what to say of it where the model is not measured on all of them."""
    unmeasured = "the model will not be measured"
    try:
        test = open_source(data, split="test", **fitted)
    except EexError:
        return None, f"{train.name} has no test split: {unmeasured}"
    if list(test.names) == list(train.names):
        return None, f"{train.name} has no test split: {unmeasured}"
    index = np.array([*matching(test.classes, classes), -1])  # the last one for label -1
    labels = index[test.labels]
    known = np.flatnonzero(labels >= 0).tolist()
    if not known:
        return None, f"the test split of {train.name} has no labels: {unmeasured}"
    read = test.read
    assert read is not None
    _check_usable(test, known, train.name)
    chosen = replace(
        test,
        classes=tuple(classes),
        names=[test.names[i] for i in known],
        labels=labels[known].astype(np.int64),
        read=lambda i: read(known[i]),
    )
    unknown = len(test) - len(known)
    return chosen, f"{unknown:,} test images have no label that was trained, and are left out" if unknown else ""


def few(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)
