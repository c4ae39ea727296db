"""LinUCB: the threshold whose reward, linear in what is known before inference, could plausibly be best."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add
from eex.policies.algorithms.features import Features
from eex.policies.algorithms.options import not_negative, positive
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Thresholds
from eex.policies.core.parts import Awaited, Composite


class LinUCB(Composite, Arms):
    r"""LinUCB with disjoint models: each arm's reward is linear in the features known before inference.

    With features :math:`x` (those of `Features`, and a 1), and for each arm :math:`a` the inverse
    :math:`A_a^{-1} = (\lambda I + \sum x x^T)^{-1}` and :math:`b_a = \sum r x` over its frames with feedback, play

    .. math:: \arg\max_a \; x^T A_a^{-1} b_a + \alpha \sqrt{\frac{s_a}{1 + m_a s_a}}, \quad s_a = x^T A_a^{-1} x

    where :math:`m_a` frames of the arm are in flight: were their features those of this frame, counting them in
    :math:`A_a` would leave just that (Sherman and Morrison). Without delay it is the paper's. Of arms with the same
    index, the first is played.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1].
    alpha
        Exploration weight.
    ridge
        :math:`\lambda`, above 0.
    experts
        Columns for the distortion classifier, as for `Features`.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Attributes
    ----------
    inverse, vector
        :math:`A_a^{-1}`, (runs, arms, d, d), and :math:`b_a`, (runs, arms, d).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or an option is outside its range.

    Examples
    --------
    >>> LinUCB([0.5, 0.7, 0.9]).choose(Context(frames=4)).arm  # no reply yet: every arm in turn
    array([[0, 1, 2, 0]])

    References
    ----------
    Li, Chu, Langford and Schapire (2010), A contextual-bandit approach to personalized news article recommendation,
    WWW, algorithm 1.
    """

    state = ("counts", "totals", "pending", "inverse", "vector")
    sums: tuple[str, ...] = ()  # an inverse does not add up
    parts = ("features", "awaited")
    joint = False  # grows with the frames awaited

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        alpha: float = 0.5,
        ridge: float = 1.0,
        experts: int = 4,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        self.features = Features(max(exits, 1), max(runs, 1), experts)
        d = len(self.features.names) + 1
        self.awaited = Awaited(max(runs, 1), d)  # the features each frame was chosen by
        super().__init__(grid, exits, runs, seed)
        not_negative("alpha", alpha)
        positive("ridge", ridge)
        self.alpha = alpha
        self.inverse: Floats = np.tile(np.eye(d) / ridge, (runs, self.grid.size, 1, 1))
        self.vector: Floats = np.zeros((runs, self.grid.size, d))

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames, one after another: each choice makes its arm look better explored."""
        x = np.concatenate([np.ones((self.runs, context.frames, 1)), self.features.vector(context)], axis=2)
        self.awaited.put(context.numbers, x)
        in_flight, runs = self.pending.copy(), np.arange(self.runs)
        arms = np.empty((self.runs, context.frames), dtype=np.int64)
        for k in range(context.frames):
            frame = x[:, k, :, None]  # (runs, d, 1)
            ahead = (self.inverse @ frame[:, None])[..., 0]  # (runs, arms, d)
            mean, s = (ahead * self.vector).sum(axis=2), (ahead @ frame)[..., 0]
            arm = (mean + self.alpha * np.sqrt(np.maximum(s, 0) / (1 + in_flight * s))).argmax(axis=1)
            in_flight[runs, arm] += 1
            arms[:, k] = arm
        return self.play(arms)

    def learn(self, outcomes: Outcomes) -> None:
        """Credit each arm with the rewards of its frames, given their features then."""
        add(self.pending, outcomes.run, outcomes.arm, -1.0)
        found, x = self.awaited.take(outcomes.run, outcomes.frame)
        rows = found & ~np.isnan(outcomes.reward)
        returned, x = outcomes[rows], x[rows]
        super().credit(returned)
        np.add.at(self.vector, (returned.run, returned.arm), returned.reward[:, None] * x)
        for part in _alone(returned.run * self.grid.size + returned.arm):
            at = (returned.run[part], returned.arm[part])
            ahead = (self.inverse[at] @ x[part][:, :, None])[..., 0]  # (rows, d); Sherman and Morrison
            self.inverse[at] -= (
                ahead[:, :, None] * ahead[:, None, :] / (1 + (x[part] * ahead).sum(axis=1))[:, None, None]
            )
        self.features.update(outcomes)


def _alone(cell: Ints) -> list[Ints]:
    """Rows in parts in which no cell occurs twice, in order."""
    parts: list[Ints] = []
    left = np.arange(len(cell))
    while len(left):
        first = np.unique(cell[left], return_index=True)[1]
        parts.append(left[first])
        left = np.delete(left, first)
    return parts
