"""`eex-metrics`: calibration of a run's confidence, inference outage and missed deadlines."""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing
from eex.policies.core.metrics import BATCH
from eex.stream.guard import guarded
from eex.stream.run.report import Report, measure

PICTURE = "reliability.png"
MOST_BINS = 1000
"""Bins of a calibration error at most: with as many as there are frames, it is the error of single frames."""


@dataclass(frozen=True)
class Command:
    """Report how far each exit's confidence is from its accuracy, and how often batches of frames miss their targets.

    Reads the records of finished runs and saves reliability.png in the folder of each.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or their folders of records."""
    batch: int = BATCH
    """Number of frames in a batch. Inference outage and missed deadlines are counted per batch."""
    p_tar: str = "0.7,0.75,0.8,0.85,0.9,0.95"
    """Comma-separated target accuracies of a batch."""
    t_tar_ms: str = "10,20,50,100,200"
    """Comma-separated target times, in milliseconds, for the mean latency of a batch."""
    bins: int = 15
    """Number of confidence bins for calibration errors and diagrams."""
    json: bool = False
    """Print only JSON to standard output."""

    def check(self) -> tuple[list[float], list[float]]:
        """The target accuracies and times.

        Raises
        ------
        EexError
            If an option is out of range or no run is given.
        """
        p_tar, t_tar_ms = _numbers("--p-tar", self.p_tar), _numbers("--t-tar-ms", self.t_tar_ms)
        if not all(0 <= p <= 1 for p in p_tar):
            raise EexError(f"--p-tar must lie in [0, 1], got {self.p_tar}")
        if not all(0 <= t < math.inf for t in t_tar_ms):
            raise EexError(f"--t-tar-ms must be at least 0 and finite, got {self.t_tar_ms}")
        for name in ("batch", "bins"):
            if getattr(self, name) < 1:
                raise EexError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.bins > MOST_BINS:
            raise EexError(f"--bins must be at most {MOST_BINS}, got {self.bins}")
        if not self.runs:
            raise EexError("give the folder of at least one run, such as runs/20261121-173855-ucb")
        return p_tar, t_tar_ms


def _numbers(option: str, text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise EexError(f"{option} takes comma-separated numbers, got '{text}'") from None
    if not found:
        raise EexError(f"{option} is empty; expected comma-separated numbers")
    return found


def _draw(report: Report, path: Path) -> None:
    import pandas as pd

    from eex.stream.run import pictures

    names = [
        f"{_name(row['exit'], report)}" + ("" if row["ece"] is None else f", ECE {100 * row['ece']:.1f} %")
        for row in report.exits
    ]
    with replacing(path) as part:
        pictures.reliability(pd.DataFrame(report.bins), names).savefig(part, dpi=120, format="png")


def _name(exit: int, report: Report) -> str:
    return f"exit {exit}" if exit < len(report.exits) else "cloud"


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    accuracy = "" if report.accuracy is None else f", accuracy {_percent(report.accuracy)}"
    say(
        f"{report.run}: {report.frames:,} frames{accuracy}, {_percent(report.device_probability)} answered on the "
        f"device, mean latency {report.latency_ms:.3g} ms"
    )
    exits = Table("", box=None, padding=(0, 2, 0, 0))
    for title in ("frames seen", "confidence", "accuracy", "ECE", "answered", "its answers"):
        exits.add_column(title, justify="right")
    for row in report.exits:
        shown = (_percent(row[name]) for name in ("confidence", "accuracy", "ece", "share", "accuracy_answered"))
        exits.add_row(_name(row["exit"], report), f"{row['seen']:,}", *shown)
    console.print(exits)
    if report.batches:
        times = list(dict.fromkeys(row["t_tar_ms"] for row in report.missed))
        targets = Table("target", box=None, padding=(0, 2, 0, 0))
        for title in ("outage", *(f"{t:g} ms" for t in times)):
            targets.add_column(title, justify="right")
        for k, row in enumerate(report.outage):
            missed = report.missed[k * len(times) : (k + 1) * len(times)]
            targets.add_row(f"{row['p_tar']:g}", _percent(row["outage"]), *(_percent(m["missed"]) for m in missed))
        console.print(targets)
        say(f"inference outage, and missed deadlines by target time: shares of {report.batches:,} batches")
    for note in report.notes:
        say(note)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def main() -> None:
    """Entry point of `eex-metrics`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-metrics", config=(tyro.conf.FlagCreatePairsOff,))
    p_tar, t_tar_ms = command.check()
    from eex.stream.run.records import labels_of, outcomes_of, read_records

    reports = []
    for folder in command.runs:
        records = read_records(folder)
        outcomes, labels = outcomes_of(records, whole=False), labels_of(records, whole=False)
        report = measure(outcomes, labels, p_tar, t_tar_ms, run=str(folder), batch=command.batch, bins=command.bins)
        reports.append(report)
    if command.json:
        print(json.dumps({"runs": [asdict(report) for report in reports]}))
    else:
        for k, report in enumerate(reports):
            if k:
                print()
            _print(report)
    for folder, report in zip(command.runs, reports, strict=True):
        if report.bins:
            try:
                _draw(report, folder / PICTURE)
            except Exception as error:  # any: a picture must not cost the results
                why = " ".join(str(error).split()) or type(error).__name__
                print(f"warning: {folder / PICTURE} was not drawn: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
