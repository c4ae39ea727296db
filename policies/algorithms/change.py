"""Has a stream changed? Two-sided cumulative sums (CUSUM) of block means, for many runs side by side."""

import numpy as np

from eex.policies.core.base import Arrays, Floats, Ints

BLOCK = 32  # frames
OPEN = 512  # blocks of a run that may wait for late frames
ALLOWED = 1.0  # standard errors by which block means may lie off without counting
MOST = 4.0  # a single block counts at most as much
PRIOR_BLOCKS = 4.0  # weight of the variance that is expected before any block is known
QUIET = 2  # blocks that only make the reference


class Change(Arrays):
    r"""Tells for each run when the mean of one of its signals has changed.

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
        Runs.
    alarm
        How high a sum may rise; 0 never alarms.
    variance
        Of a value of each signal, expected before any is known.

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

    state = ("number", "heard", "count", "total", "blocks", "known", "mean", "spread", "up", "down", "alarmed")

    def __init__(self, runs: int, alarm: float, variance: tuple[float, ...]) -> None:
        signals = len(variance)
        self.alarm, self.variance = alarm, np.array(variance)
        self.number = np.full((runs, OPEN), -1)  # of the block that has the slot
        self.heard = np.zeros((runs, OPEN), dtype=np.int64)  # its frames
        self.count = np.zeros((runs, OPEN, signals))  # and their values
        self.total = np.zeros((runs, OPEN, signals))
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
        shown = ~np.isnan(values[0])
        if not shown.all():
            run, frame, values = run[shown], frame[shown], tuple(value[shown] for value in values)
        block = frame // BLOCK
        slot = run * OPEN + block % OPEN
        number, heard = self.number.reshape(-1), self.heard.reshape(-1)
        has = number.take(slot)
        if (has != block).any():
            new = has < block  # a block that had the slot and never was complete is dropped
            np.maximum.at(number, slot[new], block[new])
            heard[slot[new]] = 0
            self.count.reshape(len(heard), -1)[slot[new]] = 0.0
            self.total.reshape(len(heard), -1)[slot[new]] = 0.0
            kept = number[slot] == block
            slot, values = slot[kept], tuple(value[kept] for value in values)
        signals = len(values)
        np.add.at(heard, slot, 1)
        for s, value in enumerate(values):
            known = np.flatnonzero(~np.isnan(value)) if s else slice(None)
            at = slot[known] * signals + s
            np.add.at(self.count.reshape(-1), at, 1.0)
            np.add.at(self.total.reshape(-1), at, value[known])
        ends = np.flatnonzero(heard.take(slot) == BLOCK)[::-1]
        if len(ends):
            count, total = (array.reshape(len(heard), -1) for array in (self.count, self.total))
            full, last = np.unique(slot[ends], return_index=True)
            full = full[np.argsort(-last)]  # in the order in which they were completed
            while len(full):
                of, first = np.unique(full // OPEN, return_index=True)
                self._look(of, count[full[first]], total[full[first]])
                full = np.delete(full, first)

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
