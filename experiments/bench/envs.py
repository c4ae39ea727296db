"""`python -m eex.experiments.bench.envs`: steps a second of the environments, vectorised and one by one, in one run."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eex.policies.core.trace import Trace
from eex.stream.guard import guarded


@dataclass(frozen=True)
class Bench:
    """Measure steps a second, of all environments together; medians of rounds in which each is measured in turn."""

    envs: int = 1024
    """Environments of the vectorised one."""
    dummy: int = 8
    """Environments of stable-baselines3's DummyVecEnv."""
    rounds: int = 7
    """Times each is measured."""
    steps: int = 200
    """Of each, each time."""


def made_up(frames: int = 20_000, exits: int = 3) -> Trace:
    """A trace of four distortions, drawn."""
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.uniform(0.3, 1.0, (frames, exits + 1)), axis=1)
    nothing = np.zeros((frames, exits + 1), dtype=np.int64)
    kind = np.arange(frames) * 4 // frames
    return Trace(
        confidence=confidence,
        prediction=nothing,
        label=nothing[:, 0],
        classes=("one",),
        distortion=np.array(["pristine", "gaussian_blur", "gaussian_noise", "gaussian_blur"])[kind],
        level=kind.astype(float),
        probabilities=rng.dirichlet(np.ones(3), frames),
        experts=("pristine", "gaussian_blur", "gaussian_noise"),
    )


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(Bench, prog="python -m eex.experiments.bench.envs")
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

    from eex.envs.sb3 import ThresholdVecEnv
    from eex.envs.threshold import ThresholdEnv
    from eex.envs.vector import ThresholdVectorEnv

    trace = made_up()
    options: dict[str, Any] = {"order": "switching", "rounds": 10_000, "overhead": (0.0, 0.5)}
    slow = options | {"link": "20:500, 150:500, 60:500"}

    def native(chosen: dict[str, Any]) -> Callable[[int], int]:
        envs = ThresholdVectorEnv(trace, config.envs, **chosen)
        envs.reset(seed=0)
        actions = [envs.action_space.sample() for _ in range(16)]

        def play(steps: int) -> int:
            for k in range(steps):
                envs.step(actions[k % 16])
            return steps * config.envs

        return play

    def baselines(envs: VecEnv) -> Callable[[int], int]:
        envs.reset()
        actions = [np.array([envs.action_space.sample() for _ in range(envs.num_envs)]) for _ in range(16)]

        def play(steps: int) -> int:
            for k in range(steps):
                envs.step(actions[k % 16])
            return steps * envs.num_envs

        return play

    dummy = DummyVecEnv([lambda: ThresholdEnv(trace, **options)] * config.dummy)
    contestants = {
        f"vectorised, {config.envs:,}": native(options),
        f"vectorised, {config.envs:,}, replies over a link": native(slow),
        f"as stable-baselines3's VecEnv, {config.envs:,}": baselines(ThresholdVecEnv(trace, config.envs, **options)),
        f"scalar in DummyVecEnv, {config.dummy}": baselines(dummy),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(config.rounds + 1):
        for name, play in contestants.items():
            started = time.perf_counter()
            steps = play(config.steps)
            speeds[name].append(steps / (time.perf_counter() - started))
    table = Table("environments", "steps/s", title="eex/Threshold-v0", title_justify="left")
    for name, found in speeds.items():
        table.add_row(name, f"{np.median(found[1:]):,.0f}")  # the first warms up
    Console(markup=False).print(table)


if __name__ == "__main__":
    main()
