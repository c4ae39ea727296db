"""Epsilon-greedy: mostly the arm that has earned most so far, now and then any arm."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms
from eex.policies.core.base import Context, Thresholds
from eex.policies.core.errors import EexError


class EpsilonGreedy(Arms):
    r"""Play the arm with the highest mean, or with probability epsilon any arm.

    With :math:`t` rounds with feedback and :math:`K` arms, the probability of any arm is

    .. math:: \varepsilon_t = \min(\varepsilon, \; d K / t)

    An arm without feedback goes before all others; arms with the same mean are played alike, so that frames
    before the first reply are spread over all arms. Probabilities are recorded.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    epsilon
        Probability of any arm, in [0, 1].
    decay
        :math:`d`, how slowly that probability shrinks; inf keeps it constant.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], epsilon leaves [0, 1], or decay is negative.

    Examples
    --------
    >>> chosen = EpsilonGreedy([0.7, 0.8, 0.9, 1.0]).choose(Context(frames=4))  # nothing is known yet
    >>> chosen.arm, chosen.probability
    (array([[3, 0, 3, 3]]), array([[0.25, 0.25, 0.25, 0.25]]))

    References
    ----------
    Auer, Cesa-Bianchi and Fischer (2002), Finite-time analysis of the multiarmed bandit problem, Machine Learning 47,
    Figure 3.
    """

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        epsilon: float = 0.1,
        decay: float = np.inf,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        if not 0 <= epsilon <= 1:
            raise EexError(f"epsilon must lie in [0, 1], got {epsilon}")
        if not decay >= 0:
            raise EexError(f"decay must be 0 or more, got {decay}")
        self.epsilon, self.decay = epsilon, decay

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame."""
        rounds = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        epsilon = np.minimum(self.epsilon, self.decay * self.grid.size / rounds)  # (runs, 1)
        mean = np.where(self.counts == 0, np.inf, self.mean()[..., 0])
        best = mean == mean.max(axis=1, keepdims=True)
        return self.draw((1 - epsilon) * best / best.sum(axis=1, keepdims=True) + epsilon / self.grid.size, context)
