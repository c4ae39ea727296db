"""Measure a trained model: accuracy and calibration by exit, expert, distortion and level; cost by threshold."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from eex.models.arrays import choose_experts
from eex.models.fast import optimised
from eex.models.training import all_logits
from eex.policies.core.base import Ints
from eex.policies.core.errors import EexError
from eex.policies.core.metrics import expected_calibration_error
from eex.stream.frames.decoding import Truncated
from eex.stream.frames.distortions import DISTORTIONS
from eex.stream.training.data import few, read_data, split
from eex.stream.training.options import TrainConfig

if TYPE_CHECKING:
    from eex.models.card import Card
    from eex.models.network import EarlyExitNet
    from eex.models.quantising import Samples

LEVELS = {
    "pristine": (0.0,),
    "rotation": (5.0, 10.0, 20.0, 30.0),
    "fog": (0.5, 1.0, 1.5, 2.0),
    "rain": (2.0, 5.0, 10.0, 20.0),
    "occlusion": (5.0, 10.0, 20.0, 30.0),
    "dirt": (5.0, 10.0, 20.0, 30.0),
    "motion_blur": (2.0, 4.0, 6.0, 8.0),
    "defocus_blur": (0.5, 1.0, 1.5, 2.0),
    "gaussian_blur": (0.5, 1.0, 1.5, 2.0),
    "low_light": (2.0, 3.0, 4.0, 5.0),
    "low_contrast": (40.0, 60.0, 70.0, 80.0),
    "colour_cast": (0.5, 1.0, 1.5, 2.0),
    "gaussian_noise": (5.0, 10.0, 20.0, 30.0, 40.0),
    "video": (30.0, 36.0, 42.0, 48.0),
    "jpeg": (60.0, 75.0, 85.0, 95.0),
}
"""Levels of distortion to measure at, in the units of `eex.policies.core.schedule.MAX_LEVEL`."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
AT_ONCE = 500
"""Number of images to distort or classify at once; a whole test split would take gigabytes."""


FIT, HELD = 256, 2048
"""Most images to quantise by, and most to fit temperatures and measure on."""


class _Reading(msgspec.Struct):
    """How a model's training read its images, of what its card says of the training."""

    holdout: float = TrainConfig.holdout
    truncated: Truncated = TrainConfig.truncated


def samples_of(data: str, card: "Card") -> "Samples":
    """Images to quantise a model by: of its training images, and those held out of them, as its training did.

    Each expert gets them with its own distortion, at the middle one of its `LEVELS`.

    Raises
    ------
    EexError
        If there are no labelled images of the model's classes, fewer than four are held out, or it takes no images.
    """
    from eex.models.quantising import Samples

    architecture = card.architecture
    if not architecture.takes_images:
        raise EexError("--precision int8 is for models that take images, this one takes texts")
    channels, height, width = architecture.input_shape
    try:
        was = msgspec.convert(card.training, _Reading)
    except msgspec.ValidationError as error:
        raise EexError(f"the model's card: 'training' is not as eex-train writes it: {error}") from None
    how = architecture.preprocessing
    config = TrainConfig(
        data, Path(), measure=False, crop=how.crop, interpolation=how.interpolation, truncated=was.truncated
    )
    read = read_data(config, (channels, height, width))
    if read.classes != architecture.classes:
        raise EexError(f"{data}: its classes {few(read.classes)} are not the model's, {few(architecture.classes)}")
    count = len(read.images)
    # where there are not even so many images, they are others than the model's: any may be held out
    holdout = was.holdout if 0 < was.holdout < max(1, count) else TrainConfig.holdout
    kept, held = split(count, replace(config, holdout=holdout).held_out(count))
    kept, held = kept[:FIT], held[:HELD]
    if len(held) < 4:
        raise EexError(f"{data}: has {count:,} images, too few to hold some out and measure on them")

    def seen(index: Ints) -> dict[str, NDArray[np.float32]]:
        images = torch.from_numpy(read.images[index])
        middle = {e: LEVELS[e][len(LEVELS[e]) // 2] for e in architecture.experts if e in LEVELS}
        return {e: _distorted(images, e, middle.get(e, 0.0)).numpy() for e in architecture.experts}

    return Samples(seen(kept), seen(held), read.labels[held], data)


def measure(net: "EarlyExitNet", images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Measure a model on uint8 images (N, C, H, W), under every kind of distortion for which it has an expert.

    What is measured is the form that streams, `eex.models.fast.optimised`.

    Returns
    -------
    dict
        `exits`: rows of distortion, level, expert, exit (from 1), accuracy, confidence, ECE before and after
        calibration; `thresholds`: accuracy and multiply-adds, as a share of the whole network's, at fixed thresholds
        on pristine images; `classes`: images and accuracy of each class at the final exit, on pristine images;
        `classifier`: share of each kind that the distortion classifier recognises, over all levels; `unknown`: share
        that it abstains from, of each kind that has an expert, and of the others at their middle level.
    """
    rows, recalls, abstained = [], {}, {}
    fast = optimised(net)
    for kind in (kind for kind in LEVELS if kind in net.experts):
        recognised = []
        for level in LEVELS[kind]:
            parts: dict[str, list[torch.Tensor]] = {expert: [] for expert in (net.experts[0], kind)}
            classified = []
            for seen in _distorted_parts(images, kind, level):
                as_bytes = (seen * 255).round().to(torch.uint8)
                for expert, done in parts.items():
                    done.append(_logits(net, fast, as_bytes, expert))
                if net.classifier is not None:
                    classified.append(_classified(fast, seen))
            for expert, done in parts.items():
                logits = torch.cat(done, dim=1)
                if kind == net.experts[0]:
                    pristine = logits
                what = {"distortion": kind, "level": level, "expert": expert}
                rows += [what | row for row in by_exit(net, logits, labels, expert)]
            if classified:
                recognised.append(_recognised(fast, torch.cat(classified), net.experts.index(kind)))
        if recognised:
            recalls[kind], abstained[kind] = np.mean(recognised, axis=0).tolist()
    for kind in LEVELS if net.classifier is not None else ():
        if kind not in net.experts:
            seen = _distorted(images[:AT_ONCE], kind, LEVELS[kind][len(LEVELS[kind]) // 2])
            abstained[kind] = _recognised(fast, _classified(fast, seen), -1)[1]
    return {
        "images": len(images),
        "exits": rows,
        "thresholds": by_threshold(net, pristine, labels),
        "classes": by_class(net, pristine, labels),
        "classifier": recalls,
        "unknown": abstained,
    }


def as_agreement(measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured against the answers of a network's own final exit, named so; errors of calibration, which only
    labels could tell, are left out."""
    names = {"accuracy": "agreement"}

    def renamed(rows: Any) -> Any:
        if not isinstance(rows, list):
            return rows
        return [{names.get(k, k): v for k, v in row.items() if not k.startswith("ece_")} for row in rows]

    return {key: renamed(value) for key, value in measured.items()}


def _logits(net: "EarlyExitNet", fast: "EarlyExitNet", images: torch.Tensor, expert: str) -> torch.Tensor:
    """Logits of every exit before calibration, (exits, N, K); the fast form may have folded temperatures in."""
    logits = all_logits(fast, images, expert=expert)
    folded = [own[expert] / left[expert] for own, left in zip(net.temperature, fast.temperature, strict=True)]
    return logits * torch.tensor(folded)[:, None, None]


def _distorted_parts(images: torch.Tensor, kind: str, level: float) -> Iterator[torch.Tensor]:
    """Distort uint8 images, all at the same level; yields (at most AT_ONCE, C, H, W) in [0, 1]."""
    for start in range(0, len(images), AT_ONCE):
        seen = images[start : start + AT_ONCE].float() / 255
        if kind in DISTORTIONS:
            numbers = torch.arange(start, start + len(seen))
            seen = DISTORTIONS[kind](seen, torch.full((len(seen),), level), numbers, 0)
        yield seen


def _distorted(images: torch.Tensor, kind: str, level: float) -> torch.Tensor:
    return torch.cat(list(_distorted_parts(images, kind, level)))


def _classified(net: "EarlyExitNet", images: torch.Tensor) -> torch.Tensor:
    """Logits (N, experts) of the distortion classifier, for images (at most AT_ONCE, C, H, W) in [0, 1]."""
    assert net.classifier is not None
    with torch.inference_mode():
        logits: torch.Tensor = net.classifier(images.to(net.mean.device)).cpu()
    return logits


def _recognised(net: "EarlyExitNet", logits: torch.Tensor, kind: int) -> tuple[float, float]:
    """Shares of images that the distortion classifier, by its logits, assigns to a kind, and that it abstains from."""
    _, named, _ = choose_experts(logits.numpy(), net.abstain_below)
    return float((named == kind).mean()), float((named == len(net.experts)).mean())


def by_exit(net: "EarlyExitNet", logits: torch.Tensor, labels: torch.Tensor, expert: str) -> list[dict[str, Any]]:
    """Accuracy, confidence and calibration error of each exit.

    Parameters
    ----------
    logits
        Logits of one expert, before calibration, (exits, N, K).
    """
    rows = []
    for e, out in enumerate(logits):
        plain, answer = net.confident(out.double())
        scaled, _ = net.confident(out.double() / net.temperature[e][expert])
        right = (answer == labels).numpy()
        rows.append(
            {
                "exit": e + 1,
                "accuracy": float(right.mean()),
                "confidence": float(scaled.mean()),
                "ece_before": expected_calibration_error(plain.numpy(), right),
                "ece_after": expected_calibration_error(scaled.numpy(), right),
            }
        )
    return rows


def by_class(net: "EarlyExitNet", logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Images and accuracy of each class at the final exit; classes without images are left out.

    Parameters
    ----------
    logits
        Logits of the first expert, (exits, N, K).
    """
    right = logits[-1].argmax(1) == labels
    found = []
    for number, name in enumerate(net.classes):
        mine = labels == number
        if images := int(mine.sum()):
            found.append({"class": name, "images": images, "accuracy": float(right[mine].double().mean())})
    return found


def by_threshold(net: "EarlyExitNet", logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
    """Accuracy and cost at fixed thresholds, with the whole network run in one place.

    Parameters
    ----------
    logits
        Logits of the first expert, before calibration, (exits, N, K).
    """
    costs = net.costs()
    spent = torch.tensor([costs.of_exit(e) for e in range(net.exits)], dtype=torch.float64)
    answers = [net.confident(out.double() / net.temperature[e][net.experts[0]]) for e, out in enumerate(logits)]
    predictions = torch.stack([prediction for _, prediction in answers])
    rows = []
    for threshold in THRESHOLDS:
        exit = torch.full((len(labels),), net.exits - 1)
        for e in reversed(range(net.exits - 1)):
            exit[answers[e][0] >= threshold] = e
        rows.append(
            {
                "threshold": threshold,
                "accuracy": float((predictions[exit, torch.arange(len(labels))] == labels).double().mean()),
                "macs_share": float(spent[exit].mean()) / costs.whole,
                "left_early": float((exit < net.exits - 1).double().mean()),
            }
        )
    return rows
