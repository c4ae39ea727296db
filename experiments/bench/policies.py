"""`make bench`: rounds per second of every policy, beside river's own in its usual loop, in the same run."""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eex.policies.algorithms.arms import GRID
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_rewards
from eex.policies.core.replay import draw_frames, replay
from eex.policies.core.trace import Trace
from eex.policies.registry import POLICIES, make_policy
from eex.stream.guard import guarded

OVERHEAD = 0.1


@dataclass(frozen=True)
class Bench:
    """Measure rounds per second of policies in replay: choosing, routing, rewarding and learning."""

    policies: str = ""
    """Comma-separated, options after colons; by default all that play so many exits, and ucb under drift detectors."""
    runs: tuple[int, ...] = (1, 1000)
    """Runs that are played side by side."""
    seconds: float = 2.0
    """For each measurement, about; the fastest of three parts of it counts."""
    exits: int = 1
    """Edge exits of the trace that is played."""


def synthetic_trace(frames: int = 10_000, seed: int = 0, exits: int = 1) -> Trace:
    """A trace that needs no file: edge exits, ten classes, labels.

    With u, v, w uniform: the first exit is confident by :math:`1 - 0.9 u^2`, each of the next, the cloud's last, closes
    a share v of what the one before lacks, and each answer is right as often as it is confident.
    """
    u, *draws = uniform(seed, np.array([0]), np.arange(frames), 2 * exits + 2)[0].T
    sure = [1 - 0.9 * u**2]
    for v in draws[:exits]:
        sure.append(sure[-1] + (1 - sure[-1]) * v)
    confidence = np.column_stack(sure)
    right = np.column_stack(draws[exits:]) < confidence
    label = np.arange(frames) % 10
    return Trace(
        confidence=confidence,
        prediction=np.where(right, label[:, None], (label[:, None] + 1) % 10),
        label=label,
        classes=tuple("0123456789"),
    )


def rounds_per_second(play: Callable[[int], int], seconds: float) -> float:
    """Rounds per second of a function that plays some rounds of each run and returns their number over all runs."""
    rounds, took = 16, 0.0
    while took < seconds / 12 and rounds < 20_000:
        rounds *= 2
        took = _timed(play, rounds)[0]
    rounds = max(16, min(20_000, int(rounds * seconds / 3 / took)))
    return max(played / took for took, played in (_timed(play, rounds) for _ in range(3)))


def _timed(play: Callable[[int], int], rounds: int) -> tuple[float, int]:
    started = time.perf_counter()
    played = play(rounds)
    return time.perf_counter() - started, played


def in_replay(name: str, trace: Trace, runs: int) -> Callable[[int], int]:
    """Plays a policy by `replay`, in as many runs side by side."""

    def play(rounds: int) -> int:
        rounds = min(rounds, 5_000_000 // runs)  # within some 300 MiB
        replay(make_policy(name, exits=trace.edge_exits, runs=runs), trace, OVERHEAD, rounds=rounds)
        return rounds * runs

    return play


def in_river(make: Callable[[], Any], trace: Trace) -> Callable[[int], int]:
    """Plays a policy of river.bandit in its usual loop, one step after another, over the same frames and rewards.

    The rewards are looked up in a table, so all that is timed is river's own.
    """
    rewards = fixed_rewards(trace.confidence, OVERHEAD, np.array(GRID)).tolist()
    arms = list(range(len(GRID)))

    def play(rounds: int) -> int:
        policy = make()
        for row in draw_frames(trace, rounds, "resampled", 0, np.array([0]))[0].tolist():
            arm = policy.pull(arms)
            policy.update(arm, rewards[row][arm])
        return rounds

    return play


def fits(name: str, exits: int) -> bool:
    """Whether a policy plays so many edge exits."""
    try:
        make_policy(name, exits=exits)
    except EexError:
        return False
    return True


def main() -> None:
    """Entry point of `python -m eex.experiments.bench.policies`."""
    sys.exit(guarded(_main))


def _main() -> int:
    from river import bandit, proba

    config = tyro.cli(Bench, prog="python -m eex.experiments.bench.policies")
    if config.exits < 1:
        raise EexError(f"--exits must be at least 1, got {config.exits}")
    trace = synthetic_trace(exits=config.exits)
    names = [name.strip() for name in config.policies.split(",") if name.strip()]
    fit = [name for name in POLICIES if fits(name, config.exits)]
    names = names or [*fit, *(f"drift:detector={d}@ucb" for d in ("adwin", "page-hinkley", "kswin"))]
    for name in names:
        make_policy(name, exits=trace.edge_exits)  # a mistake ends the bench before anything is measured
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(
        "policy",
        *(f"{runs:,} run{'s side by side' if runs > 1 else ''}" for runs in config.runs),
        title=f"rounds/s in replay, edge exits: {config.exits}, {platform.machine()}, one process",
        title_justify="left",
    )
    for name in names:
        speeds = [rounds_per_second(in_replay(name, trace, runs), config.seconds) for runs in config.runs]
        table.add_row(name, *(f"{speed:,.0f}" for speed in speeds))
    table.add_section()
    gaussian: Any = proba.Gaussian  # untyped
    rivers = {
        "river's UCB, its own loop": lambda: bandit.UCB(delta=1.0, seed=0),
        "river's Thompson (Gaussian), its own loop": lambda: bandit.ThompsonSampling(gaussian(), seed=0),
    }
    for name, make in rivers.items():
        speed = rounds_per_second(in_river(make, trace), config.seconds)
        table.add_row(name, f"{speed:,.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    main()
