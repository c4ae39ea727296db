"""UCB-Tuned: UCB whose bound knows that rewards vary less than they could."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add, variance
from eex.policies.core.base import Context, Floats, Outcomes


class UCBTuned(Arms):
    r"""UCB that bounds each arm's variance instead of using a constant; nothing to tune.

    With :math:`t` rounds with feedback, :math:`n_a` of them on arm :math:`a` with mean :math:`\hat\mu_a` and variance
    :math:`V_a`, play each arm once, then

    .. math:: \arg\max_a \; \hat\mu_a
        + \sqrt{\frac{\ln t}{n_a} \min\left(\frac14, V_a + \sqrt{\frac{2 \ln t}{n_a}}\right)}

    where 1/4 is the most that rewards in an interval of length 1 can vary. As in `UCB`, :math:`n_a` includes
    frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1].

    Examples
    --------
    >>> policy = UCBTuned([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Auer, Cesa-Bianchi and Fischer (2002), Finite-time analysis of the multiarmed bandit problem, Machine Learning 47,
    section 4.
    """

    state = (*Arms.state, "squares")

    def __init__(self, grid: Sequence[float] = GRID, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(grid, exits, runs, seed)
        self.squares = np.zeros_like(self.totals)  # of rewards received, (runs, arms)

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        explore = self.log_t() / played
        spread = variance(self.counts, self.totals, self.squares) + np.sqrt(2 * explore)
        return self.mean() + np.sqrt(explore * np.minimum(0.25, spread))

    def credit(self, returned: Outcomes) -> None:
        """Sum up rewards and their squares."""
        super().credit(returned)
        add(self.squares, returned.run, returned.arm, returned.reward**2)
