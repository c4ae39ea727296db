"""AdaEE's policy: the upper confidence bound over a grid of thresholds."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, HAIR, Arms
from eex.policies.algorithms.options import not_negative
from eex.policies.core.base import Context, Floats


class UCB(Arms):
    r"""Upper confidence bound: play the threshold that could plausibly be best.

    Play each arm once; then, with :math:`t` rounds with feedback, :math:`n_a` of them on arm :math:`a` for a mean
    reward of :math:`\hat\mu_a`, play

    .. math:: \arg\max_a \; \hat\mu_a + c \sqrt{\ln t / n_a}

    Feedback may be late: :math:`n_a` includes frames whose feedback is pending, so that arms in flight look as well
    explored as they soon will be; :math:`t` and :math:`\hat\mu_a` do not include them. Without delay this is AdaEE's
    index. Of arms with the same index, the one chosen least is played.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    c
        Exploration weight; 1 is AdaEE's, sqrt(2) is UCB1's for rewards in [0, 1].
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or c is negative or infinite.

    Examples
    --------
    >>> policy = UCB([0.7, 0.8, 0.9], c=1.0)
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Auer, Cesa-Bianchi and Fischer (2002), Finite-time analysis of the multiarmed bandit problem, Machine Learning 47,
    Figure 1; Pacheco et al. (2024), AdaEE, Algorithm 1.
    """

    def __init__(
        self, grid: Sequence[float] = GRID, c: float = 1.0, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        not_negative("c", c)
        self.c = c

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        return self.mean() + (self.c * np.sqrt(self.log_t()) + HAIR) / np.sqrt(played)
