"""HI-LCB: offload until answering on the edge is certain to be good enough, at this confidence or a lower one."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add
from eex.policies.algorithms.one_sided import first_exit, spent
from eex.policies.algorithms.options import positive
from eex.policies.core.base import Context, Floats, Outcomes, Thresholds
from eex.policies.core.reward import last_seen


class HILCB(Arms):
    r"""HI-LCB: answer on the edge where a lower confidence bound is high enough, offload elsewhere.

    The paper offloads a frame of confidence :math:`\varphi` unless a lower bound on the edge's accuracy there reaches
    one less the price of offloading, and takes accuracy to rise with confidence. Here accuracy is unknown; what an
    answer on the edge forgoes is the gain :math:`G(\varphi) = E[\max(0, \Delta C) \mid \varphi]`, which is taken to
    fall with confidence, so :math:`1 - G` stands for accuracy. The grid cuts confidence into bins
    :math:`[\theta_k, \theta_{k+1})`. With :math:`t` frames with feedback, :math:`n_k` of them offloaded from bin
    :math:`k` for a mean gain :math:`\hat G_k`, play the first threshold :math:`\theta_k` with

    .. math:: \max_{j \le k} \Big(1 - \hat G_j - \sqrt{\alpha \ln t / n_j}\Big) > 1 - o

    and the last threshold if there is none: the maximum over lower bins is what makes this HI-LCB and not HI-LCB-lite,
    and what makes it a threshold. A bin never offloaded from bounds nothing, so all is offloaded until replies come.
    That is not blindness to delay: the highest threshold is the one that reveals all bins at once.

    With several edge exits a frame's confidence is the highest of them, which decides whether it is offloaded. With
    exit costs, a bin's gain is net of the exits that its frames would have been spared at its threshold.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1]; they are put in order.
    alpha
        Width of the bound; regret grows as the logarithm of the rounds if above 1/2.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Attributes
    ----------
    counts, totals
        Frames with feedback that were offloaded from each bin, and the sum of their gains, (runs, arms); the last is
        empty.
    known
        Frames with feedback, (runs,).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or alpha is not above 0.

    Examples
    --------
    >>> policy = HILCB([0.5, 0.7, 0.9])
    >>> policy.choose(Context(frames=2)).arm
    array([[2, 2]])
    >>> policy.known[:], policy.counts[:], policy.totals[:] = 200, [100, 100, 0], [30, 0, 0]  # only bin 0 gains
    >>> policy.choose(Context(overhead=0.2)).arm
    array([[1]])

    References
    ----------
    Chattopadhyay, Sutar, Champati and Moharir (2025), Low-regret and low-complexity learning for hierarchical
    inference, arXiv 2508.08985.
    """

    state = ("counts", "totals", "pending", "known")
    sums: tuple[str, ...] = ("counts", "totals", "known")

    def __init__(
        self, grid: Sequence[float] = GRID, alpha: float = 0.52, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(sorted(set(grid)), exits, runs, seed)
        positive("alpha", alpha)
        self.alpha = alpha
        self.known = np.zeros(runs)

    def choose(self, context: Context) -> Thresholds:
        """The same threshold for all frames."""
        log_t = np.log(np.maximum(self.known, 1))[:, None]
        mean = self.totals / np.where(self.counts == 0, 1, self.counts)  # of the gain; counts that fade may be below 1
        width = np.sqrt(self.alpha * log_t / np.maximum(self.counts, 1))
        most = np.where(self.counts > 0, mean + width, np.inf)
        price: Floats = np.broadcast_to(np.asarray(context.overhead, dtype=float), (self.runs,))
        good = np.minimum.accumulate(most, axis=1) < price[:, None]
        good[:, -1] = True
        return self.play(np.repeat(good.argmax(axis=1)[:, None], context.frames, axis=1))

    def credit(self, returned: Outcomes) -> None:
        """Add up the gains of what was offloaded, bin by bin."""
        np.add.at(self.known, returned.run, 1.0)
        gone = returned[returned.offloaded]
        edge = gone.confidence[:, :-1]
        surest: Floats = np.fmax.reduce(edge, axis=1, initial=-1.0)
        bin = np.digitize(surest, self.grid) - 1
        binned = (bin >= 0) & (bin < len(self.grid) - 1)
        gone, edge, bin = gone[binned], edge[binned], bin[binned]
        first = first_exit(edge, self.grid[bin][:, None])[:, 0]
        spared = spent(gone, first, self.reward, self.exit_cost)
        kept = last_seen(edge)[0] if self.reward == "utility" else 0.0
        add(self.counts, gone.run, bin, 1.0)
        add(self.totals, gone.run, bin, gone.reward - kept + gone.overhead + spared)
