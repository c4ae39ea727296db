"""`eex-evaluate`: the command that estimates from the records of one run what other thresholds would have earned."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.off_policy import Estimate, Mean, estimate
from eex.stream.config import StreamConfig, from_json
from eex.stream.guard import guarded

ESTIMATORS = ("dr", "snips", "ips")


@dataclass(frozen=True)
class Command:
    """Estimate from the records of one run what other fixed thresholds would have earned a frame.

    Works on what policies that draw their arms at random leave (eex-stream --policy random), and for thresholds below
    all that were played; says where the records cannot support it. Intervals are of 95 %.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run, or of its records."""
    thresholds: str = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    """Thresholds, between commas: each one for all edge exits, or one an exit with / between them, as 0.9/0.8/0.7."""
    overhead: float | None = None
    """Price of offloading a frame; by default what the run paid."""
    json: bool = False
    """Print JSON to standard output, and nothing else there."""


def evaluate(command: Command) -> tuple[list[Estimate], Mean]:
    """The estimates for each threshold, and what the run itself earned a frame.

    Raises
    ------
    EexError
        If the folder holds no records of a run, or a threshold is none, or frames were dropped.
    """
    from eex.stream.run.records import DROPPED, outcomes_of, read_records

    thresholds = [_parsed(text) for text in command.thresholds.split(",") if text.strip()]
    if not thresholds:
        raise EexError("--thresholds names none; expected numbers between commas, as 0.7,0.9/0.8")
    whole = (command.run / "records").is_dir()
    table = read_records(command.run / "records" if whole else command.run)
    if dropped := np.count_nonzero(table[DROPPED]):
        raise EexError(
            f"{command.run}: {dropped:,} frames were dropped (--drop-below): what others would have earned on those is "
            "not known, and they are not like the rest"
        )
    outcomes = outcomes_of(table)
    config = command.run / "config.json" if whole else command.run.parent / "config.json"
    exit_cost = from_json(config, StreamConfig).exit_cost if config.exists() else 0.0
    reward = outcomes.reward[~np.isnan(outcomes.reward)]
    earned = Mean(float(reward.mean()), float(reward.std() / np.sqrt(len(reward)))) if len(reward) else Mean()
    return estimate(outcomes, thresholds, overhead=command.overhead, exit_cost=exit_cost), earned


def _parsed(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split("/")]
    except ValueError:
        raise EexError(
            f"--thresholds: '{text.strip()}' is no threshold such as 0.7, or 0.9/0.8 for two exits"
        ) from None


def rows(estimates: list[Estimate]) -> list[dict[str, Any]]:
    """The estimates as plain JSON values; null where there is none."""
    found = []
    for e in estimates:
        row: dict[str, Any] = {"thresholds": list(e.thresholds)}
        for name in ESTIMATORS:
            mean = getattr(e, name)
            supported = None if e.problem else {"mean": mean.value, "se": mean.se, "low": mean.low, "high": mean.high}
            row[name] = supported
        found.append(row | {"frames": e.frames, "effective": e.effective, "problem": e.problem or None})
    return found


def _print(estimates: list[Estimate], earned: Mean) -> None:
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
    console = Console()
    console.print("reward a frame, estimated, ± half its 95 % interval", highlight=False)
    console.print(table)
    for problem, names in problems.items():
        console.print(f"{', '.join(names)}: {problem}", soft_wrap=True, highlight=False)
    console.print(f"the run itself: {_shown(earned)}", highlight=False)


def _shown(mean: Mean) -> str:
    return "–" if np.isnan(mean.value) else f"{mean.value:+.4f} ± {1.96 * mean.se:.4f}"


def main() -> None:
    """Entry point of `eex-evaluate`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-evaluate", config=(tyro.conf.FlagCreatePairsOff,))
    estimates, earned = evaluate(command)
    if command.json:
        own = None if np.isnan(earned.value) else earned.value
        print(json.dumps({"rows": rows(estimates), "run": own}))
    else:
        _print(estimates, earned)


if __name__ == "__main__":
    main()
