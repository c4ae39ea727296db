"""Where a frame goes after an exit: the one rule, for numpy arrays and torch tensors alike."""

from typing import Any

import numpy as np

from eex.policies.core.base import Bools, Floats, Ints, Thresholds


def leave(confidence: Any, exit_at: Any, skip_below: Any) -> tuple[Any, Any]:
    """Which frames leave after an edge exit: (answered here, sent to the cloud at once); the others go on.

    All arguments are arrays or tensors of the same shape. A frame that reaches `exit_at` is answered, also if it lies
    below `skip_below`. A confidence that is no number is never answered.
    """
    answered = confidence >= exit_at
    return answered, ~answered & (confidence < skip_below)


def drop(confidence: Floats, audited: Bools, drop_below: float) -> Bools:
    """Which frames that are meant for the cloud are dropped instead, unanswered, (rows,).

    Parameters
    ----------
    confidence
        At the last edge exit that each visited, (rows,).
    audited
        Sent to learn from them, (rows,): never dropped.
    drop_below
        What the user set; 0 drops none.
    """
    return (confidence < drop_below) & ~audited


def route(confidence: Floats, thresholds: Thresholds, run: int = 0) -> tuple[Ints, Bools, Ints]:
    """Where frames leave whose every exit is known: for replay, and as the engine's reference.

    Parameters
    ----------
    confidence
        (frames, edge exits + 1).
    thresholds
        For these frames.
    run
        Which run's thresholds to apply.

    Returns
    -------
    exit, offloaded, visited
        Each (frames,): where the frame left (number of edge exits = the cloud), whether it was offloaded, and how many
        edge exits it visited.
    """
    frames, exits = confidence.shape[0], confidence.shape[1] - 1
    exit = np.full(frames, exits, dtype=np.int64)
    visited = np.zeros(frames, dtype=np.int64)
    going = np.ones(frames, dtype=bool)
    for i in range(exits):
        visited += going
        answered, skipped = leave(confidence[:, i], thresholds.exit_at[run, :, i], thresholds.skip_below[run, :, i])
        exit[going & answered] = i
        going = going & ~answered & ~skipped
    return exit, exit == exits, visited


def answer(confidence: Floats, prediction: Ints, exit: Ints, final_exit_at: Floats) -> Ints:
    """The class each frame is answered with, (rows,).

    A frame that left at an edge exit is answered by it; one that came back from the cloud by the final exit if that is
    sure enough, else by the most confident exit that was visited; one whose reply never came (NaN in the last column)
    by its most confident edge exit; one that was dropped (exit -1) by nobody: -1.

    Parameters
    ----------
    confidence, prediction
        (rows, edge exits + 1), NaN and -1 where inference never went.
    exit
        Where each frame left, (rows,).
    final_exit_at
        The final exit's threshold, (rows,).
    """
    by = prediction[np.arange(len(exit)), exit]
    final = exit == confidence.shape[1] - 1
    if np.count_nonzero(final):
        rows = np.flatnonzero(final & ~(confidence[:, -1] >= final_exit_at))
        by[rows] = prediction[rows, np.fmax(confidence[rows], -1.0).argmax(axis=1)]  # NaN is never the best
    if exit.size and exit.min() < 0:
        by[exit < 0] = -1
    return by
