"""What other thresholds would have earned in a recorded run; `eex-evaluate` prints it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eex.policies.core.base import ExitCost, Reward
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import parse_exit_cost, written
from eex.policies.core.files import write_file
from eex.policies.core.off_policy import Estimate, Mean, estimate
from eex.stream.config import StreamConfig, from_json

PRICED = "priced.json"
"""Name of the file among the records that says what their rewards count: the kind, and the prices of the exits."""
ESTIMATORS = ("dr", "snips", "ips")
"""Fields of an `Estimate`: doubly robust, self-normalised importance sampling, importance sampling."""


def estimates_of(run: Path, thresholds: list[list[float]], overhead: float | None) -> tuple[list[Estimate], Mean]:
    """The estimate for each threshold, and what the run itself earned per frame.

    Parameters
    ----------
    run
        Its folder, or that of its records.
    thresholds
        Each one for all edge exits, or one per exit.
    overhead
        Price of offloading a frame; None for what the run paid.

    Raises
    ------
    EexError
        If the folder holds no records, a threshold is out of range, or frames were dropped.
    """
    from eex.stream.run.records import DROPPED, outcomes_of, read_records

    table = read_records(run)
    if dropped := np.count_nonzero(table[DROPPED]):
        raise EexError(
            f"{run}: {dropped:,} frames were dropped (--drop-below): what others would have earned on those is "
            "not known, and they are not like the rest"
        )
    outcomes = outcomes_of(table, whole=False)
    places = (run, run / "records", run.parent)
    configs = [folder / name for name in (PRICED, "config.json") for folder in places]  # an older eex wrote the latter
    config = next((path for path in configs if path.exists()), None)
    settings = StreamConfig() if config is None else from_json(config, StreamConfig)
    reward = outcomes.reward[~np.isnan(outcomes.reward)]
    earned = Mean(float(reward.mean()), float(reward.std() / np.sqrt(len(reward)))) if len(reward) else Mean()
    exit_cost = parse_exit_cost(settings.exit_cost).of(outcomes.confidence.shape[1] - 1)
    return estimate(outcomes, thresholds, overhead=overhead, exit_cost=exit_cost, kind=settings.reward), earned


def write_priced(records: Path, reward: Reward, exit_cost: ExitCost) -> None:
    """Say among the records what their rewards count.

    Raises
    ------
    EexError
        If the file cannot be written.
    """
    priced = {"reward": reward, "exit_cost": written(exit_cost)}
    write_file(records / PRICED, json.dumps(priced) + "\n")


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
