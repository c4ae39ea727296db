"""`eex-metrics`: the command that says of recorded runs how far to trust confidence, and what targets they met."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from eex.policies.base import Bools, Floats, Ints, Outcomes
from eex.policies.errors import EexError
from eex.policies.metrics import (
    BATCH,
    device_probability,
    expected_calibration_error,
    inference_outage,
    missed_deadline,
    reliability,
)
from eex.policies.routing import answer
from eex.stream.guard import guarded

PICTURE = "reliability.png"


@dataclass(frozen=True)
class Command:
    """Say of recorded runs how far each exit's confidence is from its accuracy, and how often batches miss targets.

    Draws reliability.png into each run's folder.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or of their records."""
    batch: int = BATCH
    """Frames that inference outage and missed deadlines are counted over."""
    p_tar: str = "0.7,0.75,0.8,0.85,0.9,0.95"
    """Target accuracies of a batch, between commas."""
    t_tar_ms: str = "10,20,50,100,200"
    """Target times, the mean latency of a batch, between commas."""
    bins: int = 15
    """Of confidence, for calibration errors and diagrams."""
    json: bool = False
    """Print JSON to standard output, and nothing else there."""


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
        As `eex.stream.records.outcomes_of` and `labels_of` give them, frame by frame in order.

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


def report(command: Command) -> list[Report]:
    """Measure every run that a command names, and draw its reliability diagrams into its folder.

    Raises
    ------
    EexError
        If a folder holds no records of a run or cannot be written to, or an option cannot be what it is.
    """
    from eex.stream.records import labels_of, outcomes_of, read_records

    p_tar, t_tar_ms = _numbers("--p-tar", command.p_tar), _numbers("--t-tar-ms", command.t_tar_ms)
    if not all(0 <= p <= 1 for p in p_tar):
        raise EexError(f"--p-tar must lie in [0, 1], got {command.p_tar}")
    if not all(t >= 0 for t in t_tar_ms):
        raise EexError(f"--t-tar-ms must be at least 0, got {command.t_tar_ms}")
    for name in ("batch", "bins"):
        if getattr(command, name) < 1:
            raise EexError(f"--{name} must be at least 1, got {getattr(command, name)}")
    if not command.runs:
        raise EexError("name the folder of a run, as runs/20261121-173855-ucb")
    found = []
    for folder in command.runs:
        whole = (folder / "records").is_dir()
        records = read_records(folder / "records" if whole else folder)
        told = measure(
            outcomes_of(records),
            labels_of(records),
            p_tar,
            t_tar_ms,
            run=str(folder),
            batch=command.batch,
            bins=command.bins,
        )
        if told.bins:
            _draw(told, folder / PICTURE)
        found.append(told)
    return found


def _numbers(option: str, text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise EexError(f"{option} takes numbers between commas, got '{text}'") from None
    if not found:
        raise EexError(f"{option} names no number")
    return found


def _draw(told: Report, path: Path) -> None:
    import pandas as pd

    from eex.stream import pictures

    names = [
        f"{_name(row['exit'], told)}" + ("" if row["ece"] is None else f", ECE {100 * row['ece']:.1f} %")
        for row in told.exits
    ]
    try:
        pictures.reliability(pd.DataFrame(told.bins), names).savefig(path, dpi=120)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror}") from None


def _name(exit: int, told: Report) -> str:
    return f"exit {exit}" if exit < len(told.exits) else "cloud"


def _print(told: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    accuracy = "" if told.accuracy is None else f", accuracy {_percent(told.accuracy)}"
    say(f"{told.run}: {told.frames:,} frames{accuracy}, {_percent(told.device_probability)} answered on the device, "
        f"mean latency {told.latency_ms:.3g} ms")  # fmt: skip
    exits = Table("", box=None, padding=(0, 2, 0, 0))
    for title in ("frames seen", "confidence", "accuracy", "ECE", "answered", "its answers"):
        exits.add_column(title, justify="right")
    for row in told.exits:
        shown = (_percent(row[name]) for name in ("confidence", "accuracy", "ece", "share", "accuracy_answered"))
        exits.add_row(_name(row["exit"], told), f"{row['seen']:,}", *shown)
    console.print(exits)
    if told.batches:
        times = list(dict.fromkeys(row["t_tar_ms"] for row in told.missed))
        targets = Table("target", box=None, padding=(0, 2, 0, 0))
        for title in ("outage", *(f"{t:g} ms" for t in times)):
            targets.add_column(title, justify="right")
        for k, row in enumerate(told.outage):
            missed = told.missed[k * len(times) : (k + 1) * len(times)]
            targets.add_row(f"{row['p_tar']:g}", _percent(row["outage"]), *(_percent(m["missed"]) for m in missed))
        console.print(targets)
        say(f"inference outage, and missed deadlines by target time: shares of {told.batches:,} batches")
    for note in told.notes:
        say(note)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def main() -> None:
    """Entry point of `eex-metrics`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-metrics", config=(tyro.conf.FlagCreatePairsOff,))
    found = report(command)
    if command.json:
        print(json.dumps({"runs": [asdict(told) for told in found]}))
        return
    for k, told in enumerate(found):
        if k:
            print()
        _print(told)


if __name__ == "__main__":
    main()
