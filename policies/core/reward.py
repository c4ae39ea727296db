"""What a frame earns: AdaEE's reward, or its utility."""

import math

import numpy as np

from eex.policies.core.base import Bools, ExitCost, Floats, Ints, Reward
from eex.policies.core.routing import last_visited


def earned(
    gain: Floats,
    offloaded: Bools,
    further: Ints | int,
    overhead: float | Floats,
    exit_cost: ExitCost = 0.0,
    kept: float | Floats = 0.0,
) -> Floats:
    r"""Reward of frames: :math:`\max(0, \Delta C) - o` if offloaded, else 0, less the cost of the further edge exits.

    Parameters
    ----------
    gain
        :math:`\max(0, \Delta C)`, the confidence that the cloud adds; 0 where its reply never came.
    offloaded, further
        Meant for the cloud; edge exits visited after the first.
    overhead
        :math:`o`, in units of confidence.
    exit_cost
        Cost of every further edge exit, in units of confidence, one for all or one each; 0 is AdaEE's.
    kept
        Confidence at the last edge exit that each frame visited, for the utility; 0 for AdaEE's reward.

    References
    ----------
    Pacheco, Bajpai, Shifrin, Couto, Menasché, Hanawal and Campista (2024), AdaEE: UCB-based adaptive early exit.
    """
    won: Floats = np.where(offloaded, gain - overhead, 0.0) - way_cost(exit_cost, further) + kept
    return won


def way_cost(exit_cost: ExitCost, further: Ints | int) -> Floats:
    """Cost of the edge exits that frames visited after the first, in the shape of `further`.

    Examples
    --------
    >>> way_cost(0.02, np.array([0, 1, 2]))
    array([0.  , 0.02, 0.04])
    >>> way_cost(np.array([0.01, 0.03]), np.array([0, 1, 2]))
    array([0.  , 0.01, 0.04])
    """
    one = np.ndim(exit_cost) == 0
    paid: Floats = np.multiply(exit_cost, further) if one else np.append(0.0, np.cumsum(exit_cost))[further]
    return paid


def last_seen(edge: Floats) -> tuple[Floats, Ints]:
    """The confidence at the last edge exit that each frame visited, and how many it visited after the first, (rows,).

    Parameters
    ----------
    edge
        (rows, edge exits), NaN where inference never went.
    """
    visited = (~np.isnan(edge)).sum(axis=1)
    return last_visited(edge, visited), np.maximum(visited - 1, 0)


def reward(
    confidence: Floats,
    offloaded: Bools,
    sent: Bools,
    overhead: Floats,
    exit_cost: ExitCost = 0.0,
    kind: Reward = "adaee",
) -> Floats:
    r"""Reward of finished frames, (rows,), as `earned` has it.

    :math:`\Delta C` is the cloud's confidence less that of the last visited edge exit. An offload whose reply never
    came earns :math:`-o`; a frame that could not be sent, or was dropped, earns NaN: it teaches nothing.

    Parameters
    ----------
    confidence
        (rows, edge exits + 1), NaN where inference never went; the last column is the cloud's.
    offloaded, sent
        Meant for the cloud; really sent there, (rows,).
    overhead
        :math:`o`, (rows,), in units of confidence.
    exit_cost
        As for `earned`.
    kind
        What frames earn.
    """
    free = exit_cost == 0.0 if isinstance(exit_cost, float) else not np.any(exit_cost)
    if kind == "adaee" and free and not (offloaded[0] if len(offloaded) == 1 else np.count_nonzero(offloaded)):
        return np.zeros(len(offloaded))
    if len(offloaded) == 1:
        return np.array(
            [_of_one(confidence[0].tolist(), bool(offloaded[0]), bool(sent[0]), float(overhead[0]), exit_cost, kind)]
        )
    last, further = last_seen(confidence[:, :-1])
    gain = np.fmax(0.0, confidence[:, -1] - last)  # 0 where the cloud gave no answer (NaN)
    return np.where(
        offloaded & ~sent,
        np.nan,
        earned(gain, offloaded, further, overhead, exit_cost, last if kind == "utility" else 0.0),
    )


def _of_one(
    confidence: list[float], offloaded: bool, sent: bool, overhead: float, exit_cost: ExitCost, kind: Reward
) -> float:
    """`reward` of a single frame, in plain numbers, which take a tenth of the time that arrays of one number take."""
    if offloaded and not sent:
        return math.nan
    *edge, cloud = confidence
    further = max(sum(c == c for c in edge) - 1, 0)
    last = edge[further]
    gain = max(cloud - last, 0.0) if cloud == cloud and last == last else 0.0
    way = exit_cost * further if np.ndim(exit_cost) == 0 else sum(np.asarray(exit_cost)[:further].tolist())
    return (gain - overhead if offloaded else 0.0) - float(way) + (last if kind == "utility" else 0.0)
