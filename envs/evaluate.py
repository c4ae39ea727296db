"""How well a policy does on schedules that switch: reward, and regret against each segment's best threshold."""

from collections.abc import Mapping, Sequence

import numpy as np

from eex.envs.episodes import RewardKind, check_labels
from eex.envs.playlist import reordered
from eex.policies.algorithms.curves import THRESHOLDS
from eex.policies.core.base import Floats, Reward
from eex.policies.core.errors import EexError
from eex.policies.core.link import SimulatedLink
from eex.policies.core.references import best_arm_of_segments, fixed_rewards
from eex.policies.core.replay import replay
from eex.policies.core.reward import way_cost
from eex.policies.core.routing import answer
from eex.policies.core.trace import Trace
from eex.policies.core.world import step
from eex.policies.registry import make_policy


def held_out(trace: Trace, share: float = 0.2) -> tuple[Trace, Trace]:
    """A trace without the last frames of each of its segments, and these."""
    segment = trace.segments
    place = np.arange(len(trace)) - np.searchsorted(segment, segment)
    late = place >= np.ceil((1 - share) * np.bincount(segment))[segment]
    if not late.any():
        raise EexError(
            "no stretch of unchanged distortion has the frames that holding out a share of it takes; "
            "give another trace to evaluate on (--held-out)"
        )
    return trace[~late], trace[late]


def play(
    policy: str,
    trace: Trace,
    overheads: Sequence[float],
    link: SimulatedLink | None,
    seed: int = 0,
    exit_cost: float = 0.0,
    options: Mapping[str, str] | None = None,
    kind: RewardKind = "adaee",
) -> tuple[Floats, Floats]:
    """Play a policy over a trace in order, at all overheads side by side, with late feedback.

    Returns
    -------
    reward, regret
        Of each overhead and frame, (overheads, frames); the regret is against the fixed threshold, common to all exits,
        that is best in hindsight in each segment of unchanged distortion. Both are of what frames earn under `kind`;
        no policy learns from accuracy, which takes labels: it learns from AdaEE's reward then.
    """
    price = np.asarray(overheads, dtype=float)
    made = make_policy(policy, options, exits=trace.edge_exits, runs=len(price), seed=seed)
    keys = np.full(len(price), seed)
    if kind == "accuracy":
        check_labels(trace)
    learned: Reward = "adaee" if kind == "accuracy" else kind
    replayed = replay(
        made, trace, price, order="in-order", seed=seed, keys=keys, link=link, exit_cost=exit_cost, kind=learned
    )
    reward = replayed.reward
    if kind == "accuracy":
        reward = (replayed.answer == trace.label) - replayed.paid
    rows = np.arange(len(trace))[None]
    grid = np.array(THRESHOLDS)
    earned = (_of_thresholds(trace, o, grid, exit_cost, kind) for o in price)
    best = [best_arm_of_segments(by_threshold, rows, trace.segments)[0] for by_threshold in earned]
    return reward, np.array(best) - reward


def _of_thresholds(trace: Trace, overhead: float, grid: Floats, exit_cost: float, kind: RewardKind) -> Floats:
    """What each threshold earns on each frame, (frames, thresholds)."""
    if kind != "accuracy":
        return fixed_rewards(trace.confidence, overhead, grid, exit_cost, kind)
    earned = np.empty((len(trace), len(grid)))
    for k, threshold in enumerate(grid):
        exit_at = np.full((1, trace.edge_exits), threshold)
        stepped = step(trace.confidence, exit_at, None, overhead, exit_cost)
        answers = answer(trace.confidence, trace.prediction, stepped.exit, np.full(len(trace), threshold))
        cost = overhead * stepped.offloaded + way_cost(exit_cost, stepped.visited - 1)
        earned[:, k] = (answers == trace.label) - cost
    return earned


def score(
    policy: str,
    trace: Trace,
    overheads: Sequence[float],
    link: SimulatedLink | None,
    *,
    rounds: int,
    switch: tuple[int, int],
    seeds: int,
    exit_cost: float = 0.0,
    options: Mapping[str, str] | None = None,
    kind: RewardKind = "adaee",
) -> tuple[float, float]:
    """Mean reward and mean regret per 1,000 frames, over overheads and reordered traces of seeds 0, 1, …"""
    if seeds < 1:
        raise EexError(f"seeds must be at least 1, got {seeds}")
    schedules = (reordered(trace, rounds, switch, k) for k in range(seeds))
    played = [play(policy, frames, overheads, link, k, exit_cost, options, kind) for k, frames in enumerate(schedules)]
    return 1000 * float(np.mean([p[0] for p in played])), 1000 * float(np.mean([p[1] for p in played]))
