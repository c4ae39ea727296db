"""Replay: plays a policy over a trace, many runs side by side, with late feedback."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Context, Floats, Ints, Outcomes, Policy
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.link import SimulatedLink
from eex.policies.core.routing import answer, leave
from eex.policies.core.trace import Trace

Order = Literal["resampled", "in-order", "segments"]
_PURPOSE = 1  # of draws


@dataclass(frozen=True)
class Feedback:
    """What a live run's policy knew of the link, and when it heard of each frame: what the run's records hold.

    Attributes
    ----------
    frame
        Numbers of the frames in the order in which they were heard of, (heard,).
    chosen
        How many frames thresholds had been chosen for by then, (heard,), rising.
    queue, link_ms
        Of the context each frame was chosen in, (frames,).
    sent, fallback
        Whether a frame that was offloaded left for the cloud, and whether it came back in vain, (frames,).
    dropped
        Whether it was dropped instead, answered by nobody, (frames,); None where none was.
    reachable
        Of the context each frame was chosen in, (frames,); None where a worker always was.
    """

    frame: Ints
    chosen: Ints
    queue: Ints
    link_ms: Floats
    sent: Bools
    fallback: Bools
    dropped: Bools | None = None
    reachable: Bools | None = None


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
    answer
        Class that the frame was answered with; -1 where it was dropped.
    """

    frame: Ints
    arm: Ints
    exit: Ints
    offloaded: Bools
    fallback: Bools
    reward: Floats
    answer: Ints


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
    delay: int = 0,
    link: SimulatedLink | None = None,
    feedback: Feedback | None = None,
    exit_cost: float = 0.0,
    report: Callable[[int], None] = lambda done: None,
) -> Replayed:
    """Play a policy over a trace, round by round, all its runs side by side.

    The policy is asked, frames are routed, and it is told of them once their feedback is due. It never sees what
    inference did not reach.

    Parameters
    ----------
    policy
        Made for the trace's edge exits; its `runs` are played at once.
    overhead
        Price of offloading a frame; one number, or one a run (runs,).
    rounds
        Frames that each run plays; 0 = as many as the trace has.
    order, seed, keys
        As for `draw_frames`. Runs of the same key play the same frames (under other overheads, say); by default all
        keys differ.
    delay
        Rounds by which all feedback is late: with 0, a frame is heard of before the next choice.
    link
        Instead: offloaded frames are heard of when their reply comes, or the deadline passes; others at once.
    feedback
        Instead: frames are heard of when a live run heard of them. Played in order, this makes the live run's choices.
    exit_cost
        Price of each further edge exit.
    report
        Told the rounds done, now and then.

    Raises
    ------
    EexError
        If policy, overheads or feedback do not fit.
    """
    runs, exits = policy.runs, trace.edge_exits
    rounds = rounds or (len(trace) if feedback is None else len(feedback.queue))
    if policy.exits != exits:
        raise EexError(f"the policy is for {policy.exits} edge exits, the trace has {exits}")
    price = np.broadcast_to(np.asarray(overhead, dtype=float), (runs,)).copy()
    if not ((price >= 0) & (price <= 1)).all():
        raise EexError(f"overheads must lie in [0, 1], units of confidence; got {overhead}")
    if delay < 0:
        raise EexError(f"a delay must be at least 0 rounds, got {delay}")
    if feedback is not None and runs != 1:
        raise EexError(f"the feedback of a live run is that of one run, got {runs}")
    keys = np.arange(runs) if keys is None else keys
    drawn = draw_frames(trace, rounds, order, seed, keys)
    by_round = np.ascontiguousarray(drawn.T)
    post = _Post(runs, delay, link, feedback)
    kinds = {"arm": np.int16, "exit": np.int8, "offloaded": np.bool_, "fallback": np.bool_, "answer": np.int16}
    done: dict[str, NDArray[Any]] = {name: np.zeros((rounds, runs), dtype=kind) for name, kind in kinds.items()}
    done["reward"] = np.zeros((rounds, runs))
    run, nobody, instant = np.arange(runs), np.zeros(runs, dtype=bool), np.zeros(runs)
    cell = run * (exits + 1)  # where each run's row begins in a flat array of all exits
    for t in range(rounds):
        row = by_round[t]
        for told in post.due(t):
            policy.learn(told)
        context = Context(
            frames=1,
            first=t,
            overhead=price,
            exit_cost=exit_cost,
            distortion=None if trace.probabilities is None else trace.probabilities[row][:, None],
            queue=post.queue.copy() if feedback is None else int(feedback.queue[t]),
            link_ms=post.link_ms.copy() if feedback is None else float(feedback.link_ms[t]),
            reachable=feedback is None or feedback.reachable is None or bool(feedback.reachable[t]),
        )
        chosen = policy.choose(context)
        exit_at = chosen.exit_at[:, 0]
        confidence, prediction = trace.confidence.take(row, axis=0), trace.prediction.take(row, axis=0)
        exit, visited = _leave(confidence, exit_at, chosen.skip_below[:, 0])
        offloaded = exit == exits
        took, lost, dropped, sent = instant, nobody, nobody, offloaded
        if link is not None:
            took, lost = link.round_trip_ms(t, keys, seed)
            lost = lost & offloaded
        if feedback is not None:
            lost, sent = offloaded & feedback.fallback[t], offloaded & feedback.sent[t]
            if feedback.dropped is not None:
                dropped = offloaded & feedback.dropped[t]
        _hide(confidence, prediction, exits, ~offloaded | lost | dropped)
        for e in range(1, exits):
            _hide(confidence, prediction, e, visited <= e)
        if lost.any():
            exit = np.where(lost, np.fmax(confidence[:, :-1], -1.0).argmax(axis=1), exit)
        if dropped.any():
            exit = np.where(dropped, -1, exit)
        last = confidence.ravel()[cell + (visited - 1)]
        earned = np.where(offloaded, np.fmax(0.0, confidence[:, exits] - last) - price, 0.0)
        if exit_cost:
            earned -= exit_cost * (visited - 1)
        if sent is not offloaded:
            earned[offloaded & ~sent] = np.nan
        told = Outcomes(
            run=run,
            frame=np.full(runs, t),
            arm=chosen.arm[:, 0],
            probability=chosen.probability[:, 0],
            audited=chosen.audited[:, 0],
            exit_at=exit_at,
            confidence=confidence,
            prediction=prediction,
            exit=exit,
            offloaded=offloaded,
            fallback=lost,
            sent=sent,
            latency_ms=np.where(offloaded, took, 0.0) if link is not None else instant,
            overhead=price,
            reward=earned,
        )
        post.add(t, told)
        done["arm"][t], done["exit"][t], done["offloaded"][t], done["fallback"][t] = told.arm, exit, offloaded, lost
        done["reward"][t] = earned
        done["answer"][t] = np.where(exit < 0, -1, prediction.ravel()[cell + exit])
        unsure = np.flatnonzero(confidence[:, exits] < exit_at[:, exits])  # of what the cloud answered
        if len(unsure):
            done["answer"][t, unsure] = answer(
                confidence.take(unsure, axis=0),
                prediction.take(unsure, axis=0),
                exit.take(unsure),
                exit_at[:, exits].take(unsure),
            )
        if t % 256 == 255:
            report(t + 1)
    report(rounds)
    return Replayed(frame=drawn, **{name: column.T for name, column in done.items()})


def _leave(confidence: Floats, exit_at: Floats, skip_below: Floats) -> tuple[Ints, Ints]:
    """Where each run's frame leaves (the number of edge exits = offloaded) and how many edge exits it visits."""
    exits = confidence.shape[1] - 1
    answered, skipped = leave(confidence[:, :exits], exit_at[:, :exits], skip_below)
    if exits == 1:
        return (~answered[:, 0]).astype(np.int64), np.ones(len(confidence), dtype=np.int64)
    stops = answered | skipped
    first = np.where(stops.any(axis=1), stops.argmax(axis=1), exits - 1)
    here = answered[np.arange(len(first)), first]
    return np.where(here, first, exits), first + 1


def _hide(confidence: Floats, prediction: Ints, exit: int, where: Bools) -> None:
    """Take out what an exit would have said, where inference never went."""
    np.copyto(confidence[:, exit], np.nan, where=where)
    np.copyto(prediction[:, exit], -1, where=where)


class _Post:
    """Outcomes on their way to the policy."""

    def __init__(self, runs: int, delay: int, link: SimulatedLink | None, feedback: Feedback | None) -> None:
        self.runs, self.delay, self.link = runs, delay, link
        self.queue: Ints = np.zeros(runs, dtype=np.int64)
        self.link_ms: Floats = np.full(runs, np.nan)
        self._rounds: dict[int, list[Outcomes]] = defaultdict(list)
        self._frames: dict[int, Outcomes] = {}  # that wait for a live run's turn
        self._order = None if feedback is None else deque(zip(feedback.chosen, feedback.frame, strict=True))

    def add(self, t: int, told: Outcomes) -> None:
        """Take in what round t brought."""
        if self._order is not None:
            self._frames[t] = told
        elif self.link is None:
            self._rounds[t + 1 + self.delay].append(told)
        else:
            self.queue += told.offloaded
            due = t + 1 + np.floor(told.latency_ms / self.link.frame_ms).astype(np.int64)
            for when in np.unique(due):
                self._rounds[int(when)].append(told[due == when])

    def due(self, t: int) -> list[Outcomes]:
        """What is heard of before round t."""
        if self._order is not None:
            heard = []
            while self._order and self._order[0][0] <= t:
                heard.append(self._frames.pop(self._order.popleft()[1]))
            return heard
        told = self._rounds.pop(t, [])
        if self.link is not None:
            for rows in told:
                back = rows[rows.offloaded]
                np.subtract.at(self.queue, back.run, 1)
                before = self.link_ms[back.run]
                self.link_ms[back.run] = np.where(
                    np.isnan(before), back.latency_ms, 0.8 * before + 0.2 * back.latency_ms
                )
        return told
