"""`eex-metrics`: can the confidence of a run be trusted?"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.metrics import (
    BATCH,
)
from eex.stream.guard import guarded
from eex.stream.run.report import Report, measure

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


def report(command: Command) -> list[Report]:
    """Measure every run that a command names, and draw its reliability diagrams into its folder.

    Raises
    ------
    EexError
        If a folder holds no records of a run or cannot be written to, or an option cannot be what it is.
    """
    from eex.stream.run.records import labels_of, outcomes_of, read_records

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

    from eex.stream.run import pictures

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
