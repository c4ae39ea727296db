"""What all policies that play one arm of a grid of thresholds share: the grid, each arm's rewards, play by index."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eex.policies.algorithms.options import thresholds
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Reward, Thresholds
from eex.policies.core.draws import uniform

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HAIR = 1e-9
"""The least exploration: of arms that look alike, the one chosen least is played."""


class Arms(Policy):
    """Plays one threshold of a grid in each round, at every exit, and sums up what each has earned.

    A subclass gives an `index`, whose highest arm is played, or draws arms and overrides `choose`.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Attributes
    ----------
    counts, totals
        Rewards received and their sum, (runs, arms).
    pending
        Frames chosen whose feedback is pending, (runs, arms).

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1].
    """

    state: tuple[str, ...] = ("counts", "totals", "pending")
    joint = True

    def __init__(self, grid: Sequence[float], exits: int, runs: int, seed: int) -> None:
        super().__init__(exits, runs, seed)
        self.grid = thresholds(grid)
        self.counts = np.zeros((runs, self.grid.size))
        self.totals = np.zeros((runs, self.grid.size))
        self.pending = np.zeros((runs, self.grid.size))
        self._ones, self._rows = np.ones(self.grid.size), np.arange(runs)[:, None]

    def index(self, played: Floats, context: Context) -> Floats:
        """Index of each arm if it had been chosen `played` times, pending frames included, (runs, arms, frames).

        It must fall with `played` and depend on nothing else that choosing changes; `played` is above 0.
        """
        raise NotImplementedError

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames: each plays the arm of the highest index, first those never chosen."""
        frames = context.frames
        played = (self.counts + self.pending)[:, :, None]  # (runs, arms, frames)
        fresh = np.count_nonzero(played) < played.size
        if frames > 1:
            played = played + np.arange(frames)  # column k: as if the arm had been chosen k more times
        if fresh:
            never = played == 0
            played[never] = 1.0
        index = self.index(played, context)
        if fresh:
            index[never] = np.inf
        if frames == 1:
            arm = index[..., 0].argmax(axis=1)[:, None]
        else:
            # greedy choice frame by frame is a merge of the arms' falling index sequences
            order = np.argsort(-index.reshape(self.runs, -1), axis=1, kind="stable")
            arm = order[:, :frames] // frames
        return self.play(arm)

    def draw(self, probability: Floats, context: Context) -> Thresholds:
        """Thresholds for the next frames, each of an arm drawn with these probabilities, (runs, arms)."""
        u = uniform(self.seed, self.keys, context.numbers, 1)  # (runs, frames, 1)
        arm = (u >= np.cumsum(probability, axis=1)[:, None, :-1]).sum(axis=2)
        return self.play(arm, np.take_along_axis(probability, arm, axis=1))

    def play(self, arm: Ints, probability: Floats | None = None) -> Thresholds:
        """The thresholds of these arms, (runs, frames); their frames are pending from now on."""
        add(self.pending, self._rows, arm, 1.0)
        return self.same_at_every_exit(self.grid[arm], arm, probability)

    def learn(self, outcomes: Outcomes) -> None:
        """Credit each arm with the rewards of the frames it was played for."""
        add(self.pending, outcomes.run, outcomes.arm, -1.0)
        unheard = np.isnan(outcomes.reward)
        self.credit(outcomes[~unheard] if np.count_nonzero(unheard) else outcomes)

    def credit(self, returned: Outcomes) -> None:
        """Take in frames with a reward."""
        add(self.counts, returned.run, returned.arm, 1.0)
        add(self.totals, returned.run, returned.arm, returned.reward)

    def mean(self) -> Floats:
        """Mean reward of each arm, (runs, arms, 1); 0 without feedback."""
        return (self.totals / np.maximum(self.counts, 1))[:, :, None]

    def log_t(self) -> Floats:
        """Logarithm of the rounds with feedback, (runs, 1, 1); a hair above 0 at first."""
        rounds = self.counts @ self._ones  # sum(axis=1), but fast
        log_t: Floats = np.maximum(np.log(np.maximum(rounds, 1)), HAIR)
        return log_t[:, None, None]


def add(table: Floats, run: Ints, arm: Ints, amount: float | Floats) -> None:
    """Add to cells of a table (runs, arms), in order where they repeat; flat, which is much faster."""
    if arm.size == 1:
        table[run.item(), arm.item()] += amount if isinstance(amount, float) else amount.item()
        return
    np.add.at(table.reshape(-1), run * table.shape[1] + arm, amount)


def variance(counts: Floats, totals: Floats, squares: Floats) -> Floats:
    """Variance of each arm's rewards from their sum and the sum of their squares, (runs, arms, 1)."""
    n = np.maximum(counts, 1)
    return np.maximum(squares / n - (totals / n) ** 2, 0)[:, :, None]


def turns(run: Ints) -> Iterator[Any]:
    """Rows of outcomes, split so that no run occurs twice in a part, for updates that depend on their order."""
    if (run[1:] > run[:-1]).all():
        yield slice(None)
        return
    order = np.argsort(run, kind="stable")
    first = np.searchsorted(run[order], run[order])  # of the same run
    turn = np.empty_like(order)
    turn[order] = np.arange(len(run)) - first
    for k in range(turn.max() + 1):
        yield np.flatnonzero(turn == k)


def scaled(reward: Floats, overhead: float | Floats, kind: Reward, cost: float | Floats = 0.0) -> Floats:
    """Rewards on the scale from the least that a frame can earn, 0, to the most, 1.

    AdaEE's reward lies in [-o - k, 1 - o], where o is the overhead and k the `cost` of all further exits; the utility
    in [-o - k, 1], since a sure frame may leave on the edge.

    Examples
    --------
    >>> scaled(np.array([-0.25, 0.0, 0.75]), 0.25, "adaee"), scaled(np.array([-0.25, 0.0, 1.0]), 0.25, "utility")
    (array([0.  , 0.25, 1.  ]), array([0. , 0.2, 1. ]))
    """
    span = 1.0 if kind == "adaee" else 1.0 + overhead
    found: Floats = (reward + overhead + cost) / (span + cost)
    return found
