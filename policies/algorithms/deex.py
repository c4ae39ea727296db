"""DEEx: the first exit does not answer, it decides whether the other side branches are worth a visit."""

import numpy as np

from eex.policies.core.base import Context, Policy, Thresholds, check_threshold
from eex.policies.core.errors import EexError


class DEEx(Policy):
    r"""Decision early exit: exit 1 sends uncertain frames straight to the cloud, skipping the other side branches.

    Frames with confidence below :math:`p_d` at exit 1 are sent. The others go on: at each middle exit they leave when
    their confidence reaches :math:`p_{tar}`, and the last edge exit answers all that are left.

    Parameters
    ----------
    p_d
        Decision threshold at exit 1, in [0, 1].
    p_tar
        Threshold of the exits after it, in [0, 1].
    extended
        The last edge exit answers only what reaches `p_tar`; the rest is offloaded (the paper's future work).
    exits, runs, seed
        As for every `Policy`; nothing is drawn. Needs two edge exits.

    Raises
    ------
    ValueError
        If a threshold leaves [0, 1] or there are fewer than two edge exits.

    Examples
    --------
    >>> chosen = DEEx(p_d=0.5, p_tar=0.8, exits=3).choose(Context(frames=1))
    >>> chosen.exit_at[0, 0], chosen.skip_below[0, 0]
    (array([inf, 0.8, 0. , 0. ]), array([0.5, 0. , 0. ]))

    References
    ----------
    Barbosa, Pacheco, Couto, Medeiros and Campista, Decision Early-Exit: an efficient approach to hasten offloading in
    BranchyNets, section III.
    """

    joint = True

    def __init__(
        self,
        p_d: float = 0.5,
        p_tar: float = 0.8,
        extended: bool = False,
        exits: int = 2,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(exits, runs, seed)
        if exits < 2:
            raise EexError(f"deex needs two edge exits: one that decides and one that answers; got {exits}")
        self.p_d = check_threshold("p_d", p_d)
        self.p_tar = check_threshold("p_tar", p_tar)
        self.extended = extended

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for every frame."""
        shape = (self.runs, context.frames)
        chosen = self.same_at_every_exit(np.full(shape, self.p_tar), np.zeros(shape, dtype=np.int64))
        chosen.exit_at[..., 0] = np.inf
        chosen.skip_below[..., 0] = self.p_d
        if not self.extended:
            chosen.exit_at[..., -2] = 0.0
            chosen.exit_at[..., -1] = 0.0  # the paper's cloud has the last word
        return chosen
