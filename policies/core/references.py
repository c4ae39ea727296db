"""The references that judge a policy, which peek: what fixed thresholds and an oracle earn on a whole trace.

The best fixed threshold in hindsight, common to all exits (`best_fixed`, `best_arm`) or one per exit (`best_per_exit`);
the best fixed threshold of each segment, for streams that change (`best_arm_of_segments`); the per-frame `oracle`.

Where several runs play rows of a trace, `frame` holds which, (runs, rounds), as `eex.policies.core.replay.draw_frames`
gives them; hindsight is over each run's own rows. No reference loses a reply.
"""

import numpy as np

from eex.policies.core.base import Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.reward import earned
from eex.policies.core.world import step

MOST_CELLS = 1 << 24
"""Combinations of thresholds that `best_per_exit` compares at most."""


def best_fixed(confidence: Floats, overhead: float, grid: Floats, exit_cost: float = 0.0) -> tuple[float, Floats]:
    """The best single threshold in hindsight, and what it earns on each frame.

    Parameters
    ----------
    confidence
        Of every exit of every frame, (frames, edge exits + 1): nothing may be missing.
    overhead, exit_cost
        Price of offloading a frame, and of every further edge exit.
    grid
        Thresholds to compare, (arms,).
    """
    rewards = fixed_rewards(confidence, overhead, grid, exit_cost)
    best = int(rewards.sum(axis=0).argmax())
    return float(grid[best]), rewards[:, best]


def fixed_reward(
    confidence: Floats,
    overhead: float,
    threshold: float | Floats,
    exit_cost: float = 0.0,
    drop_below: float = 0.0,
) -> Floats:
    """What a fixed threshold, one for all edge exits or (exits,), earns on each frame of a full trace, (frames,).

    Frames that it would offload with less than `drop_below` at the last edge exit are dropped, and earn 0.
    """
    exit_at = np.broadcast_to(np.asarray(threshold, dtype=float), (1, confidence.shape[1] - 1))
    stepped = step(confidence, exit_at, None, overhead, exit_cost, drop_below=drop_below)
    return np.where(stepped.dropped, 0.0, stepped.reward) if drop_below > 0 else stepped.reward


def fixed_rewards(confidence: Floats, overhead: float, grid: Floats, exit_cost: float = 0.0) -> Floats:
    """What each of several thresholds earns on each frame of a full trace, (frames, arms)."""
    return np.column_stack([fixed_reward(confidence, overhead, float(t), exit_cost) for t in grid])


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


def best_per_exit(confidence: Floats, overhead: float, grid: Floats, exit_cost: float = 0.0) -> tuple[Floats, Floats]:
    """The best thresholds in hindsight, one per edge exit, by exhaustive search over all combinations of the grid.

    A frame is offloaded if each exit's confidence is below its threshold. So the frames are summed up in cells by
    which thresholds each confidence reaches, and a running sum over the cells, along every exit, is what each
    combination earns: frames + arms ** exits steps.

    Parameters
    ----------
    confidence
        Of every exit of every frame, (frames, edge exits + 1); for a run, of the rows that it played.
    overhead, exit_cost
        Price of offloading a frame, and of every further edge exit.
    grid
        Thresholds to combine, (arms,), rising.

    Returns
    -------
    thresholds, reward
        One per edge exit, (exits,); what they earn on each frame, (frames,).

    Raises
    ------
    EexError
        If there are more than `MOST_CELLS` combinations.
    """
    edge, exits = confidence[:, :-1], confidence.shape[1] - 1
    if len(grid) ** exits > MOST_CELLS:
        raise EexError(f"{len(grid)} thresholds at each of {exits} exits are too many to compare; take a coarser grid")
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

    total = passing(np.maximum(0.0, confidence[:, -1] - edge[:, -1]) - overhead, exits)
    for e in range(1, exits):
        total = total - exit_cost * passing(np.ones(len(edge)), e).reshape((len(grid),) * e + (1,) * (exits - e))
    best = grid[np.array(np.unravel_index(int(total.argmax()), total.shape))]
    return best, fixed_reward(confidence, overhead, best, exit_cost)


def oracle(confidence: Floats, overhead: float, exit_cost: float = 0.0, drop_below: float = 0.0) -> Floats:
    """What the per-frame oracle earns: it offloads just the frames that gain more than that costs, (frames,).

    A frame's gain is taken over the last edge exit's confidence, as for a frame that visited them all; the others
    leave at the first exit. A policy that skips exits, as DEEx does, gains over the exit that it skipped from, and may
    earn more. A frame below `drop_below` at the last edge exit cannot be offloaded: it would be dropped."""
    gain, further = confidence[:, -1] - confidence[:, -2], np.array(confidence.shape[1] - 2)
    offloaded = earned(gain, np.array(True), further, overhead, exit_cost)
    return np.where(confidence[:, -2] < drop_below, 0.0, np.maximum(0.0, offloaded))
