"""Where a frame leaves, what is seen of it, and which exit answers it: the one rule, for arrays and tensors."""

from typing import Any

import numpy as np

from eex.policies.core.base import Bools, Floats, Ints


def leave(confidence: Any, exit_at: Any, skip_below: Any = None) -> tuple[Any, Any]:
    """Which frames leave at an edge exit: (answered here, sent to the cloud at once); the others go on.

    A frame that reaches `exit_at` is answered, even if it lies below `skip_below`. A confidence of NaN is never
    answered. Everything that routes frames calls this: the engine exit by exit, `walk` for arrays of known confidences.

    Parameters
    ----------
    confidence, exit_at, skip_below
        Arrays or tensors of one shape; without `skip_below` no frame is sent at once.
    """
    answered = confidence >= exit_at
    return answered, False if skip_below is None else ~answered & (confidence < skip_below)


def walk(edge: Floats, exit_at: Floats, skip_below: Floats | None = None) -> tuple[Ints, Ints]:
    """Where frames leave whose confidence at every edge exit is known.

    Parameters
    ----------
    edge, exit_at, skip_below
        (…, edge exits), of the same number of axes; axes of length 1 broadcast. A final exit's column in `exit_at` is
        ignored; without `skip_below` no frame skips exits.

    Returns
    -------
    exit, visited
        Where each frame left, counted from 0 (the number of edge exits = offloaded), and how many edge exits it
        visited, both (…,).
    """
    exits = edge.shape[-1]
    # exits first, contiguous: numpy is slow along an axis as short as theirs
    edge, exit_at = np.ascontiguousarray(edge.T), np.ascontiguousarray(exit_at.T[:exits])
    skip_below = None if skip_below is None or exits == 1 else np.ascontiguousarray(skip_below.T)
    answered, skipped = leave(edge, exit_at, skip_below)
    stopped = answered if skip_below is None else answered | skipped
    visited: Ints = np.ones(answered.shape[1:], dtype=np.int64)
    left, on = answered[0].copy(), ~stopped[0]  # at an edge exit already; and on its way to the next
    for e in range(1, exits):
        visited += on
        left |= on & answered[e]
        on &= ~stopped[e]
    return np.where(left, visited - 1, exits).T, visited.T


def drop(confidence: Floats, audited: Bools | bool, drop_below: float) -> Bools:
    """Which of the frames meant for the cloud are dropped without an answer instead, (rows,).

    Parameters
    ----------
    confidence
        At the last edge exit that each visited, (rows,).
    audited
        Sent to learn from them, (rows,) or one truth value for all: never dropped.
    drop_below
        The user's threshold; 0 drops none.
    """
    return (confidence < drop_below) & np.logical_not(audited)


def last_visited(edge: Floats, visited: Ints) -> Floats:
    """The confidence at the last edge exit that each frame visited, (…,), of (…, edge exits)."""
    last = edge[..., 0].copy()
    for e in range(1, edge.shape[-1]):
        np.copyto(last, edge[..., e], where=visited > e)
    return last


def seen(confidence: Floats, prediction: Ints, visited: Ints, replied: Bools) -> tuple[Floats, Ints]:
    """Confidences and predictions, with NaN and -1 at exits that were not visited.

    Parameters
    ----------
    confidence, prediction
        Of every exit, (…, edge exits + 1).
    visited, replied
        Edge exits that each frame visited, and whether the cloud's reply came, (…,).
    """
    confidence, prediction = confidence.copy(order="K"), prediction.copy(order="K")
    hide(confidence, prediction, visited, replied)
    return confidence, prediction


def hide(confidence: Floats, prediction: Ints, visited: Ints, replied: Bools) -> None:
    """`seen`, in place."""
    exits = confidence.shape[-1] - 1
    for e in range(1, exits + 1):  # the first exit is always visited
        hidden = visited <= e if e < exits else ~replied
        np.copyto(confidence[..., e], np.nan, where=hidden)
        np.copyto(prediction[..., e], -1, where=hidden)


def answer(confidence: Floats, prediction: Ints, exit: Ints, final_exit_at: Floats) -> Ints:
    """The class each frame is answered with, (rows,).

    A frame that left at an edge exit is answered by it; one that came back from the cloud by the final exit if that is
    sure enough, else by the most confident exit that was visited; one whose reply never came (NaN in the last column)
    by its most confident edge exit; one that was dropped (exit -1) by none: -1.

    Parameters
    ----------
    confidence, prediction
        (rows, edge exits + 1), NaN and -1 where inference never went.
    exit
        Where each frame left, (rows,).
    final_exit_at
        The final exit's threshold, (rows,).
    """
    if len(exit) == 1 and exit[0] >= 0:  # frame by frame, nearly always so
        by = prediction[:, exit[0]]
        if exit[0] < confidence.shape[1] - 1 or confidence[0, -1] >= final_exit_at[0]:
            return by
    by = prediction[np.arange(len(exit)), exit]
    final = exit == confidence.shape[1] - 1
    if np.count_nonzero(final):
        rows = np.flatnonzero(final & ~(confidence[:, -1] >= final_exit_at))
        by[rows] = prediction[rows, np.fmax(confidence[rows], -1.0).argmax(axis=1)]  # NaN is never the best
    if exit.size and exit.min() < 0:
        by[exit < 0] = -1
    return by
