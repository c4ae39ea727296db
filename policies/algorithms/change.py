"""Has a stream changed? Two-sided cumulative sums (CUSUM) of block means, for many runs side by side."""

import math

import numpy as np

from eex.policies.algorithms.curves import rounds_of
from eex.policies.core.base import FOREVER, Arrays, Floats, Ints

BLOCK = 32  # frames
OPEN = 509  # blocks of a run that may wait for late frames; with a power of 2, those of all runs share cache lines
ALLOWED = 1.0  # standard errors that a block mean may lie off without counting
MOST = 4.0  # a single block counts at most this much
PRIOR_BLOCKS = 4.0  # weight of the variance expected before any block is known
QUIET = 2  # blocks that only set the reference


class Change(Arrays):
    r"""Detects for each run when the mean of one of its signals has changed.

    Values come with the number of their frame, late and in any order. Those of 32 consecutive frames form a block,
    which is examined once all its frames have feedback, so that the order of the feedback does not matter. With the
    mean :math:`m` and the variance :math:`s^2` of a signal, both estimated over the blocks since the last change, a
    block of :math:`w` values and mean :math:`x` adds to two sums (Page, "Continuous inspection schemes", Biometrika
    1954)

    .. math:: z = \frac{x - m}{s \sqrt{1 / w + 1 / W}}, \qquad
              g^\pm \leftarrow \max(0,\; g^\pm \pm z - 1)

    where :math:`W` counts the values after :math:`m`. A sum above `alarm` is a change. :math:`s^2` is taken from how
    much block means differ, so frames that resemble their neighbours raise no false alarm.

    Parameters
    ----------
    runs
        Number of runs.
    alarm
        How high a sum may rise; 0 never alarms.
    variance
        Variance of each signal's values that is expected before any is known.

    Attributes
    ----------
    alarmed
        Runs that have changed, (runs,), until `begin` starts them anew.

    Examples
    --------
    >>> change = Change(runs=1, alarm=4.0, variance=(0.04,))
    >>> run = np.zeros(320, dtype=int)
    >>> change.hear(run, np.arange(320), 0.5 + np.arange(320) % 2 / 10)
    >>> change.alarmed
    array([False])
    >>> change.hear(run, np.arange(320, 640), 0.3 + np.arange(320) % 2 / 10)
    >>> change.alarmed
    array([ True])
    """

    state = ("number", "count", "total", "blocks", "known", "mean", "spread", "up", "down", "alarmed")

    def __init__(self, runs: int, alarm: float, variance: tuple[float, ...]) -> None:
        signals = len(variance)
        self.alarm, self.variance = alarm, np.array(variance)
        self.number = np.full((runs, OPEN), -1)  # of the block that has the slot
        self.count = np.zeros((runs, OPEN, signals))  # its values of each signal; of the first, one per frame
        self.total = np.zeros((runs, OPEN, signals))  # and their sums
        self.blocks = np.zeros((runs, signals))  # since the last change
        self.known = np.zeros((runs, signals))  # values in them
        self.mean = np.zeros((runs, signals))
        self.spread = np.zeros((runs, signals))  # sum over blocks of values x squared deviation of their mean
        self.up, self.down = np.zeros((runs, signals)), np.zeros((runs, signals))
        self.alarmed = np.zeros(runs, dtype=bool)

    def hear(self, run: Ints, frame: Ints, *values: Floats) -> None:
        """Take in values of frames, of each signal (rows,), NaN where a frame has none.

        Frames without a value of the first signal are not counted.
        """
        if len(self.alarmed) == 1 and len(frame) and self._in_order(frame, values[0]):
            start, end = 0, len(frame)
            while start < end:  # block by block
                block = int(frame[start]) // BLOCK
                stop = min(end, start + BLOCK - int(frame[start]) % BLOCK)
                self._hear_only_run(block, tuple(value[start:stop] for value in values))
                start = stop
            return
        rounds = rounds_of(run, len(self.alarmed))
        if rounds and self._all_of_one_block(frame, values[0]):
            self._hear_rounds(int(frame[0]) // BLOCK, [value.reshape(rounds, -1) for value in values])
            return
        shown = ~np.isnan(values[0])
        if not shown.all():
            run, frame, values = run[shown], frame[shown], tuple(value[shown] for value in values)
        blocks = frame // BLOCK
        slot = run * OPEN + blocks % OPEN
        signals = len(values)
        number, count, total = self.number.reshape(-1), self.count.reshape(-1), self.total.reshape(-1)
        has = number.take(slot)
        if (has != blocks).any():
            new = slot[has < blocks]  # an earlier block in this slot that was never completed is dropped
            np.maximum.at(number, new, blocks[has < blocks])
            count.reshape(-1, signals)[new] = 0.0
            total.reshape(-1, signals)[new] = 0.0
            kept = number[slot] == blocks
            slot, values = slot[kept], tuple(value[kept] for value in values)
        cell = slot * signals
        np.add.at(count, cell, 1.0)
        np.add.at(total, cell, values[0])
        for s, value in enumerate(values[1:], 1):
            known = np.flatnonzero(~np.isnan(value))
            if len(known):
                at = cell[known] + s
                np.add.at(count, at, 1.0)
                np.add.at(total, at, value[known])
        ends = np.flatnonzero(count.take(cell) == BLOCK)[::-1]
        if len(ends):
            full, last = np.unique(slot[ends], return_index=True)
            full = full[np.argsort(-last)]  # in the order in which they were completed
            while len(full):
                of, first = np.unique(full // OPEN, return_index=True)
                at = full[first]
                self._look(of, count.reshape(-1, signals)[at], total.reshape(-1, signals)[at])
                full = np.delete(full, first)

    def _in_order(self, frame: Ints, value: Floats) -> bool:
        """Whether all frames follow each other, and have a value."""
        follow = frame[-1] - frame[0] == len(frame) - 1 and (frame[1:] > frame[:-1]).all()
        return bool(follow and (value == value).all())

    def _all_of_one_block(self, frame: Ints, value: Floats) -> bool:
        """Whether all frames are of one block that every run may still be filling, and have a value."""
        first, last = (int(end) // BLOCK for end in (frame.min(), frame.max()))
        open_ = first == last and (self.number[:, first % OPEN] <= first).all()
        return bool(open_ and (value == value).all())

    def _hear_rounds(self, block: int, values: list[Floats]) -> None:
        """`hear` of frames of one block, as many of each run, (rounds, runs)."""
        slot = block % OPEN
        new = np.flatnonzero(self.number[:, slot] != block)
        if len(new):  # an earlier block in this slot that was never completed is dropped
            self.number[new, slot] = block
            self.count[new, slot] = self.total[new, slot] = 0.0
        count, total = self.count[:, slot].copy(), self.total[:, slot].copy()  # those of the runs lie far apart
        count[:, 0] += len(values[0])
        total[:, 0] += values[0].sum(axis=0)
        for s, value in enumerate(values[1:], 1):
            known = value == value
            if known.any():
                count[:, s] += known.sum(axis=0)
                total[:, s] += np.where(known, value, 0.0).sum(axis=0)
        self.count[:, slot], self.total[:, slot] = count, total
        full = np.flatnonzero(count[:, 0] == BLOCK)
        if len(full):
            self._look(full, count[full], total[full])

    def _hear_only_run(self, block: int, values: tuple[Floats, ...]) -> None:
        """`hear` of frames of one block of the only run, in plain numbers: a live stream has no time for more."""
        slot = block % OPEN
        if self.number[0, slot] != block:
            if self.number[0, slot] > block:  # too late
                return
            self.number[0, slot] = block
            self.count[0, slot] = self.total[0, slot] = 0.0
        count, total = self.count[0, slot], self.total[0, slot]
        for s, value in enumerate(values):
            known = value[value == value] if s else value
            if len(known):
                count[s] += len(known)
                total[s] += float(known.sum())
        if count[0] == BLOCK:
            self._look_at_one(0, count.tolist(), total.tolist())

    def hear_one(self, run: int, frame: int, *values: float) -> None:
        """`hear` of a single frame, in plain numbers."""
        if values[0] != values[0]:
            return
        block = frame // BLOCK
        slot = block % OPEN
        has = self.number[run, slot]
        if has != block:
            if has > block:
                return
            self.number[run, slot] = block
            self.count[run, slot] = self.total[run, slot] = 0.0
        for s, value in enumerate(values):
            if value == value:
                self.count[run, slot, s] += 1.0
                self.total[run, slot, s] += value
        if self.count[run, slot, 0] == BLOCK:
            self._look_at_one(run, self.count[run, slot].tolist(), self.total[run, slot].tolist())

    def settled_for(self, first: int) -> int:
        """How many frames from this number on, if they come in order, cannot bring an alarm."""
        return BLOCK - first % BLOCK if self.alarm else FOREVER

    def begin(self, run: Ints) -> None:
        """Forget what some runs were like."""
        for array in (self.blocks, self.known, self.mean, self.spread, self.up, self.down):
            array[run] = 0.0
        self.alarmed[run] = False

    def _look(self, run: Ints, count: Floats, total: Floats) -> None:
        """Look at one complete block of each of some runs, (runs, signals)."""
        blocks, known, mean, spread = self.blocks[run], self.known[run], self.mean[run], self.spread[run]
        has = count > 0
        off = total / np.maximum(count, 1) - mean
        variance = (spread + PRIOR_BLOCKS * self.variance) / (np.maximum(blocks - 1, 0) + PRIOR_BLOCKS)
        z = off / np.sqrt(variance * (1 / np.maximum(count, 1) + 1 / np.maximum(known, 1)))
        z = np.where(has & (blocks >= QUIET), np.clip(z, -MOST, MOST), 0.0)
        up, down = self.up[run], self.down[run]
        up = np.where(has, np.maximum(0.0, up + z - ALLOWED), up)
        down = np.where(has, np.maximum(0.0, down - z - ALLOWED), down)
        self.up[run], self.down[run] = up, down
        if self.alarm:
            self.alarmed[run] |= (np.maximum(up, down) > self.alarm).any(axis=1)
        share = count / np.maximum(known + count, 1)  # of all values that are known now
        self.mean[run] = mean + share * off
        self.spread[run] = spread + share * known * off**2
        self.known[run], self.blocks[run] = known + count, blocks + has

    def _look_at_one(self, run: int, count: list[float], total: list[float]) -> None:
        """`_look` at a block of one run, in plain numbers."""
        for s, (values, of_values) in enumerate(zip(count, total, strict=True)):
            if not values:
                continue
            blocks, known = float(self.blocks[run, s]), float(self.known[run, s])
            spread, off = float(self.spread[run, s]), of_values / values - float(self.mean[run, s])
            z = 0.0
            if blocks >= QUIET:
                variance = (spread + PRIOR_BLOCKS * float(self.variance[s])) / (max(blocks - 1, 0.0) + PRIOR_BLOCKS)
                z = off / math.sqrt(variance * (1 / max(values, 1.0) + 1 / max(known, 1.0)))
                z = min(max(z, -MOST), MOST)
            self.up[run, s] = max(0.0, self.up[run, s] + z - ALLOWED)
            self.down[run, s] = max(0.0, self.down[run, s] - z - ALLOWED)
            share = values / max(known + values, 1.0)
            self.mean[run, s] += share * off
            self.spread[run, s] = spread + share * known * off**2
            self.known[run, s], self.blocks[run, s] = known + values, blocks + 1
        if self.alarm and max(*self.up[run].tolist(), *self.down[run].tolist()) > self.alarm:
            self.alarmed[run] = True
