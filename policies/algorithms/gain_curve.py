"""Our own policy: learn what offloading gains at each confidence, and offload where that is worth its price."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.change import Change
from eex.policies.algorithms.curves import (
    BINS,
    PRIOR_MEAN,
    REST,
    THRESHOLDS,
    VARIANCES,
    best_arm,
    bin_of,
    bins_of,
    blocks,
    checked_options,
    frames_until_news,
    pieces,
    plausible,
    relative_gain,
    rescale,
    shares_below,
    smoothed,
    weigh,
)
from eex.policies.core.base import LARGEST_WEIGHT, Context, Floats, Ints, Outcomes, Thresholds
from eex.policies.core.parts import Composite
from eex.policies.core.reward import last_seen


class GainCurve(Composite):
    r"""Learn what offloading gains at each confidence, and offload where that is worth its price.

    A frame that is answered on the edge earns 0, one that is offloaded :math:`\max(0, \Delta C) - o`. So all that is
    unknown is one curve: what offloading gains, on average, given the confidence :math:`c` of the surest edge exit.
    As :math:`\Delta C \le 1 - c`, learn the relative gain :math:`r(c) = E[\max(0, \Delta C) / (1 - c)]`, which lies in
    [0, 1]: in bins of the confidence, over which a Gaussian kernel smooths,

    .. math:: \hat r(c) = \frac{\sum_i K(c, c_i)\, y_i + \kappa \bar y}{\sum_i K(c, c_i) + \kappa}, \qquad
              r^+(c) = \min\Big(1,\; \hat r(c) + \beta \sqrt{\frac{\hat\sigma^2}{\sum_i K(c, c_i) + \kappa}}\Big)

    over the offloaded frames :math:`i` with relative gains :math:`y_i`, of mean :math:`\bar y` and variance
    :math:`\hat\sigma^2`; both start as if two frames had come back, with gains uniform over [0, 1]. How often a
    confidence occurs, :math:`p(c)`, every frame shows, offloaded or not. Play the
    threshold that would be best if the curve were as high as it plausibly can be:

    .. math:: \tau = \arg\max_\tau \sum_{c < \tau} p(c) \big( (1 - c)\, r^+(c) - o \big)

    Which frames are offloaded depends on their confidence alone, so no curve given the confidence is biased by it; and
    confidences above :math:`1 - o` are never tried, as nothing can be gained there. What is learned is forgotten
    exponentially, so that the curve follows a stream that changes slowly; when the first exit's confidences, or the
    gains beside the curve, change at once (`eex.policies.algorithms.change.Change`), it begins anew. Before the first
    reply it plays what is best by the prior. With several edge exits one threshold holds at all of them. A price for
    further exits (`exit_cost`) is not looked at.

    Parameters
    ----------
    grid
        Thresholds that may be played, in [0, 1].
    memory
        Frames after which what was learned has lost two thirds of its weight; 0 never forgets.
    beta
        How many standard errors above its mean the curve is taken for plausible; 0 is greedy, and may get stuck.
    alarm
        How sure it must be that the stream has changed before it begins anew, see `Change`; 0 = it never does.
    exits, runs, seed
        As for every `Policy`; nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or `memory`, `beta` or `alarm` is out of range.

    Examples
    --------
    >>> policy = GainCurve()
    >>> float(policy.choose(Context(overhead=0.5)).exit_at[0, 0, 0])  # of the prior alone
    0.28
    """

    state = ("offloads", "gains", "squares", "seen", "known", "news", "weight", "arm", "decided", "curve")
    parts = ("change",)
    joint = True
    priced = True

    def __init__(
        self,
        grid: Sequence[float] = THRESHOLDS,
        memory: float = 4000.0,
        beta: float = 1.0,
        alarm: float = 4.0,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        self.grid, self.growth = checked_options(grid, memory, beta, alarm)
        self.change = Change(runs, alarm, VARIANCES)
        super().__init__(exits, runs, seed)
        self.beta = beta
        self.offloads = np.zeros((runs, BINS))  # by confidence, weighted
        self.gains = np.zeros((runs, BINS))  # sums of relative gains
        self.squares = np.zeros(runs)  # sum of their squares
        self.seen = np.zeros((runs, BINS))  # all frames
        self.known = np.zeros(runs)  # their weight in all
        self.news = np.zeros(runs)  # and since the last decision
        self.weight = np.ones(runs)  # of the next frame: it grows, so that what is old counts less and less
        self.arm = np.zeros(runs, dtype=np.int64)
        self.decided = np.full(runs, np.nan)  # price of offloading that the arm was decided for; NaN = not yet
        self.curve = np.full((runs, BINS), PRIOR_MEAN)  # relative gain, as last estimated
        self._below = shares_below(self.grid)

    def choose(self, context: Context) -> Thresholds:
        """The same threshold for all frames, decided anew when enough has been learned since."""
        if self.runs == 1 and isinstance(context.overhead, float) and not self._due(context.overhead):
            played = np.full((1, context.frames), self.arm[0])
            return self.same_at_every_exit(self.grid[played], played)
        if self.change.alarmed.any():
            self._forget(np.flatnonzero(self.change.alarmed))
        price = np.broadcast_to(np.asarray(context.overhead, dtype=float), (self.runs,))
        due = (self.news * REST > self.known) | (self.decided != price)
        arm = self.arm.copy()
        if due.any():
            rows = np.flatnonzero(due)
            for block in blocks(len(rows)):
                self._decide(rows[block], price, arm)
        arm = np.repeat(arm[:, None], context.frames, axis=1)
        return self.same_at_every_exit(self.grid[arm], arm)

    def settled_for(self, first: int) -> int:
        """Until a run decides anew, or may notice that its stream has changed."""
        late, first = max(-first, 0), max(first, 0)
        if self.change.alarmed.any() or not self.known.all():
            return 1 + late
        due = (self.news * REST > self.known) | np.isnan(self.decided)
        until = frames_until_news(self.known, np.where(due, 0.0, self.news), self.weight, self.growth)
        return late + min(int(until.min()), self.change.settled_for(first))

    def _due(self, price: float) -> bool:
        """Whether the only run has to decide anew: as `choose` asks of many, in plain numbers."""
        return bool(self.change.alarmed[0] or self.news[0] * REST > self.known[0] or self.decided[0] != price)

    def _forget(self, rows: Ints) -> None:
        """Begin anew."""
        for array in (self.offloads, self.gains, self.squares, self.seen, self.known, self.news, self.arm):
            array[rows] = 0
        self.weight[rows], self.decided[rows], self.curve[rows] = 1.0, np.nan, PRIOR_MEAN
        self.change.begin(rows)

    def relative_gain(self) -> tuple[Floats, Floats, Floats]:
        """What offloading gains by confidence, as learned so far: the relative gain, one standard error of it, and the
        weight of the frames that came back, in frames as they count now; (runs, bins) each, over `CENTRES`."""
        near, gained = smoothed(self.offloads, self.gains, self.weight)
        curve, error = relative_gain(near, gained, self.offloads, self.gains, self.squares, self.weight)
        return curve.T, error.T, self.offloads / self.weight[:, None]

    def _decide(self, rows: Ints, price: Floats, arm: Ints) -> None:
        """Decide for some runs: their arms, written into `arm`, (runs,), are the best under the highest plausible curve
        at the price of each run, (runs,)."""
        unit = self.weight[rows]  # of the prior: what a frame learned now would weigh
        offloads, gains = self.offloads[rows], self.gains[rows]
        curve, error = relative_gain(*smoothed(offloads, gains, unit), offloads, gains, self.squares[rows], unit)
        error *= self.beta
        earned = plausible(curve, error)
        earned -= price[rows]
        earned *= np.ascontiguousarray(self.seen[rows].T) + unit / BINS
        arm[rows] = best_arm(earned, self._below)
        learned = self.known[rows] > 0  # the curve of the prior is no state: nothing was learned
        rows, curve = rows[learned], curve[:, learned]
        self.arm[rows], self.decided[rows], self.curve[rows], self.news[rows] = arm[rows], price[rows], curve.T, 0.0

    def learn(self, outcomes: Outcomes) -> None:
        """Count all frames by their confidence, and the relative gains of the offloaded ones."""
        for piece in pieces(outcomes, self.runs):
            self._learn(piece)

    def _learn(self, outcomes: Outcomes) -> None:
        if len(outcomes) == 1:
            self._learn_one(outcomes)
            return
        exits, run = outcomes.confidence[:, :-1], outcomes.run
        confidence = exits[:, 0] if self.exits == 1 else np.fmax.reduce(exits, axis=1)  # of the surest edge exit
        counts = ~np.isnan(outcomes.reward + exits[:, 0])  # a network may be at a loss, too
        sent = np.flatnonzero(outcomes.offloaded & counts)
        at = run * BINS + bins_of(confidence)
        weight = weigh(self.weight, self.growth, run, counts, self.known, self.news)
        np.add.at(self.seen.reshape(-1), at, weight)
        gain = np.fmax(0.0, outcomes.confidence[sent, -1] - last_seen(exits[sent])[0])  # no reply gained nothing
        gain = np.minimum(gain / np.maximum(1 - confidence[sent], 1e-9), 1.0)
        at, weight = at[sent], weight[sent]
        off = np.full(len(run), np.nan)  # how far gains lie from the curve
        off[sent] = gain - self.curve.reshape(-1).take(at)
        off[np.isnan(self.decided.take(run))] = np.nan  # from no more than the prior, they all lie off
        np.add.at(self.offloads.reshape(-1), at, weight)
        weight *= gain
        np.add.at(self.gains.reshape(-1), at, weight)
        weight *= gain
        np.add.at(self.squares, run[sent], weight)
        rescale(self, self.weight, "seen", "offloads", "gains", "squares", "known", "news")
        self.change.hear(run, outcomes.frame, exits[:, 0], off)

    def _learn_one(self, outcomes: Outcomes) -> None:
        """`_learn` of a single frame, in plain numbers: a stream that is fed frame by frame has no time for arrays."""
        run, (*exits, cloud) = int(outcomes.run[0]), outcomes.confidence[0].tolist()
        seen = [c for c in exits if c == c]
        confidence = max(seen) if seen else np.nan
        at, off = bin_of(confidence), np.nan
        if outcomes.reward[0] == outcomes.reward[0] and exits[0] == exits[0]:
            weight = self.weight[run]
            self.seen[run, at] += weight
            self.known[run] += weight
            self.news[run] += weight
            if outcomes.offloaded[0]:
                won = cloud - seen[-1]
                gain = min((won if won > 0 else 0.0) / max(1 - confidence, 1e-9), 1.0)  # no reply gained nothing
                if self.decided[run] == self.decided[run]:
                    off = gain - self.curve[run, at]
                self.offloads[run, at] += weight
                weight *= gain
                self.gains[run, at] += weight
                weight *= gain
                self.squares[run] += weight
            self.weight[run] *= self.growth
            if self.weight[run] > LARGEST_WEIGHT:
                rescale(self, self.weight, "seen", "offloads", "gains", "squares", "known", "news")
        self.change.hear_one(run, int(outcomes.frame[0]), exits[0], off)
