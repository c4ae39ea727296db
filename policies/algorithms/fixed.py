"""The fixed threshold: what early-exit networks do without a policy."""

from collections.abc import Sequence

import numpy as np

from eex.policies.core.base import Context, Policy, Thresholds, check_threshold
from eex.policies.core.errors import EexError


class Fixed(Policy):
    """Leave at the first exit whose confidence reaches a fixed threshold.

    Parameters
    ----------
    p_tar
        The threshold, in [0, 1], at every exit; or one per edge exit. Hardly any confidence reaches 1, so "1,1,0.8"
        decides at the last of three edge exits. A further number is the final exit's; by default it has that of
        the exit before. Where a reply is below it, the most confident exit answers; with 0 the final exit always does.
    exits, runs, seed
        As for every `Policy`; nothing is drawn.

    Raises
    ------
    ValueError
        If a threshold leaves [0, 1], or their number is neither 1, nor that of the edge exits, nor that of all exits.

    Examples
    --------
    >>> Fixed(p_tar=0.8, exits=2).choose(Context(frames=1)).exit_at
    array([[[0.8, 0.8, 0.8]]])

    References
    ----------
    Teerapittayanon, McDanel and Kung (2016), BranchyNet: fast inference via early exiting, ICPR.
    """

    joint = True

    def __init__(self, p_tar: float | Sequence[float] = 0.8, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(exits, runs, seed)
        given = np.atleast_1d(np.asarray(p_tar, dtype=float)).tolist()
        if len(given) not in (1, exits, exits + 1):
            raise EexError(f"p_tar must be one threshold, or one for each of {exits} edge exits, got {len(given)}")
        checked = [check_threshold("p_tar", threshold) for threshold in given]
        self.p_tar = (
            np.resize(checked, exits + 1) if len(given) == 1 else np.array([*checked, checked[-1]][: exits + 1])
        )

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for every frame."""
        shape = (self.runs, context.frames)
        chosen = self.same_at_every_exit(np.zeros(shape), np.zeros(shape, dtype=np.int64))
        chosen.exit_at[:] = self.p_tar
        return chosen
