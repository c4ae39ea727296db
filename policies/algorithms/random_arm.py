"""The random policy: any threshold, whatever it earns; the baseline that every other policy must beat."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms
from eex.policies.core.base import FOREVER, Context, Thresholds


class Random(Arms):
    r"""Draw thresholds uniformly from the grid: the baseline to beat, and the best log to evaluate others from.

    Of :math:`K` arms each is drawn with probability :math:`1/K`, which is recorded.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1].

    Examples
    --------
    >>> chosen = Random([0.7, 0.8, 0.9, 1.0]).choose(Context(frames=5))
    >>> chosen.arm, chosen.probability
    (array([[3, 0, 3, 3, 2]]), array([[0.25, 0.25, 0.25, 0.25, 0.25]]))
    """

    def __init__(self, grid: Sequence[float] = GRID, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(grid, exits, runs, seed)

    def choose(self, context: Context) -> Thresholds:
        """Thresholds drawn anew for every frame."""
        return self.draw(np.full(self.counts.shape, 1 / self.grid.size), context)

    def settled_for(self, first: int) -> int:
        """For ever: whatever it learns, it draws alike."""
        return FOREVER
