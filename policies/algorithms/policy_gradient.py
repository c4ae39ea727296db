"""A softmax policy gradient that sees the queue: thresholds that fall while many frames wait for the cloud."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add, turns
from eex.policies.algorithms.options import not_negative, positive
from eex.policies.core.base import Context, Floats, Outcomes, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.parts import Awaited, Composite

FLOOR = 0.01  # share of draws among all arms alike, so that no probability vanishes


class PolicyGradient(Composite, Arms):
    r"""Draw an arm by a softmax that is linear in the queue, and climb the gradient of what frames earn.

    With the features :math:`\phi = (1, q / (q + s))` of :math:`q` frames whose reply is awaited, each arm is drawn with

    .. math:: \pi_a = (1 - \gamma) \frac{\exp(\theta_a \cdot \phi)}{\sum_b \exp(\theta_b \cdot \phi)} + \frac\gamma K

    and after a frame's reward :math:`r`, less what it added to the queue, REINFORCE moves the parameters by

    .. math:: \theta_a \leftarrow \theta_a + \alpha \, (r - \kappa \, 1[\text{offloaded}] \, \phi_2 - \bar r)
              (1[a = A] - \pi_a) \, \phi

    where :math:`\bar r` is a running mean. A higher :math:`\kappa` lets a long queue keep more frames on the edge.
    While no reply is awaited, as in a replay without a link, the queue is empty, and this is a gradient bandit.
    Probabilities are recorded.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    alpha
        Learning rate.
    kappa
        What an offloaded frame costs in addition while the queue is long, in units of confidence.
    scale
        Number of awaited frames at which the queue's feature is 1/2.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Attributes
    ----------
    parameters
        :math:`\theta`, (runs, arms, 2).
    mean
        :math:`\bar r`, (runs,).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or an option is out of range.

    Examples
    --------
    >>> policy = PolicyGradient([0.5, 0.9])
    >>> policy.parameters[0, 1, 1] = -20.0  # as if long queues had made the high threshold earn less
    >>> policy.probabilities(np.array([0, 64])).round(2)[0]
    array([[0.5 , 0.5 ],
           [0.99, 0.01]])

    References
    ----------
    Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning. A plain
    form of what buffer-aware early exits do: a softmax, the queue among its features, and the gradient.
    """

    state = ("counts", "totals", "pending", "parameters", "average")
    parts = ("awaited",)
    joint = False  # grows with the frames awaited

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        alpha: float = 0.5,
        kappa: float = 0.1,
        scale: float = 16.0,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        self.awaited = Awaited(max(runs, 1), len(grid) + 1)  # the arms' probabilities, and the queue's feature
        super().__init__(grid, exits, runs, seed)
        positive("alpha", alpha)
        not_negative("kappa", kappa)
        positive("scale", scale)
        self.alpha, self.kappa, self.scale = alpha, kappa, scale
        self.parameters = np.zeros((runs, self.grid.size, 2))
        self.average = np.zeros(runs)

    def probabilities(self, queue: Floats) -> Floats:
        """Of the arms, (runs, queues, arms), for numbers of awaited frames (queues,) or (runs, queues)."""
        waiting = np.broadcast_to(np.asarray(queue, dtype=float), (self.runs, np.shape(queue)[-1]))
        long = waiting / (waiting + self.scale)
        score = self.parameters[:, None, :, 0] + self.parameters[:, None, :, 1] * long[..., None]
        weight = np.exp(score - score.max(axis=2, keepdims=True))
        p: Floats = (1 - FLOOR) * weight / weight.sum(axis=2, keepdims=True) + FLOOR / self.grid.size
        return p

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame, by the queue before the batch."""
        queue = np.broadcast_to(np.asarray(context.queue, dtype=float), (self.runs,))[:, None]
        p = self.probabilities(queue)  # (runs, 1, arms)
        u = uniform(self.seed, self.keys, context.numbers, 1)  # (runs, frames, 1)
        arm = (u >= np.cumsum(p, axis=2)[..., :-1]).sum(axis=2)
        each = np.repeat(np.concatenate([p, (queue / (queue + self.scale))[..., None]], axis=2), context.frames, axis=1)
        self.awaited.put(context.numbers, each)
        return self.play(arm, np.take_along_axis(each, arm[..., None], axis=2)[..., 0])

    def learn(self, outcomes: Outcomes) -> None:
        """Move the parameters along the gradient, for each frame with the probabilities it was drawn from."""
        add(self.pending, outcomes.run, outcomes.arm, -1.0)
        found, drawn = self.awaited.take(outcomes.run, outcomes.frame)
        counts = found & ~np.isnan(outcomes.reward)
        returned, drawn = outcomes[counts], drawn[counts]
        for rows in turns(returned.run):
            self._move(returned[rows], drawn[rows, :-1], drawn[rows, -1])

    def _move(self, returned: Outcomes, p: Floats, long: Floats) -> None:
        """A step for one frame of each run, or of some."""
        self.credit(returned)
        run = returned.run
        earned = returned.reward - self.kappa * returned.offloaded * long
        better = earned - self.average[run]
        step = self.alpha * better[:, None] * ((np.arange(self.grid.size) == returned.arm[:, None]) - p)
        self.parameters[run] += step[..., None] * np.stack([np.ones_like(long), long], axis=1)[:, None]
        share = np.maximum(1 / self.counts[run].sum(axis=1), 0.002)  # a mean at first, then over some 500 frames
        self.average[run] += share * better
