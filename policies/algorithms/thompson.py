"""Thompson sampling: draw a mean for each arm from its posterior, and play the best."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms
from eex.policies.algorithms.options import positive
from eex.policies.core.base import Context, Thresholds
from eex.policies.core.draws import normal


class Thompson(Arms):
    r"""Thompson sampling with Gaussian beliefs: an arm is played as often as it is believed to be best.

    With :math:`n_a` rewards received on arm :math:`a` that sum to :math:`S_a`, play

    .. math:: \arg\max_a \theta_a, \qquad
        \theta_a \sim \mathcal N\left(\frac{S_a}{n_a + 1}, \; \frac{\sigma^2}{n_a + 1}\right)

    drawn anew for every frame, so that frames whose rewards are late are spread over the arms. The probability of an
    arm has no closed form and is not recorded.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    sigma
        Deviation of the rewards; the paper's is 1, and 0.5 the most that rewards in an interval of length 1 can have.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or sigma is not positive.

    Examples
    --------
    >>> [int(arm) for arm in Thompson([0.7, 0.8, 0.9]).choose(Context(frames=8)).arm[0]]
    [1, 0, 1, 0, 0, 2, 0, 2]

    References
    ----------
    Agrawal and Goyal (2013), Further optimal regret bounds for Thompson sampling, AISTATS, Algorithm 2.
    """

    def __init__(
        self, grid: Sequence[float] = GRID, sigma: float = 0.5, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        positive("sigma", sigma)
        self.sigma = sigma

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame."""
        z = normal(self.seed, self.keys, context.numbers, self.grid.size)  # (runs, frames, arms)
        n = self.counts[:, None] + 1
        return self.play((self.totals[:, None] / n + self.sigma / np.sqrt(n) * z).argmax(axis=2))
