"""The world that policies play in: what becomes of frames whose every exit is known, under given thresholds."""

from typing import NamedTuple

import numpy as np

from eex.policies.core.base import Bools, ExitCost, Floats, Ints, Reward
from eex.policies.core.reward import earned
from eex.policies.core.routing import drop, last_visited, walk


class Step(NamedTuple):
    """What became of frames, columns of one shape (…,), such as (runs, frames).

    Attributes
    ----------
    exit
        Where each frame left: an edge exit counted from 0, the number of edge exits for the cloud, -1 if dropped.
    visited
        Edge exits that it visited.
    offloaded, sent, replied, fallback, dropped
        As in `eex.policies.core.base.Outcomes`; each offloaded frame is `replied` to, a `fallback` or `dropped`.
    last
        Confidence at the last edge exit that it visited.
    gain
        Confidence that the cloud added to an offloaded frame: at least 0, and 0 where its reply is missing.
    reward
        As `eex.policies.core.reward.reward` has it.
    """

    exit: Ints
    visited: Ints
    offloaded: Bools
    sent: Bools
    replied: Bools
    fallback: Bools
    dropped: Bools
    last: Floats
    gain: Floats
    reward: Floats


def step(
    confidence: Floats,
    exit_at: Floats,
    skip_below: Floats | None,
    overhead: float | Floats,
    exit_cost: ExitCost = 0.0,
    *,
    kind: Reward = "adaee",
    drop_below: float = 0.0,
    audited: Bools | bool = False,
    sent: Bools | None = None,
    lost: Bools | None = None,
) -> Step:
    """Play thresholds on frames, all at once: where they leave, what is dropped or lost, and what they earn.

    Replay, the environments, the references of regret and the papers all step by this; the engine, which learns a
    confidence only by running the network, is held to it by `tests/stream/test_engine_world.py`. What may be seen of
    the frames then, and the classes they are answered with, are given by `eex.policies.core.routing.seen` and `answer`.

    Parameters
    ----------
    confidence
        Of every exit, (…, edge exits + 1); the last column is the cloud's.
    exit_at, skip_below
        Thresholds, (…, edge exits) or with the final exit's column, as for `eex.policies.core.routing.walk`.
    overhead, exit_cost
        Price of offloading a frame, (…,) or one for all; price of every further edge exit,
        one for all or one each.
    kind
        What frames earn.
    drop_below, audited
        As for `eex.policies.core.routing.drop`; by default no frame is audited.
    sent, lost
        Whether a frame that is offloaded could be sent, and whether its reply never comes; (…,), by default all are
        sent and answered. One that cannot be sent has no reply either.

    Examples
    --------
    >>> confidence = np.array([[0.9, 0.95], [0.5, 0.9]])
    >>> exit_at = np.array([[[0.8]], [[1.0]]])  # two runs: the first offloads one frame, the second both
    >>> stepped = step(confidence[None], exit_at, None, overhead=0.1)
    >>> stepped.exit
    array([[0, 1],
           [1, 1]])
    >>> stepped.reward.round(2)
    array([[ 0.  ,  0.3 ],
           [-0.05,  0.3 ]])
    """
    exits = confidence.shape[-1] - 1
    edge = confidence[..., :exits]
    exit, visited = walk(edge, exit_at, skip_below)
    offloaded = exit == exits
    last = last_visited(edge, visited)
    kept = last if kind == "utility" else 0.0
    gain = np.fmax(0.0, confidence[..., exits] - last)
    if drop_below <= 0 and sent is None and lost is None:
        none = np.zeros(exit.shape, dtype=bool)
        reward = earned(gain, offloaded, visited - 1 if np.any(exit_cost) else 0, overhead, exit_cost, kept)
        return Step(exit, visited, offloaded, offloaded, offloaded, none, none, last, gain, reward)
    dropped = offloaded & drop(last, audited, drop_below)
    really_sent = offloaded & ~dropped if sent is None else offloaded & ~dropped & sent
    replied = really_sent if lost is None else really_sent & ~lost
    fallback = offloaded & ~dropped & ~replied
    if np.count_nonzero(fallback):
        known = np.where(np.arange(exits) < visited[..., None], edge, -1.0)
        exit = np.where(fallback, known.argmax(axis=-1), exit)
    exit = np.where(dropped, -1, exit)
    gain = np.where(offloaded & ~replied, 0.0, gain)
    reward = earned(gain, offloaded, visited - 1, overhead, exit_cost, kept)
    reward = np.where(offloaded & ~really_sent, np.nan, reward)
    return Step(exit, visited, offloaded, really_sent, replied, fallback, dropped, last, gain, reward)
