"""Trainings of a paper at the same time, each in a process of its own: one small network alone leaves a GPU, or most
cores, idle."""

import dataclasses
import multiprocessing
import queue
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from eex.experiments.papers.nodes import cores
from eex.experiments.papers.paper import Training, Work, out_of_memory, script, unmeasured, unreported
from eex.models.training import REPORT_S, Progress
from eex.policies.core.errors import EexError

Needs = Mapping[str, Sequence[str]]
"""Trainings by name, and those whose networks each of them builds on."""


def train_side_by_side(paper: str, work: Work, recipe: Any, jobs: int) -> None:
    """Do the trainings of a recipe that are left, so many at a time; what others build on comes before them.

    Raises
    ------
    EexError
        If a training cannot go on. The others are stopped, and go on from their checkpoints when they are started
        again.
    """
    parts = {str(part.out): part for part in unmeasured(script(paper), work, recipe.seeds)}
    needs = {out: left(paper, part, recipe) for out, part in parts.items()}
    at_once = min(jobs, sum(at_most_at_once(these) for these in needs.values()) or 1)
    threads = work.threads or max(1, len(cores()) // at_once)
    waiting = [(out, name) for out, these in needs.items() for name in these]
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    bars: dict[str, Callable[[Progress], None]] = {}
    running: dict[tuple[str, str], multiprocessing.process.BaseProcess] = {}
    with stopped_at_the_end(running):
        while waiting or running:
            for out, name in list(waiting):
                undone = {*waiting, *running}
                if len(running) < jobs and not any((out, needed) in undone for needed in needs[out][name]):
                    waiting.remove((out, name))
                    label = name if parts[out] is work else f"{name}, {parts[out].out.name}"
                    part = dataclasses.replace(parts[out], bars=unreported)
                    given = (paper, part, recipe, name, label, threads, reports)
                    process = context.Process(target=_train, args=given, name=label, daemon=True)
                    with deaf_to_ctrl_c():
                        process.start()
                    running[out, name] = process
            over = [key for key, process in running.items() if process.exitcode is not None]
            for label, what in arrived(reports):
                if isinstance(what, EexError):
                    raise what
                if label not in bars:
                    bars[label] = work.bars(label)
                bars[label](what)
            for key in over:
                if code := running[key].exitcode:
                    how = f"signal {-code}; if memory ran out, take fewer --jobs" if code < 0 else f"exit status {code}"
                    raise EexError(f"{running[key].name}: the process of this training ended by {how}")
                del running[key]
            time.sleep(REPORT_S)


def left(paper: str, part: Work, recipe: Any) -> Needs:
    """The trainings of one seed that are not done."""
    found: dict[str, Sequence[str]] = {}

    def note(training: Training) -> bool:
        found[training.name] = training.needs
        return True

    script(paper).networks(dataclasses.replace(part, instead=note, device="cpu"), recipe)
    return found


def at_most_at_once(needs: Needs) -> int:
    """How many of these can be trained at the same time at most.

    Examples
    --------
    >>> at_most_at_once({"a": [], "b": ["a"], "c": ["a"], "d": ["c"]})
    2
    """

    def depth(name: str) -> int:
        return 1 + max((depth(needed) for needed in needs[name] if needed in needs), default=0)

    return max(Counter(depth(name) for name in needs).values(), default=0)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C, which a terminal sends to them too: their parent stops them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stopped_at_the_end(running: Mapping[Any, multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Stop the processes that still run then."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def arrived(reports: Any) -> Iterator[tuple[str, Any]]:
    """What the trainings have reported by now."""
    with suppress(queue.Empty):
        while True:
            yield reports.get_nowait()


def _train(paper: str, part: Work, recipe: Any, name: str, label: str, threads: int, reports: Any) -> None:
    """In a process of its own: do one training, whose network is loaded like the others from then on."""
    import torch

    torch.set_num_threads(threads)
    parent, last = multiprocessing.parent_process(), 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if parent is not None and not parent.is_alive():
            reports.cancel_join_thread()  # nobody reads what is still to be sent
            raise SystemExit(1)
        now = time.perf_counter()
        if progress.resumed or progress.accuracy or now - last > REPORT_S:
            reports.put((label, progress))
            last = now

    def others(training: Training) -> bool:
        return training.name != name

    try:
        script(paper).networks(dataclasses.replace(part, instead=others, bars=lambda _: report), recipe)
    except EexError as error:
        reports.put((label, EexError(f"{label}: {error}")))
    except Exception as error:
        if not out_of_memory(error):
            raise
        reports.put((label, EexError(f"{label}: memory ran out; take fewer --jobs, a smaller --size or recipe")))
