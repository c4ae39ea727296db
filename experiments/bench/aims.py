"""How well wishes are kept: over many runs on a trace, against the best thresholds of hindsight under the same bounds.

python -m eex.experiments.bench.aims eight.arrow --exit-ms 1,1.9,2.6,20
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from eex.policies.core.aims import Aim, parse_aims
from eex.policies.core.base import Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.replay import Order, replay, times_of
from eex.policies.core.routing import walk
from eex.policies.core.trace import Trace, read_trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.aim import keeping
from eex.stream.guard import guarded

WISHES = (
    "offload <= 5 %",
    "mean latency <= 2.5 ms",
    "p99 <= 10 ms",
    "accuracy within 1 point of the whole network",
    "accuracy within 3 points of the whole network; mean latency <= 8 ms",
)
BINS = 50
MOST = 1e6
"""Highest Lagrange multiplier that is tried, of costs in units of their bounds."""


@dataclass(frozen=True)
class Bench:
    """Play wishes over a trace in many runs, and print how well each was kept and what it cost."""

    trace: tyro.conf.Positional[Path]
    """A trace written by eex-record."""
    aim: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Wishes to play, one after the other; several in one are kept together. By default, a selection."""
    policy: str = "stop-curve"
    """The policy that keeps them."""
    exit_ms: str = ""
    """Milliseconds after which each exit answers, the cloud's last; by default those of the trace."""
    overhead: float = 0.1
    """Price of offloading a frame."""
    exit_cost: float = 0.02
    """Price of each further exit."""
    runs: int = 20
    """Runs, each over other draws of the frames."""
    rounds: int = 0
    """Frames per run; 0 = as many as the trace has."""
    order: Order = "segments"
    """Order of the frames, as for eex-regret."""
    delay: int = 0
    """Delay of all feedback, in rounds."""
    by_distortion: bool = False
    """Print a row for each distortion: latency and accuracy against those of the whole network."""


def play(bench: Bench, trace: Trace, wish: str) -> dict[str, Any]:
    """What came of a wish: of each of its bounds, in each run; and the first run's utility against hindsight's."""
    exit_ms = read_ms(bench.exit_ms)
    policy = make_policy(bench.policy, exits=trace.edge_exits, runs=bench.runs)
    played = replay(
        keeping(policy, [wish], bench.policy),
        trace,
        bench.overhead,
        rounds=bench.rounds,
        order=bench.order,
        delay=bench.delay,
        exit_cost=bench.exit_cost,
        exit_ms=exit_ms,
        kind="utility",
    )
    aims, differs = parse_aims(wish), played.answer != trace.prediction[played.frame, -1]
    utility = float(played.utility[0].mean())  # of the frames that hindsight knows
    best = hindsight(trace, aims, bench.overhead, bench.exit_cost, times_of(trace, exit_ms), played.frame[0])
    row: dict[str, Any] = {"wish": wish, "policy": bench.policy, "utility": utility, "hindsight": best, "bounds": []}
    row["of_hindsight"] = None if best is None else utility / best
    row["differs"], row["offloaded"] = float(differs.mean()), float(played.offloaded.mean())
    row["accuracy"] = float(trace_right(trace, played.answer, played.frame).mean())
    for aim in aims:
        ratio = aim.cost(differs, played.latency_ms, played.offloaded).mean(axis=1) / aim.limit
        kept = float(np.mean(aim.kept(ratio * aim.limit)))
        row["bounds"].append({"wish": aim.text, "kept": kept, "mean": float(ratio.mean()), "most": float(ratio.max())})
    if bench.by_distortion:
        row["distortions"] = by_distortion(trace, played.frame, played.answer, played.latency_ms, exit_ms)
    return row


def read_ms(text: str) -> list[float]:
    """The times of `--exit-ms`.

    Raises
    ------
    EexError
        If one is no number.
    """
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise EexError(f"--exit-ms: expected milliseconds, one for each exit, got {text!r}") from None


def trace_right(trace: Trace, answer: Ints, frame: Ints) -> Any:
    """Whether answers are right."""
    return answer == trace.label[frame]


def by_distortion(
    trace: Trace, frame: Ints, answer: Ints, latency_ms: Floats, exit_ms: list[float]
) -> list[dict[str, Any]]:
    """Latency and accuracy on each distortion, and those of the whole network, which every frame reaches."""
    names = np.array([f"{k} {v:g}" if v else str(k) for k, v in zip(trace.distortion, trace.level, strict=True)])
    times = times_of(trace, exit_ms)
    rows = []
    for name in dict.fromkeys(names.tolist()):
        here = names[frame] == name
        its = frame[here]
        whole = np.zeros(1) if times is None else times[its, -1]
        median, mean = float(np.median(latency_ms[here])), float(latency_ms[here].mean())
        rows.append(
            {
                "distortion": name,
                "accuracy": float(trace_right(trace, answer[here], its).mean()),
                "accuracy_whole": float(trace.correct[its, -1].mean()),
                "differs": float((answer[here] != trace.prediction[its, -1]).mean()),
                "median_ms": median,
                "mean_ms": mean,
                "median_ms_whole": float(np.median(whole)),
                "mean_ms_whole": float(whole.mean()),
            }
        )
    return rows


# ---- hindsight


def hindsight(
    trace: Trace, aims: tuple[Aim, ...], overhead: float, exit_cost: float, times: Floats | None, frame: Ints
) -> float | None:
    """Utility per frame of the best thresholds, one per exit and segment, under the bounds; None if none keep them.

    Thresholds are those of optimal stopping for the utility less a multiplier times the costs, the same multipliers in
    all segments, which is optimal to within the bins; the smallest ones that keep the bounds are found by bisection.
    """
    confidence, segment = trace.confidence[frame], trace.segments[frame]
    exits = confidence.shape[1] - 1
    earned = confidence - exit_cost * np.minimum(np.arange(exits + 1), exits - 1)
    earned[:, -1] = np.maximum(confidence[:, -1], confidence[:, -2]) - overhead - exit_cost * (exits - 1)
    differs = trace.prediction[frame] != trace.prediction[frame, -1:]
    sent = np.broadcast_to(np.arange(exits + 1) == exits, earned.shape)
    late = np.zeros(earned.shape) if times is None else times[frame]
    cost = np.stack([aim.cost(differs, late, sent) / aim.limit for aim in aims])  # (aims, frames, exits + 1)

    def under(multiplier: Floats) -> tuple[Floats, float]:
        """Mean costs, and the mean utility."""
        value = earned - np.tensordot(multiplier, cost, axes=1)
        left = np.empty(len(value), dtype=np.int64)
        for s in np.unique(segment):
            rows = np.flatnonzero(segment == s)
            at = stopping(confidence[rows], value[rows])
            left[rows] = walk(confidence[rows, :-1], np.broadcast_to(at, (len(rows), exits)))[0]
        every = np.arange(len(left))
        return cost[:, every, left].mean(axis=1), float(earned[every, left].mean())

    multiplier = np.zeros(len(aims))
    for _ in range(1 if len(aims) == 1 else 4):
        for j in range(len(aims)):
            trial = multiplier.copy()
            trial[j] = 0.0
            if under(trial)[0][j] > 1:
                low, high = 1e-6, MOST
                for _ in range(30):
                    trial[j] = (low * high) ** 0.5
                    low, high = (low, trial[j]) if under(trial)[0][j] <= 1 else (trial[j], high)
                trial[j] = high
            multiplier = trial
    costs, utility = under(multiplier)
    return utility if (costs <= 1 + 1e-3).all() else None


def stopping(confidence: Floats, value: Floats) -> Floats:
    """Thresholds, (exits,), of optimal stopping by backward induction, from what frames are worth at each exit.

    Parameters
    ----------
    confidence, value
        (frames, exits + 1); the last column is the cloud's.
    """
    exits = confidence.shape[1] - 1
    grid, thresholds, on = np.linspace(0, 1, BINS + 1), np.empty(exits), value[:, -1]
    grid[-1] = 1.01  # never
    for e in range(exits - 1, -1, -1):
        bin = np.minimum((np.clip(confidence[:, e], 0, 1) * BINS).astype(int), BINS - 1)
        won = np.bincount(bin, on - value[:, e], BINS)
        thresholds[e] = grid[int(np.append(0.0, won.cumsum()).argmax())]
        on = np.where(confidence[:, e] >= thresholds[e], value[:, e], on)
    return thresholds


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> int:
    bench = tyro.cli(Bench, prog="python -m eex.experiments.bench.aims")
    trace = read_trace(bench.trace)
    if bench.runs < 1 or bench.rounds < 0 or bench.delay < 0:
        raise EexError("--runs must be at least 1, --rounds and --delay at least 0")
    for wish in bench.aim or WISHES:
        parse_aims(wish)  # a mistake is reported before anything is played
    for wish in bench.aim or WISHES:
        print(json.dumps(play(bench, trace, wish)), flush=True)
    return 0


if __name__ == "__main__":
    main()
