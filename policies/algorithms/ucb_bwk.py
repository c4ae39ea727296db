"""UCB-BwK: a bandit with a budget; optimistic about rewards and costs, it draws from the best mixture it can afford."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add
from eex.policies.algorithms.options import not_negative, share
from eex.policies.core.base import Context, Floats, Outcomes, Thresholds


class UCBBwK(Arms):
    r"""Bandits with knapsacks: earn the most while a share of the frames at most is offloaded.

    Each arm has a mean reward :math:`\mu_a` and a mean cost :math:`\rho_a`, the share of its frames that are offloaded.
    With an upper bound on the former and a lower bound on the latter,

    .. math:: u_a = \hat\mu_a + c \sqrt{\ln t / n_a}, \qquad l_a = \max\Big(0, \hat\rho_a - c \sqrt{\ln t / n_a}\Big)

    draw each frame's arm from the mixture :math:`p` that solves the linear program

    .. math:: \max_p \sum_a p_a u_a \quad \text{with} \quad \sum_a p_a l_a \le b, \; \sum_a p_a = 1

    which mixes two arms at most: one that costs less than the budget :math:`b` and one that costs more. Where no
    mixture is affordable, the arm of the lowest :math:`l_a` is played. An arm never played has no bounds and is played
    first. Probabilities are recorded.

    A stream without an end has no fixed stock that could run out, so the budget is a rate, and play never stops. The
    price of offloading is part of the reward.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    budget
        Share of the frames that may be offloaded in the long run, in (0, 1].
    c
        Width of the bounds.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Attributes
    ----------
    costs
        Frames of each arm that were offloaded, (runs, arms).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or an option is out of range.

    Examples
    --------
    >>> policy = UCBBwK([0.5, 0.9], budget=0.3, c=0.0)
    >>> policy.counts[:], policy.totals[:], policy.costs[:] = 10, [[0, 3]], [[0, 6]]  # 0.9 offloads 60 %
    >>> policy.mixture().round(2)  # so half of the frames can afford it
    array([[0.5, 0.5]])

    References
    ----------
    Agrawal and Devanur (2014), Bandits with concave rewards and convex knapsacks, EC, section 3. For early
    exits it is proposed in arXiv 2604.24810; this is the algorithm of that name in the literature, not checked against
    that paper's text.
    """

    state = ("counts", "totals", "pending", "costs")
    sums: tuple[str, ...] = ("counts", "totals", "costs")

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        budget: float = 0.2,
        c: float = 0.5,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        share("budget", budget)
        not_negative("c", c)
        self.budget, self.c = budget, c
        self.costs = np.zeros((runs, self.grid.size))

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame."""
        return self.draw(self.mixture(), context)

    def mixture(self) -> Floats:
        """The probability of each arm, (runs, arms)."""
        n = np.where(self.counts == 0, 1, self.counts)  # counts that fade may be below 1
        rounds = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        width = self.c * np.sqrt(np.log(rounds) / np.maximum(n, 1))
        most = self.totals / n + width
        least = np.maximum(self.costs / n - width, 0.0)
        # a program of one constraint: the best of all pairs of one arm within the budget and one beyond it
        cheap, dear = least[:, :, None], least[:, None, :]
        part = np.clip(
            (self.budget - cheap) / np.where(dear > cheap, dear - cheap, np.inf), 0.0, 1.0
        )  # of the dear one
        part = np.where(dear <= self.budget, 1.0, part)
        value = (1 - part) * most[:, :, None] + part * most[:, None, :]
        value = np.where(cheap <= self.budget, value, -np.inf)
        size, every = self.grid.size, np.arange(self.runs)
        first, second = np.divmod(value.reshape(self.runs, -1).argmax(axis=1), size)
        chosen: Floats = np.zeros((self.runs, size))
        chosen[every, second] = part[every, first, second]
        chosen[every, first] += 1 - part[every, first, second]
        poor = ~(least <= self.budget).any(axis=1)
        chosen[poor] = np.arange(size) == least[poor].argmin(axis=1)[:, None]
        never = self.counts == 0
        fresh = never.any(axis=1)
        chosen[fresh] = never[fresh] / never[fresh].sum(axis=1, keepdims=True)
        return chosen

    def credit(self, returned: Outcomes) -> None:
        """Add up what each arm earned, and how often it offloaded."""
        super().credit(returned)
        add(self.costs, returned.run, returned.arm, returned.offloaded.astype(float))
