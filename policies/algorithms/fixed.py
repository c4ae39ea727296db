"""The fixed threshold: what early-exit networks do without a policy."""

import numpy as np

from eex.policies.core.base import Context, Policy, Thresholds, check_threshold


class Fixed(Policy):
    """Leave at the first exit whose confidence reaches one fixed threshold.

    Parameters
    ----------
    p_tar
        The threshold, in [0, 1], at every exit.
    exits, runs, seed
        As for every `Policy`; nothing is drawn.

    Raises
    ------
    ValueError
        If the threshold leaves [0, 1].

    Examples
    --------
    >>> Fixed(p_tar=0.8, exits=2).choose(Context(frames=1)).exit_at
    array([[[0.8, 0.8, 0.8]]])

    References
    ----------
    Teerapittayanon, McDanel and Kung (2016), BranchyNet: fast inference via early exiting, ICPR.
    """

    joint = True

    def __init__(self, p_tar: float = 0.8, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(exits, runs, seed)
        self.p_tar = check_threshold("p_tar", p_tar)

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for every frame."""
        shape = (self.runs, context.frames)
        return self.same_at_every_exit(np.full(shape, self.p_tar), np.zeros(shape, dtype=np.int64))
