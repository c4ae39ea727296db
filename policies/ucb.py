"""AdaEE's policy: the upper confidence bound over a grid of thresholds."""

from collections.abc import Sequence

import numpy as np

from eex.policies.base import Context, Outcomes, Policy, Thresholds
from eex.policies.errors import EexError

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class UCB(Policy):
    r"""Upper confidence bound: play the threshold that could plausibly be best.

    Play each arm once; then, with :math:`t` rounds heard of, :math:`n_a` of them on arm :math:`a` for a mean reward of
    :math:`\hat\mu_a`, play

    .. math:: \arg\max_a \; \hat\mu_a + c \sqrt{\ln t / n_a}

    Feedback may be late: :math:`n_a` counts what was chosen, heard of or not, so that the arms in flight look as well
    explored as they soon will be; :math:`t` and :math:`\hat\mu_a` count what was heard. Without delay this is AdaEE's
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

    state = ("counts", "totals", "pending")

    def __init__(
        self, grid: Sequence[float] = GRID, c: float = 1.0, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(exits, runs, seed)
        self.grid = np.asarray(grid, dtype=float)
        if not self.grid.size or not np.all((self.grid >= 0) & (self.grid <= 1)):
            raise EexError(f"grid must hold thresholds in [0, 1], got {list(grid)}")
        if not 0 <= c < np.inf:
            raise EexError(f"c must be 0 or more, got {c}")
        self.c = c
        self.counts = np.zeros((runs, self.grid.size))  # heard of
        self.totals = np.zeros((runs, self.grid.size))
        self.pending = np.zeros((runs, self.grid.size))  # chosen, not heard of

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames: while nothing is learned, an arm's index depends on its own counts alone."""
        frames = context.frames
        mean = self.totals / np.maximum(self.counts, 1)  # (runs, arms)
        log_t = np.log(np.maximum(self.counts.sum(axis=1), 1))
        # column k: the arm's index if it had been chosen k times more
        chosen = (self.counts + self.pending)[:, :, None] + np.arange(frames)  # (runs, arms, frames)
        bonus = self.c * np.sqrt(log_t[:, None, None] / np.maximum(chosen, 1))
        index = np.where(chosen == 0, np.inf, mean[:, :, None] + bonus)
        if frames == 1:
            best = index[..., 0] == index.max(axis=1)
            arm = np.where(best, chosen[..., 0], np.inf).argmin(axis=1)[:, None]
        else:
            # greedy choice frame by frame is a merge of the arms' falling index sequences
            flat = (self.runs, -1)
            order = np.lexsort((chosen.reshape(flat), -index.reshape(flat)), axis=1)
            arm = order[:, :frames] // frames
        np.add.at(self.pending, (np.arange(self.runs)[:, None], arm), 1)
        return self.same_at_every_exit(self.grid[arm], arm)

    def learn(self, outcomes: Outcomes) -> None:
        """Credit each arm with the rewards of the frames it was played for."""
        at = (outcomes.run, outcomes.arm)
        np.add.at(self.pending, at, -1)
        heard = ~np.isnan(outcomes.reward)
        np.add.at(self.counts, (outcomes.run[heard], outcomes.arm[heard]), 1)
        np.add.at(self.totals, (outcomes.run[heard], outcomes.arm[heard]), outcomes.reward[heard])
