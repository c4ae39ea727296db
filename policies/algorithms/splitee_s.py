"""SplitEE-S: an upper confidence bound that also learns what a frame reveals about lower thresholds."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add
from eex.policies.algorithms.one_sided import credit
from eex.policies.algorithms.options import not_negative
from eex.policies.core.base import Context, Outcomes, Thresholds


class SplitEES(Arms):
    r"""UCB with side observations: each frame also credits the arms below the one it was played with.

    .. math:: \arg\max_a \; \hat\mu_a + c \sqrt{\ln t / n_a}

    as AdaEE's, but :math:`n_a` and the mean :math:`\hat\mu_a` count all frames that were played with arm :math:`a` or
    a higher one (`one_sided.credit`). What frames in flight will reveal counts in :math:`n_a` already. Of arms with the
    same index the one played least is played, and of those the highest, which reveals most: the first frame tries
    every arm.

    The paper chooses the layer at which to split; here its idea is applied to thresholds. Its released code also looks
    up confidences of frames that were never inferred that far; this does not.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1]; they are put in order.
    c
        Exploration weight.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Attributes
    ----------
    counts, totals
        Rewards known of each arm and their sum, (runs, arms).
    played
        Frames with feedback that were played with each arm, (runs, arms).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or c is negative or infinite.

    Examples
    --------
    >>> policy = SplitEES([0.7, 0.8, 0.9])
    >>> policy.choose(Context(frames=4)).arm
    array([[2, 1, 0, 2]])

    References
    ----------
    Bajpai, Trivedi, Yadav and Hanawal (2023), SplitEE: early exit in deep neural networks with split computing,
    arXiv 2309.09195, algorithm SplitEE-S.
    """

    state = ("counts", "totals", "pending", "played")
    sums: tuple[str, ...] = ("counts", "totals", "played")

    def __init__(
        self, grid: Sequence[float] = GRID, c: float = 1.0, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(sorted(set(grid)), exits, runs, seed)
        not_negative("c", c)
        self.c = c
        self.played = np.zeros((runs, self.grid.size))

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames, one after another: each choice counts for all lower arms."""
        mean = self.totals / np.where(self.counts == 0, 1, self.counts)  # counts that fade may be below 1
        log_t = np.log(np.maximum(self.played.sum(axis=1, keepdims=True), 1))
        own = self.played + self.pending  # (runs, arms)
        known = self.counts + np.cumsum(self.pending[:, ::-1], axis=1)[:, ::-1]
        top, runs = self.grid.size - 1, np.arange(self.runs)
        arms = np.empty((self.runs, context.frames), dtype=np.int64)
        for k in range(context.frames):
            index = np.where(known > 0, mean + self.c * np.sqrt(log_t / np.maximum(known, 1)), np.inf)
            best = index == index.max(axis=1, keepdims=True)
            arm = top - np.where(best, own, np.inf)[:, ::-1].argmin(axis=1)
            own[runs, arm] += 1
            known += np.arange(top + 1) <= arm[:, None]
            arms[:, k] = arm
        return self.play(arms)

    def credit(self, returned: Outcomes) -> None:
        """Credit every arm that the frames reveal."""
        known, earned = credit(returned, self.grid, self.reward, self.exit_cost)
        add(self.played, returned.run, returned.arm, 1.0)
        np.add.at(self.counts, returned.run, known)
        np.add.at(self.totals, returned.run, earned)
