"""`python -m eex.experiments.bench.agents`: the shipped agent beside AdaEE's UCB and the recommended policy.

The agents are trained on a trace of the training split's validation images, which its last training did not see, and
compared on one of the test split, at other levels of distortion. `--record` makes both traces; the agents themselves
come from

    eex-train-rl --trace build/rl/train-3.arrow --out policies/shipped/rl-3 --name rl-3 --reward utility \\
        --exit-cost 0.02

and likewise for the network cut after its second exit; with one exit there is no exit to pay for, and the agent is
trained by AdaEE's reward, the default. Every policy plays the same frames: for each seed, the
test trace's distortions in a drawn order, switching every 500 to 3,000 frames, over a link whose delay jumps.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from eex.envs.evaluate import play
from eex.envs.playlist import reordered
from eex.policies.core.base import Floats, Reward
from eex.policies.core.errors import EexError
from eex.policies.core.link import parse_link
from eex.policies.core.trace import Trace, read_trace, write_trace
from eex.stream.guard import guarded

TRAINED_ON = (
    "pristine:2500, gaussian_blur@0.5:2500, gaussian_blur@1:2500, gaussian_blur@1.5:2500, gaussian_blur@2:2500, "
    "gaussian_noise@10:2500, gaussian_noise@20:2500, gaussian_noise@30:2500, gaussian_noise@40:2500"
)
TESTED_ON = (
    "pristine:2500, gaussian_blur@0.75:2500, gaussian_blur@1.25:2500, gaussian_blur@1.75:2500, "
    "gaussian_noise@8:2500, gaussian_noise@15:2500, gaussian_noise@25:2500, gaussian_noise@35:2500"
)
OTHER_LINK = "40:1300, 400:500, 10:200, 150:1100, jitter=5"
"""Round trips that no agent was trained with."""
FIRST_SEED = 1000
"""Of the schedules, beyond those of training and of its evaluation."""
HELD_OUT = 1
"""Of the images that the last 20 epochs of the shipped network's training did not see."""


@dataclass(frozen=True)
class Comparison:
    """Compare policies on held-out schedules: a table, its numbers as JSON, and regret curves."""

    out: Path = Path("build/rl")
    """Folder for traces and results."""
    record: str = ""
    """CIFAR-10 images to record the traces from, if they are not in the folder."""
    policies: tuple[str, ...] = ("rl", "ucb", "stop-curve")
    """What is compared; the first's margin to the second and the third is given."""
    exits: int = 3
    """Edge exits: the network cut after so many."""
    overheads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4)
    """Prices of offloading, played side by side."""
    reward: Reward = "utility"
    """What frames earn."""
    exit_cost: float = 0.02
    """Price of each edge exit after the first, in units of confidence."""
    seeds: int = 20
    """Schedules."""
    rounds: int = 12_000
    """Frames of each."""
    switch: tuple[int, int] = (500, 3000)
    """Fewest and most frames between switches of the distortion."""
    link: str = OTHER_LINK
    """Round trips."""


def record(data: str, out: Path) -> None:
    """Write train-E.arrow and test-E.arrow for E = 1, 2, 3 edge exits of the shipped network."""
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.policies.core.schedule import parse_schedule
    from eex.stream.frames.distortions import distort
    from eex.stream.frames.folders import Split
    from eex.stream.frames.sources import load_all, open_source
    from eex.stream.groups import every_exit

    net = load()
    fingerprint, fast = net.fingerprint, optimised(net)
    splits: tuple[tuple[Split, str], ...] = (("train", TRAINED_ON), ("test", TESTED_ON))
    for split, text in splits:
        images, labels, _ = load_all(open_source(data, split=split))
        if split == "train":
            held = np.random.default_rng(HELD_OUT).permutation(len(images))[:2500]
            images, labels = images[held], labels[held]
        schedule = parse_schedule(text)
        frames = np.arange(schedule.length)
        # each image once before one comes again
        row = np.concatenate([np.random.default_rng((1, k)).permutation(len(images)) for k in range(9)])[
            frames % (9 * len(images))
        ]
        answers = []
        with torch.inference_mode():
            for at in range(0, len(frames), 250):
                number = frames[at : at + 250]
                pixels = torch.from_numpy(images[row[number]]).float() / 255
                levels = torch.from_numpy(schedule.levels(number))
                answers.append(every_exit(fast, distort(pixels, levels, torch.from_numpy(number), 0)))
        confidence, prediction, probabilities = (np.concatenate(column) for column in zip(*answers, strict=True))
        for exits in range(1, confidence.shape[1]):
            kept = [*range(exits), -1]
            trace = Trace(
                confidence=confidence[:, kept],
                prediction=prediction[:, kept],
                label=labels[row],
                classes=net.classes,
                distortion=schedule.names(frames),
                level=schedule.levels(frames).max(axis=1),
                probabilities=probabilities,
                experts=net.experts,
                model=fingerprint,
            )
            write_trace(out / f"{split}-{exits}.arrow", trace)


def compare(config: Comparison) -> pd.DataFrame:
    """Tidy rows: policy, overhead, run, round, and the cumulative reward and regret after so many rounds."""
    trace = read_trace(config.out / f"test-{config.exits}.arrow")
    marks = np.unique(np.linspace(config.rounds / 100, config.rounds, 100).astype(int))
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + config.seeds):
        switching = reordered(trace, config.rounds, config.switch, seed)
        for policy in config.policies:
            link = parse_link(config.link)
            reward, regret = play(policy, switching, config.overheads, link, seed, config.exit_cost, kind=config.reward)
            for o, overhead in enumerate(config.overheads):
                columns = {
                    "trace": f"test-{config.exits}",
                    "policy": policy,
                    "overhead": overhead,
                    "run": seed,
                    "round": marks,
                    "reward": np.cumsum(reward[o])[marks - 1],
                    "regret_dynamic": np.cumsum(regret[o])[marks - 1],
                }
                rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def summary(rows: pd.DataFrame, config: Comparison) -> dict[str, Any]:
    """Means and half-widths of 95 % intervals over the seeds, per 1,000 frames; margins are of paired differences."""
    last = rows[rows["round"] == config.rounds]
    per_seed = (
        last.pivot_table(index="run", columns=["policy", "overhead"], values="regret_dynamic") * 1000 / config.rounds
    )
    overall = {p: per_seed[p].mean(axis=1).to_numpy() for p in config.policies}
    table = {
        p: {f"{o:g}": _mean(per_seed[p, o].to_numpy()) for o in config.overheads} | {"all": _mean(overall[p])}
        for p in config.policies
    }
    first, rival, best = config.policies[:3]
    return {
        "regret_per_1000_frames": table,
        f"{rival} less {first}": _mean(overall[rival] - overall[first]),
        f"{best} less {first}": _mean(overall[best] - overall[first]),
        "frames": config.rounds,
        "seeds": config.seeds,
        "switch": list(config.switch),
        "link": config.link,
        "reward": config.reward,
        "exit_cost": config.exit_cost,
    }


def _mean(values: Floats) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t)."""
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(half)


def table(found: dict[str, Any], overheads: Sequence[float]) -> str:
    """The summary as Markdown."""
    names = [f"o = {o:g}" for o in overheads]
    lines = ["| policy | " + " | ".join(names) + " | all |", "|---" * (len(names) + 2) + "|"]
    for policy, cells in found["regret_per_1000_frames"].items():
        lines.append(f"| {policy} | " + " | ".join(f"{m:.2f} ± {h:.2f}" for m, h in cells.values()) + " |")
    return "\n".join(lines)


def draw(rows: pd.DataFrame, out: Path) -> None:
    """Regret curves, one panel an overhead."""
    from eex.experiments.plotting import regret_curves

    figure = regret_curves(rows, "regret_dynamic", title="regret against the best fixed threshold of each segment")
    for kind in ("png", "pdf"):
        figure.savefig(out.with_suffix(f".{kind}"), dpi=150)


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(Comparison, prog="python -m eex.experiments.bench.agents")
    if config.seeds < 2 or len(config.policies) < 3:
        raise EexError("expected at least 2 seeds and 3 policies")
    if config.record and not (config.out / f"test-{config.exits}.arrow").exists():
        record(config.record, config.out)
    rows = compare(config)
    found = summary(rows, config)
    place = config.out / f"rl-{config.exits}"
    place.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    rows.to_csv(place.with_suffix(".csv"), index=False, float_format="%.6g")
    draw(rows, place)
    print(table(found, config.overheads))
    for name in (name for name in found if " less " in name):
        margin, half = found[name]
        print(f"{name}: {margin:.2f} ± {half:.2f} per 1,000 frames")


if __name__ == "__main__":
    main()
