"""Optimal stopping from learned sums: thresholds of every exit by backward induction, of many runs at once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from eex.policies.algorithms.curves import (
    BINS,
    CENTRES,
    COARSE,
    COARSE_CENTRES,
    FROM_COARSE,
    LOCAL,
    MOMENTS,
    PRIOR_FRAMES,
    PRIOR_MEAN,
    PRIOR_SQUARE,
    ROOM,
    best_arm,
    plausible,
    relative_gain,
    smoothed,
    towards,
)
from eex.policies.core.base import Floats


class Decision(NamedTuple):
    """What some runs play, and why.

    Attributes
    ----------
    exit_at, skip_below
        Thresholds, (runs, exits).
    curves
        The likeliest relative gain of offloading, by the exits that may send frames to the cloud, (bins, runs) each.
    worth
        What going on is plausibly worth, by exit, (bins, runs) each.
    """

    exit_at: Floats
    skip_below: Floats
    curves: dict[int, Floats]
    worth: dict[int, Floats]


def decide(
    sums: Mapping[str, Floats], unit: Floats, price: Floats, grid: Floats, below: Floats, beta: float, skip: bool
) -> Decision:
    """The best thresholds if every curve were as high as it plausibly can be.

    Parameters
    ----------
    sums
        Frames counted by runs, as `StopCurve` has them: `moves`, `offloads`, `gains`, `squares`, `seen`.
    unit
        Weight of a frame that would be learned now, (runs,): the prior's frames weigh as much.
    price
        Of offloading, then of each further exit, (runs, exits).
    grid, below
        Thresholds that may be played, and `shares_below` of them.
    beta
        Standard errors above its mean up to which a curve is taken for plausible.
    skip
        Whether frames may skip the exits in between on their way to the cloud.
    """
    c, last = CENTRES[:, None], price.shape[1] - 1
    near, gained = smoothed(sums["offloads"], sums["gains"], unit)
    arrived = np.array(sums["seen"].transpose(1, 2, 0), order="C")
    arrived += unit / BINS
    exit_at, skip_below = np.empty(price.shape), np.zeros(price.shape)
    curves, worth = {}, {}
    won = value = final = c  # (bins, rows)
    for i in range(last, -1, -1):
        if i == last:  # what going on gains over leaving here, as high as it plausibly is
            offloads, gains, squares = (sums[name][:, i] for name in ("offloads", "gains", "squares"))
            curve, error = relative_gain(near[i], gained[i], offloads, gains, squares, unit)
            curves[i] = curve
            error *= beta
            won = plausible(curve, error)
            won -= price[:, 0]
            final = c + curve * ROOM  # confidence that the cloud would come to, as it is expected
        else:
            won, likely = _ahead(sums["moves"][:, i], unit, value, final, beta)
            won -= price[:, i + 1]
            if skip:
                final = np.minimum(np.maximum(c + likely, 0.0), 1.0)
                curve = towards(np.minimum(np.maximum(likely / ROOM, 0.0), 1.0), near[i], gained[i], unit)
                curves[i] = curve
                skipping = curve * ROOM
                skipping -= price[:, 0]
                more = skipping - np.maximum(won, 0.0)
                more *= arrived[i]
                skip_below[:, i] = grid[best_arm(more, below)]
                np.putmask(skipping, c >= skip_below[:, i], -1.0)
                np.maximum(won, skipping, out=won)
        worth[i] = c + won
        arrived[i] *= won
        exit_at[:, i] = grid[best_arm(arrived[i], below)]
        value = np.maximum(worth[i], c)  # of arriving here
    return Decision(exit_at, np.minimum(skip_below, exit_at), curves, worth)


def _ahead(moves: Floats, unit: Floats, value: Floats, final: Floats, beta: float) -> tuple[Floats, Floats]:
    """What an exit expects to gain at the next one, by confidence, from what is expected there, (bins, rows) each.

    Parameters
    ----------
    moves
        Frames that went on, by their confidence here and there, (rows, coarse, coarse).
    value, final
        By the confidence at the next exit: the value of arriving there, and the cloud's confidence.

    Returns
    -------
    won, likely
        By the confidence here: the value there less the confidence here, before the exit's cost, as high as it
        plausibly is; and by how much the cloud's confidence is expected to exceed it.
    """
    c = COARSE_CENTRES  # of the frames that went on
    there = np.empty((len(moves), 4, COARSE))
    there[:, 0] = 1.0
    for k, each in ((1, value), (2, final)):
        both = each[::2] + each[1::2]
        both *= 0.5
        there[:, k] = both.T
    np.multiply(there[:, 1], there[:, 1], out=there[:, 3])
    sums = np.array((there @ moves.transpose(0, 2, 1)).transpose(1, 2, 0), order="C")  # (4, coarse, rows)
    count, values, _, squares = sums
    prior, pull = PRIOR_FRAMES * unit, LOCAL * unit
    squared, left, left_squared = MOMENTS @ count
    off = squares.sum(axis=0) - 2 * (c @ values) + squared  # squares of V(c') - c
    total, scale = left + prior / 2, left_squared + prior / 3
    sums[1:3] -= c[:, None] * count  # V(c') - c, and the same of the cloud's confidence
    means = (sums[1:3].sum(axis=1) + PRIOR_MEAN * prior / 2) / total  # over all, in units of what was left to win
    near, won, likely = smooth = FROM_COARSE @ sums[:3]  # over the frames nearby
    near += pull
    smooth[1:] += ROOM * (pull * means)[:, None]
    smooth[1:] /= near
    spread = np.maximum((off + PRIOR_SQUARE * prior / 3) / scale - means[0] ** 2, 0.0)
    error = ROOM * (beta * np.sqrt(spread * unit))
    error /= np.sqrt(near, out=near)
    won += error
    return np.minimum(won, ROOM, out=won), likely
