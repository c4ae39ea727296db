"""AdaEE's reward of a frame, and the regrets that judge a policy."""

import numpy as np

from eex.policies.base import Bools, Floats


def reward(confidence: Floats, offloaded: Bools, sent: Bools, overhead: Floats, exit_cost: float = 0.0) -> Floats:
    r"""Reward of finished frames: :math:`\max(0, \Delta C) - o` if offloaded, else 0, less the cost of the edge exits.

    :math:`\Delta C` is the cloud's confidence less that of the last visited edge exit. An offload whose reply never
    came earns :math:`-o`; a frame that could not be sent earns NaN: it teaches nothing.

    Parameters
    ----------
    confidence
        (rows, edge exits + 1), NaN where inference never went; the last column is the cloud's.
    offloaded, sent
        Meant for the cloud; really sent there, (rows,).
    overhead
        :math:`o`, (rows,), in units of confidence.
    exit_cost
        Cost of every further edge stage, in units of confidence; 0 is AdaEE's.

    References
    ----------
    Pacheco, Bajpai, Shifrin, Couto, Menasché, Hanawal and Campista (2024), AdaEE: UCB-based adaptive early exit.
    """
    edge = confidence[:, :-1]
    visited = (~np.isnan(edge)).sum(axis=1)
    last = edge[np.arange(len(edge)), np.maximum(visited - 1, 0)]
    gain = np.fmax(0.0, confidence[:, -1] - last)  # 0 where the cloud said nothing (NaN)
    earned = np.where(offloaded, gain - overhead, 0.0) - exit_cost * np.maximum(visited - 1, 0)
    return np.where(offloaded & ~sent, np.nan, earned)


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
    earned = [fixed_reward(confidence, overhead, t, exit_cost) for t in grid]
    best = int(np.argmax([e.sum() for e in earned]))
    return float(grid[best]), earned[best]


def fixed_reward(confidence: Floats, overhead: float, threshold: float, exit_cost: float = 0.0) -> Floats:
    """What one threshold at every edge exit earns on each frame of a full trace, (frames,)."""
    edge, cloud = confidence[:, :-1], confidence[:, -1]
    reached = edge >= threshold
    offloaded = ~reached.any(axis=1)
    further = np.where(offloaded, edge.shape[1] - 1, reached.argmax(axis=1))
    earned: Floats = np.where(offloaded, np.maximum(0.0, cloud - edge[:, -1]) - overhead, 0.0) - exit_cost * further
    return earned


def oracle(confidence: Floats, overhead: float, exit_cost: float = 0.0) -> Floats:
    """What the per-frame oracle earns: it offloads just the frames that gain more than that costs, (frames,).

    A frame's gain is taken over the last edge exit's confidence, as for a frame that visited them all; the others
    leave at the first exit. A policy that skips exits, as DEEx does, gains over the exit that it skipped from, and may
    earn more."""
    further = confidence.shape[1] - 2
    gained: Floats = confidence[:, -1] - confidence[:, -2] - overhead - exit_cost * further
    return np.maximum(0.0, gained)
