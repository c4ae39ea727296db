"""`python -m eex.experiments.bench.agent_search`: a small search around `eex-train-rl`'s defaults.

Each candidate is trained for the same number of steps on the training trace (see `eex.experiments.bench.agents`)
without the last fifth of each of its segments, on which it is evaluated: regret per 1,000 frames against the best
fixed threshold of each segment. One thing at a time differs from the first line. Results are kept in
agent_search.csv beside this file; not every candidate was played. A window of 16 was better than the default of 4.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from eex.envs.train import TrainRLConfig, train_rl
from eex.policies.core.errors import EexError
from eex.stream.guard import guarded

RESULTS = Path(__file__).with_name("agent_search.csv")
CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "grid of 21": {"action": "grid"},
    "window 1": {"window": 1},
    "window 16": {"window": 16},
    "lr 3e-4": {"lr": 3e-4},
    "lr 3e-3": {"lr": 3e-3},
    "gamma 0.9": {"setting": ("gamma=0.9",)},
    "batch 2048": {"setting": ("batch_size=2048",)},
    "relu": {"activation": "relu"},
    "32 wide": {"layers": (32, 32)},
    "a2c": {"algorithm": "a2c"},
    "dqn": {"algorithm": "dqn", "action": "grid"},
}


@dataclass(frozen=True)
class Search:
    """Train each candidate alike, and write down how it did."""

    trace: Path = Path("build/rl/train-3.arrow")
    """Trace to train and evaluate on."""
    steps: int = 5_000_000
    """Of each candidate."""
    only: tuple[str, ...] = ()
    """Some of the candidates."""
    out: Path = RESULTS
    """File of the results; rows of candidates that are not played again stay."""


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(Search, prog="python -m eex.experiments.bench.agent_search")
    if strange := [name for name in config.only if name not in CANDIDATES]:
        raise EexError(f"--only {strange[0]}: expected one of {', '.join(CANDIDATES)}")
    for name, options in CANDIDATES.items():
        if config.only and name not in config.only:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            best = train_rl(
                TrainRLConfig(
                    trace=config.trace,
                    out=Path(folder),
                    steps=config.steps,
                    evaluate_every=config.steps // 4,
                    evaluate_seeds=2,
                    threads=1,
                    **options,
                )
            )
        row = {
            "candidate": name,
            "regret": round(best["regret"], 3),
            "at_steps": best["steps"],
            "steps": config.steps,
            "ucb": round(best["ucb"]["regret"], 3),
            "gain-curve": round(best["gain-curve"]["regret"], 3),
            "seconds": round(time.perf_counter() - started),
        }
        print(row, flush=True)
        old = pd.read_csv(config.out) if config.out.exists() else pd.DataFrame(columns=list(row))
        rows = [*old[old["candidate"] != name].to_dict("records"), row]
        pd.DataFrame(rows).to_csv(config.out, index=False)


if __name__ == "__main__":
    main()
