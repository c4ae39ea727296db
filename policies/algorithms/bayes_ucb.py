"""Bayes-UCB: the upper quantile of each arm's posterior."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, HAIR, Arms
from eex.policies.algorithms.options import positive
from eex.policies.core.base import Context, Floats


class BayesUCB(Arms):
    r"""Play the arm whose posterior mean has the highest upper quantile, which rises with the rounds.

    Rewards are taken to be Gaussian with known deviation :math:`\sigma`, their means with a flat prior. With :math:`t`
    rounds with feedback, :math:`n_a` of them on arm :math:`a`, play each arm once, then

    .. math:: \arg\max_a \; \hat\mu_a + \frac{\sigma}{\sqrt{n_a}} \, \Phi^{-1}\!\left(1 - \frac1t\right)

    As in `UCB`, :math:`n_a` includes frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    sigma
        Deviation of the rewards; 0.5 is the most that rewards in an interval of length 1 can have.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or sigma is not positive.

    Examples
    --------
    >>> policy = BayesUCB([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Kaufmann, Cappé and Garivier (2012), On Bayesian upper confidence bounds for bandit problems, AISTATS, Algorithm 1
    with c = 0.
    """

    def __init__(
        self, grid: Sequence[float] = GRID, sigma: float = 0.5, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        positive("sigma", sigma)
        self.sigma = sigma

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        from scipy.special import ndtri

        rounds = self.counts.sum(axis=1)[:, None, None]
        quantile: Floats = np.maximum(ndtri(1 - 1 / np.maximum(rounds, 2)), HAIR)
        return self.mean() + self.sigma * quantile / np.sqrt(played)
