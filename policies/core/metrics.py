"""How far confidence is from accuracy, and how often a batch of answers misses its targets.

They apply to any run: a frame is given by its confidence, whether its answer was right, where it left, and how fast.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.errors import EexError

BATCH = 512
"""Frames that outage and missed deadlines are counted over, as in the paper."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin of confidence, shape (bins,) each.

    Attributes
    ----------
    edges
        Between the bins, (bins + 1,); bin m holds confidences in (edges[m], edges[m + 1]], the first one 0 as well.
    counts
        Frames in each bin.
    confidence, accuracy
        Means over the bin's frames, NaN where it holds none.
    """

    edges: Floats
    counts: Ints
    confidence: Floats
    accuracy: Floats


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Sort frames into bins of equal width by their confidence.

    Parameters
    ----------
    confidence
        In [0, 1], (N,).
    correct
        Whether each frame was classified correctly, (N,).
    bins
        Number of bins.

    Raises
    ------
    EexError
        If shapes differ, nothing is given, a value is missing, a confidence leaves [0, 1] or there is no bin.

    Examples
    --------
    >>> found = reliability([0.25, 0.75, 1.0], [False, False, True], bins=2)
    >>> found.counts.tolist(), found.confidence.tolist(), found.accuracy.tolist()
    ([1, 2], [0.25, 0.875], [0.0, 0.5])
    """
    values, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if values.ndim != 1 or values.shape != right.shape or not len(values):
        raise EexError(
            f"expected a confidence (N,) and whether it was correct (N,), got {values.shape} and {right.shape}"
        )
    if bins < 1:
        raise EexError(f"bins must be at least 1, got {bins}")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():  # a float32 softmax may end a rounding above 1
        raise EexError(f"confidence must lie in [0, 1], got {values.min()}…{values.max()}")
    _check_known(right)
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], values)
    counts = np.bincount(index, minlength=bins)
    filled = np.where(counts, counts, np.nan)
    return Reliability(
        edges,
        counts,
        np.bincount(index, weights=values, minlength=bins) / filled,
        np.bincount(index, weights=right, minlength=bins) / filled,
    )


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of confidence, weighted by their frames, in [0, 1].

    Parameters and errors are those of `reliability`.

    Examples
    --------
    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0], bins=2), 3)
    0.0
    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0], bins=4), 3)
    0.1

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, eq. 3.
    """
    found = reliability(confidence, correct, bins)
    gap = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    return float((gap * found.counts).sum() / found.counts.sum())


def device_probability(on_device: ArrayLike) -> float:
    """Share of frames answered on the device, from one truth value per frame, (N,).

    Raises
    ------
    EexError
        If there are no frames.
    """
    flags = np.asarray(on_device, dtype=bool)
    if not len(flags):
        raise EexError("the device probability needs at least one frame")
    return float(flags.mean())


def inference_outage(on_device: ArrayLike, correct: ArrayLike, p_tar: ArrayLike, batch: int = BATCH) -> Floats:
    r"""Share of batches in which the accuracy of the frames answered on the device lies below :math:`p_{tar}`.

    Batches are of consecutive frames; a last one that is not full is left out. A batch without any answer on the
    device is no outage: the device made no promise there.

    Parameters
    ----------
    on_device, correct
        Whether each frame was answered on the device, and right, (N,) each.
    p_tar
        Target accuracies, in [0, 1]: a number or an array.
    batch
        Frames in a batch.

    Returns
    -------
    Floats
        In [0, 1], of the shape of `p_tar`.

    Raises
    ------
    EexError
        If shapes differ, a value is missing, there are fewer frames than one batch, or a target leaves [0, 1].

    Examples
    --------
    Of two batches of four frames, the device answers three frames of the first, two of them right, and none of the
    second.

    >>> inference_outage([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], [0.6, 0.7], batch=4)
    array([0. , 0.5])

    References
    ----------
    Pacheco, Couto and Simeone (2021), Calibration-aided edge inference offloading via adaptive model partitioning of
    deep neural networks, section IV-D.
    """
    here, right = _batches(on_device, batch), _batches(correct, batch)
    if np.shape(on_device) != np.shape(correct):
        raise EexError(f"expected as many answers as places, got {np.shape(correct)} and {np.shape(on_device)}")
    return np.asarray(_below((right * here).sum(axis=1), here.sum(axis=1), p_tar).mean(axis=-1))


def missed_deadline(
    time_ms: ArrayLike, correct: ArrayLike, p_tar: ArrayLike, t_tar_ms: ArrayLike, batch: int = BATCH
) -> Floats:
    r"""Share of batches whose mean inference time exceeds :math:`t_{tar}` or whose accuracy lies below :math:`p_{tar}`.

    All answers count, the device's and the cloud's. Batches are of consecutive frames; a last one that is not full is
    left out.

    Parameters
    ----------
    time_ms, correct
        Milliseconds that each frame took, and whether it was answered right, (N,) each.
    p_tar, t_tar_ms
        Target accuracies, in [0, 1], and times: numbers or arrays that broadcast.
    batch
        Frames in a batch.

    Returns
    -------
    Floats
        In [0, 1], of the targets' broadcast shape.

    Raises
    ------
    EexError
        If shapes differ, a value is missing, there are fewer frames than one batch, or a target cannot be one.

    Examples
    --------
    Two batches of two frames: 2 ms and all right, 6 ms and half of them right.

    >>> missed_deadline([1, 3, 6, 6], [1, 1, 1, 0], 0.5, [1, 2, 5, 6], batch=2)
    array([1. , 0.5, 0.5, 0. ])
    >>> missed_deadline([1, 3, 6, 6], [1, 1, 1, 0], 0.75, [1, 2, 5, 6], batch=2)
    array([1. , 0.5, 0.5, 0.5])

    References
    ----------
    Pacheco, Couto and Simeone (2021), section IV-E.
    """
    times, right = _batches(time_ms, batch), _batches(correct, batch)
    if np.shape(time_ms) != np.shape(correct):
        raise EexError(f"expected as many answers as times, got {np.shape(correct)} and {np.shape(time_ms)}")
    limits = np.asarray(t_tar_ms, dtype=float)
    if not (limits >= 0).all():
        raise EexError(f"t_tar must be at least 0 ms, got {limits.min()}")
    late = times.mean(axis=1) > limits[..., None]
    wrong = _below(right.sum(axis=1), np.full(len(right), float(batch)), p_tar)
    return np.asarray((late | wrong).mean(axis=-1))


def _batches(given: ArrayLike, batch: int) -> Floats:
    """(whole batches, batch) from (N,)."""
    values = np.asarray(given, dtype=float)
    if values.ndim != 1:
        raise EexError(f"expected one value per frame, (N,), got {values.shape}")
    _check_known(values)
    if batch < 1:
        raise EexError(f"a batch must hold at least 1 frame, got {batch}")
    if len(values) < batch:
        raise EexError(f"one batch takes {batch} frames, there are {len(values)}")
    return values[: len(values) // batch * batch].reshape(-1, batch)


def _check_known(values: Floats) -> None:
    if (missing := np.isnan(values)).any():
        first = int(missing.argmax())
        raise EexError(f"a value is missing (NaN), that of frame {first}: leave out frames without a label, say")


def _below(right: Floats, of: Floats, p_tar: ArrayLike) -> Bools:
    """Whether right / of < p_tar, (…, batches) for targets (…); not where there are none."""
    targets = np.asarray(p_tar, dtype=float)[..., None]
    if not ((targets >= 0) & (targets <= 1)).all():
        raise EexError(f"p_tar must lie in [0, 1], got {targets.min()}…{targets.max()}")
    found: Bools = right < targets * of - 1e-9  # 7 right of 10 reach 0.7, also as 0.1 + 0.2 + 0.4
    return found
