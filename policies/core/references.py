"""The references that judge a policy, which peek: what fixed thresholds and an oracle earn on a whole trace.

The best fixed threshold in hindsight, common to all exits (`best_fixed`, `best_arm`) or one per exit (`best_per_exit`);
the best fixed threshold of each segment, for streams that change (`best_arm_of_segments`); the per-frame `oracle`.

Where several runs play rows of a trace, `frame` holds which, (runs, rounds), as `eex.policies.core.replay.draw_frames`
gives them; hindsight is over each run's own rows. No reference loses a reply.
"""

import numpy as np

from eex.policies.core.base import ExitCost, Floats, Ints, Reward
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import check_exit_cost
from eex.policies.core.options import check_word
from eex.policies.core.reward import earned, way_cost
from eex.policies.core.world import step

MOST_CELLS = 1 << 24
"""Combinations of thresholds that `best_per_exit` compares at most."""


def _check(confidence: Floats, overhead: float, exit_cost: ExitCost) -> None:
    """Raise `EexError` if a confidence is missing, as in a live run's records, or a price is none."""
    if np.isnan(confidence).any():
        raise EexError(
            f"frame {int(np.isnan(confidence).any(axis=1).argmax())} has no confidence at some exit: hindsight needs a "
            "full trace (eex-record), not the records of a run; see eex.policies.core.off_policy for those"
        )
    if not 0 <= overhead <= 1:
        raise EexError(f"the overhead must lie in [0, 1], units of confidence; got {overhead}")
    check_exit_cost(exit_cost, confidence.shape[1] - 1)


def best_fixed(
    confidence: Floats, overhead: float, grid: Floats, exit_cost: ExitCost = 0.0, kind: Reward = "adaee"
) -> tuple[float, Floats]:
    """The best single threshold in hindsight, and what it earns on each frame.

    Parameters
    ----------
    confidence
        Of every exit of every frame, (frames, edge exits + 1): nothing may be missing.
    overhead, exit_cost
        Price of offloading a frame, and of every further edge exit.
    grid
        Thresholds to compare, (arms,).

    Raises
    ------
    EexError
        If a confidence is missing, or a price is out of range.
    """
    rewards = fixed_rewards(confidence, overhead, grid, exit_cost, kind)
    best = int(rewards.sum(axis=0).argmax())
    return float(grid[best]), rewards[:, best]


def fixed_reward(
    confidence: Floats,
    overhead: float,
    threshold: float | Floats,
    exit_cost: ExitCost = 0.0,
    drop_below: float = 0.0,
    kind: Reward = "adaee",
) -> Floats:
    """What a fixed threshold, one for all edge exits or (exits,), earns on each frame of a full trace, (frames,).

    Frames that it would offload with less than `drop_below` at the last edge exit are dropped, and earn 0.
    """
    check_word("kind", kind, Reward)
    exit_at = np.broadcast_to(np.asarray(threshold, dtype=float), (1, confidence.shape[1] - 1))
    stepped = step(confidence, exit_at, None, overhead, exit_cost, kind=kind, drop_below=drop_below)
    return np.where(stepped.dropped, 0.0, stepped.reward) if drop_below > 0 else stepped.reward


def fixed_rewards(
    confidence: Floats, overhead: float, grid: Floats, exit_cost: ExitCost = 0.0, kind: Reward = "adaee"
) -> Floats:
    """What each of several thresholds earns on each frame of a full trace, (frames, arms)."""
    _check(confidence, overhead, exit_cost)
    return np.column_stack([fixed_reward(confidence, overhead, float(t), exit_cost, kind=kind) for t in grid])


def best_arm(rewards: Floats, frame: Ints) -> tuple[Ints, Floats]:
    """The best fixed threshold of each run in hindsight.

    Parameters
    ----------
    rewards
        Of each frame of the trace under each arm, (frames, arms): `fixed_rewards`.
    frame
        Rows of the trace that each run plays, (runs, rounds).

    Returns
    -------
    arm, reward
        The arm, (runs,); of equal ones the first. What it earns, (runs, rounds).
    """
    arm = np.column_stack([column[frame].sum(axis=1) for column in rewards.T]).argmax(axis=1)
    return arm, rewards[frame, arm[:, None]]


def best_arm_of_segments(rewards: Floats, frame: Ints, segment: Ints) -> Floats:
    """What the dynamic reference earns, (runs, rounds): in each segment, the fixed threshold that is best there.

    Parameters
    ----------
    rewards, frame
        As for `best_arm`.
    segment
        Of each frame of the trace, (frames,), counted from 0: `Trace.segments`. A segment that a run comes to again,
        after the trace's last frame, has one best threshold over both times.
    """
    runs, count = len(frame), int(segment[-1]) + 1
    cell = np.arange(runs)[:, None] * count + segment[frame]  # of run and segment, (runs, rounds)
    sums = [np.bincount(cell.ravel(), column[frame].ravel(), runs * count) for column in rewards.T]
    arm = np.argmax(sums, axis=0)  # (runs * segments,)
    most: Floats = rewards[frame, arm[cell]]
    return most


def best_per_exit(
    confidence: Floats, overhead: float, grid: Floats, exit_cost: ExitCost = 0.0, kind: Reward = "adaee"
) -> tuple[Floats, Floats]:
    """The best thresholds in hindsight, one per edge exit, and what they earn.

    With few combinations of thresholds it is an exhaustive search; with more than `MOST_CELLS` an ascent along one exit
    after another, from the best common threshold and from the optimal stopping that `best_stopping` finds, which may
    stop short of the best.

    Parameters
    ----------
    confidence
        Of every exit of every frame, (frames, edge exits + 1); for a run, of the rows that it played.
    overhead, exit_cost
        Price of offloading a frame, and of every further edge exit.
    grid
        Thresholds to combine, (arms,), rising.
    kind
        What frames earn.

    Returns
    -------
    thresholds, reward
        One per edge exit, (exits,); what they earn on each frame, (frames,).
    """
    _check(confidence, overhead, exit_cost)
    exits = confidence.shape[1] - 1
    search = _every_combination if (len(grid) + 1) ** exits <= MOST_CELLS else _exit_by_exit
    best = search(confidence, overhead, grid, exit_cost, kind)
    return best, fixed_reward(confidence, overhead, best, exit_cost, kind=kind)


def best_per_exit_of_segments(
    confidence: Floats, overhead: float, grid: Floats, segment: Ints, exit_cost: ExitCost = 0.0, kind: Reward = "adaee"
) -> Floats:
    """What `best_per_exit` earns where it may choose other thresholds in each segment, (frames,).

    Parameters
    ----------
    segment
        Of each frame, (frames,).
    """
    reward = np.empty(len(confidence))
    for s in np.unique(segment):
        rows = segment == s
        reward[rows] = best_per_exit(confidence[rows], overhead, grid, exit_cost, kind)[1]
    return reward


def _every_combination(confidence: Floats, overhead: float, grid: Floats, exit_cost: ExitCost, kind: Reward) -> Floats:
    """The best of all combinations, (exits,).

    A frame goes on past an exit if its confidence is below the threshold there. So the frames are summed up in cells by
    which thresholds each confidence reaches, and a running sum over the cells, along every exit, is what each
    combination earns: frames + arms ** exits steps.
    """
    edge, exits = confidence[:, :-1], confidence.shape[1] - 1
    # frame i goes on past exit e with threshold grid[k] where k >= reached[i, e]
    reached = np.searchsorted(grid, edge, side="right")
    shape = (len(grid) + 1,) * exits  # the last cell along an exit: above every threshold, never goes on

    def passing(values: Floats, upto: int) -> Floats:
        """Sum of `values` over the frames that go on past the first exits, by their thresholds."""
        cell = np.ravel_multi_index(tuple(reached[:, :upto].T), shape[:upto])
        sums = np.bincount(cell, values, int(np.prod(shape[:upto]))).reshape(shape[:upto])
        for axis in range(upto):
            sums = sums.cumsum(axis=axis)
        return sums[(slice(-1),) * upto]

    steps = way_cost(exit_cost, np.arange(exits)) + np.zeros(exits)
    total = passing(np.maximum(0.0, confidence[:, -1] - edge[:, -1]) - overhead, exits)
    for e in range(1, exits):
        won = edge[:, e] - edge[:, e - 1] if kind == "utility" else np.zeros(len(edge))
        total = total + passing(won - (steps[e] - steps[e - 1]), e).reshape((len(grid),) * e + (1,) * (exits - e))
    best: Floats = grid[np.array(np.unravel_index(int(total.argmax()), total.shape))]
    return best


def _exit_by_exit(confidence: Floats, overhead: float, grid: Floats, exit_cost: ExitCost, kind: Reward) -> Floats:
    """Thresholds, (exits,), that no other threshold at a single exit improves on; the better of two starts."""

    def mean(thresholds: Floats) -> float:
        return float(fixed_reward(confidence, overhead, thresholds, exit_cost, kind=kind).mean())

    exits = confidence.shape[1] - 1
    common = best_fixed(confidence, overhead, grid, exit_cost, kind)[0]
    stopping = best_stopping(confidence, overhead, exit_cost, kind)[0]
    starts = [np.full(exits, common), grid[np.abs(grid[:, None] - stopping).argmin(axis=0)]]
    found = []
    for thresholds in starts:
        most, before = mean(thresholds), -np.inf
        while most > before:
            before = most
            for e in range(exits):
                tried = [mean(np.where(np.arange(exits) == e, t, thresholds)) for t in grid]
                if max(tried) > most:
                    most = max(tried)
                    thresholds = np.where(np.arange(exits) == e, grid[int(np.argmax(tried))], thresholds)
        found.append((most, thresholds))
    best: Floats = max(found, key=lambda each: each[0])[1]
    return best


def best_stopping(
    confidence: Floats, overhead: float, exit_cost: ExitCost = 0.0, kind: Reward = "adaee", bins: int = 50
) -> tuple[Floats, Floats]:
    """Optimal stopping in hindsight: thresholds from backward induction over the whole trace, at linear cost.

    At each exit, from the last to the first, the frames in a bin of its confidence go on if they earn more on average
    by going on, which later exits have decided already; the threshold is where going on below it earns the most.

    Parameters
    ----------
    bins
        Of the confidence: thresholds are their edges.

    Returns
    -------
    thresholds, reward
        One per edge exit, (exits,); what they earn on each frame, (frames,).
    """
    _check(confidence, overhead, exit_cost)
    edge, exits = confidence[:, :-1], confidence.shape[1] - 1
    grid = np.linspace(0, 1, bins + 1)
    thresholds: Floats = np.empty(exits)
    way = way_cost(exit_cost, np.arange(exits)) + np.zeros(exits)
    kept = edge if kind == "utility" else np.zeros_like(edge)
    on = earned(np.maximum(0.0, confidence[:, -1] - edge[:, -1]), np.array(True), exits - 1, overhead, exit_cost)
    on = on + kept[:, -1]  # what each frame earns if it goes on from the exit that is looked at
    for e in range(exits - 1, -1, -1):
        left = kept[:, e] - way[e]
        bin = np.minimum((np.clip(edge[:, e], 0.0, 1.0) * bins).astype(np.int64), bins - 1)
        won = np.bincount(bin, on - left, bins)
        thresholds[e] = grid[int(np.append(0.0, won.cumsum()).argmax())]
        on = np.where(edge[:, e] >= thresholds[e], left, on)
    return thresholds, fixed_reward(confidence, overhead, thresholds, exit_cost, kind=kind)


def oracle(
    confidence: Floats, overhead: float, exit_cost: ExitCost = 0.0, drop_below: float = 0.0, kind: Reward = "adaee"
) -> Floats:
    """What the per-frame oracle earns: each frame leaves where it earns most, (frames,).

    A frame's gain is taken over the last edge exit's confidence, as for a frame that visited them all. A policy that
    skips exits, as DEEx does, gains over the exit that it skipped from, and may earn more. A frame below `drop_below`
    at the last edge exit cannot be offloaded: it would be dropped."""
    check_word("kind", kind, Reward)
    _check(confidence, overhead, exit_cost)
    edge, further = confidence[:, :-1], np.arange(confidence.shape[1] - 1)
    left = (edge if kind == "utility" else 0.0 * edge) - way_cost(exit_cost, further)
    gain = confidence[:, -1] - edge[:, -1]
    if kind == "utility":
        gain = np.maximum(0.0, gain) + edge[:, -1]
    offloaded = earned(gain, np.array(True), further[-1], overhead, exit_cost)
    most = left.max(axis=1)
    best: Floats = np.where(edge[:, -1] < drop_below, most, np.maximum(most, offloaded))
    return best
