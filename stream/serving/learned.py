"""What a stream's policy has learned, as plain values: thresholds, and the curve or the arms behind them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.algorithms.change import Change
from eex.policies.algorithms.curves import CENTRES
from eex.policies.core.base import Context, Policy
from eex.policies.core.parts import Composite
from eex.stream.live.learning import Learner


def described(learner: Learner) -> dict[str, Any]:
    """Plain JSON values.

    Parameters
    ----------
    learner
        A copy, which is not used any more afterwards.

    Returns
    -------
    described
        `frame`, the number of the learner's next frame; `overhead`, its price of offloading; `learning`; `exit_at`, the
        confidence from which each edge exit answers, null for never; `skip_below`, the confidence below which it sends
        a frame to the cloud at once; `curve`, of policies that learn one: confidence, gain of offloading, gain less
        and more a standard error (low, high), and the weight of the frames behind it; `arms`, of policies that have
        them: threshold, mean reward, times played.
    """
    policy = learner.policy
    curve, arms = _curve(policy), _arms(policy)  # before choosing, which may begin anew
    if learner.frozen is None:
        context = Context(frames=1, first=learner.first, overhead=learner.overhead, exit_cost=learner.exit_cost)
        chosen = policy.choose(context)
        exit_at, skip_below = chosen.exit_at[0, 0, :-1], chosen.skip_below[0, 0]
    else:
        exit_at, skip_below = learner.frozen[0][:-1], learner.frozen[1]
    return {
        "frame": learner.first,
        "overhead": learner.overhead,
        "learning": learner.frozen is None,
        "exit_at": numbers(exit_at),
        "skip_below": numbers(skip_below),
        "curve": curve,
        "arms": arms,
    }


def numbers(values: NDArray[Any], digits: int = 6) -> list[float | None]:
    """Finite values as JSON numbers; others as null."""
    return [round(float(v), digits) if np.isfinite(v) else None for v in values]


def _within(policy: Policy) -> list[Any]:
    """The policy and the parts that it is made of; what is shown of several learners is the first one's."""
    found: list[Any] = [policy]
    if isinstance(policy, Composite):
        for part in policy.named_parts().values():
            found += _within(part) if isinstance(part, Policy) else [part]
    return found


def _curve(policy: Policy) -> dict[str, Any] | None:
    for part in _within(policy):
        if hasattr(part, "relative_gain"):
            gain, error, frames = (array[0] for array in part.relative_gain())
            room = 1 - CENTRES
            return {
                "confidence": numbers(CENTRES),
                "gain": numbers(gain * room),
                "low": numbers(np.maximum(gain - error, 0.0) * room),
                "high": numbers(np.minimum(gain + error, 1.0) * room),
                "frames": numbers(frames, 2),
            }
    return None


def _arms(policy: Policy) -> dict[str, Any] | None:
    for part in _within(policy):
        grid, counts, totals = (getattr(part, name, None) for name in ("grid", "counts", "totals"))
        if grid is None or counts is None or totals is None:
            continue
        if np.shape(counts) == np.shape(totals) == (1, len(grid)):
            mean = np.where(counts[0] > 0, totals[0] / np.maximum(counts[0], 1e-9), np.nan)
            return {"threshold": numbers(grid), "mean": numbers(mean), "played": numbers(counts[0], 2)}
    return None


def begun_anew(policy: Policy, run: int) -> float:
    """A number that falls whenever a run has begun anew because its stream changed; NaN if it never does."""
    for part in _within(policy):
        if isinstance(part, Change):
            return float(part.blocks[run].sum())
        if hasattr(part, "drifts"):
            return -float(part.drifts[run])
    return float("nan")
