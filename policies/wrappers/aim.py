"""A wrapper that keeps wishes: a controller turns bounds on accuracy, latency and offloading into prices online."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eex.policies.algorithms.curves import BINS, bins_of, kernel
from eex.policies.core.aims import Aim, parse_aims
from eex.policies.core.base import Context, Floats, Outcomes, Policy, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.parts import Composite

RANGE = 1000.0
"""Ratio of the highest to the lowest price that the controller can set."""
START = 0.7
"""Where a wish's dial stands at first: rather too careful."""
WOUND_UP = 2.0
"""How far a dial may turn beyond the highest price, so that what was overspent then is made up for."""
BLOCK = 32
"""Frames with feedback after which prices move."""
SUDDEN = 64.0
"""Or sooner, once so many frames' worth of a bound was spent."""
FEW = 4.0
"""Answers at the highest risk allowed that turn the dial of accuracy fully."""
CALM = 28.0
"""Frames of its bound that turn a dial fully, for each unit of variance of what a frame costs relative to its bound."""
SLOWEST, FASTEST = 20_000.0, 200.0
MEMORY = 2000.0
"""Frames after which what frames cost by exit has lost two thirds of its weight."""
STUCK = 500
"""Frames for which the highest price must have failed to help before a wish is reported as impossible."""
WIDTH = 0.06  # of the kernel over confidences
PRIOR = 1.0  # differing answers that weigh as much as the estimate by calibration
LEFT = 0.01  # chance to differ from the whole network, of an exit that is all but certain
DEAREST = 50.0  # price of the costliest exit at most, in units of what would already rule it out
_PURPOSE = 5  # of draws

MARGIN = {"accuracy": 0.95, "latency": 0.98, "quantile": 0.85, "offload": 0.98}
"""What is aimed at, as a share of the bound. A percentile tolerates no frame more than its share, so its is lowest;
and how often answers differ is an estimate."""


class Aims(Composite):
    r"""Keep wishes on accuracy, latency and the share offloaded: bounds in, prices for the policy inside out.

    A wish bounds the mean over the frames of something that each costs, :math:`E[g] \le b` (`eex.policies.core.aims`).
    To maximise the utility under such bounds is to maximise it less :math:`\lambda\, g` without them, at the right
    Lagrange multiplier :math:`\lambda`; and what :math:`g` is on average at each exit makes :math:`\lambda\, g` a price
    of offloading and of each further exit, on top of those that the user named. The policy inside is given these prices
    in its context, and does the rest.

    Each wish has a dial :math:`z`, and its multiplier rises geometrically with it, from 0 to what rules the costliest
    exits out. After each few frames it turns by how far they lay from the bound:

    .. math:: z \leftarrow z + \frac1B \sum \Big(\frac{g}{b} - m\Big), \qquad B = 28 \, \mathrm{Var}(g / b)

    so over any stretch of :math:`T` frames in which the dial does not reach its ends the mean cost exceeds
    :math:`m\, b` by at most :math:`B\, b / T`, whatever the stream does: this is the integral control of dual ascent,
    and needs no model of the stream. :math:`m` is a little below 1.

    A wish of accuracy sets no price, as confidence can grow while accuracy falls: its dial sets a risk :math:`\eta =
    1000^{-z}`, and no frame may leave at an exit where its answer is likelier than that to differ from the whole
    network's, which raises the thresholds of the policy inside. Nobody knows labels here, so accuracy is measured as
    agreement, and how far an exit's answers agree is learned from audits: a share of the frames is sent to the cloud
    however sure the edge is. Disagreement is taken to be about in proportion to :math:`1 - c` at confidence
    :math:`c`, as it is where confidence is calibrated, with a factor that is learned for each exit and varies
    smoothly with confidence. Two answers that differ can both be wrong, and the edge's may be the right one, so
    accuracy loses less than agreement.

    Where wishes exclude each other, or nothing can keep one, its dial stays at its end, and `report` says so. Accuracy
    comes before the others then, as prices do not lower its thresholds.

    Parameters
    ----------
    inner
        The policy; it must heed prices (`Policy.priced`).
    wish
        The wishes, separated by semicolons or "and".
    audit
        Share of the frames that is audited where accuracy is meant, in (0, 1].
    seed
        As for every `Policy`; audits are drawn.

    Attributes
    ----------
    aims
        The wishes.
    dial
        Of each wish, (runs, wishes): 0 for no price, 1 for the highest.

    Raises
    ------
    EexError
        If a wish cannot be parsed, the policy inside heeds no price, or `audit` is out of range.

    Examples
    --------
    >>> from eex.policies.algorithms.stop_curve import StopCurve
    >>> policy = Aims(StopCurve(exits=2), wish="offload <= 10 %")
    >>> policy.report()[0]["wish"], policy.prices(Context(overhead=0.1))[0].round(2)
    ('offload <= 10 %', array([0.23]))

    References
    ----------
    Neely (2010), Stochastic network optimization with application to communication and queueing systems. Dai, Pan,
    Lee, Patel, Shi and Netravali (2024), Apparate: rethinking early exits to tame latency-throughput tensions in ML
    serving, SOSP, promises accuracy within a point of the whole network the same way, by thresholds and audits.
    """

    state = (
        "dial", "spent", "fresh", "exit_cost_sums", "exit_frames", "squares", "recent_cost", "stuck", "cost_sums",
        "frames", "informed", "differing", "ratio", "floor",
    )  # fmt: skip
    parts = ("inner",)
    priced = True

    def __init__(self, inner: Policy, wish: str, audit: float = 0.05, seed: int = 0) -> None:
        self.inner = inner
        super().__init__(inner.exits, inner.runs, seed)
        self.aims = parse_aims(wish)
        if not inner.priced:
            raise EexError(
                f"{type(inner).__name__} heeds no price, so no wish can be kept with it; use stop-curve or gain-curve"
            )
        if not 0 < audit <= 1:
            raise EexError(f"audit must lie in (0, 1], got {audit:g}")
        self.audit = audit
        if hasattr(inner, "grid"):
            self.grid = inner.grid
        runs, wishes, exits = self.runs, len(self.aims), self.exits
        self.audits = any(aim.kind == "accuracy" for aim in self.aims)
        self._limit = np.array([aim.limit for aim in self.aims])
        self._margin = np.array([MARGIN[aim.kind] for aim in self.aims])
        self._accuracy = np.array([aim.kind == "accuracy" for aim in self.aims])
        self.dial = np.full((runs, wishes), START)
        self.spent = np.zeros((runs, wishes))  # costs since the dials last turned, in units of the bounds
        self.fresh = np.zeros(runs)  # frames since then
        self.exit_cost_sums = np.zeros((runs, wishes, exits + 1))  # by where frames left, the cloud last; they fade
        self.exit_frames = np.zeros((runs, exits + 1))  # and how many those were
        self.squares = np.zeros((runs, wishes))  # sums of the squares of costs, in units of the bounds
        self.recent_cost = np.ones((runs, wishes))  # mean over the latest frames, in units of the bounds
        self.stuck = np.zeros((runs, wishes))  # frames since a dial came to its end
        self.cost_sums = np.zeros((runs, wishes))  # over all frames
        self.frames = np.zeros(runs)
        bins = BINS if self.audits else 0
        self.informed = np.zeros((runs, exits, bins))  # sums of what confidence leaves open, where the cloud answered
        self.differing = np.zeros((runs, exits, bins))  # frames among them with another answer than the cloud's
        self.ratio = np.ones((runs, exits, bins))  # of the chance to differ to what calibration leaves open
        self.floor = np.zeros((runs, exits))  # under the thresholds
        if self.audits:
            self.floor[:] = self._floors(slice(None))
        self._kernel = kernel(WIDTH)[:bins, :bins]

    # ---- prices

    def prices(self, context: Context) -> tuple[Floats, Floats]:
        """Prices for the policy inside: overhead, (runs,), and price of each further exit, (runs, exits - 1)."""
        overhead = np.broadcast_to(np.asarray(context.overhead, dtype=float), (self.runs,))
        given = np.asarray(context.exit_cost, dtype=float)
        if given.shape == (self.runs,) != (self.exits - 1,):  # of each run, from another wrapper like this
            given = given[:, None]
        cost = np.broadcast_to(given, (self.runs, self.exits - 1))
        extra = self._extra()
        return np.minimum(overhead + extra[:, -1], 1.0), np.minimum(cost + extra[:, :-1], 1.0)

    def _extra(self) -> Floats:
        """Price of going on from each edge exit to the next one, the cloud after the last, (runs, exits)."""
        extra = np.zeros((self.runs, self.exits))
        for j, aim in enumerate(self.aims):
            if aim.kind == "accuracy":
                continue
            if aim.kind == "offload":
                steps = np.zeros((self.runs, self.exits))
                steps[:, -1] = 1.0
            else:
                steps = np.diff(self._by_exit(j), axis=1)
            whole = np.maximum(steps.sum(axis=1), 0.1 * (aim.limit if aim.kind == "latency" else 1.0))
            steps = steps / whole[:, None]
            least = np.where(steps > 0, steps, np.inf).min(axis=1)
            most = np.clip(1 / least, 1.0, DEAREST)  # a price at which even the cheapest step is ruled out
            extra += (most * _geometric(self.dial[:, j]))[:, None] * steps
        return extra

    def _by_exit(self, j: int) -> Floats:
        """Mean cost of frames by where they left, rising, (runs, exits + 1); an exit not yet seen costs no more."""
        sums, frames = self.exit_cost_sums[:, j], self.exit_frames
        mean = np.where(frames >= 1, sums / np.maximum(frames, 1), 0.0)
        return np.maximum.accumulate(mean, axis=1)

    # ---- choosing

    def choose(self, context: Context) -> Thresholds:
        """As the policy inside chooses at the wishes' prices; audits go to the cloud while there is one."""
        overhead, costs = self.prices(context)
        chosen = self.inner.choose(replace(context, overhead=overhead, exit_cost=costs))
        if not self.audits:
            return chosen
        u = uniform(self.seed, self.keys, context.numbers, 1, _PURPOSE)[..., 0]
        reachable = np.broadcast_to(np.asarray(context.reachable), (self.runs,))
        audited = (u < self.audit) & reachable[:, None] | chosen.audited
        exit_at = np.maximum(chosen.exit_at[..., :-1], self.floor[:, None])
        return replace(
            chosen,
            exit_at=np.concatenate([np.where(audited[..., None], np.inf, exit_at), chosen.exit_at[..., -1:]], axis=2),
            skip_below=np.where(audited[..., None], 0.0, chosen.skip_below),
            audited=audited,
        )

    # ---- learning

    def learn(self, outcomes: Outcomes) -> None:
        """Let the policy inside learn; then add up what frames cost, and turn the dials."""
        self.inner.learn(outcomes)
        counts = ~np.isnan(outcomes.reward)
        rows = outcomes if counts.all() else outcomes[counts]
        if not len(rows):
            return
        run = rows.run
        count = np.bincount(run, minlength=self.runs).astype(float)
        kept = (1 - 1 / MEMORY) ** count
        where = np.where(rows.offloaded, self.exits, rows.exit)
        differs: Floats = np.zeros(len(rows))
        if self.audits:
            self._inform(rows, kept)
            edge = np.flatnonzero(rows.exit < self.exits)
            sure = rows.confidence[edge, rows.exit[edge]]
            chance = self.ratio[run[edge], rows.exit[edge], bins_of(sure)] * (1 - sure + LEFT)
            differs[edge] = np.minimum(chance, 1.0)
        self.exit_frames *= kept[:, None]
        np.add.at(self.exit_frames, (run, where), 1.0)
        self.frames += count
        latency_ms = rows.latency_ms.astype(np.float32)  # as records have it: a replay then makes the same choices
        for j, aim in enumerate(self.aims):
            cost = aim.cost(differs, latency_ms, rows.sent)
            total = np.bincount(run, cost, self.runs)
            self.cost_sums[:, j] += total
            self.spent[:, j] += total / aim.limit
            self.squares[:, j] = self.squares[:, j] * kept + np.bincount(run, (cost / aim.limit) ** 2, self.runs)
            self.exit_cost_sums[:, j] *= kept[:, None]
            np.add.at(self.exit_cost_sums[:, j], (run, where), cost)
        self.fresh += count
        due = np.flatnonzero((self.fresh >= BLOCK) | (self.spent > SUDDEN).any(axis=1))
        if len(due):
            self._turn(due)

    def _inform(self, rows: Outcomes, kept: Floats) -> None:
        """Count by exit and confidence how often answers differ from the cloud's, where the cloud gave one.

        Of a frame that was not audited only the last exit it visited counts: it came past the others because it was
        unsure there, and would tell of frames like that alone.
        """
        self.informed *= kept[:, None, None]
        self.differing *= kept[:, None, None]
        known = np.flatnonzero(~np.isnan(rows.confidence[:, -1]))
        if not len(known):
            return
        edge, bins = rows.confidence[known, :-1], bins_of(rows.confidence[known, :-1])
        last = (~np.isnan(edge)).sum(axis=1) - 1
        for e in range(self.exits):
            at = np.flatnonzero(~np.isnan(edge[:, e]) & (rows.audited[known] | (last == e)))
            cell = (rows.run[known[at]] * self.exits + e) * BINS + bins[at, e]
            differs = rows.prediction[known[at], e] != rows.prediction[known[at], -1]
            np.add.at(self.informed.reshape(-1), cell, 1 - edge[at, e] + LEFT)
            np.add.at(self.differing.reshape(-1), cell, differs.astype(float))

    def _turn(self, due: Any) -> None:
        """Turn the dials of some runs by what their latest frames cost."""
        fresh = self.fresh[due, None]
        frames = np.maximum(self.exit_frames[due].sum(axis=1, keepdims=True), 1.0)
        mean = self.exit_cost_sums[due].sum(axis=2) / self._limit / frames
        variance = self.squares[due] / frames - mean**2
        # no answer is given whose risk is higher than the dial allows, so a few answers must not turn it fully
        risk = RANGE ** -self.dial[due] / self._limit
        whole = np.clip(np.where(self._accuracy, FEW * risk, CALM * variance), FASTEST, SLOWEST)
        self.dial[due] += (self.spent[due] - self._margin * fresh) / whole
        self.dial[due] = np.clip(self.dial[due], 0.0, WOUND_UP)
        step = np.minimum(fresh / STUCK, 1.0)
        self.recent_cost[due] += step * (self.spent[due] / fresh - self.recent_cost[due])
        self.stuck[due] = np.where(self.dial[due] >= 1, self.stuck[due] + fresh, 0.0)
        self.spent[due], self.fresh[due] = 0.0, 0.0
        if self.audits:
            informed, differing = self.informed[due], self.differing[due]
            ratio = (differing.sum(axis=2) + PRIOR) / (informed.sum(axis=2) + PRIOR)
            self.ratio[due] = (differing @ self._kernel + PRIOR * ratio[..., None]) / (informed @ self._kernel + PRIOR)
            self.floor[due] = self._floors(due)

    def _floors(self, due: Any) -> Floats:
        """At each exit, the confidence from which on answers differ at most with the chance that the dial allows,
        (rows, exits); inf where there is none."""
        dial = self.dial[due][:, self._accuracy]  # (rows, 1)
        risk = np.where(dial < 1, RANGE**-dial, 0.0)[..., None]
        enough = 1 + LEFT - risk / np.maximum(self.ratio[due], 1e-9)  # in each bin, as far as it lies in it
        low = np.arange(BINS) / BINS
        floor = np.where(enough > low, np.minimum(enough, low + 1 / BINS), 0.0).max(axis=2)
        floor = np.where(enough[..., -1] > 1, np.inf, floor)
        return np.asarray(floor, dtype=float)

    # ---- what came of it

    def problem(self, aim: int, run: int = 0) -> str:
        """Why a wish cannot be kept, in a sentence; empty if it can, as far as is known."""
        wish, recent = self.aims[aim], float(self.recent_cost[run, aim])
        if self.stuck[run, aim] < STUCK or recent <= 1:
            return ""
        return f"'{wish.text}' cannot be kept: {wish.shown(recent * wish.limit)}, whatever is done"

    def problems(self, run: int = 0) -> str:
        """Why wishes cannot be kept, in one line; empty if all can, as far as is known."""
        return "; ".join(filter(None, (self.problem(j, run) for j in range(len(self.aims)))))

    def report(self, run: int = 0) -> list[dict[str, Any]]:
        """What came of each wish, as plain values: wish, limit, mean cost so far (None at first), whether it was kept
        so far, and why it cannot be kept now."""
        frames = float(self.frames[run])
        rows: list[dict[str, Any]] = []
        for j, aim in enumerate(self.aims):
            mean = float(self.cost_sums[run, j]) / frames if frames else None
            problem = self.problem(j, run)
            kept = None if mean is None else bool(aim.kept(mean))
            rows.append({"wish": aim.text, "limit": aim.limit, "came_to": mean, "kept": kept, "problem": problem})
        return rows


def sentences(report: Sequence[Mapping[str, Any]]) -> list[str]:
    """`Aims.report` in sentences, one per wish that has seen a frame."""
    lines = []
    for row in report:
        if row["came_to"] is not None:
            kept = "kept" if row["kept"] else "not kept"
            lines.append(f"wish '{row['wish']}': {kept}; {parse_aims(row['wish'])[0].shown(row['came_to'])}")
            if row["problem"]:
                lines[-1] += "; at the end it could not be kept"
    return lines


def _geometric(dial: Floats) -> Floats:
    """A price that rises geometrically, from 0 at the dial's 0 to 1 at its 1."""
    rising: Floats = (RANGE ** np.clip(dial, 0.0, 1.0) - 1) / (RANGE - 1)
    return rising


def keeping(policy: Policy, wishes: Sequence[str], name: str) -> Policy:
    """A policy that keeps wishes, or the policy itself if there are none.

    Parameters
    ----------
    name
        Of the policy, as the user wrote it.

    Raises
    ------
    EexError
        If a wish cannot be parsed, or the policy heeds no price.
    """
    if not wishes:
        return policy
    if not policy.priced:
        raise EexError(f"--aim: policy {name} heeds no price, so it cannot keep a wish; use stop-curve or gain-curve")
    return Aims(policy, named(parse_aims(wishes)), seed=policy.seed)


def aims_of(policy: Policy) -> Aims | None:
    """The wrapper that keeps wishes, if a policy is one or has one inside."""
    while not isinstance(policy, Aims):
        inner = getattr(policy, "inner", None)
        if not isinstance(inner, Policy):
            return None
        policy = inner
    return policy


def named(aims: Sequence[Aim]) -> str:
    """Wishes as the option `wish` has them."""
    return "; ".join(aim.text for aim in aims)
