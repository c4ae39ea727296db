"""EENet's budgeted scheduler: how many frames leave at each exit is planned in advance, within a mean cost."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.options import at_least, share
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Thresholds
from eex.policies.core.errors import EexError

STEPS = (0.1, 0.05, 0.02, 0.01)
"""Shares of the frames that are moved from exit to exit, in turn, in search of better ones."""
HALVINGS = 40


def shares_within(costs: Floats, budget: float) -> Floats:
    """Shares of the frames that leave at each exit, in geometric proportion, that cost a mean of `budget`, (exits,).

    This is how MSDNet spends a budget, and where EENet's shares begin.

    Parameters
    ----------
    costs
        Of leaving at each exit, (exits,), rising.
    budget
        Between the first of the costs and the last.
    """
    low, high = -20.0, 20.0  # logarithm of the ratio of one share to the one before
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _geometric(len(costs), middle) @ costs <= budget else (low, middle)
    return _geometric(len(costs), low)


def scheduled(confidence: Floats, costs: Floats, budget: float) -> Floats:
    """Thresholds, (exits - 1,), with the highest mean confidence within a mean cost; inf where no frame is to leave.

    At each exit its share of the frames leaves, the surest of those left first; shares begin in geometric
    proportion, and are moved between two exits as long as the mean confidence of the answers grows within the budget.

    Parameters
    ----------
    confidence
        Of every exit of some frames, (frames, exits).
    costs, budget
        As for `shares_within`.

    Examples
    --------
    >>> confidence = np.array([[0.9, 1.0], [0.8, 1.0], [0.7, 1.0], [0.6, 1.0]])
    >>> scheduled(confidence, np.array([1.0, 3.0]), budget=2.0)  # half of the frames can afford the second exit
    array([0.8])
    """
    exits = len(costs)
    shares = shares_within(costs, budget)
    best, thresholds = _leave(confidence, shares)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for here in range(exits):
                for there in range(exits):
                    other = shares.copy()
                    amount = min(step, other[here])
                    other[here] -= amount
                    other[there] += amount
                    if amount < 1e-9 or other @ costs > budget + 1e-9:
                        continue
                    mean, found = _leave(confidence, other)
                    if mean > best + 1e-9:
                        best, thresholds, shares, moved = mean, found, other, True
    return thresholds


def _geometric(exits: int, log_ratio: float) -> Floats:
    weight = np.exp(log_ratio * np.arange(exits) - max(0.0, log_ratio * (exits - 1)))
    shares: Floats = weight / weight.sum()
    return shares


def _leave(confidence: Floats, shares: Floats) -> tuple[float, Floats]:
    """The mean confidence of the answers if such shares of the frames leave, the surest first; and the thresholds."""
    frames, exits = confidence.shape
    left, thresholds, total = np.arange(frames), np.full(exits - 1, np.inf), 0.0
    gone = np.ceil(np.cumsum(shares) * frames - 1e-6).astype(int)  # rounded so that no more frames go on than may
    for e in range(exits - 1):
        count = gone[e] - (frames - len(left))
        order = left[np.argsort(-confidence[left, e], kind="stable")]
        if count:
            thresholds[e] = confidence[order[count - 1], e]
        total += confidence[order[:count], e].sum()
        left = order[count:]
    return float(total + confidence[left, -1].sum()) / frames, thresholds


class EENet(Policy):
    """Plan on the first frames how many leave at each exit within a budget, and never change the plan.

    EENet plans on a validation set before it is deployed: it learns a score for each exit and how many frames leave
    there, so that the mean cost keeps a budget, and turns that into thresholds on the score. Here the first `plan`
    frames are that set. They visit every exit and the cloud, whatever they cost; then thresholds are fitted
    (`scheduled`) and never change. So it is a reference for what planning offline gains and loses, and it neither
    explores nor notices when the stream changes.

    Its scores are learned from labels, which no policy sees; the score here is the confidence, and shares are found by
    search where EENet learns them.

    Parameters
    ----------
    budget
        Mean cost per frame, as a share of what the whole network costs, in (0, 1].
    costs
        Of leaving at each exit, the cloud last, rising; by default 1, 2, 3, …
    plan
        Frames to plan on.
    exits, runs, seed
        As for every `Policy`; nothing is drawn.

    Attributes
    ----------
    sample
        Confidences of the frames to plan on, (runs, plan, exits + 1).
    frames
        How many of them there are so far, (runs,).
    levels
        The thresholds, (runs, exits); 0 until there are any.

    Raises
    ------
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> EENet(exits=2).choose(Context()).exit_at[0, 0].tolist()
    [inf, inf, 0.0]

    References
    ----------
    Ilhan, Chow, Hu, Huang, Tekin, Wei, Wu, Lee, Kompella, Latapie and Liu (2024), Adaptive deep neural network
    inference optimization with EENet, WACV. Huang, Chen, Li, Wu, van der Maaten and Weinberger (2018), Multi-scale
    dense networks for resource efficient image classification, ICLR, for shares in geometric proportion.
    """

    state = ("sample", "frames", "levels")
    joint = True

    def __init__(
        self,
        budget: float = 0.6,
        costs: Sequence[float] = (),
        plan: int = 1000,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(exits, runs, seed)
        share("budget", budget)
        at_least("plan", plan, 2)
        given = np.asarray(costs, dtype=float) if len(costs) else np.arange(1.0, exits + 2)
        rising = (
            given.shape == (exits + 1,) and np.isfinite(given).all() and given[0] > 0 and (np.diff(given) > 0).all()
        )
        if not rising:
            raise EexError(f"costs must be {exits + 1} rising numbers above 0, the cloud's last; got {list(costs)}")
        self.costs = given / given[-1]
        self.budget = budget
        self.sample = np.zeros((runs, plan, exits + 1))
        self.frames: Ints = np.zeros(runs, dtype=np.int64)
        self.levels = np.zeros((runs, exits))

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for all frames; until there are any, all go to the cloud."""
        shape = (self.runs, context.frames)
        planning = self.frames < self.sample.shape[1]
        exit_at = np.zeros((*shape, self.exits + 1))
        exit_at[..., :-1] = np.where(planning[:, None], np.inf, self.levels)[:, None]
        return Thresholds(
            exit_at=exit_at,
            skip_below=np.zeros((*shape, self.exits)),
            arm=np.zeros(shape, dtype=np.int64),
            probability=np.full(shape, np.nan),
            audited=np.broadcast_to(planning[:, None], shape).copy(),
        )

    def learn(self, outcomes: Outcomes) -> None:
        """Keep the confidences of the frames to plan on; when there are enough, fit the thresholds."""
        most = self.sample.shape[1]
        if (self.frames == most).all():
            return
        whole = ~np.isnan(outcomes.reward) & ~np.isnan(outcomes.confidence).any(axis=1)
        for run in np.unique(outcomes.run[whole]).tolist():
            taken = int(self.frames[run])
            new = outcomes.confidence[whole & (outcomes.run == run)][: most - taken]
            if not len(new):
                continue
            self.sample[run, taken : taken + len(new)] = new
            self.frames[run] += len(new)
            if self.frames[run] == most:
                # the cloud's answer counts where it is surer than the edge's
                sure = np.column_stack([self.sample[run, :, :-1], self.sample[run, :, -2:].max(axis=1)])
                self.levels[run] = scheduled(sure, self.costs, max(self.budget, float(self.costs[0])))
