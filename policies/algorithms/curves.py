"""What `gain-curve` and `stop-curve` share: bins of the confidence, their kernel, a prior, and evidence that fades."""

from collections.abc import Iterator, Sequence

import numpy as np

from eex.policies.algorithms.options import not_negative, thresholds
from eex.policies.core.base import LARGEST_WEIGHT, Arrays, Bools, Floats, Ints, Outcomes
from eex.policies.core.errors import EexError

BINS = 50
THRESHOLDS = tuple(np.linspace(0.0, 1.0, BINS + 1).round(2).tolist())
CENTRES: Floats = (np.arange(BINS) + 0.5) / BINS
ROOM: Floats = (1 - CENTRES)[:, None]
"""What can be gained at each confidence at most, (bins, 1)."""
COARSE = BINS // 2  # bins of pairs of confidences: their table is four times as small as that of all bins
COARSE_CENTRES: Floats = (np.arange(COARSE) + 0.5) / COARSE

# Of a relative gain's prior: as if two frames had come back, and their gains were uniform over [0, 1]
PRIOR_FRAMES, PRIOR_MEAN, PRIOR_SQUARE = 2.0, 1 / 2, 1 / 3
WIDTH = 0.06  # of the kernel: confidences so close gain about the same
LOCAL = 2.0  # frames near a confidence that weigh as much there as the mean over all confidences
REST = 32  # decide anew once a 32nd of what is remembered is new
MOST_ROWS = 16_384  # learned at once, so that weights do not overflow
BLOCK = 256  # rows that are decided for at once
ROUNDING = 1e-12  # relative error of sums, about
LEAST_MEMORY = 100.0
VARIANCES = (0.05, 0.08)  # of confidences and relative gains, about, before any is known


def kernel(width: float, centres: Floats = CENTRES) -> Floats:
    """Weights of bins with these centres for all bins, (centres, bins): Gaussian, of this standard deviation."""
    near = np.exp(-0.5 * ((centres[:, None] - CENTRES) / width) ** 2)
    return np.where(near < 1e-3, 0.0, near)


NEAR: Floats = kernel(WIDTH)
"""Weights of all bins for each bin, (bins, bins)."""
FROM_COARSE: Floats = kernel(WIDTH, COARSE_CENTRES).T
"""Weights of all coarse bins for each bin, (bins, coarse)."""


MOMENTS: Floats = np.stack([COARSE_CENTRES**2, 1 - COARSE_CENTRES, (1 - COARSE_CENTRES) ** 2])
"""Of coarse bins: squares of the confidence, what can be gained at it, and squares of that, (3, coarse)."""


def smoothed(offloads: Floats, gains: Floats, unit: Floats) -> tuple[Floats, Floats]:
    """The weight of the frames near each confidence, the prior's included, and the sums of their relative gains;
    (..., bins, rows) each.

    Parameters
    ----------
    offloads, gains
        Frames that came back and the sums of their relative gains, by confidence, (rows, ..., bins).
    unit
        Weight of a frame that is learned now, (rows,).
    """
    near: Floats = NEAR @ _rows_last(offloads)
    near += LOCAL * unit
    return near, NEAR @ _rows_last(gains)


def _rows_last(sums: Floats) -> Floats:
    return sums.T if sums.ndim == 2 else sums.transpose(1, 2, 0)


def towards(prior: Floats, near: Floats, gained: Floats, unit: Floats) -> Floats:
    """The likeliest relative gain by confidence, (bins, rows).

    Parameters
    ----------
    prior
        What is expected before any frame came back: one number per row, (rows,), or by confidence, (bins, rows).
    near, gained, unit
        As `smoothed` has them, (bins, rows); `gained` is overwritten.
    """
    gained += LOCAL * unit * prior
    gained /= near
    return gained


def relative_gain(
    near: Floats, gained: Floats, offloads: Floats, gains: Floats, squares: Floats, unit: Floats
) -> tuple[Floats, Floats]:
    """The likeliest relative gain by confidence, and one standard error of it; (bins, rows) each.

    Parameters
    ----------
    near, gained
        As `smoothed` makes them of `offloads` and `gains`, (rows, bins); overwritten.
    squares
        Sums of the squares of the relative gains, (rows,).
    unit
        Weight of a frame that is learned now, (rows,).
    """
    total = offloads.sum(axis=1) + PRIOR_FRAMES * unit
    mean = (gains.sum(axis=1) + PRIOR_FRAMES * PRIOR_MEAN * unit) / total
    spread = np.maximum((squares + PRIOR_FRAMES * PRIOR_SQUARE * unit) / total - mean**2, 0.0)
    curve = towards(mean, near, gained, unit)  # what is expected is the mean over all frames
    error = np.divide(spread * unit, near, out=near)
    return curve, np.sqrt(error, out=error)


def plausible(curve: Floats, error: Floats) -> Floats:
    """What offloading gains at most, by confidence, (bins, rows), where the relative gain may be higher by `error`,
    which is overwritten."""
    error += curve
    np.minimum(error, 1.0, out=error)
    error *= ROOM
    return error


def shares_below(grid: Floats) -> Floats:
    """How much of each bin lies below each threshold of the grid, (bins, arms)."""
    return np.clip(grid * BINS - np.arange(BINS)[:, None], 0.0, 1.0)


def best_arm(gained: Floats, below: Floats) -> Ints:
    """The threshold below which most is gained, (rows,), of equal ones the first.

    Parameters
    ----------
    gained
        By confidence, (bins, rows).
    below
        As `shares_below` has it.
    """
    if gained.shape[1] == 1:  # a live stream has no time for arrays of one number
        of_one = gained[:, 0] @ below
        most_of_one = float(of_one.max())
        return np.array([(of_one >= most_of_one - ROUNDING * abs(most_of_one)).argmax()])
    sums = gained.T @ below
    most = sums.max(axis=1, keepdims=True)
    most -= ROUNDING * np.abs(most)  # what differs by less is equal, but for the order of additions
    best: Ints = (sums >= most).argmax(axis=1)
    return best


def blocks(rows: int) -> Iterator[slice]:
    """Rows in blocks whose arrays by confidence fit into a core's second cache."""
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def bins_of(confidence: Floats) -> Ints:
    """The bin of each confidence; the first for NaN."""
    found: Ints = np.minimum((np.fmax(confidence, 0.0) * BINS).astype(np.int64), BINS - 1)
    return found


def bin_of(confidence: float) -> int:
    """`bins_of` a single one."""
    return min(int(confidence * BINS), BINS - 1) if confidence > 0 else 0


def checked_options(grid: Sequence[float], memory: float, beta: float, alarm: float) -> tuple[Floats, float]:
    """The grid, rising, and by how much each frame weighs more than the one before.

    Raises
    ------
    EexError
        If an option is out of range.
    """
    rising = np.unique(thresholds(grid))
    if not (memory == 0 or LEAST_MEMORY <= memory < np.inf):
        raise EexError(f"memory must be 0 (never forget) or at least {LEAST_MEMORY:g} frames, got {memory:g}")
    not_negative("beta", beta)
    if not 0 <= alarm < np.inf:
        raise EexError(f"alarm must be 0 (never) or more, got {alarm}")
    return rising, 1 / (1 - 1 / memory) if memory else 1.0


def frames_until_news(known: Floats, news: Floats, weight: Floats, growth: float) -> Ints:
    """Frames, at least 1, that each run may learn from before a `REST`-th of what it remembers is new, (runs,); where
    that is a matter of rounding, fewer.

    Parameters
    ----------
    known, news
        Weight of all frames, and of those since the last decision, (runs,).
    weight, growth
        Of the next frame of each run, (runs,), and by how much each weighs more than the one before.
    """
    wanted = np.maximum(known - REST * news, 0.0) / ((REST - 1) * weight)  # in next frames
    if growth > 1:
        wanted = np.log1p(wanted * (growth - 1)) / np.log(growth)
    frames: Ints = np.maximum(np.floor(wanted - 1e-6).astype(np.int64), 0) + 1
    return frames


def pieces(outcomes: Outcomes, runs: int) -> Iterator[Outcomes]:
    """Outcomes in pieces that may be learned from at once; whole rounds, where each has a frame of every run."""
    most = max(1, MOST_ROWS // runs) * runs
    if 0 < len(outcomes) <= most:
        yield outcomes
        return
    for start in range(0, len(outcomes), most):
        yield outcomes[start : start + most]


def weigh(weight: Floats, growth: float, run: Ints, counts: Bools, *totals: Floats) -> Floats:
    """What finished frames weigh, (rows,): each more than those of its run before it, and nothing if it does not count.

    Parameters
    ----------
    weight
        Of the next frame of each run, (runs,); it grows.
    growth
        By how much each frame weighs more than the one before.
    counts
        Whether each frame does.
    totals
        Weight of all frames so far, (runs,) each; what the frames weigh is added.
    """
    weights: Floats
    if (rounds := rounds_of(run, len(weight))) and counts.all():
        by_round = growth ** np.arange(rounds)[:, None] * weight
        for total in totals:
            total += by_round.sum(axis=0)
        weight *= growth**rounds
        weights = by_round.reshape(-1)
        return weights
    weights = weight.take(run)
    if len(run) > 1 and not (run[1:] > run[:-1]).all():
        weights *= growth ** _earlier(run, counts)
    weights *= counts
    for total in totals:
        np.add.at(total, run, weights)
    np.multiply.at(weight, run[counts], growth)
    return weights


def rescale(policy: Arrays, weight: Floats, *names: str) -> None:
    """Divide a policy's sums, named attributes of (runs, …), by the weights of runs that have grown too large."""
    if weight.max() > LARGEST_WEIGHT:
        large = np.flatnonzero(weight > LARGEST_WEIGHT)
        unit = weight[large]
        for name in names:
            sums = getattr(policy, name)
            sums[large] /= unit.reshape(-1, *(1,) * (sums.ndim - 1))
        weight[large] = 1.0


def rounds_of(run: Ints, runs: int) -> int:
    """How often the runs 0, 1, … follow each other, if they do; 0 if not."""
    rounds, rest = divmod(len(run), runs)
    return 0 if rest or (runs > 1 and (run.reshape(rounds, runs) != np.arange(runs)).any()) else rounds


def _earlier(run: Ints, counts: Bools) -> Ints:
    """How many rows that count, of the same run, come before each row, (rows,)."""
    if (run == run[0]).all():
        return np.cumsum(counts) - counts
    order = np.argsort(run, kind="stable")
    before: Ints = np.cumsum(counts[order]) - counts[order]
    first = np.r_[True, run[order][1:] != run[order][:-1]]
    earlier = np.empty(len(run), dtype=np.int64)
    earlier[order] = before - before[first][np.cumsum(first) - 1]
    return earlier
