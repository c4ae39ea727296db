"""`eex-evaluate`: estimate the reward of other thresholds from the records of runs."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.off_policy import Estimate, Mean
from eex.stream.guard import guarded
from eex.stream.run.estimates import ESTIMATORS, estimates_of, rows


@dataclass(frozen=True)
class Command:
    """Estimate the reward per frame of other fixed thresholds from the records of each run.

    A run's policy must draw its arms at random (eex-stream --policy random), except for thresholds below all that
    were played. A note explains each estimate that the records cannot support. Intervals are 95 % intervals.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or their folders of records."""
    thresholds: str = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    """Comma-separated thresholds to estimate. Each applies to all edge exits; to give one per exit, separate them by
    slashes, as in 0.9/0.8/0.7."""
    overhead: float | None = None
    """Price of offloading a frame. By default, the price that the run paid."""
    json: bool = False
    """Print only JSON to standard output, one line per run."""


def _thresholds(text: str) -> list[list[float]]:
    found = [_threshold(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise EexError("--thresholds is empty; expected comma-separated numbers, such as 0.7,0.9/0.8")
    return found


def _threshold(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split("/")]
    except ValueError:
        raise EexError(f"--thresholds: '{text}' is not a threshold, such as 0.7, or 0.9/0.8 for two exits") from None


def _print(estimates: list[Estimate], earned: Mean, overhead: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("threshold", box=None, padding=(0, 2, 0, 0))
    for title in ("doubly robust", "self-normalised", "importance", "effective"):
        table.add_column(title, justify="right")
    problems: dict[str, list[str]] = {}
    for e in estimates:
        name = f"{e.thresholds[0]:g}" if len(set(e.thresholds)) == 1 else "/".join(f"{b:g}" for b in e.thresholds)
        table.add_row(name, *(_shown(getattr(e, which)) for which in ESTIMATORS), f"{e.effective:,.0f}")
        if e.problem:
            problems.setdefault(e.problem, []).append(name)
    console = Console(markup=False)
    console.print("estimated reward per frame, ± half its 95 % interval", highlight=False)
    console.print(table)
    for problem, names in problems.items():
        console.print(f"{', '.join(names)}: {problem}", soft_wrap=True, highlight=False)
    price = "" if overhead is None else ", at the price that it paid"
    console.print(f"the run itself{price}: {_shown(earned)}", highlight=False)


def _shown(mean: Mean) -> str:
    return "–" if np.isnan(mean.value) else f"{mean.value:+.4f} ± {1.96 * mean.se:.4f}"


def main() -> None:
    """Entry point of `eex-evaluate`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-evaluate", config=(tyro.conf.FlagCreatePairsOff,))
    if not command.runs:
        raise EexError("give the folder of at least one run, such as runs/20261121-173855-random")
    thresholds = _thresholds(command.thresholds)
    found = [(run, *estimates_of(run, thresholds, command.overhead)) for run in command.runs]
    for k, (run, estimates, earned) in enumerate(found):
        if command.json:
            own = None if np.isnan(earned.value) else earned.value
            print(json.dumps({"folder": str(run), "rows": rows(estimates), "run": own}))
            continue
        if len(found) > 1:
            print(f"\n{run}:" if k else f"{run}:")
        _print(estimates, earned, command.overhead)


if __name__ == "__main__":
    main()
