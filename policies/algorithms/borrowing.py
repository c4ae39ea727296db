"""What a learner takes over from sums that others have learned: the more, the better they predict what it sees."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eex.policies.algorithms.curves import (
    COARSE_CENTRES,
    LOCAL,
    PRIOR_FRAMES,
    PRIOR_MEAN,
    PRIOR_SQUARE,
    WIDTH,
    kernel,
)
from eex.policies.core.base import Floats, Ints
from eex.policies.core.fleet import Layout, frames_of, worth

MOST_LENT = 4000.0
"""Frames of its own that a learner takes what it borrows for, at most: about what it remembers by default."""

_NEAR, _NEAR_COARSE = kernel(WIDTH), kernel(WIDTH, COARSE_CENTRES)[:, ::2]


@dataclass(frozen=True)
class Lender:
    """Sums that others have learned, and what they expect of a learner's frames.

    Attributes
    ----------
    sums
        By name, (lenders, …), as `eex.policies.core.fleet.Sums`: one for all learners, or one per learner.
    share
        By which they are scaled down to `MOST_LENT` frames, (lenders,).
    gain, gain_variance
        Relative gain expected of a frame that is offloaded from an exit, by confidence, (lenders, exits, bins), and its
        variance, (lenders, exits).
    step, step_variance
        By how much a frame's confidence is expected to change on its way to the next exit, by confidence, (lenders,
        exits - 1, coarse), and the variance, (lenders, exits - 1).
    """

    sums: Mapping[str, Floats]
    share: Floats
    gain: Floats
    gain_variance: Floats
    step: Floats
    step_variance: Floats


def lender(layout: Layout, flat: Floats) -> Lender:
    """Sums (lenders, size), ready to be lent."""
    flat = np.array(flat, dtype=float)
    sums = layout.views(flat)
    offloads, gains, moves = sums["offloads"], sums["gains"], sums["moves"]
    total = offloads.sum(axis=-1) + PRIOR_FRAMES
    mean = (gains.sum(axis=-1) + PRIOR_FRAMES * PRIOR_MEAN) / total
    gain = (gains @ _NEAR + LOCAL * mean[..., None]) / (offloads @ _NEAR + LOCAL)
    spread = (sums["squares"] + PRIOR_FRAMES * PRIOR_SQUARE) / total
    explained = (offloads * gain * (2 * gains / np.maximum(offloads, 1e-9) - gain)).sum(axis=-1) / total
    changed = COARSE_CENTRES - COARSE_CENTRES[:, None]  # from a bin here to one there
    count, change = moves.sum(axis=-1), (moves * changed).sum(axis=-1)
    step = (change @ _NEAR_COARSE) / (count @ _NEAR_COARSE + 1e-9)
    off = (moves * (changed - step[..., None]) ** 2).sum(axis=(-2, -1))
    return Lender(
        sums,
        MOST_LENT / np.maximum(frames_of(layout, flat), MOST_LENT),
        gain,
        np.maximum(spread - explained, 0.01),
        step,
        (off + 0.02 * PRIOR_FRAMES) / (count.sum(axis=-1) + PRIOR_FRAMES),
    )


def with_borrowed(own: Mapping[str, Floats], lent: Lender, unit: Floats, rows: Ints) -> dict[str, Floats]:
    """A learner's own sums with what it borrows.

    What is borrowed counts as `MOST_LENT` frames; as fewer, where the learner's frames differ from what is expected of
    them by more than chance (`eex.policies.core.fleet.worth`): for what offloading gains, and for the way to the next
    exit, at each exit.

    Parameters
    ----------
    own
        By name, (rows, …).
    unit
        Weight of a frame that is learned now, (rows, 1).
    rows
        Which of the learners they are.
    """
    several = len(lent.share) > 1

    def theirs(array: Floats) -> Floats:
        return array[rows] if several else array

    share = theirs(lent.share)[:, None]
    gain, step = theirs(lent.gain), theirs(lent.step)
    offloads, moves = own["offloads"], own["moves"]
    back = offloads / unit[..., None]
    count = moves.sum(axis=-1) / unit[..., None]
    there = moves @ COARSE_CENTRES / unit[..., None]
    sure_gain = worth(back, own["gains"] / unit[..., None] - back * gain, theirs(lent.gain_variance))
    sure_step = worth(count, there - count * (COARSE_CENTRES + step), theirs(lent.step_variance))
    sent, gone = theirs(lent.sums["offloads"]), theirs(lent.sums["moves"])
    of_gains = np.minimum(share, sure_gain / np.maximum(sent.sum(axis=-1), 1e-9)) * unit  # (rows, exits)
    of_moves = np.minimum(share, sure_step / np.maximum(gone.sum(axis=(-2, -1)), 1e-9)) * unit
    of_seen = np.minimum.accumulate(np.concatenate([share * unit, of_moves], axis=-1), axis=-1)
    scales = {"moves": of_moves, "offloads": of_gains, "gains": of_gains, "squares": of_gains, "seen": of_seen}
    return {
        name: own[name] + theirs(lent.sums[name]) * scale.reshape(*scale.shape, *(1,) * (own[name].ndim - scale.ndim))
        for name, scale in scales.items()
    }
