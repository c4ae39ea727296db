"""`eex-metrics`: the command that says of recorded runs how far to trust confidence, and what targets they met."""

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
    """What was measured of a run; None where its frames do not tell.

    Attributes
    ----------
    run
        Its folder.
    frames, labelled, dropped, fallbacks
        All of them; those with a label and an answer; those that nobody answered; those that the device answered for
        want of a reply.
    accuracy, device_probability, latency_ms
        Of the labelled ones; of all that were answered, fallbacks included; mean over these.
    exits
        Rows of exit (from 1), seen (labelled frames that it spoke of), confidence, accuracy and ece over those, share
        (of all answers), and accuracy_answered over the labelled frames that it answered.
    bins
        Rows of exit, low, high, frames, confidence, accuracy: the filled bins of the reliability diagrams.
    batches
        Full ones of labelled frames, in the order of the stream.
    outage
        Rows of p_tar, outage.
    missed
        Rows of p_tar, t_tar_ms, missed.
    notes
        What was left out and why, a line each.
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

    Raises
    ------
    EexError
        If no frame was answered, or batch, bins or a target cannot be what they are.
    """
    answered = outcomes.exit >= 0
    if not answered.any():
        raise EexError(f"{run}: no frame of this run was answered")
    if batch < 1:
        raise EexError(f"a batch must hold at least 1 frame, got {batch}")
    final = outcomes.confidence.shape[1] - 1
    known = answered & (labels >= 0)
    exits, diagrams, right = [], [], outcomes.prediction == labels[:, None]
    for e in range(final + 1):
        seen = known & ~np.isnan(outcomes.confidence[:, e])
        confidence, correct = outcomes.confidence[seen, e], right[seen, e]
        here = known & (outcomes.exit == e)
        row: dict[str, Any] = {"exit": e + 1, "share": float((outcomes.exit[answered] == e).mean())}
        row |= {"seen": int(seen.sum()), "confidence": None, "accuracy": None, "ece": None}
        row["accuracy_answered"] = float(right[here, e].mean()) if here.any() else None
        if seen.any():
            row |= {"confidence": float(confidence.mean()), "accuracy": float(correct.mean())}
            row["ece"] = expected_calibration_error(confidence, correct, bins)
            diagrams += _bins(e + 1, confidence, correct, bins)
        exits.append(row)
    said = _answers(outcomes)
    batches, device = int(known.sum()) // batch, answered & (outcomes.exit < final)
    outage, missed = [], []
    if batches:
        correct, on_device = (said == labels)[known], device[known]
        times = outcomes.latency_ms[known]
        shares = inference_outage(on_device, correct, p_tar, batch)
        outage = [{"p_tar": p, "outage": float(share)} for p, share in zip(p_tar, shares, strict=True)]
        table = missed_deadline(times, correct, np.array(p_tar)[:, None], np.array(t_tar_ms), batch)
        missed = [
            {"p_tar": p, "t_tar_ms": t, "missed": float(table[i, j])}
            for i, p in enumerate(p_tar)
            for j, t in enumerate(t_tar_ms)
        ]
    dropped, fallbacks = int((~answered).sum()), int((outcomes.fallback & answered).sum())
    return Report(
        run,
        len(labels),
        int(known.sum()),
        dropped,
        fallbacks,
        float((said == labels)[known].mean()) if known.any() else None,
        device_probability(device[answered]),
        float(outcomes.latency_ms[answered].mean()),
        tuple(exits),
        tuple(diagrams),
        batches,
        tuple(outage),
        tuple(missed),
        _notes(answered, known, fallbacks, batch),
    )


def _answers(outcomes: Outcomes) -> Ints:
    """The class each frame was answered with; of dropped ones, no matter what."""
    return answer(outcomes.confidence, outcomes.prediction, outcomes.exit, outcomes.exit_at[:, -1])


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


def _notes(answered: Bools, known: Bools, fallbacks: int, batch: int) -> tuple[str, ...]:
    notes = []
    if not known.any():
        notes.append("no frame has a label: accuracy, calibration and targets cannot be told")
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
