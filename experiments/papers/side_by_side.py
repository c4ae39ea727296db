"""Trainings of a paper at the same time, each in a process of its own: small networks leave a GPU, and most of many
processors, idle."""

import dataclasses
import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from eex.experiments.papers.nodes import cores
from eex.experiments.papers.paper import Training, Work, out_of_memory, script, unreported
from eex.models.training import REPORT_S, Progress
from eex.policies.core.errors import EexError

Key = tuple[str, str]
"""A training: the folder that it is kept in, and its name."""


def train_side_by_side(paper: str, work: Work, recipe: Any, jobs: int) -> None:
    """Do the trainings of a recipe that are left, so many at a time; what others build on comes before them.

    Raises
    ------
    EexError
        If a training cannot go on, or its process ends. The others are stopped, and go on from their checkpoints when
        they are started again.
    MemoryError
        If memory runs out in one.
    """
    waiting = {
        (str(part.out), t.name): (part, t) for part in work.by_seed(recipe.seeds) for t in left(paper, part, recipe)
    }
    threads = work.threads or max(1, len(cores()) // jobs)
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    bars: dict[str, Callable[[Progress], None]] = {}
    running: dict[Key, multiprocessing.process.BaseProcess] = {}
    with stopped_at_the_end(running):
        while waiting or running:
            for key, (part, training) in list(waiting.items()):
                needed = {(key[0], name) for name in training.needs}
                if len(running) < jobs and not needed & (waiting.keys() | running.keys()):
                    del waiting[key]
                    label = training.name if part is work else f"{training.name}, {part.out.name}"
                    bare = dataclasses.replace(part, bars=unreported)
                    given = (paper, bare, recipe, training.name, label, threads, reports)
                    started = context.Process(target=_train, args=given, name=label, daemon=True)
                    started.start()
                    running[key] = started
            over = [key for key, process in running.items() if process.exitcode is not None]
            for label, what in arrived(reports):
                if isinstance(what, Exception):
                    raise what
                bars.setdefault(label, work.bars(label))(what)
            for key in over:
                process = running.pop(key)
                if process.exitcode:
                    raise EexError(
                        f"{process.name}: the process of its training ended ({_how(process.exitcode or 0)}); what is "
                        "finished is kept. If memory ran out, take fewer --jobs"
                    )
            time.sleep(REPORT_S)


def left(paper: str, part: Work, recipe: Any) -> list[Training]:
    """The trainings of one seed that are not done."""
    found: list[Training] = []

    def note(training: Training) -> bool:
        found.append(training)
        return True

    script(paper).networks(dataclasses.replace(part, instead=note), recipe)
    return found


@contextmanager
def stopped_at_the_end(running: dict[Key, multiprocessing.process.BaseProcess]) -> Iterator[None]:
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


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _train(paper: str, part: Work, recipe: Any, name: str, label: str, threads: int, reports: Any) -> None:
    """In a process of its own: do one training, whose network is loaded like the others from then on."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops this process
    torch.set_num_threads(threads)
    parent, last = multiprocessing.parent_process(), 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if parent is not None and not parent.is_alive():
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
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reports.put((label, MemoryError()))
