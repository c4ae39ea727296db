r"""Off-policy: from the log of a live run, estimate what fixed thresholds would have earned on the same stream.

In a log, a frame that left early has no cloud confidence, so what a higher threshold would have earned on it is not
known. Where the policy drew its arms at random and recorded with which probability, the frames that are known can stand
for those that are not. Three estimates of the mean reward of a frame, all with the same weights :math:`W_i`:

- importance weighting (IPS): the mean of :math:`W_i r_i`;
- self-normalised (SNIPS): :math:`\sum W_i r_i / \sum W_i`, slightly biased;
- doubly robust (DR): the mean of :math:`q_i + W_i (r_i - q_i)`, with a model :math:`q_i` of the reward given the first
  exit's confidence: the narrowest.

A frame's reward under thresholds b is known whenever the arm played let it go at least as far as b would have: it is
*one-sided*. The arms that reveal it, :math:`S_i`, follow from the confidences of the exits that b passes. Any shares
:math:`w_i` of these arms that are fixed before the draw and sum to 1 give an unbiased weight

.. math:: W_i = \mathbb 1[a_i \in S_i] \; w_i(a_i) / p_i(a_i), \qquad E[W_i] = 1

:math:`w_i` goes with how often each arm was played before. Where all arms reveal a frame (b answers it at the first
exit, say), its weight is 1. Any thresholds that some arm reaches can be estimated, whether an arm or not. Where the log
reveals every frame, as it does if no arm lies below b, no propensities are needed: the plain mean is exact.

The intervals are normal ones of 95 %. They cover about that often where much was explored; in logs of 2,000 frames of
an ε-greedy policy that explored a tenth of them, the doubly robust ones were measured to cover about 90 %.

What is supported
-----------------
Logs whose arms stand for fixed thresholds, as those of `random`, `exp3` or `epsilon-greedy`, also audited; fixed
thresholds as what is evaluated, one for all edge exits or one per exit. Policies that learn are not: what they play
depends on their feedback, and a log has feedback for its own arms only. Record a trace (`eex-record`) and replay them.

References
----------
Horvitz and Thompson (1952), A generalization of sampling without replacement from a finite universe; Veach and Guibas
(1995), Optimally combining sampling techniques (the balance heuristic); Dudík, Langford and Li (2011), Doubly robust
policy evaluation and learning; Swaminathan and Joachims (2015), The self-normalized estimator for counterfactual
learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eex.policies.core.base import Bools, ExitCost, Floats, Ints, Outcomes, Reward, check_threshold
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import check_exit_cost
from eex.policies.core.options import check_word
from eex.policies.core.reward import way_cost

BINS, FOLDS = 20, 10
"""Of the first exit's confidence in the reward model, and of the frames it is fitted on."""
DOUBTFUL = 5.0
"""Standard errors by which the weights' mean may differ from 1."""


@dataclass(frozen=True)
class Mean:
    """An estimated mean, its standard error, and its 95 % interval; NaN where there is none."""

    value: float = float("nan")
    se: float = float("nan")

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - 1.96 * self.se

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + 1.96 * self.se


@dataclass(frozen=True)
class Estimate:
    """What thresholds would have earned per frame.

    Attributes
    ----------
    thresholds
        One per edge exit.
    ips, snips, dr
        The three estimates.
    frames
        Frames in the log.
    effective
        Effective sample size, Kish's :math:`(\\sum W)^2 / \\sum W^2`, of the frames that the thresholds offload, or,
        where one of them is 0, so that none is, of those that some arm does not reveal: how many of equal weight would
        carry as much information. Where the log reveals every frame, `frames`.
    problem
        Why the log cannot support an estimate, in one line; "" if it can.
    """

    thresholds: tuple[float, ...]
    ips: Mean
    snips: Mean
    dr: Mean
    frames: int
    effective: float
    problem: str = ""


def estimate(
    outcomes: Outcomes,
    thresholds: Sequence[float | Sequence[float]],
    *,
    overhead: float | None = None,
    exit_cost: ExitCost = 0.0,
    kind: Reward = "adaee",
    least: float = 30.0,
) -> list[Estimate]:
    """Estimate what each of several thresholds would have earned per frame, from one run's log.

    Frames that could not be sent count as missing at random; replies that never came earn minus the overhead, as live.

    Parameters
    ----------
    outcomes
        Of one run, in the order of its frames: `arm`, `probability`, `audited`, `exit_at`, `confidence`, `offloaded`,
        `sent`, `fallback` and `overhead` are read. Live, `eex.stream.run.records.outcomes_of` has them.
    thresholds
        To be estimated: each one for all edge exits, or one per exit.
    overhead
        Price of offloading; by default, what was paid in the log.
    exit_cost
        Price of each further edge exit, one for all or one each, (edge exits - 1,).
    kind
        What frames earn.
    least
        Effective sample size below which the log cannot support an estimate: the intervals are normal ones, and too
        narrow where few frames carry the mean.

    Raises
    ------
    EexError
        If a threshold or a price lies outside [0, 1], the log is empty, a propensity is not a probability, or there is
        no such reward.
    """
    check_word("kind", kind, Reward)
    if not len(outcomes):
        raise EexError("the log has no frames")
    p = outcomes.probability
    if (bad := (p <= 0) | (p > 1)).any():
        raise EexError(f"a propensity must lie in (0, 1], frame {outcomes.frame[bad][0]} has {p[bad][0]:g}")
    exits = outcomes.confidence.shape[1] - 1
    price = outcomes.overhead if overhead is None else np.full(len(outcomes), check_threshold("overhead", overhead))
    check_exit_cost(exit_cost, exits)
    arms = _Arms(outcomes)
    found = []
    for target in thresholds:
        given = np.atleast_1d(np.asarray(target, dtype=float))
        if given.ndim > 1 or given.size not in (1, exits):
            raise EexError(f"expected one threshold, or one for each of {exits} edge exits, got {target}")
        at = np.broadcast_to([check_threshold("a threshold", float(b)) for b in given], exits)
        found.append(_estimate_one(outcomes, arms, at, price, exit_cost, kind, least))
    return found


class _Arms:
    """The arms of a log: their thresholds, and which was played.

    Attributes
    ----------
    exit_at
        (arms, edge exits).
    fixed
        Whether they stand for their arm throughout.
    column
        Which of them each frame played, (frames,).
    played
        How often each had been played before, (frames, arms).
    """

    def __init__(self, outcomes: Outcomes) -> None:
        names, self.column = np.unique(outcomes.arm, return_inverse=True)
        edge = outcomes.exit_at[:, :-1]
        self.exit_at = np.full((len(names), edge.shape[1]), np.nan)
        plain = ~outcomes.audited
        self.exit_at[self.column[plain]] = edge[plain]
        self.fixed = bool((edge[plain] == self.exit_at[self.column[plain]]).all() and np.isfinite(self.exit_at).all())
        one_hot = self.column[:, None] == np.arange(len(names))
        self.played = np.cumsum(one_hot, axis=0) - one_hot


def _estimate_one(
    outcomes: Outcomes, arms: _Arms, at: Floats, price: Floats, exit_cost: ExitCost, kind: Reward, least: float
) -> Estimate:
    edge = outcomes.confidence[:, :-1]
    frames, exits = edge.shape
    passes = np.column_stack([edge < at, np.zeros(frames, dtype=bool)])
    stop = passes.argmin(axis=1)  # the first exit that `at` does not pass, or that the log did not reach
    away = stop == exits
    answered = (edge >= at)[np.arange(frames), np.minimum(stop, exits - 1)] & ~away
    sent = outcomes.offloaded & outcomes.sent
    known = answered | (away & sent)
    gain = np.fmax(0.0, outcomes.confidence[:, -1] - edge[:, -1])  # 0 where the reply never came
    reward = np.where(away, gain - price, 0.0) - way_cost(exit_cost, np.minimum(stop, exits - 1))
    if kind == "utility":
        reward = reward + edge[np.arange(frames), np.minimum(stop, exits - 1)]
    reward = np.where(known, reward, 0.0)

    def failed(problem: str, effective: float = 0.0) -> Estimate:
        return Estimate(tuple(at.tolist()), Mean(), Mean(), Mean(), frames, effective, problem)

    if known.all():
        mean = _mean(reward)
        return Estimate(tuple(at.tolist()), mean, mean, mean, frames, float(frames))
    if not arms.fixed:
        return failed("the log's arms do not stand for fixed thresholds")
    reveals = _reveals(arms.exit_at, edge, stop)
    if not reveals.any(axis=1).all():
        lost = int((~reveals.any(axis=1)).sum())
        return failed(f"no arm of the log goes so far: of {lost} frames it cannot say what they would have gained")
    certain = reveals.all(axis=1)
    if np.isnan(outcomes.probability[~certain]).any():
        return failed("no propensities: the log's policy did not record with which probability it drew its arms")
    mine = reveals[np.arange(frames), arms.column]
    unsent = outcomes.offloaded & ~outcomes.sent
    if (mine & ~known & ~unsent).any():
        return failed("the log's frames went other ways than the thresholds of its arms say")
    earlier = np.where(reveals, 1 + arms.played, 0)
    share = earlier[np.arange(frames), arms.column] / earlier.sum(axis=1)
    weight = np.where(mine & known, np.where(certain, 1.0, share / outcomes.probability), 0.0)
    if unsent.any():
        weight[away] *= outcomes.offloaded.sum() / max(1, sent.sum())
    which, what = (~certain, "frames") if (at == 0).any() else (away, "offloaded frames")
    effective = _effective(weight[which])
    if effective < least:
        return failed(f"the effective sample size is {effective:.1f} {what}; needs {least:g}", effective)
    drawn = weight[~certain]
    if len(drawn) and abs(drawn.mean() - 1) > DOUBTFUL * drawn.std() / np.sqrt(len(drawn)):
        off = f"the weights' mean is {drawn.mean():.2f}, not 1"
        return failed(f"{off}: the propensities do not fit the log, or too little was explored", effective)
    model = _reward_model(edge[:, 0], weight, reward, stop > 0)
    snips = float(np.average(reward, weights=weight))
    return Estimate(
        tuple(at.tolist()),
        ips=_mean(weight * reward),
        snips=Mean(snips, float(np.sqrt((weight**2 * (reward - snips) ** 2).sum()) / weight.sum())),
        dr=_mean(model + weight * (reward - model)),
        frames=frames,
        effective=effective,
    )


def _reveals(exit_at: Floats, edge: Floats, stop: Ints) -> Bools:
    """Which arms (arms, edge exits) let each frame pass all exits before `stop`, (frames, arms)."""
    passes = np.ones((len(edge), len(exit_at)), dtype=bool)
    for k in range(edge.shape[1]):
        passes &= (edge[:, k, None] < exit_at[:, k]) | (stop <= k)[:, None]
    return passes


def _effective(weight: Floats) -> float:
    """Kish's effective sample size."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0


def _reward_model(confidence: Floats, weight: Floats, reward: Floats, passed: Bools) -> Floats:
    """Mean reward given the first exit's confidence (frames,), in bins; 0 where the first exit answers.

    Each frame's is fitted on the frames of the other folds, so that no frame is in its own model. A bin counts one
    frame of the overall mean besides its own.
    """
    rows = np.flatnonzero(passed)
    bins = np.minimum((confidence[rows] * BINS).astype(np.int64), BINS - 1)
    at = (rows % FOLDS, bins)
    sums = np.zeros((2, FOLDS, BINS))  # of weights, and of weighted rewards
    np.add.at(sums[0], at, weight[rows])
    np.add.at(sums[1], at, weight[rows] * reward[rows])
    weights, rewards = sums.sum(axis=1, keepdims=True) - sums
    overall = rewards.sum(axis=1, keepdims=True) / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    model = np.zeros(len(reward))
    model[rows] = ((rewards + overall) / (weights + 1.0))[at]
    return model


def _mean(values: Floats) -> Mean:
    return Mean(float(values.mean()), float(values.std() / np.sqrt(len(values))))
