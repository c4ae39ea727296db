"""How far the confidence of a recorded run can be trusted, and which targets it met; `eex-metrics` prints it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eex.policies.core.base import Bools, Floats, Ints, Outcomes
from eex.policies.core.errors import EexError
from eex.policies.core.metrics import (
    BATCH,
    device_probability,
    expected_calibration_error,
    inference_outage,
    missed_deadline,
    reliability,
)
from eex.policies.core.routing import answer


@dataclass(frozen=True)
class Report:
    """What was measured of a run; None where its frames cannot show it.

    Attributes
    ----------
    run
        Folder of the run.
    frames, labelled, dropped, fallbacks
        Number of all frames; of those with a label and an answer; of those that got no answer; of those that the device
        answered because no reply came.
    accuracy
        Accuracy of the labelled frames.
    device_probability, latency_ms
        Share of answered frames that the device answered, fallbacks included; mean latency of answered frames.
    exits
        Rows of exit (from 1), seen (labelled frames that reached it), confidence, accuracy and ece over those, share
        (of all answers), and accuracy_answered (over the labelled frames that it answered).
    bins
        Rows of exit, low, high, frames, confidence, accuracy: the filled bins of the reliability diagrams.
    batches
        Number of full batches of labelled frames, in the order of the stream.
    outage
        Rows of p_tar, outage.
    missed
        Rows of p_tar, t_tar_ms, missed.
    notes
        What was left out and why, one line each.
    """

    run: str
    frames: int
    labelled: int
    dropped: int
    fallbacks: int
    accuracy: float | None
    device_probability: float
    latency_ms: float
    exits: tuple[dict[str, Any], ...]
    bins: tuple[dict[str, Any], ...]
    batches: int
    outage: tuple[dict[str, Any], ...]
    missed: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def measure(
    outcomes: Outcomes,
    labels: Ints,
    p_tar: Sequence[float],
    t_tar_ms: Sequence[float],
    *,
    run: str = "",
    batch: int = BATCH,
    bins: int = 15,
) -> Report:
    """Measure a run's frames.

    Parameters
    ----------
    outcomes, labels
        As `eex.stream.run.records.outcomes_of` and `labels_of` give them, frame by frame in order.
    p_tar, t_tar_ms
        Target accuracies and target times of a batch.
    run
        Folder of the run, for the report and its messages.
    batch, bins
        Frames in a batch; bins of confidence.

    Raises
    ------
    EexError
        If no frame was answered, or batch, bins or a target are out of range.
    """
    answered = outcomes.exit >= 0
    if not answered.any():
        raise EexError(f"{run}: no frame of this run was answered")
    if batch < 1:
        raise EexError(f"a batch must hold at least 1 frame, got {batch}")
    final = outcomes.confidence.shape[1] - 1
    known = answered & (labels >= 0)
    answers = answer(outcomes.confidence, outcomes.prediction, outcomes.exit, outcomes.exit_at[:, -1])
    correct, on_device = answers == labels, outcomes.exit < final
    exits = [_exit(outcomes, labels, e, bins) for e in range(final + 1)]
    outage, missed = _targets(
        on_device[known], correct[known], outcomes.latency_ms[known], list(p_tar), list(t_tar_ms), batch
    )
    fallbacks = int((outcomes.fallback & answered).sum())
    return Report(
        run=run,
        frames=len(labels),
        labelled=int(known.sum()),
        dropped=int((~answered).sum()),
        fallbacks=fallbacks,
        accuracy=float(correct[known].mean()) if known.any() else None,
        device_probability=device_probability(on_device[answered]),
        latency_ms=float(outcomes.latency_ms[answered].mean()),
        exits=tuple(row for row, _ in exits),
        bins=tuple(row for _, diagram in exits for row in diagram),
        batches=int(known.sum()) // batch,
        outage=tuple(outage),
        missed=tuple(missed),
        notes=_notes(answered, known, fallbacks, batch),
    )


def _exit(outcomes: Outcomes, labels: Ints, e: int, bins: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An exit's row, and the rows of its reliability diagram."""
    answered = outcomes.exit >= 0
    known = answered & (labels >= 0)
    seen = known & ~np.isnan(outcomes.confidence[:, e])
    here = known & (outcomes.exit == e)
    right = outcomes.prediction[:, e] == labels
    row: dict[str, Any] = {"exit": e + 1, "share": float((outcomes.exit[answered] == e).mean())}
    row |= {"seen": int(seen.sum()), "confidence": None, "accuracy": None, "ece": None}
    row["accuracy_answered"] = float(right[here].mean()) if here.any() else None
    if not seen.any():
        return row, []
    confidence, correct = outcomes.confidence[seen, e], right[seen]
    row |= {"confidence": float(confidence.mean()), "accuracy": float(correct.mean())}
    row["ece"] = expected_calibration_error(confidence, correct, bins)
    return row, _bins(e + 1, confidence, correct, bins)


def _bins(exit: int, confidence: Floats, correct: Bools, bins: int) -> list[dict[str, Any]]:
    found = reliability(confidence, correct, bins)
    return [
        {
            "exit": exit,
            "low": float(found.edges[k]),
            "high": float(found.edges[k + 1]),
            "frames": int(found.counts[k]),
            "confidence": float(found.confidence[k]),
            "accuracy": float(found.accuracy[k]),
        }
        for k in np.flatnonzero(found.counts)
    ]


def _targets(
    on_device: Bools, correct: Bools, latency_ms: Floats, p_tar: list[float], t_tar_ms: list[float], batch: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of inference outage and of missed deadlines, over labelled frames in order; none where no batch is full."""
    if len(correct) < batch:
        return [], []
    shares = inference_outage(on_device, correct, p_tar, batch)
    outage = [{"p_tar": p, "outage": float(share)} for p, share in zip(p_tar, shares, strict=True)]
    table = missed_deadline(latency_ms, correct, np.array(p_tar)[:, None], np.array(t_tar_ms), batch)
    missed = [
        {"p_tar": p, "t_tar_ms": t, "missed": float(table[i, j])}
        for i, p in enumerate(p_tar)
        for j, t in enumerate(t_tar_ms)
    ]
    return outage, missed


def _notes(answered: Bools, known: Bools, fallbacks: int, batch: int) -> tuple[str, ...]:
    notes = []
    if not known.any():
        notes.append("no frame has a label: accuracy, calibration and targets cannot be measured")
    elif unlabelled := int((answered & ~known).sum()):
        notes.append(f"{unlabelled:,} frames without a label are left out of accuracy, calibration and targets")
    if dropped := int((~answered).sum()):
        notes.append(f"{dropped:,} dropped frames have no answer and are left out")
    if fallbacks:
        notes.append(f"{fallbacks:,} frames fell back on the device's answer and count as the device's")
    if known.any() and known.sum() < batch:
        notes.append(
            f"{known.sum():,} labelled frames make no batch of {batch:,}: no outage, no missed deadlines (--batch)"
        )
    return tuple(notes)
