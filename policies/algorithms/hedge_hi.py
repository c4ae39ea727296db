"""Hedge-HI: exponential weights over thresholds, with frames offloaded at random to learn from."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add
from eex.policies.algorithms.one_sided import credit
from eex.policies.algorithms.options import positive
from eex.policies.core.base import Context, Floats, Outcomes, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.parts import Awaited, Composite


class HedgeHI(Composite, Arms):
    r"""Hedge for hierarchical inference: draw a threshold with weights that grow with what each would have earned.

    With probability :math:`\varepsilon_t` play the highest threshold, to explore; else draw arm :math:`a` with weight
    :math:`\exp(\eta_t \hat S_a)`. A frame played with arm :math:`A` reveals the reward :math:`r_a` of every arm
    :math:`a \le A` (`one_sided.credit`), so

    .. math:: \hat S_a = \sum_s \frac{1[A_s \ge a]}{P(A_s \ge a)} \, r_{a,s}

    sums up without bias what the arm would have earned. The paper has an explored frame reveal all and weights it by
    :math:`1 / \varepsilon`; here every frame reveals what it does, with its own probability, which is never below
    :math:`\varepsilon_t` and so varies less. For :math:`K` arms and no horizon, in the round :math:`t` after as many
    were chosen,

    .. math:: \varepsilon_t = \min\big(1, \varepsilon \sqrt[3]{\ln K / t}\big), \quad
              \eta_t = \eta \sqrt{\varepsilon_t \ln K / t}

    which is the paper's order, for a regret that grows as :math:`t^{2/3}` whatever the frames are.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1]; they are put in order.
    epsilon, eta
        Factors of exploration and of the learning rate.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or a factor is not above 0.

    Examples
    --------
    >>> chosen = HedgeHI([0.5, 0.9]).choose(Context(frames=2))
    >>> chosen.arm.shape, bool((chosen.probability > 0).all())
    ((1, 2), True)

    References
    ----------
    Al-Atat, Datta, Moharir and Champati (2024), Regret bounds for online learning for hierarchical inference, MobiHoc.
    """

    state = ("counts", "totals", "pending")
    sums: tuple[str, ...] = ("counts", "totals")
    parts = ("awaited",)
    joint = False  # grows with the frames awaited

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        epsilon: float = 1.0,
        eta: float = 1.0,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        ordered = sorted(set(grid))
        self.awaited = Awaited(max(runs, 1), len(ordered))  # of each arm, how probable it or a higher one was
        super().__init__(ordered, exits, runs, seed)
        positive("epsilon", epsilon)
        positive("eta", eta)
        self.epsilon, self.eta = epsilon, eta

    def probabilities(self, frames: int) -> Floats:
        """How probable each arm is for each of the next frames, (runs, frames, arms)."""
        log_k = np.log(self.grid.size)
        t = (self.counts + self.pending).sum(axis=1)[:, None, None] + np.arange(1, frames + 1)[:, None]
        explore = np.minimum(1.0, self.epsilon * np.cbrt(log_k / t))  # (runs, frames, 1)
        score = self.eta * np.sqrt(explore * log_k / t) * self.totals[:, None, :]
        weight = np.exp(score - score.max(axis=2, keepdims=True))
        p: Floats = (1 - explore) * weight / weight.sum(axis=2, keepdims=True)
        p[..., -1:] += explore
        return p

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames, each of an arm drawn for it."""
        frames = context.numbers
        p = self.probabilities(context.frames)
        u = uniform(self.seed, self.keys, frames, 1)  # (runs, frames, 1)
        arm = (u >= np.cumsum(p, axis=2)[..., :-1]).sum(axis=2)
        self.awaited.put(frames, np.cumsum(p[..., ::-1], axis=2)[..., ::-1])
        return self.play(arm, np.take_along_axis(p, arm[..., None], axis=2)[..., 0])

    def learn(self, outcomes: Outcomes) -> None:
        """Add what each known arm earned, over the probability that it became known."""
        add(self.pending, outcomes.run, outcomes.arm, -1.0)
        found, chance = self.awaited.take(outcomes.run, outcomes.frame)
        rows = found & ~np.isnan(outcomes.reward)
        returned, chance = outcomes[rows], chance[rows]
        known, earned = credit(returned, self.grid, self.reward, self.exit_cost)
        add(self.counts, returned.run, returned.arm, 1.0)
        np.add.at(self.totals, returned.run, np.divide(earned, chance, out=np.zeros_like(earned), where=known))
