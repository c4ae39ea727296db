"""`make bench`: how fast the engine is, beside the same backbone run plainly and beside what its multiply-adds
promise."""

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eex.models.card import load
from eex.models.fast import optimised
from eex.models.network import PRISTINE, Costs, EarlyExitNet
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Ints, Policy
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.frames.sources import load_all, open_source
from eex.stream.groups import every_exit
from eex.stream.guard import guarded
from eex.stream.network import pick_device
from eex.stream.run.records import RecordWriter
from eex.stream.run.tally import Tally

POINTS = 0.3
"""Accuracy that may be lost, in percentage points, by the threshold whose speed-up is what a user gains."""


@dataclass(frozen=True)
class Bench:
    """Measure frames per second of the engine and of the plain network, on the same pristine frames in one run."""

    model: Path | None = None
    """Folder of weights and card; by default the shipped model."""
    batches: tuple[int, ...] = (1, 32, 256)
    """Batch sizes."""
    rounds: int = 7
    """Times each thing is measured, in turn; medians are shown."""
    frames: int = 1024
    """Frames in a round at batch 32 and up; batch 1 takes a quarter of them."""
    threads: int = 0
    """Processor threads; 0 = all cores."""
    device: str = ""
    """cpu or cuda; by default both, where there is a GPU."""


def best_threshold(confidence: np.ndarray, prediction: Ints, labels: Ints) -> tuple[float, Ints, float, float]:
    """The cheapest fixed threshold whose accuracy is within `POINTS` of the whole network's.

    Returns
    -------
    threshold, exit, accuracy, whole
        The threshold; where each frame leaves with it, (frames,); its accuracy and the whole network's.
    """
    whole = float((prediction[:, -1] == labels).mean())
    for threshold in np.arange(0.5, 1.0, 0.01):
        early = confidence[:, :-1] >= threshold
        exit = np.where(early.any(axis=1), early.argmax(axis=1), confidence.shape[1] - 1)
        accuracy = float((prediction[np.arange(len(exit)), exit] == labels).mean())
        if accuracy >= whole - POINTS / 100:
            return float(threshold), exit, accuracy, whole
    return 1.0, np.full(len(labels), confidence.shape[1] - 1), whole, whole


def plain(net: EarlyExitNet, images: Tensor, batch: int) -> None:
    """The backbone and its final exit alone, on all images."""
    for start in range(0, len(images), batch):
        x = images[start : start + batch].contiguous(memory_format=torch.channels_last)
        for i in range(net.exits):
            x = net.stage(i, x)
        torch.softmax(net.branch(net.exits - 1, PRISTINE, x), dim=1).max(dim=1)[1].cpu()


class Run:
    """All images through an engine once, answers summed up and recorded; `kept_s` are the seconds that this took."""

    def __init__(self, net: EarlyExitNet, policy: Policy, batch: int, folder: Path) -> None:
        self.engine = Driver(net, policy, gather=_gather(batch))
        self.tally = Tally(net.edge_exits + 1)
        self.writer = RecordWriter(folder, net.classes, net.experts)
        self.batch, self.kept_s = batch, 0.0

    def __call__(self, images: Tensor, labels: Ints) -> None:
        """Feed all images in order, then wait for what is under way."""
        names = ["frame"] * self.batch
        levels = np.zeros((self.batch, 2))
        for start in range(0, len(images), self.batch):
            stop = start + self.batch
            self.engine.feed(Batch(images[start:stop], names, labels[start:stop], levels))
            if self.engine.worth_taking:
                self._keep()
        self.engine.drain()
        self._keep()
        self.writer.close()

    def _keep(self) -> None:
        started = time.perf_counter()
        for rows in self.engine.take():
            self.tally.add(rows)
            self.writer.write(rows)
        self.kept_s += time.perf_counter() - started


def timed(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Round:
    """Seconds of a round over the same frames; the share of a run under `ucb` that was not the network's."""

    plain: float
    engine: float
    share: float


def one_round(net: EarlyExitNet, images: Tensor, labels: Ints, batch: int, threshold: float) -> Round:
    """Run all images plainly, through the engine at a fixed threshold, and through the engine under `ucb`."""
    device = net.mean.device
    with torch.inference_mode():
        a = timed(lambda: plain(net, images, batch), device)
    with tempfile.TemporaryDirectory() as folder:
        fixed = Run(net, Fixed(p_tar=threshold, exits=net.edge_exits), batch, Path(folder) / "fixed")
        b = timed(lambda: fixed(images, labels), device)
        ucb = Run(net, make_policy("ucb", exits=net.edge_exits), batch, Path(folder) / "ucb")
        c = timed(lambda: ucb(images, labels), device)
    return Round(a, b, (ucb.engine.engine.policy_seconds + ucb.engine.engine.routing_seconds + ucb.kept_s) / c)


def speeds(net: EarlyExitNet, costs: Costs, images: Tensor, labels: Ints, config: Bench, console: Console) -> None:
    """Measure and print one table."""
    said = [every_exit(net, images[i : i + 256]) for i in range(0, len(images), 256)]
    confidence, prediction = np.concatenate([s[0] for s in said]), np.concatenate([s[1] for s in said])
    threshold, exit, accuracy, whole = best_threshold(confidence, prediction, labels)
    shares = np.bincount(exit, minlength=net.edge_exits + 1) / len(exit)
    console.print(
        f"{net.mean.device}: threshold {threshold:.2f} gives accuracy {accuracy:.2%}, the whole network {whole:.2%}; "
        f"shares of the exits {' '.join(f'{s:.1%}' for s in shares)}",
        highlight=False,
    )
    names = (
        "batch",
        "plain",
        "engine",
        "ideal",
        "speed-up",
        "ideal\nspeed-up",
        "share of\nideal",
        "policy, routing,\nrecords (ucb)",
    )
    table = Table(*names, title="frames/s, medians", title_justify="left")
    for batch in config.batches:
        wanted = max(config.frames if batch >= 32 else config.frames // 4, batch)
        index = np.arange(wanted - wanted % batch) % len(images)
        x, y = images[torch.from_numpy(index).to(images.device)], labels[index]
        count = len(index)
        ideal = costs.whole / np.mean([costs.of_exit(int(e)) for e in exit[index]])
        rounds = [one_round(net, x, y, batch, threshold) for _ in range(config.rounds + 1)]
        del rounds[0]  # warming up
        gain = float(np.median([r.plain / r.engine for r in rounds]))
        speed = count / float(np.median([r.plain for r in rounds]))
        table.add_row(
            str(batch),
            f"{speed:,.0f}",
            f"{count / float(np.median([r.engine for r in rounds])):,.0f}",
            f"{speed * ideal:,.0f}",
            f"{gain:.2f}",
            f"{ideal:.2f}",
            f"{gain / ideal:.0%}",
            f"{float(np.median([r.share for r in rounds])):.1%}",
        )
    console.print(table)


def _gather(batch: int) -> int:
    """Survivors that a deep stage waits for: as many as keep the kernels efficient, none where frames come singly."""
    return 64 if batch >= 32 else 0


def learners(console: Console) -> None:
    """How long policies take to choose and learn, on their own."""
    from eex.policies.core.base import Context, Outcomes

    table = Table("policy", "frames a call", "µs to choose", "µs to learn", "rounds/s", title_justify="left")
    for name in ("fixed", "deex", "ucb", "gain-curve", "rl"):
        for frames in (1, 32, 256):
            policy = make_policy(name, exits=3)
            calls = 2000 // max(1, frames // 16)
            nan, zero = np.full(frames, np.nan), np.zeros(frames, dtype=np.int64)
            no = np.zeros(frames, dtype=bool)
            choosing = learning = 0.0
            for k in range(calls):
                started = time.perf_counter()
                chosen = policy.choose(Context(frames, k * frames))
                choosing += time.perf_counter() - started
                outcomes = Outcomes(
                    run=zero,
                    frame=zero,
                    arm=chosen.arm[0],
                    probability=nan,
                    audited=no,
                    exit_at=chosen.exit_at[0],
                    confidence=np.ones((frames, 4)),
                    prediction=np.zeros((frames, 4), dtype=np.int64),
                    exit=zero,
                    offloaded=no,
                    fallback=no,
                    sent=no,
                    latency_ms=nan,
                    overhead=nan,
                    reward=np.zeros(frames),
                )
                started = time.perf_counter()
                policy.learn(outcomes)
                learning += time.perf_counter() - started
            each = (1e6 * choosing / calls, 1e6 * learning / calls)
            speed = calls * frames / (choosing + learning)
            table.add_row(name, str(frames), *(f"{us:,.0f}" for us in each), f"{speed:,.0f}")
    console.print(table)


def main() -> None:
    """Entry point of `make bench`."""
    sys.exit(guarded(_main))


def _main() -> int:
    config = tyro.cli(Bench, prog="python -m eex.experiments.bench.engine")
    if config.threads:
        torch.set_num_threads(config.threads)
    console = Console()
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}", highlight=False
    )
    arrays, labels, _ = load_all(open_source("sample"))
    order = np.random.default_rng(0).permutation(len(arrays))
    images, labels = torch.from_numpy(arrays[order]).float() / 255, labels[order]
    devices = [pick_device(config.device)] if config.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        net = load(config.model, device)
        speeds(optimised(net), net.costs(), images.to(device), labels, config, console)
    learners(console)
    return 0


if __name__ == "__main__":
    main()
