"""UCB-V: a bound that is narrow for arms whose rewards vary little."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add, variance
from eex.policies.algorithms.options import positive
from eex.policies.core.base import Context, Floats, Outcomes


class UCBV(Arms):
    r"""UCB that uses the variance of each arm's rewards instead of the worst case.

    With :math:`t` rounds with feedback, :math:`n_a` of them on arm :math:`a` with mean :math:`\hat\mu_a` and variance
    :math:`V_a`, play each arm once, then

    .. math:: \arg\max_a \; \hat\mu_a + \sqrt{\frac{2 \zeta V_a \ln t}{n_a}} + c \, \frac{3 \zeta \ln t}{n_a}

    where rewards lie in an interval of length 1. As in `UCB`, :math:`n_a` includes frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    c
        Weight of the last term; 1 is the paper's.
    zeta
        Weight of the exploration function; the paper's bound is for 1.2.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or c or zeta is not positive.

    Examples
    --------
    >>> policy = UCBV([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Audibert, Munos and Szepesvári (2009), Exploration-exploitation tradeoff using variance estimates in multi-armed
    bandits, Theoretical Computer Science 410, equation 1.
    """

    state = (*Arms.state, "squares")

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        c: float = 1.0,
        zeta: float = 1.2,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        positive("c", c)
        positive("zeta", zeta)
        self.c, self.zeta = c, zeta
        self.squares = np.zeros_like(self.totals)  # of rewards received, (runs, arms)

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        spread = variance(self.counts, self.totals, self.squares)
        explore = self.zeta * self.log_t() / played
        return self.mean() + np.sqrt(2 * spread * explore) + self.c * 3 * explore

    def credit(self, returned: Outcomes) -> None:
        """Sum up rewards and their squares."""
        super().credit(returned)
        add(self.squares, returned.run, returned.arm, returned.reward**2)
