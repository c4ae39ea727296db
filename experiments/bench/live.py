"""`make bench-live`: a live session under paced synthetic cameras, beside what it promises."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded, share_cores
from eex.stream.live.answers import Answer, Refusal

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Bench:
    """Measure latency, fairness, overhead and memory of a live session with the shipped model.

    The edge runs in this process, without a cloud: what no exit answers goes through the rest of the network here.
    """

    seconds: float = 20.0
    """How long each of the paced measurements takes."""
    frames: int = 20_000
    """Frames of the measurement with streams that come and go; 1,000,000 shows what an hour would."""
    threads: int = 2
    """Threads of the network."""
    only: str = ""
    """Names of the measurements, comma-separated: single, many, overload, push, long. By default, all."""
    json: bool = False
    """Print the rows as JSON."""


def camera(session: Any, stream: str, images: Images, fps: float, seconds: float, offset: float) -> int:
    """Submit images at a rate, whatever becomes of them; how many."""
    begin = time.perf_counter() + offset / fps
    count = int(seconds * fps)
    for k in range(count):
        time.sleep(max(0.0, begin + k / fps - time.perf_counter()))
        session.submit(images[k % len(images)], stream)
    return count


def quantile(values: list[float], q: float) -> float:
    """Of latencies, in milliseconds."""
    return float(np.quantile(values, q)) if values else float("nan")


class Collected:
    """Latencies of answers and counts of refusals, by stream; a sink."""

    def __init__(self) -> None:
        self.latency: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)

    def __call__(self, given: Answer | Refusal) -> None:
        """Take an answer or a refusal."""
        if isinstance(given, Answer):
            self.latency[given.stream].append(given.latency_ms)
        else:
            self.refused[given.stream][given.reason] += 1


@contextmanager
def opened(sink: Callable[[Answer | Refusal], None] | None = None, **options: Any) -> Iterator[Any]:
    """A session on the edge alone, warm."""
    from eex.stream.live.session import Session

    sinks = [] if sink is None else [sink]
    with Session(worker="none", partition=stages(), sinks=sinks, **options) as session:
        yield session


def stages() -> int:
    """Stages of the shipped model."""
    from eex.models.card import load

    return load(None, "cpu", None).exits


def single_frame_ms(images: Images, fps: float, rounds: int = 200) -> tuple[float, float]:
    """Median milliseconds that the network takes for one frame through all stages, without anything around it.

    Returns
    -------
    paced, at_once
        At a camera's pace, when the processor has been idle before each frame; and frame after frame.
    """
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.groups import every_exit

    net = optimised(load(None, "cpu", None))

    def timed(k: int) -> float:
        x = torch.from_numpy(images[k % len(images)][None]).permute(0, 3, 1, 2).float().div_(255)
        started = time.perf_counter()
        every_exit(net, x)
        return 1000 * (time.perf_counter() - started)

    at_once = [timed(k) for k in range(rounds)]
    paced, begin = [], time.perf_counter()
    for k in range(rounds):
        time.sleep(max(0.0, begin + k / fps - time.perf_counter()))
        paced.append(timed(k))
    return float(np.median(paced[rounds // 10 :])), float(np.median(at_once[rounds // 10 :]))


def play(session: Any, fps: dict[str, float], images: Images, seconds: float) -> int:
    """Run a camera per stream, each in a thread, spread over the frame interval."""
    with ThreadPoolExecutor(len(fps)) as pool:
        offsets = np.random.default_rng(0).random(len(fps))
        jobs = [
            pool.submit(camera, session, name, images, rate, seconds, offset)
            for (name, rate), offset in zip(fps.items(), offsets, strict=True)
        ]
        return sum(job.result() for job in jobs)


def single(bench: Bench, images: Images) -> Iterator[dict[str, Any]]:
    """One camera at 30 frames/s."""
    alone, at_once = single_frame_ms(images, 30.0)
    got = Collected()
    with opened(got, keep="newest") as session:
        play(session, {"warm": 30.0}, images, 2.0)
        got.latency.clear()
        play(session, {"camera": 30.0}, images, bench.seconds)
    p99 = quantile(got.latency["camera"], 0.99)
    detail = f"{p99:.2f} ms; {alone:.2f} ms alone at this pace, {at_once:.2f} ms frame after frame"
    yield row("one stream, 30 frames/s: p99 / median of all stages and exits alone", p99 / alone, 1.5, detail)


def many(bench: Bench, images: Images) -> Iterator[dict[str, Any]]:
    """64 cameras at 2 frames/s, each with its own learner."""
    got = Collected()
    with opened(got, keep="newest") as session:
        play(session, {"warm": 20.0}, images, 1.0)
        one = memory()
        session.close_stream("warm")
        got.latency.clear()
        fps = {f"camera {k}": 2.0 for k in range(64)}
        play(session, fps, images, bench.seconds / 2)  # until the learners are warm, too
        got.latency.clear()
        spent = timed(session)
        used, routing = time.process_time(), session.summary()["routing_seconds"]
        play(session, fps, images, bench.seconds)
        used, routing = time.process_time() - used, session.summary()["routing_seconds"] - routing
        many = memory()
    beside = sum(spent.values()) + routing
    yield row("64 streams: policies, routing, records / processor time", beside / used, 0.10, f"{used:.1f} s used")
    for name, seconds in (*spent.items(), ("routing", routing)):
        yield row(f"  of it: {name}", seconds / used, 0.10, f"{seconds:.2f} s")
    yield row("64 streams: memory / a single stream's", many / one, 1.3, f"{many:.0f} MB")
    p99 = sorted(quantile(ms, 0.99) for ms in got.latency.values())
    yield row("64 streams: slowest p99 / median p99", p99[-1] / p99[len(p99) // 2], 2.0, f"{p99[-1]:.1f} ms")


def timed(session: Any) -> dict[str, float]:
    """Processor time that a session's thread spends on choosing, learning and records, from now on."""
    spent = {"choosing": 0.0, "learning": 0.0, "records": 0.0}
    learners = session._playing.engine_streams.learners

    def watch(name: str, owner: Any, method: str) -> None:
        inner = getattr(owner, method)

        def watched(*given: Any) -> Any:
            started = time.thread_time()
            try:
                return inner(*given)
            finally:
                spent[name] += time.thread_time() - started

        setattr(owner, method, watched)

    watch("choosing", learners, "choose")
    watch("learning", learners, "learn")
    watch("records", session._playing.totals, "add")
    return spent


def overload(bench: Bench, images: Images) -> Iterator[dict[str, Any]]:
    """Eight cameras that bring twice what the machine carries."""
    with opened(queue=1) as session:

        def flood(stream: int) -> int:
            count, until = 0, time.perf_counter() + 4.0
            while time.perf_counter() < until:
                session.submit(images[count % len(images)], f"s{stream}")
                count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            carries = sum(pool.map(flood, range(8))) / 4.0
    fps = 2 * carries / 8
    got = Collected()
    with opened(got, keep="newest") as session:
        play(session, {"warm": 20.0}, images, 1.0)
        play(session, {f"camera {k}": fps for k in range(8)}, images, bench.seconds / 2)
        before = memory()
        got.latency.clear()
        got.refused.clear()
        play(session, {f"camera {k}": fps for k in range(8)}, images, bench.seconds)
        grown = memory() - before
    p99, p50 = (max(quantile(ms, q) for ms in got.latency.values()) for q in (0.99, 0.5))
    yield row(
        "twice the load: p99 / frame interval",
        p99 / (1000 / fps),
        3.0,
        f"{p99:.1f} ms, p50 {p50:.1f} ms; {fps:.0f} frames/s each",
    )
    stale = [count["stale"] for count in got.refused.values()]
    yield row(
        "twice the load: most stale / mean stale", max(stale) / float(np.mean(stale)), 1.5, f"{sum(stale):,} stale"
    )
    yield row("twice the load: memory grown, MB", grown, 20.0, "")


def push(bench: Bench, images: Images) -> Iterator[dict[str, Any]]:
    """10,000 frames from 8 threads; and what a frame costs beside the engine."""
    from eex.stream.live.session import Session

    count, threads = 10_000, 8
    engine_s = 0.0

    with opened() as session:
        feed = session._playing.driver.feed

        def timed(batch: Any) -> None:
            nonlocal engine_s
            started = time.thread_time()
            feed(batch)
            engine_s += time.thread_time() - started

        session._playing.driver.feed = timed

        def some(thread: int) -> list[Future[Answer | Refusal]]:
            return [session.submit(images[k % len(images)], f"s{thread}") for k in range(count // threads)]

        with ThreadPoolExecutor(threads) as pool:
            given = [future.result() for futures in pool.map(some, range(threads)) for future in futures]
    answers = Counter((a.stream, a.frame) for a in given if isinstance(a, Answer))
    yield row(
        "10,000 frames from 8 threads: answered once", sum(n == 1 for n in answers.values()), count, "", most=False
    )
    assert isinstance(session, Session)
    yield row("push: microseconds beside the engine", beside_us(images), 60.0, "submit, queue, answer, future")


def beside_us(images: Images, count: int = 4000) -> float:
    """Processor time per frame of all that a session does beside the engine's own work, in microseconds."""
    with opened() as session:
        driver = session._playing.driver
        spent = 0.0
        feed, answer = driver.feed, session._playing.answer

        def timed(batch: Any) -> None:
            nonlocal spent
            started = time.thread_time()
            feed(batch)
            spent += time.thread_time() - started

        def timed_answer(slots: Any) -> None:
            nonlocal spent
            started = time.thread_time()
            answer(slots)
            spent -= time.thread_time() - started  # within `feed`, and no part of the engine

        driver.feed, driver._left = timed, timed_answer
        session.answer(images[0])
        spent = 0.0
        engine = thread_seconds(session._rounds.thread)
        mine = time.thread_time()
        futures = [session.submit(images[k % len(images)]) for k in range(count)]
        for future in futures:
            future.result()
        mine = time.thread_time() - mine
        engine = thread_seconds(session._rounds.thread) - engine
    return 1e6 * (mine + engine - spent) / count


def thread_seconds(thread: threading.Thread) -> float:
    """Processor time of a thread, in seconds."""
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    return time.clock_gettime(clock)


def long(bench: Bench, images: Images) -> Iterator[dict[str, Any]]:
    """Frames over 16 streams that come and go."""
    with opened() as session:

        def some(first: int, count: int) -> None:
            for start in range(first, first + count, 2000):
                turn = start // 2000
                names = [f"stream {(turn + k) % 24}" for k in range(16)]
                wait([session.submit(images[k % len(images)], names[k % 16]) for k in range(2000)])
                session.close_stream(names[0])

        some(0, max(2000, bench.frames // 4))
        gc.collect()
        before = memory(), threading.active_count(), descriptors()
        some(bench.frames // 4, bench.frames)
        gc.collect()
        after = memory(), threading.active_count(), descriptors()
    names = ("memory, MB", "threads", "descriptors")
    for name, a, b, most in zip(names, before, after, (10.0, 0, 0), strict=True):
        yield row(f"{bench.frames:,} frames, streams that come and go: {name} grown", b - a, most, f"{b:,.0f}")


def memory() -> float:
    """Resident megabytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


def row(name: str, value: float, bound: float, detail: str, most: bool = True) -> dict[str, Any]:
    """A row of the table: a value, and the bound that it should keep to."""
    kept = value <= bound if most else value >= bound
    return {"measured": name, "value": float(value), "bound": float(bound), "kept": bool(kept), "detail": detail}


MEASUREMENTS = {"single": single, "many": many, "overload": overload, "push": push, "long": long}


def _main() -> None:
    bench = tyro.cli(Bench, config=(tyro.conf.FlagCreatePairsOff,))
    names = [name.strip() for name in bench.only.split(",") if name.strip()] or list(MEASUREMENTS)
    if strange := [name for name in names if name not in MEASUREMENTS]:
        raise EexError(f"--only {strange[0]}: expected one of {', '.join(MEASUREMENTS)}")
    if len(names) > 1:  # each in a process of its own, so that none finds the other's memory
        rows = []
        for name in names:
            options = [f"--{k}={getattr(bench, k)}" for k in ("seconds", "frames", "threads")]
            command = [sys.executable, "-m", "eex.experiments.bench.live", *options, f"--only={name}", "--json"]
            rows += json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    else:
        share_cores()
        import torch

        from eex.stream.frames.sources import load_all, open_source

        torch.set_num_threads(bench.threads)
        images = load_all(open_source("sample", split="all"))[0].transpose(0, 2, 3, 1).copy()
        rows = list(MEASUREMENTS[names[0]](bench, images))
    if bench.json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "value", "bound", "", "", box=None, padding=(0, 2, 0, 0))
    for r in rows:
        table.add_row(
            r["measured"], f"{r['value']:,.2f}", f"{r['bound']:,g}", "" if r["kept"] else "missed", r["detail"]
        )
    Console(markup=False, width=140).print(table)


if __name__ == "__main__":
    sys.exit(guarded(_main))
