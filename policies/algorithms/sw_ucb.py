"""Sliding-window UCB, for streams that change: only the latest rewards count."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, HAIR, Arms, add, turns
from eex.policies.algorithms.options import at_least, not_negative
from eex.policies.core.base import Context, Floats, Outcomes


class SlidingWindowUCB(Arms):
    r"""UCB over the latest rewards only, for streams that change.

    Of the last :math:`\tau` rewards received, or all :math:`t` while they are fewer, let :math:`n_a` be arm
    :math:`a`'s and :math:`\hat\mu_a` their mean. Play arms that have none, else

    .. math:: \arg\max_a \; \hat\mu_a + c \sqrt{\ln \min(t, \tau) / n_a}

    As in `UCB`, :math:`n_a` includes frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    window
        :math:`\tau`, rewards that count, at least 1.
    c
        Exploration weight; 1 is `UCB`'s.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], the window is below 1, or c is negative or infinite.

    Examples
    --------
    >>> policy = SlidingWindowUCB([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Garivier and Moulines (2011), On upper-confidence bound policies for switching bandit problems, ALT, section 2.
    """

    state = (*Arms.state, "known", "recent_arm", "recent_reward")

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        window: int = 1000,
        c: float = 1.0,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        at_least("window", window, 1)
        not_negative("c", c)
        self.window, self.c = window, c
        self.known = np.zeros(runs, dtype=np.int64)  # rewards, ever
        self.recent_arm = np.zeros((runs, window), dtype=np.int64)  # a ring
        self.recent_reward = np.zeros((runs, window))

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        return self.mean() + (self.c * np.sqrt(self.log_t()) + HAIR) / np.sqrt(played)

    def credit(self, returned: Outcomes) -> None:
        """Each reward replaces the oldest; `counts` and `totals` are those of the window."""
        for rows in turns(returned.run):
            run, arm, earned = returned.run[rows], returned.arm[rows], returned.reward[rows]
            slot = self.known[run] % self.window
            full = np.where(self.known[run] < self.window, 0.0, 1.0)
            oldest = self.recent_arm[run, slot]
            add(self.counts, run, oldest, -full)
            add(self.totals, run, oldest, -self.recent_reward[run, slot])  # 0 while the ring is not full
            add(self.counts, run, arm, 1.0)
            add(self.totals, run, arm, earned)
            self.recent_arm[run, slot], self.recent_reward[run, slot] = arm, earned
            self.known[run] += 1
