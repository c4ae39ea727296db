"""One-sided feedback: what a finished frame reveals about thresholds lower than the one it was played with."""

from dataclasses import replace

import numpy as np

from eex.policies.core.base import Bools, ExitCost, Floats, Ints, Outcomes, Reward
from eex.policies.core.reward import earned, last_seen, way_cost
from eex.policies.core.routing import last_visited, seen, walk


def credit(outcomes: Outcomes, grid: Floats, kind: Reward = "adaee", exit_cost: ExitCost = 0.0) -> tuple[Bools, Floats]:
    r"""Which arms' rewards the frames reveal, and those rewards, both (rows, arms); 0 where not revealed.

    A frame played with threshold :math:`\theta_a` at every edge exit visited all exits that any lower threshold would
    have led it to, so every arm with :math:`\theta_j \le \theta_a` is known: had one of the visited exits reached
    :math:`\theta_j`, the frame would have left at the first that did and paid for the exits before; otherwise it would
    have been offloaded too, for the same reward. What is known depends on the arm alone and not on the frame. Of the
    arms above, only frames that went to the cloud would reveal anything: crediting those is biased, as gains are not
    missing at random. Frames whose reward is NaN reveal nothing.

    Parameters
    ----------
    outcomes
        Of a policy that plays one threshold of the grid at every exit.
    grid
        Thresholds of the arms, (arms,).
    exit_cost
        How the prices of the further edge exits compare; how high they were follows from the rewards.

    Examples
    --------
    A frame that was 0.6 sure was offloaded under the threshold 0.7 and earned 0.2: under 0.5 it would have left.

    >>> columns = {f: np.zeros(1) for f in Outcomes.__dataclass_fields__}
    >>> columns |= {"arm": np.array([1]), "confidence": np.array([[0.6, 0.9]]), "overhead": np.array([0.1])}
    >>> columns |= {"offloaded": np.array([True]), "reward": np.array([0.2])}
    >>> known, earned = credit(Outcomes(**columns), np.array([0.5, 0.7, 0.9]))
    >>> known[0], earned[0]
    (array([ True,  True, False]), array([0. , 0.2, 0. ]))

    References
    ----------
    Bajpai, Trivedi, Yadav and Hanawal (2023), SplitEE: early exit in deep neural networks with split computing,
    arXiv 2309.09195, which calls these side observations.
    """
    edge = outcomes.confidence[:, :-1]
    known = (grid <= grid[outcomes.arm][:, None]) & ~np.isnan(outcomes.reward)[:, None]
    first = first_exit(edge, np.broadcast_to(grid, (len(edge), len(grid))))
    left = 0.0 - spent(outcomes, first, kind, exit_cost)
    if kind == "utility":
        left += np.take_along_axis(edge, np.minimum(first, edge.shape[1] - 1), axis=1)
    rewards = np.where(first < edge.shape[1], left, outcomes.reward[:, None])
    return known, np.where(known, rewards, 0.0)


def first_exit(edge: Floats, threshold: Floats) -> Ints:
    """The first edge exit to reach each threshold, or the number of edge exits if none does.

    Parameters
    ----------
    edge
        Confidences, (rows, edge exits), NaN at exits that were not visited.
    threshold
        (rows, thresholds), the shape of the result too.
    """
    return walk(edge[:, None, :], np.broadcast_to(threshold[:, :, None], (*threshold.shape, edge.shape[1])))[0]


def spent(outcomes: Outcomes, first: Ints, kind: Reward = "adaee", exit_cost: ExitCost = 0.0) -> Floats:
    """What a frame had spent on further edge exits when it came to exit `first`, counted from 0, from its reward.

    Parameters
    ----------
    first
        (rows, …), at most the number of exits that the frame visited after its first; beyond, the whole way counts.
    exit_cost
        How the prices compare; 0 or one number: they are alike.
    """
    last, further = last_seen(outcomes.confidence[:, :-1])
    gain = np.fmax(0.0, outcomes.confidence[:, -1] - last)
    paid = earned(gain, outcomes.offloaded, 0, outcomes.overhead, 0.0, _kept(last, kind)) - outcomes.reward
    cost = exit_cost if np.any(exit_cost) else 1.0
    whole = np.asarray(way_cost(cost, further), dtype=float)
    each = np.where(whole > 0, paid / np.where(whole > 0, whole, 1.0), 0.0)
    back = np.minimum(first, further.reshape(-1, *(1,) * (first.ndim - 1)))
    return each.reshape(-1, *(1,) * (first.ndim - 1)) * way_cost(cost, back)


def _kept(last: Floats, kind: Reward) -> Floats | float:
    """What the utility adds to AdaEE's reward."""
    return last if kind == "utility" else 0.0


def as_if(
    outcomes: Outcomes, exit_at: Floats, skip_below: Floats, kind: Reward = "adaee", exit_cost: ExitCost = 0.0
) -> Outcomes:
    """The outcomes that lower thresholds would have had: what their policy would have seen, and nothing more.

    Frames that would have left earlier have no later exits and no reply; none counts as audited. A frame whose reward
    is NaN keeps that, wherever it would have left.

    Parameters
    ----------
    outcomes
        Of frames played with `exit_at` at least as high at every edge exit, and with `skip_below` as given or 0.
    exit_at, skip_below
        (rows, edge exits + 1) and (rows, edge exits).
    """
    edge, cloud = outcomes.confidence[:, :-1], outcomes.confidence[:, -1]
    exit, visited = walk(edge, exit_at, skip_below)
    early = exit < edge.shape[1]
    offloaded = outcomes.offloaded & ~early
    last = last_visited(edge, visited)
    gain = np.fmax(0.0, cloud - last)
    way = spent(outcomes, visited - 1, kind, exit_cost)
    reward = earned(gain, ~early, 0, outcomes.overhead, 0.0, _kept(last, kind)) - way
    confidence, prediction = seen(outcomes.confidence, outcomes.prediction, visited, ~early)
    return replace(
        outcomes,
        audited=np.zeros_like(outcomes.audited),
        exit_at=exit_at,
        confidence=confidence,
        prediction=prediction,
        exit=np.where(early, exit, outcomes.exit),
        offloaded=offloaded,
        fallback=outcomes.fallback & ~early,
        sent=outcomes.sent & ~early,
        reward=np.where(np.isnan(outcomes.reward), np.nan, reward),
    )
