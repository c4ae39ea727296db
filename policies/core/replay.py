"""Replay: plays a policy over a trace, many runs side by side, with late feedback."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import (
    Bools,
    Context,
    ExitCost,
    Floats,
    Ints,
    Outcomes,
    Policy,
    Reward,
    Thresholds,
    check_thresholds,
    is_foreign,
)
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import check_exit_cost
from eex.policies.core.link import SimulatedLink, parse_link
from eex.policies.core.options import check_word
from eex.policies.core.routing import answer, hide
from eex.policies.core.trace import Trace
from eex.policies.core.world import step

Order = Literal["resampled", "in-order", "segments"]
_PURPOSE = 1  # of draws
_AT_ONCE = 16_384  # frames that are played in one step, at most
_REPORTED = 256  # rounds between reports


@dataclass(frozen=True)
class Feedback:
    """What a live run's policy knew of the link, and when it learned from each frame: what the run's records hold.

    Attributes
    ----------
    frame
        Numbers of the frames in the order in which they were learned from, (frames,).
    chosen
        How many frames thresholds had been chosen for by then, (frames,), rising.
    queue, link_ms
        Of the context each frame was chosen in, (frames,).
    sent, fallback
        Whether a frame that was offloaded left for the cloud, and whether it came back in vain, (frames,).
    dropped
        Whether it was dropped instead, without an answer, (frames,); None where none was.
    reachable
        Of the context each frame was chosen in, (frames,); None where a worker always was.
    latency_ms
        From arrival to the answer, (frames,); None where the trace's times are to count.
    """

    frame: Ints
    chosen: Ints
    queue: Ints
    link_ms: Floats
    sent: Bools
    fallback: Bools
    dropped: Bools | None = None
    reachable: Bools | None = None
    latency_ms: Floats | None = None


@dataclass(frozen=True)
class Replayed:
    """What a policy did, (runs, rounds).

    Attributes
    ----------
    frame
        Row of the trace.
    arm, exit, offloaded, fallback
        As chosen, and where the frame left; -1 where a live run dropped it.
    reward
        As `eex.policies.core.reward.reward` has it.
    utility
        The same as the utility has it, whatever the policy learned from; NaN where the reward is.
    paid
        What the frame's way cost: the further exits that it visited, and the overhead if it was offloaded.
    answer
        Class that the frame was answered with; -1 where it was dropped.
    latency_ms
        Until the answer: of the exit that gave it, by the trace's times or those given, plus the link's round trip.
    """

    frame: Ints
    arm: Ints
    exit: Ints
    offloaded: Bools
    fallback: Bools
    reward: Floats
    utility: Floats
    paid: Floats
    answer: Ints
    latency_ms: Floats


def draw_frames(trace: Trace, rounds: int, order: Order, seed: int, keys: Ints) -> Ints:
    """Which row of the trace each run plays in each round, (runs, rounds).

    Parameters
    ----------
    order
        "resampled": any row, drawn with replacement. "in-order": row after row, from the first again after the last.
        "segments": as in order, but each row is drawn from its stretch of unchanged distortion.
    keys
        Numbers of the runs: run k draws the same rows in every part of a sweep.
    """
    check_word("order", order, Order)
    if order == "in-order":
        return np.broadcast_to(np.arange(rounds) % len(trace), (len(keys), rounds))
    u = uniform(seed, keys, np.arange(rounds), 1, _PURPOSE)[..., 0]
    if order == "resampled":
        return (u * len(trace)).astype(np.int64)
    segment = trace.segments[np.arange(rounds) % len(trace)]
    start = np.searchsorted(trace.segments, np.arange(trace.segments[-1] + 1))
    length = np.diff(np.append(start, len(trace)))
    return start[segment] + (u * length[segment]).astype(np.int64)


def replay(
    policy: Policy,
    trace: Trace,
    overhead: float | Floats,
    *,
    rounds: int = 0,
    order: Order = "resampled",
    seed: int = 0,
    keys: Ints | None = None,
    frames: Ints | None = None,
    delay: int = 0,
    link: SimulatedLink | str | None = None,
    feedback: Feedback | None = None,
    exit_cost: ExitCost = 0.0,
    exit_ms: Sequence[float] = (),
    kind: Reward = "adaee",
    report: Callable[[int], None] = lambda done: None,
) -> Replayed:
    """Play a policy over a trace, round by round, all its runs side by side.

    The policy chooses, `eex.policies.core.world.step` plays its thresholds, and it learns from the outcomes once they
    are due, from those that are still under way after the last round. It never sees what inference did not reach.

    Parameters
    ----------
    policy
        Made for the trace's edge exits; its `runs` are played at once.
    overhead
        Price of offloading a frame; one number, or one per run (runs,).
    rounds
        Frames that each run plays; 0 = as many as the trace has.
    order, seed, keys
        As for `draw_frames`. Runs of the same key play the same frames (under other overheads, say); by default all
        keys differ.
    frames
        Rows of the trace to play instead of drawn ones, (runs, rounds).
    delay
        Rounds by which all feedback is late: with 0, the policy learns from a frame before the next choice.
    link
        Instead: feedback of offloaded frames comes with their reply or when the deadline passes; of others at once. As
        text, see `eex.policies.core.link.parse_link`.
    feedback
        Instead: feedback comes when a live run had it. Played in order, this makes the live run's choices; not with
        wishes, whose dials turn by how many frames came back at once.
    exit_cost
        Price of each further edge exit, one for all or one each, (edge exits - 1,).
    exit_ms
        Milliseconds after which each exit answers, the cloud's last; by default the trace's `seconds`, or 0 where it
        has none. A link's round trip comes on top.
    kind
        What frames earn.
    report
        Called with the number of rounds done, now and then.

    Raises
    ------
    EexError
        If policy, overheads, frames or feedback do not fit, or a number is out of range.
    """
    if isinstance(policy, str | type):
        raise EexError(f"a policy is made before it is played: make_policy('ucb', exits={trace.edge_exits}), say")
    runs = policy.runs
    link = parse_link(link) if isinstance(link, str) else link
    keys = np.arange(runs) if keys is None else np.asarray(keys)
    check_word("kind", kind, Reward)
    _check(policy, trace, overhead, exit_cost, keys)
    _check_late(runs, delay, link, feedback)
    if frames is not None:
        frames = _checked_frames(np.asarray(frames), runs, trace)
        rounds = frames.shape[1]
    if not rounds >= 0:
        raise EexError(f"rounds must be at least 1, or 0 for as many as there are, got {rounds}")
    rounds = rounds or (len(trace) if feedback is None else len(feedback.queue))
    if feedback is not None and not rounds <= min(len(feedback.queue), len(trace) if frames is None else rounds):
        known = len(feedback.queue)
        raise EexError(f"{rounds} rounds cannot be replayed from {len(trace)} frames and what was known of {known}")
    price = np.broadcast_to(np.asarray(overhead, dtype=float), (runs,)).copy()
    drawn = draw_frames(trace, rounds, order, seed, keys) if frames is None else frames
    by_round = np.ascontiguousarray(drawn.T)
    policy.reward, policy.exit_cost = kind, exit_cost
    foreign = is_foreign(policy)
    given_ms = times_of(trace, exit_ms) if len(exit_ms) else None
    delivery = _Delivery(runs, delay, link, feedback)
    done: dict[str, NDArray[Any]] = {name: np.zeros((rounds, runs), dtype=kind) for name, kind in _COPIED.items()}
    answers: NDArray[Any] = np.zeros((rounds, runs), dtype=np.int32)  # a trace may have a million classes
    utility, paid = np.zeros((rounds, runs)), np.zeros((rounds, runs))
    t = 0
    while t < rounds:
        for outcomes in delivery.due(t):
            policy.learn(outcomes)
        count = 1
        if link is None and feedback is None:
            count = min(policy.settled_for(t - delay), rounds - t, max(1, _AT_ONCE // runs))
        stop = t + count
        rows = by_round[t:stop]
        probabilities = None if trace.probabilities is None else trace.probabilities.take(rows.T, axis=0)
        chosen = policy.choose(delivery.context(t, count, price, exit_cost, probabilities))
        if foreign:
            check_thresholds(policy, chosen, count)
        took, fate = _fate(t, link, feedback, keys, seed)
        outcomes, *found = _played(trace, rows, t, chosen, price, exit_cost, kind, took, fate)
        _set_latency(t, trace, given_ms, rows.reshape(-1), outcomes, took, feedback)
        delivery.add(t, outcomes, took)
        for column, values in zip((answers, utility, paid), found, strict=True):
            column[t:stop] = values.reshape(count, runs)
        for name in _COPIED:
            done[name][t:stop] = getattr(outcomes, name).reshape(count, runs)
        for reported in range(t - t % _REPORTED + _REPORTED, stop + 1, _REPORTED):
            report(reported)
        t = stop
    for outcomes in delivery.rest():
        policy.learn(outcomes)
    report(rounds)
    columns = done | {"answer": answers, "utility": utility, "paid": paid}
    return Replayed(frame=drawn, **{name: column.T for name, column in columns.items()})


_COPIED: dict[str, Any] = {"arm": np.int32, "exit": np.int16, "offloaded": np.bool_, "fallback": np.bool_}
_COPIED |= {"reward": np.float64, "latency_ms": np.float64}


def _check(policy: Policy, trace: Trace, overhead: float | Floats, exit_cost: ExitCost, keys: Ints) -> None:
    if policy.exits != trace.edge_exits:
        raise EexError(f"the policy is for {policy.exits} edge exits, the trace has {trace.edge_exits}")
    if not ((np.asarray(overhead) >= 0) & (np.asarray(overhead) <= 1)).all():
        raise EexError(f"overheads must lie in [0, 1], units of confidence; got {overhead}")
    if np.ndim(overhead) and np.shape(overhead) != (policy.runs,):
        raise EexError(f"expected one overhead, or one for each of {policy.runs} runs, got {np.size(overhead)}")
    check_exit_cost(exit_cost, policy.exits)
    if keys.shape != (policy.runs,):
        raise EexError(f"expected a key for each of {policy.runs} runs, got {keys.shape}")


def _check_late(runs: int, delay: int, link: SimulatedLink | None, feedback: Feedback | None) -> None:
    if not delay >= 0:
        raise EexError(f"a delay must be at least 0 rounds, got {delay}")
    if (delay > 0) + (link is not None) + (feedback is not None) > 1:
        raise EexError("delay, link and feedback exclude each other: each says when feedback comes")
    if feedback is not None and runs != 1:
        raise EexError(f"the feedback of a live run is that of one run, got {runs}")


def _checked_frames(frames: Ints, runs: int, trace: Trace) -> Ints:
    if frames.ndim != 2 or len(frames) != runs or frames.dtype.kind not in "iu":
        raise EexError(f"frames must be numbers of rows, (runs, rounds) for {runs} runs, got {frames.shape}")
    if not frames.size:
        raise EexError(f"frames must hold at least one round, got {frames.shape}")
    if not (frames.min() >= 0 and frames.max() < len(trace)):
        raise EexError(f"frames must be rows from 0 to {len(trace) - 1}, got {frames.min()} to {frames.max()}")
    return frames


def _fate(
    t: int, link: SimulatedLink | None, feedback: Feedback | None, keys: Ints, seed: int
) -> tuple[Floats | None, dict[str, Any]]:
    """What round t's offloaded frames meet: milliseconds until they return, and what `step` takes of losses."""
    if feedback is not None:
        fate = {"sent": feedback.sent[t], "lost": feedback.fallback[t]}
        if feedback.dropped is not None:
            fate["drop_below"] = np.inf if feedback.dropped[t] else 0.0
        return None, fate
    if link is None:
        return None, {}
    took, lost = link.round_trip_ms(t, keys, seed)
    return took, {"lost": lost}


def times_of(trace: Trace, exit_ms: Sequence[float] = ()) -> Floats | None:
    """Milliseconds after which each exit answers, (frames, edge exits + 1): those given, or the trace's; None if
    neither is known.

    Raises
    ------
    EexError
        If those given do not fit.
    """
    if not len(exit_ms):
        return None if trace.seconds is None else 1000 * trace.seconds
    given = np.asarray(exit_ms, dtype=float)
    if given.shape != (trace.edge_exits + 1,) or not ((given >= 0) & np.isfinite(given)).all():
        count = trace.edge_exits + 1
        raise EexError(f"the exits' times must be {count} numbers of milliseconds, the cloud's last; got {exit_ms}")
    return np.broadcast_to(given, (len(trace), len(given)))


def _set_latency(
    t: int,
    trace: Trace,
    given_ms: Floats | None,
    row: Ints,
    outcomes: Outcomes,
    took: Floats | None,
    feedback: Feedback | None,
) -> None:
    """Write down when round t's frames were answered."""
    if feedback is not None and feedback.latency_ms is not None:
        outcomes.latency_ms[:] = feedback.latency_ms[t]
        return
    # a frame whose reply never came passed the last edge exit
    by = np.where(outcomes.fallback, trace.edge_exits - 1, outcomes.exit)
    if given_ms is not None:
        outcomes.latency_ms[:] = given_ms[row, by]
    elif trace.seconds is not None:
        outcomes.latency_ms[:] = 1000 * trace.seconds[row, by]
    if took is not None:
        outcomes.latency_ms[:] += np.where(outcomes.offloaded, took, 0.0)


def _played(
    trace: Trace,
    rows: Ints,
    t: int,
    chosen: Thresholds,
    price: Floats,
    exit_cost: ExitCost,
    kind: Reward,
    took: Floats | None,
    fate: Mapping[str, Any],
) -> tuple[Outcomes, Ints, Floats, Floats]:
    """Outcomes of the rounds from t on, round after round, in which each run plays a row of the trace, (rounds, runs);
    classes of the answers; utilities, and what was paid, (rounds x runs,) each."""
    count, runs = rows.shape
    row = rows.reshape(-1)
    by_round = {f.name: _round_by_round(getattr(chosen, f.name)) for f in fields(Thresholds)}
    exit_at, skip_below = by_round["exit_at"], by_round["skip_below"]
    overhead = price if count == 1 else np.tile(price, count)
    # exit after exit, as numpy is slow along an axis as short as theirs
    confidence = trace.confidence.take(row, axis=0).copy(order="F")
    prediction = trace.prediction.take(row, axis=0).copy(order="F")
    stepped = step(confidence, exit_at, skip_below, overhead, exit_cost, kind=kind, **fate)
    utility = stepped.reward + stepped.last if kind == "adaee" else stepped.reward
    paid = stepped.last + stepped.offloaded * stepped.gain - utility
    hide(confidence, prediction, stepped.visited, stepped.replied)
    outcomes = Outcomes(
        run=np.tile(np.arange(runs), count),
        frame=np.repeat(np.arange(t, t + count), runs),
        arm=by_round["arm"],
        probability=by_round["probability"],
        audited=by_round["audited"],
        exit_at=exit_at,
        confidence=confidence,
        prediction=prediction,
        exit=stepped.exit,
        offloaded=stepped.offloaded,
        fallback=stepped.fallback,
        sent=stepped.sent,
        latency_ms=np.zeros(len(row)),
        overhead=overhead,
        reward=stepped.reward,
    )
    return outcomes, answer(confidence, prediction, stepped.exit, exit_at[:, -1]), utility, paid


def _round_by_round(values: NDArray[Any]) -> NDArray[Any]:
    """What holds per run and round, (runs, rounds, …), flat and round after round."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


class _Delivery:
    """Outcomes on their way to the policy, and what its context shows of them meanwhile."""

    def __init__(self, runs: int, delay: int, link: SimulatedLink | None, feedback: Feedback | None) -> None:
        self.delay, self.link, self.feedback = delay, link, feedback
        self.queue: Ints = np.zeros(runs, dtype=np.int64)
        self.link_ms: Floats = np.full(runs, np.nan)
        self._waiting: deque[Outcomes] = deque()  # where all feedback is equally late, in the order of the rounds
        self._learned = 0  # rounds of them that the policy has learned from
        self._rounds: dict[int, list[tuple[Outcomes, Floats]]] = defaultdict(list)
        # over a link, outcomes and round trips, by the round before which they are learned from
        self._frames: dict[int, Outcomes] = {}  # with a live run's feedback: by frame, until the live run had them
        self._order = None if feedback is None else deque(zip(feedback.chosen, feedback.frame, strict=True))

    def context(
        self, t: int, count: int, overhead: Floats, exit_cost: ExitCost, probabilities: Floats | None
    ) -> Context:
        """What is known before round t, in which frames are chosen for as far ahead as `count` says."""
        queue: int | Ints = self.queue.copy()
        link_ms: float | Floats = self.link_ms.copy()
        reachable = True
        if self.feedback is not None:
            queue, link_ms = int(self.feedback.queue[t]), float(self.feedback.link_ms[t])
            reachable = self.feedback.reachable is None or bool(self.feedback.reachable[t])
        return Context(count, t, overhead, exit_cost, probabilities, queue, link_ms, reachable)

    def add(self, t: int, outcomes: Outcomes, took: Floats | None) -> None:
        """Take in what the rounds from t on brought, and the round trips of their offloaded frames, (runs,)."""
        if self._order is not None:
            self._frames[t] = outcomes
        elif self.link is None:
            self._waiting.append(outcomes)
        else:
            self.queue += outcomes.offloaded
            trip = np.where(outcomes.offloaded, 0.0 if took is None else took, 0.0)
            due = t + 1 + np.floor(trip / self.link.frame_ms).astype(np.int64)
            for when in np.unique(due):
                self._rounds[int(when)].append((outcomes[due == when], trip[due == when]))

    def due(self, t: int) -> list[Outcomes]:
        """What the policy learns from before round t."""
        if self._order is not None:
            returned = []
            while self._order and self._order[0][0] <= t:
                returned.append(self._frames.pop(self._order.popleft()[1]))
            return returned
        if self.link is None:
            return list(self._equally_late(t))
        due = self._rounds.pop(t, [])
        for outcomes, trip in due:
            back, trip = outcomes[outcomes.offloaded], trip[outcomes.offloaded]
            np.subtract.at(self.queue, back.run, 1)
            before = self.link_ms[back.run]
            self.link_ms[back.run] = np.where(np.isnan(before), trip, 0.8 * before + 0.2 * trip)
        return [outcomes for outcomes, _ in due]

    def rest(self) -> list[Outcomes]:
        """What is still under way, in the order in which it would come; of a live run, what it learned from after all.

        The policy awaits none of these frames any more.
        """
        if self._order is not None:
            return [self._frames.pop(frame) for _, frame in self._order if frame in self._frames]
        if self.link is None:
            return list(self._equally_late(np.iinfo(np.int64).max))
        return [outcomes for when in sorted(self._rounds) for outcomes, _ in self._rounds[when]]

    def _equally_late(self, t: int) -> Iterator[Outcomes]:
        """Outcomes of the rounds that are `delay` rounds old before round t, and were not learned from yet."""
        runs = len(self.queue)
        while self._waiting and self._learned < t - self.delay:
            outcomes = self._waiting.popleft()
            rows = (t - self.delay - self._learned) * runs
            if len(outcomes) > rows:
                self._waiting.appendleft(outcomes[rows:])
                outcomes = outcomes[:rows]
            self._learned += len(outcomes) // runs
            yield outcomes
