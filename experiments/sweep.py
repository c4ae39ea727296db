"""A sweep of replays in parts that fit together however they are cut: on all cores, or on a Ray cluster."""

import importlib.util
import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.aims import parse_aims
from eex.policies.core.base import ExitCost, Floats, Ints, Reward
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import parse_exit_cost
from eex.policies.core.link import SimulatedLink
from eex.policies.core.references import (
    best_arm,
    best_arm_of_segments,
    best_per_exit,
    best_per_exit_of_segments,
    fixed_rewards,
    oracle,
)
from eex.policies.core.replay import Order, Replayed, replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.aim import keeping

Columns = dict[str, NDArray[Any]]
Take = Callable[["Part", Columns], None]
Show = Callable[[int], None]

REFERENCES = ("best_arm", "best_per_exit", "best_per_exit_segments", "dynamic", "oracle", "even")
"""What regret is measured against: the best fixed threshold common to all exits, one per exit, one per exit and
segment, the best fixed threshold of each segment, the per-frame oracle, and an arm drawn evenly every round."""
PARTS_PER_PROCESS = 4
MOST_ROUNDS = 4_000_000
"""Of a part, runs and overheads together: some 300 MiB."""


@dataclass(frozen=True)
class Sweep:
    """What is played of every trace and policy; `eex.policies.core.replay.replay` explains the rest.

    Attributes
    ----------
    overheads
        Played side by side, on the same frames.
    grid
        Thresholds that hindsight chooses from, rising.
    exit_cost
        As `eex.policies.core.exit_cost.parse_exit_cost` reads it; `auto` goes by the times that the trace holds.
    aims
        Wishes, as `parse_aims` reads them: policies that heed prices keep to them, and columns say what came of each.
    """

    overheads: tuple[float, ...]
    rounds: int
    runs: int
    order: Order
    delay: int
    link: SimulatedLink | None
    exit_cost: float | str
    seed: int
    grid: tuple[float, ...]
    reward: Reward = "adaee"
    exit_ms: tuple[float, ...] = ()
    aims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """The runs `first` … `last - 1` of one policy over one trace, at all overheads."""

    trace: int
    policy: int
    text: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.trace}-{self.policy}-{self.first}-{self.last}.arrow"


def checkpoints(rounds: int) -> Ints:
    """Rounds after which a curve is kept: evenly, and more densely at the start; at most 160, rising to `rounds`."""
    even, dense = np.linspace(1, rounds, 101), np.geomspace(1, rounds, 60)
    return np.unique(np.round(np.concatenate([even, dense])).astype(np.int64))


def play(sweep: Sweep, part: Part, trace: Trace, report: Callable[[int], None] = lambda done: None) -> Columns:
    """Play a part; its saved rows, one for each overhead, run and checkpoint.

    Run k plays the same frames at each overhead and in each policy. What a policy draws is keyed by run and overhead,
    so it depends neither on how the sweep is cut nor on which other overheads are played.

    Parameters
    ----------
    report
        Told the rounds done by each run, now and then.

    Returns
    -------
    dict of arrays
        overhead; run; round: so many were played; reward: cumulative; regret_X for each of `REFERENCES`: cumulative;
        paid: mean so far of what the frames' ways cost; offloaded, accuracy, differs: shares so far; accuracy is NaN
        without labels, and differs is of answers that differ from the whole network's; latency_ms: mean so far; aim_0,
        …: mean cost of each wish so far.
    """
    keys = np.arange(part.first, part.last)
    overheads = np.array(sweep.overheads)
    runs = len(keys) * len(overheads)
    policy = make_policy(part.text, exits=trace.edge_exits, runs=runs, seed=sweep.seed)
    if policy.priced:
        policy = keeping(policy, sweep.aims, part.text)
    policy.keys = (keys + 1_000_003 * np.round(1e6 * overheads).astype(np.int64)[:, None]).ravel()
    played = replay(
        policy,
        trace,
        np.repeat(overheads, len(keys)),
        rounds=sweep.rounds,
        order=sweep.order,
        seed=sweep.seed,
        keys=np.tile(keys, len(overheads)),
        delay=sweep.delay,
        link=sweep.link,
        exit_cost=exit_cost_of(sweep, trace),
        exit_ms=sweep.exit_ms,
        kind=sweep.reward,
        report=report,
    )
    curves = [_curves(sweep, keys, trace, played, k) for k in range(len(overheads))]
    return {name: np.concatenate([c[name] for c in curves]) for name in curves[0]}


def exit_cost_of(sweep: Sweep, trace: Trace) -> ExitCost:
    """The exit cost of a sweep on the ways through a trace.

    Raises
    ------
    EexError
        If the trace has other exits, or no times where it goes by these.
    """
    seconds = None if trace.seconds is None else np.diff(trace.seconds[:, :-1].mean(axis=0), prepend=0.0).tolist()
    return parse_exit_cost(sweep.exit_cost).of(trace.edge_exits, seconds)


def _curves(sweep: Sweep, keys: Ints, trace: Trace, played: Replayed, k: int) -> Columns:
    """Rows of the k-th overhead."""
    runs, marks, overhead = len(keys), checkpoints(sweep.rounds), sweep.overheads[k]
    mine = slice(k * runs, (k + 1) * runs)

    def so_far(values: NDArray[Any]) -> Floats:  # (runs, rounds) -> (runs, checkpoints)
        return np.cumsum(values, axis=1, dtype=float)[:, marks - 1]

    frame, reward = played.frame[mine], so_far(played.reward[mine])
    right = played.answer[mine] == trace.label[frame]
    labelled = so_far(trace.label[frame] >= 0)
    columns = {
        "overhead": np.full(reward.shape, overhead),
        "run": np.broadcast_to(keys[:, None], reward.shape),
        "round": np.broadcast_to(marks, reward.shape),
        "reward": reward,
        "utility": so_far(played.utility[mine]),
        "paid": so_far(np.nan_to_num(played.paid[mine])) / marks,
        "offloaded": so_far(played.offloaded[mine]) / marks,
        "accuracy": np.where(labelled > 0, so_far(right) / np.maximum(labelled, 1), np.nan),
    }
    differs = played.answer[mine] != trace.prediction[frame, -1]
    columns["latency_ms"] = so_far(played.latency_ms[mine]) / marks
    columns["differs"] = so_far(differs) / marks
    for j, aim in enumerate(parse_aims(sweep.aims)):
        cost = aim.cost(differs, played.latency_ms[mine], played.offloaded[mine])
        columns[f"aim_{j}"] = so_far(cost) / marks
    earned = references(sweep, trace, frame, overhead)
    columns |= {f"regret_{name}": so_far(values) - reward for name, values in earned.items()}
    return {name: values.ravel() for name, values in columns.items()}


def references(sweep: Sweep, trace: Trace, frame: Ints, overhead: float) -> dict[str, Floats]:
    """What each of `REFERENCES` earns on the rows of a trace that runs play, (runs, rounds) each."""
    grid, paid = np.array(sweep.grid), (exit_cost_of(sweep, trace), sweep.reward)
    segment = trace.segments
    played, within = np.unique(frame, return_inverse=True)  # a trace may be larger than memory
    shown, segment, frame = trace.confidence[played], segment[played], within.reshape(frame.shape)
    earned = fixed_rewards(shown, overhead, grid, *paid)
    best = best_arm(earned, frame)[1]
    one_exit, one_segment = trace.edge_exits == 1, segment[0] == segment[-1]
    dynamic = best if one_segment else best_arm_of_segments(earned, frame, segment)
    per_exit, per_segment = best, dynamic
    if not one_exit:
        at = (overhead, grid)
        per_exit = np.stack([best_per_exit(shown[rows], *at, *paid)[1] for rows in frame])
        per_segment = per_exit
        if not one_segment:
            by_segment = (best_per_exit_of_segments(shown[rows], *at, segment[rows], *paid) for rows in frame)
            per_segment = np.stack(list(by_segment))
    return {
        "best_arm": best,
        "best_per_exit": per_exit,
        "best_per_exit_segments": per_segment,
        "dynamic": dynamic,
        "oracle": oracle(shown, overhead, paid[0], kind=paid[1])[frame],
        "even": earned.mean(axis=1)[frame],
    }


# ---- which parts are left


def parts_left(folder: Path, policies: Sequence[str], traces: int, sweep: Sweep, processes: int) -> list[Part]:
    """The parts whose files are not in the folder; smaller ones where there are more processes than policies."""
    here = [tuple(map(int, re.findall(r"\d+", path.stem))) for path in folder.glob("*.arrow")]
    pieces = -(-PARTS_PER_PROCESS * processes // (len(policies) * traces))
    most = max(1, MOST_ROUNDS // (sweep.rounds * len(sweep.overheads)))
    size = min(-(-sweep.runs // pieces), most)
    left = []
    for trace in range(traces):
        for policy, text in enumerate(policies):
            done = {k for t, p, first, last in here if (t, p) == (trace, policy) for k in range(first, last)}
            for first, last in _ranges([k for k in range(sweep.runs) if k not in done], size):
                left.append(Part(trace, policy, text, first, last))
    return left


def _ranges(numbers: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Rising numbers as ranges of at most `size`, without their ends."""
    start = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1 or k - start == size:
            yield numbers[start], numbers[k - 1] + 1
            start = k


# ---- where parts are played


def play_all(
    sweep: Sweep, parts: Sequence[Part], traces: Sequence[Trace], processes: int, take: Take, show: Show
) -> None:
    """Play parts on several cores of this machine.

    Parameters
    ----------
    processes
        1 plays them here. Others are started afresh, so a script that calls this needs `if __name__ == "__main__":`.
    take
        Given each part and its rows as soon as it is finished.
    show
        Told the rounds done, runs, overheads and parts together, a few times a second.

    Raises
    ------
    EexError
        If a process is killed.
    """
    if processes == 1:
        before = 0
        for part in parts:
            weight = (part.last - part.first) * len(sweep.overheads)

            def report(done: int, before: int = before, weight: int = weight) -> None:
                show(before + weight * done)

            take(part, play(sweep, part, traces[part.trace], report))
            before += weight * sweep.rounds
        return
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are now started
    executor = ProcessPoolExecutor(min(processes, len(parts)), context, _prepare, (sweep, traces, done))
    try:
        waiting = {executor.submit(_play_here, part): part for part in parts}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                take(waiting.pop(future), future.result())
            show(done.value)
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise EexError(
                "a process of the sweep was killed, for want of memory perhaps (--processes takes fewer); "
                "the same command goes on where it was"
            ) from None
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_here: tuple[Sweep, Sequence[Trace], Any]  # of a process that plays parts


def _prepare(sweep: Sweep, traces: Sequence[Trace], done: Any) -> None:
    global _here
    _here = (sweep, traces, done)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent, even if that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _play_here(part: Part) -> Columns:
    sweep, traces, done = _here
    weight, before = (part.last - part.first) * len(sweep.overheads), 0

    def report(rounds: int) -> None:
        nonlocal before
        with done.get_lock():
            done.value += weight * (rounds - before)
        before = rounds

    return play(sweep, part, traces[part.trace], report)


def play_on_ray(
    sweep: Sweep,
    parts: Sequence[Part],
    traces: Sequence[Trace],
    options: Mapping[str, Any],
    take: Take,
    show: Show,
) -> None:
    """Play parts as tasks of a Ray cluster, on which eex is installed; the same numbers as `play_all`.

    Parameters
    ----------
    options
        Of `ray.init`: an address, or how many processes a local cluster gets.

    Raises
    ------
    EexError
        If no cluster answers, or it is lost.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    threads = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=threads, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise EexError(f"--ray: no Ray cluster answers: {error}") from None
    try:
        kept = [ray.put(trace) for trace in traces]
        task = ray.remote(play)
        waiting = {task.remote(sweep, part, kept[part.trace]): part for part in parts}
        done = 0
        while waiting:
            for finished in ray.wait(list(waiting), timeout=0.5)[0]:
                part = waiting.pop(finished)
                take(part, ray.get(finished))
                done += (part.last - part.first) * len(sweep.overheads) * sweep.rounds
            show(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise EexError(f"--ray: the cluster was lost: {why}; the same command goes on where it was") from None
    finally:
        ray.shutdown()


def check_ray(address: str) -> None:
    """Tell in time that there is no Ray, or no cluster at host:port, for which Ray itself waits many minutes.

    Raises
    ------
    EexError
        If so.
    """
    if importlib.util.find_spec("ray") is None:
        raise EexError("--ray: Ray is not installed; pip install 'eex[ray]'")
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise EexError(f"--ray {address}: nothing answers there: {error.strerror or error}") from None
