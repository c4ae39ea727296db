"""Discounted UCB, for streams that change: the older a reward, the less it counts."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, HAIR, Arms, add, turns
from eex.policies.algorithms.options import not_negative, share
from eex.policies.core.base import Context, Floats, Outcomes


class DiscountedUCB(Arms):
    r"""UCB that gradually forgets: each new reward reduces the weight of all earlier ones.

    A reward weighs :math:`\gamma^k` once :math:`k` others have come after it. Let :math:`n_a` be the weights of arm
    :math:`a`'s, :math:`t` those of all and :math:`\hat\mu_a` the weighted mean. Play each arm once, then

    .. math:: \arg\max_a \; \hat\mu_a + c \sqrt{\ln t / n_a}

    As in `UCB`, :math:`n_a` includes frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    gamma
        Discount, in (0, 1]; about 1 / (1 - gamma) rewards count.
    c
        Exploration weight; 1 is `UCB`'s.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], gamma leaves (0, 1], or c is negative or infinite.

    Examples
    --------
    >>> policy = DiscountedUCB([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Garivier and Moulines (2011), On upper-confidence bound policies for switching bandit problems, ALT, section 2.
    """

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        gamma: float = 0.999,
        c: float = 1.0,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        share("gamma", gamma)
        not_negative("c", c)
        self.gamma, self.c = gamma, c

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        mean = self.totals / np.where(self.counts == 0, 1, self.counts)  # weights may be below 1
        return mean[:, :, None] + (self.c * np.sqrt(self.log_t()) + HAIR) / np.sqrt(played)

    def credit(self, returned: Outcomes) -> None:
        """Discount a run's earlier rewards, then add; `counts` and `totals` are weighted."""
        for rows in turns(returned.run):
            run, arm = returned.run[rows], returned.arm[rows]
            self.counts[run] *= self.gamma
            self.totals[run] *= self.gamma
            add(self.counts, run, arm, 1.0)
            add(self.totals, run, arm, returned.reward[rows])
