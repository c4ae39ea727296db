"""DEEx whose decision threshold is learned while the stream runs, by AdaEE's index."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.ucb import UCB
from eex.policies.core.base import Floats, Ints, Thresholds, check_threshold
from eex.policies.core.errors import EexError


class DEExUCB(UCB):
    r"""Decision early exit whose decision threshold is learned, with `UCB` over a grid.

    Frames with confidence below the arm at exit 1 go to the cloud at once; the others as in `DEEx`.

    Parameters
    ----------
    grid
        The arms: decision thresholds in [0, 1], shape (arms,).
    c
        Exploration weight, as for `UCB`.
    p_tar
        Threshold of the exits after the first, in [0, 1].
    extended
        The last edge exit answers only what reaches `p_tar`; the rest is offloaded.
    exits, runs, seed
        As for every `Policy`; nothing is drawn. Needs two edge exits.

    Raises
    ------
    ValueError
        If a threshold leaves [0, 1], c is negative or infinite, or there are fewer than two edge exits.

    Examples
    --------
    >>> from eex.policies.core.base import Context
    >>> chosen = DEExUCB([0.3, 0.6], exits=2).choose(Context(frames=2))
    >>> chosen.skip_below[0, :, 0], chosen.exit_at[0, 0]
    (array([0.3, 0.6]), array([inf,  0.,  0.]))

    References
    ----------
    Barbosa, Pacheco, Couto, Medeiros and Campista, Decision Early-Exit: an efficient approach to hasten offloading in
    BranchyNets, section III, for the thresholds; Pacheco et al. (2024), AdaEE, Algorithm 1, for the choice.
    """

    def __init__(
        self,
        grid: Sequence[float] = GRID,
        c: float = 1.0,
        p_tar: float = 0.8,
        extended: bool = False,
        exits: int = 2,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, c, exits, runs, seed)
        if exits < 2:
            raise EexError(f"deex-ucb needs two edge exits: one that decides and one that answers; got {exits}")
        self.p_tar = check_threshold("p_tar", p_tar)
        self.extended = extended

    def play(self, arm: Ints, probability: Floats | None = None) -> Thresholds:
        """The decision thresholds of these arms, (runs, frames); their frames are pending from now on."""
        chosen = super().play(arm, probability)
        chosen.exit_at[..., 1:] = self.p_tar
        chosen.exit_at[..., 0] = np.inf
        chosen.skip_below[..., 0] = self.grid[arm]
        if not self.extended:
            chosen.exit_at[..., -2:] = 0.0
        return chosen
