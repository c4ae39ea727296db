"""EXP3: arms are drawn by weights exponential in what they would have earned; for any stream of rewards."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add, scaled
from eex.policies.algorithms.options import share
from eex.policies.core.base import Context, Outcomes, Thresholds


class EXP3(Arms):
    r"""Exponential weights on estimated gains: assumes nothing about how rewards arise.

    Let :math:`x` be a reward scaled to [0, 1] (`scaled`; a little below 0 where exits cost), and
    :math:`\hat S_a` the sum of :math:`x / p` over the frames with feedback that arm :math:`a` was played for, :math:`p`
    being the probability it was drawn with then, however late its feedback comes. Of :math:`K` arms, draw each with

    .. math:: p_a = (1 - \gamma) \frac{\exp(\gamma \hat S_a / K)}{\sum_b \exp(\gamma \hat S_b / K)} + \frac \gamma K,
        \qquad \gamma = \min\left(1, \sqrt{\frac{K \ln K}{(e - 1) \, t}}\right)

    where :math:`t` are the rounds with feedback. Probabilities are recorded.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    gamma
        Share of draws among all arms alike, in (0, 1]; if not given, it falls as above.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or gamma leaves (0, 1].

    Examples
    --------
    >>> chosen = EXP3([0.7, 0.8, 0.9, 1.0]).choose(Context(frames=4))  # nothing is known yet
    >>> chosen.arm, chosen.probability
    (array([[3, 0, 3, 3]]), array([[0.25, 0.25, 0.25, 0.25]]))

    References
    ----------
    Auer, Cesa-Bianchi, Freund and Schapire (2002), The nonstochastic multiarmed bandit problem, SIAM Journal on
    Computing 32, Figure 1 and Corollary 3.2, with t for its bound on the gain.
    """

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        gamma: float | None = None,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        if gamma is not None:
            share("gamma", gamma)
        self.gamma = gamma

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame."""
        arms = self.grid.size
        rounds = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        falling = np.minimum(1.0, np.sqrt(arms * np.log(arms) / ((np.e - 1) * rounds)))  # (runs, 1)
        gamma = falling if self.gamma is None else self.gamma
        weight = np.exp(gamma / arms * (self.totals - self.totals.max(axis=1, keepdims=True)))
        return self.draw((1 - gamma) * weight / weight.sum(axis=1, keepdims=True) + gamma / arms, context)

    def credit(self, returned: Outcomes) -> None:
        """Sum up what each arm would have earned, by its probability: `totals` are these sums."""
        gain = scaled(returned.reward, returned.overhead, self.reward)
        add(self.counts, returned.run, returned.arm, 1.0)
        add(self.totals, returned.run, returned.arm, gain / returned.probability)
