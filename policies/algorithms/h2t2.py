"""H2T2: hierarchical inference with two thresholds, learned by exponential weights over pairs of them."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.one_sided import spent
from eex.policies.algorithms.options import positive, share, thresholds
from eex.policies.core.base import Context, Floats, Outcomes, Policy, Reward, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.world import step

FRAMES_AT_ONCE = 512  # learned from, for every pair at once


class H2T2(Policy):
    r"""Draw a pair of thresholds with weights that grow with what each pair would have earned on explored frames.

    A pair :math:`(l, u)`, :math:`l \le u`, answers at an exit what reaches :math:`u`, sends to the cloud at once what
    is below :math:`l`, and lets what lies between go on to the next exit. With probability :math:`\varepsilon` a frame
    is explored: it visits every exit and goes to the cloud, which reveals what every pair would have earned on it, and
    counts for :math:`1 / \varepsilon` frames. Else the pair is drawn with weight

    .. math:: w_{l,u} \propto \exp\Big(\eta \sum_s \frac{r_{l,u,s}}{\varepsilon}\Big)

    The paper's classifier is binary and its two errors cost differently: a score between the thresholds is offloaded,
    and the thresholds are two because the errors are. A confidence folds both sides into one, on which its rule is one
    threshold; what is taken over is the learner (pairs, exploring offloads, importance weights), with the two
    thresholds that mean something where there are several exits. With one exit the lower threshold changes nothing, and
    this is the learner of `hedge-hi` without what frames reveal by chance.

    Parameters
    ----------
    levels
        Thresholds that pairs are made of, in [0, 1].
    epsilon
        Share of the frames that is explored, in (0, 1].
    eta
        Learning rate; with `epsilon` it stays the same, so what was learned is forgotten no faster than it was learned.
    exits, runs, seed
        As for every `Policy`; the edge exits share the pair.

    Attributes
    ----------
    totals
        What each pair would have earned, weighted, (runs, pairs).

    Raises
    ------
    ValueError
        If there are no levels or they leave [0, 1], or an option is out of range.

    Examples
    --------
    >>> policy = H2T2([0.5, 0.9], exits=2)
    >>> policy.pairs.tolist()
    [[0.0, 0.5], [0.5, 0.5], [0.0, 0.9], [0.5, 0.9], [0.9, 0.9]]

    References
    ----------
    Moothedath, Agarwal, N, Gross, Champati and Moharir (2025), Inference offloading for cost-sensitive binary
    classification at the edge, arXiv 2509.15674. After its abstract.
    """

    state = ("totals",)
    joint = True

    def __init__(
        self,
        levels: Sequence[float] = GRID,
        epsilon: float = 0.05,
        eta: float = 0.02,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(exits, runs, seed)
        upper = np.unique(thresholds(levels))
        lower = np.unique(np.append(0.0, upper)) if exits > 1 else np.zeros(1)
        self.pairs = np.array([(low, high) for high in upper for low in lower if low <= high])
        share("epsilon", epsilon)
        positive("eta", eta)
        self.epsilon, self.eta = epsilon, eta
        self.totals = np.zeros((runs, len(self.pairs)))

    def choose(self, context: Context) -> Thresholds:
        """A pair drawn anew for every frame, or an exploring offload."""
        score = self.eta * self.totals
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        below = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
        u = uniform(self.seed, self.keys, context.numbers, 2)  # (runs, frames, 2)
        pair = self.pairs[(u[..., :1] >= below[:, None, :-1]).sum(axis=2)]  # (runs, frames, 2)
        explored = u[..., 1] < self.epsilon
        shape = (self.runs, context.frames)
        exit_at = np.zeros((*shape, self.exits + 1))
        exit_at[..., :-1] = np.where(explored, np.inf, pair[..., 1])[..., None]
        skip_below = np.broadcast_to(np.where(explored, 0.0, pair[..., 0])[..., None], (*shape, self.exits)).copy()
        return Thresholds(exit_at, skip_below, np.zeros(shape, dtype=np.int64), np.full(shape, np.nan), explored)

    def learn(self, outcomes: Outcomes) -> None:
        """Add up what every pair would have earned on the explored frames whose reply has come."""
        whole = outcomes.audited & ~np.isnan(outcomes.reward) & ~np.isnan(outcomes.confidence).any(axis=1)
        rows = outcomes[whole]
        for start in range(0, len(rows), FRAMES_AT_ONCE):
            some = rows[start : start + FRAMES_AT_ONCE]
            np.add.at(self.totals, some.run, self._earned(some, self.reward) / self.epsilon)

    def _earned(self, rows: Outcomes, kind: Reward) -> Floats:
        """What each pair would have earned on frames of which everything is known, (rows, pairs)."""
        shape = (len(rows), len(self.pairs), self.exits)
        exit_at = np.broadcast_to(self.pairs[:, 1, None], shape)
        skip_below = np.broadcast_to(self.pairs[:, 0, None], shape)
        confidence = np.broadcast_to(rows.confidence[:, None], (*shape[:2], self.exits + 1))
        stepped = step(confidence, exit_at, skip_below, rows.overhead[:, None], 0.0, kind=kind)
        earned: Floats = stepped.reward - spent(rows, stepped.visited - 1, kind, self.exit_cost)
        return earned
