"""Our own policy for several exits: learn what going on is worth at each exit, by backward induction."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.borrowing import Lender, lender, with_borrowed
from eex.policies.algorithms.change import Change
from eex.policies.algorithms.curves import (
    BINS,
    COARSE,
    PRIOR_MEAN,
    REST,
    THRESHOLDS,
    VARIANCES,
    bin_of,
    bins_of,
    blocks,
    checked_options,
    frames_until_news,
    pieces,
    relative_gain,
    rescale,
    shares_below,
    smoothed,
    weigh,
)
from eex.policies.algorithms.stopping import Decision, decide
from eex.policies.core.base import LARGEST_WEIGHT, Context, ExitCost, Floats, Ints, Outcomes, Thresholds
from eex.policies.core.fleet import Layout
from eex.policies.core.parts import Composite
from eex.policies.core.reward import last_seen

UNDECIDED = -1.0  # no price is below 0
TOGETHER = 16  # frames within which runs decide together: deciding one by one would take longer


class StopCurve(Composite):
    r"""Learn at which confidence going on pays, at every exit: optimal stopping from one-sided feedback.

    A frame that leaves exit :math:`i` with confidence :math:`c` has the utility :math:`c`. One that goes on to the
    next exit pays the exit cost :math:`k` and finds itself there with some confidence :math:`c'`; one that is offloaded
    pays the overhead :math:`o` and gains :math:`\max(0, \Delta C)`. So the value of going on from exit :math:`i` is

    .. math:: Q_i(c) = E\big[V_{i+1}(c_{i+1}) \mid c_i = c\big] - k, \qquad
              V_i(c) = \max\big(c,\; Q_i(c),\; S_i(c)\big),

    where :math:`Q` of the last edge exit is :math:`c + (1 - c)\, r(c) - o`, with the relative gain :math:`r` of
    `gain-curve`, and :math:`S_i` is the same for a frame that skips the exits in between and goes to the cloud at once.

    Whether a frame went on from exit :math:`i` depended on :math:`c_i` alone. So the pairs (bin of :math:`c_i`, bin of
    :math:`c_{i+1}`) of the frames that did, counted and smoothed over neighbouring bins, estimate every
    :math:`Q_i` without bias, and backward induction from the last exit to the first computes them all. What is played
    is the policy that would be best if every curve were as high as it plausibly can be (by `beta` standard errors over
    all exits together, never above 1): the threshold of each exit is

    .. math:: \tau_i = \arg\max_\tau \sum_{c < \tau} p_i(c) \big(Q^+_i(c) - c\big)

    over the confidences :math:`p_i` with which frames arrive there, and frames below a second threshold skip to the
    cloud where that is likely to be worth more than going on.

    What is learned is forgotten exponentially; when the first exit's confidences, or the gains of offloading beside
    their curve, change at once (`eex.policies.algorithms.change.Change`), it begins anew. With one edge exit it makes
    the choices of `gain-curve`. It maximises the utility, whatever the reward that is counted.

    What a fleet has learned (`take_fleet`) is borrowed as `eex.policies.algorithms.borrowing` says.

    Parameters
    ----------
    grid
        Thresholds that may be played, in [0, 1].
    memory
        Frames after which what was learned has lost two thirds of its weight; 0 never forgets.
    beta
        Standard errors above its mean up to which a curve is taken for plausible; 0 is greedy, and may get stuck.
    alarm
        How sure it must be that the stream has changed before it begins anew, see `Change`; 0 = it never does.
    skip
        Whether frames may skip the exits in between on their way to the cloud.
    exits, runs, seed
        As for every `Policy`; nothing is drawn.

    Raises
    ------
    EexError
        If the grid is empty or leaves [0, 1], or `memory`, `beta` or `alarm` is out of range.

    Examples
    --------
    >>> policy = StopCurve(exits=2)
    >>> policy.choose(Context(overhead=0.5, exit_cost=0.1)).exit_at[0, 0].round(2).tolist()  # of the prior alone
    [0.84, 0.22, 0.0]
    """

    state = (
        "moves", "offloads", "gains", "squares", "seen", "known", "news", "weight", "frames", "turn", "decided",
        "exit_at", "skip_below", "curve",
    )  # fmt: skip
    parts = ("change",)
    joint = True
    priced = True
    _lender: Lender | None = None

    def __init__(
        self,
        grid: Sequence[float] = THRESHOLDS,
        memory: float = 4000.0,
        beta: float = 1.0,
        alarm: float = 4.0,
        skip: bool = True,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        self.grid, self.growth = checked_options(grid, memory, beta, alarm)
        self.change = Change(runs, alarm, VARIANCES)
        super().__init__(exits, runs, seed)
        self.beta = beta / exits**0.5  # of one exit; what a frame may gain on its way adds them up
        self.skip = skip and exits > 1
        self.moves = np.zeros((runs, exits - 1, COARSE, COARSE))  # frames that went on, by confidence here and there
        self.offloads = np.zeros((runs, exits, BINS))  # frames that came back, by the exit that sent them
        self.gains = np.zeros((runs, exits, BINS))  # sums of their relative gains
        self.squares = np.zeros((runs, exits))  # sums of the squares
        self.seen = np.zeros((runs, exits, BINS))  # all frames that visited an exit
        self.known = np.zeros(runs)  # weight of all frames
        self.news = np.zeros(runs)  # and of those since the last decision
        self.weight = np.ones(runs)  # of the next frame: it grows, so that what is old counts less and less
        self.frames = np.zeros(runs, dtype=np.int64)  # with feedback
        self.turn = np.zeros(runs, dtype=np.int64)  # of the last decision: frames // TOGETHER
        self.decided = np.full((runs, exits), UNDECIDED)  # overhead and exit costs that were decided for
        self.exit_at = np.zeros((runs, exits))
        self.skip_below = np.zeros((runs, exits))
        self.curve = np.full((runs, exits, BINS), PRIOR_MEAN)  # relative gain of offloading, as last estimated
        self._below = shares_below(self.grid)

    # ---- choosing

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for all frames, decided anew when enough has been learned since."""
        if self.runs == 1 and not self._due(context):
            return _played(self.exit_at, self.skip_below, context.frames)
        if self.change.alarmed.any():
            self._forget(np.flatnonzero(self.change.alarmed))
        price = np.empty((self.runs, self.exits))  # of offloading, then of each further exit
        price[:, 0], price[:, 1:] = context.overhead, context.exit_cost
        turn = self._turn()
        due = (self.news * REST > self.known) & (turn != self.turn) | (self.decided != price).any(axis=1)
        exit_at, skip_below = self.exit_at, self.skip_below
        if due.any():
            rows = np.flatnonzero(due)
            exit_at, skip_below = exit_at.copy(), skip_below.copy()
            for block in blocks(len(rows)):
                some = rows[block]
                decision = self._decide(some, price[some])
                exit_at[some], skip_below[some] = decision.exit_at, decision.skip_below
                learned = self.known[some] > 0  # the curve of the prior is no state: nothing was learned
                at = _adjoining(some) if learned.all() else some[learned]
                for i, curve in decision.curves.items():
                    self.curve[at, i] = curve.T if learned.all() else curve.T[learned]
            rows = rows[self.known[rows] > 0]
            self.exit_at[rows], self.skip_below[rows] = exit_at[rows], skip_below[rows]
            self.decided[rows], self.turn[rows], self.news[rows] = price[rows], turn[rows], 0.0
        return _played(exit_at, skip_below, context.frames)

    def _due(self, context: Context) -> bool:
        """Whether the only run has to decide anew: as `choose` asks of many, in plain numbers."""
        if self.change.alarmed[0]:
            return True
        turn = self.frames[0] // (TOGETHER if self.exits > 1 else 1)
        if self.news[0] * REST > self.known[0] and turn != self.turn[0]:
            return True
        overhead, *costs = self.decided[0].tolist()
        if not isinstance(context.overhead, float) or overhead != context.overhead:
            return True
        if isinstance(context.exit_cost, float):
            return any(cost != context.exit_cost for cost in costs)
        return bool((self.decided[:, 1:] != context.exit_cost).any())

    def settled_for(self, first: int) -> int:
        """Until a run decides anew, or may notice that its stream has changed."""
        late, first = max(-first, 0), max(first, 0)
        if self.change.alarmed.any() or not self.known.all():
            return 1 + late
        turn = self._turn()
        due = (self.news * REST > self.known) & (turn != self.turn) | (self.decided[:, 0] == UNDECIDED)
        until = frames_until_news(self.known, np.where(due, 0.0, self.news), self.weight, self.growth)
        if self.exits > 1:  # not before the next turn, if it has decided in this one
            same = np.where(due | (turn == self.turn), TOGETHER - self.frames % TOGETHER, 1)
            until = np.maximum(until, same)
        return late + min(int(until.min()), self.change.settled_for(first))

    def _turn(self) -> Ints:
        """Of each run: in one it decides but once, (runs,)."""
        return self.frames // (TOGETHER if self.exits > 1 else 1)

    def _forget(self, rows: Ints) -> None:
        """Begin anew."""
        for array in (self.moves, self.offloads, self.gains, self.squares, self.seen, self.known, self.news):
            array[rows] = 0
        self.weight[rows], self.decided[rows], self.curve[rows] = 1.0, UNDECIDED, PRIOR_MEAN
        self.change.begin(rows)

    # ---- a fleet

    @property
    def layout(self) -> Layout:
        """Of the sums that it shares."""
        return Layout(self.exits, BINS, COARSE)

    def sums(self) -> Floats:
        """What it has learned, in frames as they count now, (runs, size)."""
        return self.layout.flat(self._sums(slice(None))) / self.weight[:, None]

    def take_fleet(self, flat: Floats) -> None:
        """Borrow from now on from what others have learned.

        Parameters
        ----------
        flat
            Their sums, (1, size), or (runs, size) where each run has others.
        """
        self._lender = lender(self.layout, flat)
        self.decided[:] = UNDECIDED  # what was decided knew nothing of them

    def _sums(self, rows: Ints | slice) -> dict[str, Floats]:
        """The sums of some runs by name; to be read only, as those of runs side by side are not copied."""
        at = rows if isinstance(rows, slice) else _adjoining(rows)
        return {name: getattr(self, name)[at] for name in self.layout.shapes}

    def relative_gain(self) -> tuple[Floats, Floats, Floats]:
        """What offloading gains by confidence at the last edge exit, as learned so far: the relative gain, one standard
        error of it, and the weight of the frames that came back, in frames as they count now; (runs, bins) each, over
        `CENTRES`."""
        offloads, gains, squares = (array[:, -1] for array in (self.offloads, self.gains, self.squares))
        near, gained = smoothed(offloads, gains, self.weight)
        curve, error = relative_gain(near, gained, offloads, gains, squares, self.weight)
        return curve.T, error.T, offloads / self.weight[:, None]

    def going_on(self, overhead: float, exit_cost: ExitCost = 0.0) -> Floats:
        """What going on from each exit is worth by confidence, as high as it plausibly is, (runs, exits, bins)."""
        price = np.empty((self.runs, self.exits))
        price[:, 0], price[:, 1:] = overhead, exit_cost
        worth = self._decide(np.arange(self.runs), price).worth
        return np.stack([worth[i].T for i in range(self.exits)], axis=1)

    def _decide(self, rows: Ints, price: Floats) -> Decision:
        """What some runs would play at a price, (rows, exits): of offloading, then of each further exit."""
        unit = self.weight[rows]  # of the prior: what a frame learned now would weigh
        sums = self._sums(rows)
        if self._lender is not None:
            sums = with_borrowed(sums, self._lender, unit[:, None], rows)
        return decide(sums, unit, price, self.grid, self._below, self.beta, self.skip)

    # ---- learning

    def learn(self, outcomes: Outcomes) -> None:
        """Count visits, moves from exit to exit, and the relative gains of offloaded frames."""
        for piece in pieces(outcomes, self.runs):
            self._learn(piece)

    def _learn(self, outcomes: Outcomes) -> None:
        if len(outcomes) == 1:
            self._learn_one(outcomes)
            return
        run, exits = outcomes.run, self.exits
        counts = ~np.isnan(outcomes.reward + outcomes.confidence[:, 0])  # a network may be at a loss, too
        weight = weigh(self.weight, self.growth, run, counts, self.known, self.news)
        np.add.at(self.frames, run if counts.all() else run[counts], 1)
        here = np.ascontiguousarray(outcomes.confidence[:, :-1].T)  # (exits, rows)
        bins = bins_of(here)
        of = run * exits  # the run's first exit
        np.add.at(self.seen.reshape(-1), of * BINS + bins[0], weight)
        for i in range(1, exits):  # an exit that a frame did not visit learns nothing
            went = (here[i] == here[i]).nonzero()[0]
            if not len(went):
                break
            heavy, before, now = weight.take(went), bins[i - 1].take(went), bins[i].take(went)
            np.add.at(self.seen.reshape(-1), (of.take(went) + i) * BINS + now, heavy)
            before, now = before // (BINS // COARSE), now // (BINS // COARSE)
            cell = ((run.take(went) * (exits - 1) + i - 1) * COARSE + before) * COARSE + now
            np.add.at(self.moves.reshape(-1), cell, heavy)
        off = np.full(len(run), np.nan)  # how far gains lie from the curve
        sent = (outcomes.offloaded & counts).nonzero()[0]
        if len(sent):
            last, further = last_seen(outcomes.confidence[sent, :-1])
            # a reply that never came gained nothing
            gain = np.fmax(0.0, outcomes.confidence[sent, -1] - last) / np.maximum(1 - last, 1e-9)
            gain = np.minimum(gain, 1.0)
            exit = run[sent] * exits + further
            at, weight = exit * BINS + bins[further, sent], weight[sent]
            off[sent] = gain - self.curve.reshape(-1).take(at)
            off[self.decided[:, 0].take(run) == UNDECIDED] = np.nan  # from no more than the prior, they all lie off
            np.add.at(self.offloads.reshape(-1), at, weight)
            weight *= gain
            np.add.at(self.gains.reshape(-1), at, weight)
            weight *= gain
            np.add.at(self.squares.reshape(-1), exit, weight)
        rescale(self, self.weight, "moves", "offloads", "gains", "squares", "seen", "known", "news")
        self.change.hear(run, outcomes.frame, here[0], off)

    def _learn_one(self, outcomes: Outcomes) -> None:
        """`_learn` of a single frame, in plain numbers: a stream that is fed frame by frame has no time for arrays."""
        run, (*edge, cloud) = int(outcomes.run[0]), outcomes.confidence[0].tolist()
        off = np.nan
        if outcomes.reward[0] == outcomes.reward[0] and edge[0] == edge[0]:
            weight, bins = self.weight[run], [bin_of(c) for c in edge]
            visited = [c == c for c in edge]
            for i, (here, at) in enumerate(zip(visited, bins, strict=True)):
                if here:
                    self.seen[run, i, at] += weight
                    if i:
                        self.moves[run, i - 1, bins[i - 1] // 2, at // 2] += weight
            self.known[run] += weight
            self.news[run] += weight
            if outcomes.offloaded[0]:
                further = max(sum(visited) - 1, 0)
                won, at = cloud - edge[further], bins[further]
                # a reply that never came gained nothing
                gain = min((won if won > 0 else 0.0) / max(1 - edge[further], 1e-9), 1.0)
                if self.decided[run, 0] != UNDECIDED:  # from no more than the prior, they all lie off
                    off = gain - self.curve[run, further, at]
                self.offloads[run, further, at] += weight
                self.gains[run, further, at] += weight * gain
                self.squares[run, further] += weight * gain * gain
            self.weight[run] *= self.growth
            self.frames[run] += 1
            if self.weight[run] > LARGEST_WEIGHT:
                rescale(self, self.weight, "moves", "offloads", "gains", "squares", "seen", "known", "news")
        self.change.hear_one(run, int(outcomes.frame[0]), edge[0], off)


def _adjoining(rows: Ints) -> Ints | slice:
    """The same rows, at least one and rising, as a slice if they lie side by side, which needs no copy."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def _played(exit_at: Floats, skip_below: Floats, frames: int) -> Thresholds:
    """What is played in so many frames, from the thresholds of each run, (runs, exits) each."""
    # frame after frame, as replay plays them
    shape = (frames, *exit_at.shape)
    thresholds = np.zeros((*shape[:2], shape[2] + 1))
    thresholds[:, :, :-1] = exit_at
    skips, unknown = np.empty(shape), np.empty(shape[:2])
    skips[:] = skip_below
    unknown.fill(np.nan)
    return Thresholds(
        thresholds.transpose(1, 0, 2),
        skips.transpose(1, 0, 2),
        np.zeros(shape[:2], dtype=np.int64).T,
        unknown.T,
        np.zeros(shape[:2], dtype=bool).T,
    )
