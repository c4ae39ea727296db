"""A fleet: edges that serve the same model share what they learned. Sums of counts, whether they are possible, pooled.

What an edge shares are sums over its frames, by bins of the confidence. They say nothing of a single frame, and add up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Floats, Policy

Sums = Mapping[str, NDArray[Any]]
"""Sums by name, in frames as they count now: "moves" (exits - 1, coarse, coarse), frames that went on, by their
confidence at one exit and the next; "offloads" (exits, bins), frames that came back, by the exit that sent them;
"gains", the same shape, of their relative gains, and "squares" (exits,) of the squares; "seen" (exits, bins), frames
that visited each exit. There may be further axes in front."""
Flat = NDArray[Any]
"""Sums in one array of floats, (…, size), as `Layout` says."""

MOST_VALUES = 1 << 16
"""Numbers in the sums of one edge, at most: 256 KiB; three exits take 7 KiB."""
MOST_FRAMES = 4000.0
"""Frames that a member of the fleet counts as, at most, however many it says that it has seen."""
USUAL = 0.75
"""Share of the members that say no more than is usual."""
FREE = 0.5
"""Frames of one confidence that a member may speak of, whatever the others do."""
GROUPS = 5
"""Of confidences in which what is expected is compared with what is seen."""
SURE, DOUBT = 3.0, 50.0
GAIN_VARIANCE, STEP_VARIANCE = 0.08, 0.04
"""Of relative gains and of changes of the confidence between exits, about."""
MOST_COUNTED = 2.0**53
ROUNDING = 1e-3


@dataclass(frozen=True)
class Layout:
    """Sizes of the sums, on which all of a fleet agree.

    Attributes
    ----------
    exits
        Edge exits.
    bins, coarse
        Bins of the confidence; and of pairs of confidences, which are a part of as many.

    Examples
    --------
    >>> layout = Layout(exits=3)
    >>> layout.size, layout.views(np.zeros((5, layout.size)))["moves"].shape
    (1703, (5, 2, 25, 25))
    """

    exits: int
    bins: int = 50
    coarse: int = 25

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each sum by name."""
        return {
            "moves": (self.exits - 1, self.coarse, self.coarse),
            "offloads": (self.exits, self.bins),
            "gains": (self.exits, self.bins),
            "squares": (self.exits,),
            "seen": (self.exits, self.bins),
        }

    @property
    def size(self) -> int:
        """Numbers in all of them."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Flat) -> dict[str, Flat]:
        """The sums in an array (…, size), as views by name."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            found[name] = flat[..., start:end].reshape(*flat.shape[:-1], *shape)
            start = end
        return found

    def flat(self, sums: Sums) -> Floats:
        """Sums in one array, (…, size); the inverse of `views`."""
        lead = sums["seen"].shape[:-2]
        return np.concatenate([np.asarray(sums[name], float).reshape(*lead, -1) for name in self.shapes], axis=-1)

    def problem(self, flat: Flat, moderated: bool = False) -> str:
        """Why an array (size,) cannot be the sums of any stream, or of several; empty if it can.

        Sums of counts are not negative; a relative gain lies in [0, 1], so that gains do not exceed the frames that
        came back, nor squares the gains; and those frames leave an exit that have visited it, unless the sums were
        `moderated`.
        """
        if flat.shape != (self.size,):
            return f"there must be {self.size:,} numbers, got {flat.size:,}"
        if not np.isfinite(flat).all():
            return "a sum is not finite"
        if flat.min() < 0:
            return f"a sum is negative: {flat.min():g}"
        if flat.max() >= MOST_COUNTED:
            return f"a sum is larger than can be counted: {flat.max():g}"
        sums = self.views(flat)
        slack = ROUNDING * (1 + sums["seen"][0].sum())
        if (sums["gains"] > sums["offloads"] + slack).any():
            return "frames gained more than there was to gain"
        if (sums["squares"] > sums["gains"].sum(axis=-1) + slack).any():
            return "the squares of the gains exceed the gains"
        if moderated:
            return ""
        left, there = self.left(sums), self.coarsely(sums["seen"])
        if (left > there + slack).any():
            return "more frames went on from an exit than had visited it"
        if (np.abs(sums["moves"].sum(axis=-2) - there[1:]) > slack).any():
            return "the frames that visited an exit are not those that went on to it"
        return ""

    def coarsely(self, by_bin: Flat) -> Floats:
        """Sums by bin, (…, bins), by coarse bin, (…, coarse)."""
        coarsely: Floats = by_bin.reshape(*by_bin.shape[:-1], self.coarse, -1).sum(axis=-1)
        return coarsely

    def left(self, sums: Sums) -> Floats:
        """Frames that went on from each exit or came back to it from the cloud, by confidence: (…, exits, coarse)."""
        left: Floats = self.coarsely(np.asarray(sums["offloads"], dtype=float))
        left[..., :-1, :] += sums["moves"].sum(axis=-1)
        return left


@runtime_checkable
class Shares(Protocol):
    """A policy that learns sums which add up over edges."""

    @property
    def layout(self) -> Layout:
        """Of its sums."""

    def sums(self) -> Floats:
        """What each run has learned, in frames as they count now, (runs, size)."""

    def take_fleet(self, flat: Flat) -> None:
        """Borrow from now on from what others have learned, (1, size)."""


def sharing(policy: Policy) -> Shares | None:
    """The policy that shares, if one does or has one inside that does."""
    while not isinstance(policy, Shares):
        inner = getattr(policy, "inner", None)
        if not isinstance(inner, Policy):
            return None
        policy = inner
    return policy


def frames_of(layout: Layout, flat: Flat) -> Floats:
    """Frames behind sums (…, size): (…,)."""
    frames: Floats = layout.views(flat)["seen"][..., 0, :].sum(axis=-1, dtype=float)
    return frames


def capped(layout: Layout, flat: Flat, most: float = MOST_FRAMES) -> Flat:
    """Sums (…, size) scaled down to some frames each, where they are of more."""
    scale = most / np.maximum(frames_of(layout, flat), most)
    scaled: Flat = flat * scale[..., None]
    return scaled


def moderated(layout: Layout, members: Flat, most: float = MOST_FRAMES) -> Flat:
    """Sums of members (members, size), none of which counts for more than it should.

    Each counts as `most` frames at most, and no more than a quarter of the members exceed; nor does it count for more
    of the frames at one confidence that left an exit than a quarter exceed. And where its gains, or the ways of its
    frames to the next exit, lie off the median of the members by more than chance, it counts as the frames that it is
    then worth (`worth`). So a few members that make things up hardly move the fleet.
    """
    if len(members) < 3:
        return capped(layout, members, most)
    members = capped(layout, members, max(1.0, min(most, float(np.quantile(frames_of(layout, members), USUAL)))))
    sums = layout.views(members)
    left = layout.left(sums)  # (members, exits, coarse)
    share = np.minimum(1.0, np.maximum(np.quantile(left, USUAL, axis=0), FREE) / np.maximum(left, FREE))
    before = sums["offloads"].sum(axis=-1)
    for name in ("offloads", "gains"):
        sums[name] *= np.repeat(share, layout.bins // layout.coarse, axis=-1)
    sums["moves"] *= share[:, :-1, :, None]
    sums["squares"] *= sums["offloads"].sum(axis=-1) / np.maximum(before, 1e-9)
    sent, gone = sums["offloads"], sums["moves"].sum(axis=-1)
    place = (np.arange(layout.coarse) + 0.5) / layout.coarse
    credit = _credit(sent, sums["gains"], GAIN_VARIANCE)
    for name in ("offloads", "gains"):
        sums[name] *= credit[..., None]
    sums["squares"] *= credit
    sums["moves"] *= _credit(gone, sums["moves"] @ place - gone * place, STEP_VARIANCE)[..., None, None]
    return members


def worth(count: Floats, off: Floats, variance: Floats | float) -> Floats:
    r"""Frames that a prediction of frames is worth, (…); inf where nothing speaks against it.

    If the mean over :math:`n` frames lies :math:`\delta` standard deviations off, it is worth :math:`1 / \delta^2`
    frames. :math:`n \delta^2` is estimated by how far :math:`\chi^2`, over `GROUPS` of confidences, exceeds its mean by
    more than `SURE` standard deviations; as little is known from few frames, it is taken for that of `DOUBT` more.

    Parameters
    ----------
    count, off
        Frames by confidence, and the sum over them of how far they lie off, (…, bins).
    variance
        Of one of them, (…).
    """
    groups = _groups(count.shape[-1])
    count, off = count @ groups, off @ groups
    there = count >= 1
    chi = np.where(there, off**2 / np.maximum(count, 1), 0.0).sum(axis=-1) / variance
    by_chance = there.sum(axis=-1)
    excess = chi - by_chance - SURE * np.sqrt(2.0 * by_chance)
    found: Floats = np.where(excess > 0, (count.sum(axis=-1) + DOUBT) / np.maximum(excess, 1e-9), np.inf)
    return found


def _credit(count: Floats, total: Floats, variance: float) -> Floats:
    """The share of what members say that counts, (members, exits), from sums over their frames by confidence."""
    groups = _groups(count.shape[-1])
    count, total = count @ groups, total @ groups
    order = np.argsort(total / np.maximum(count, 1e-9), axis=0)
    behind = np.take_along_axis(count, order, axis=0).cumsum(axis=0)
    middle = (behind >= behind[-1] / 2).argmax(axis=0)[None]  # the median, each as often as it has frames
    at = np.take_along_axis(order, middle, axis=0)
    usual = np.take_along_axis(total, at, axis=0) / np.maximum(np.take_along_axis(count, at, axis=0), 1e-9)
    found: Floats = np.minimum(1.0, worth(count, total - count * usual, variance) / np.maximum(count.sum(axis=-1), 1.0))
    return found


def _groups(bins: int) -> Floats:
    """Which group of confidences each bin is in, (bins, groups)."""
    return np.eye(GROUPS)[np.arange(bins) * GROUPS // bins]
