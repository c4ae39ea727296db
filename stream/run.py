"""A run: a source is streamed through the engine under one policy after another, recorded and summed up."""

import contextlib
import itertools
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.errors import EexError, ImageError
from eex.policies.link import parse_link
from eex.policies.price import parse_price
from eex.policies.registry import make_policy, split_option
from eex.stream.config import FrameConfig, StreamConfig, embedded_processes, to_json
from eex.stream.encoding import parse_encoding

if TYPE_CHECKING:
    import torch

    from eex.models.network import EarlyExitNet
    from eex.policies.base import Ints
    from eex.policies.schedule import Schedule
    from eex.stream.embedded import EmbeddedWorker
    from eex.stream.engine import Rows
    from eex.stream.measure import Sending
    from eex.stream.offload import Offloader
    from eex.stream.sources import Source
    from eex.stream.tally import Reference, Tally

GRID = np.round(np.arange(0, 1.01, 0.1), 2)
"""Fixed thresholds that regret is measured against."""
NAMED = 20
"""Skipped images that a summary names; it counts them all."""
SAMPLES = 64
"""Frames that ways of sending are compared on."""
PATIENCE_S = 15.0
"""How long a run waits for its worker over an emulated link, which may be slow or down at first."""
CACHE_BYTES = 256 << 20
"""Decoded images that are kept, so that playing several policies decodes once."""


@dataclass(frozen=True)
class Glance:
    """What a progress display needs while a policy is played."""

    policy: str
    done: int
    total: int
    seconds: float
    tally: "Tally"
    distortion: str = ""
    finished: bool = False


@dataclass
class Played:
    """One policy's run over the stream."""

    policy: str
    tally: "Tally"
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    withheld: int = 0
    """Frames that the budget kept on the edge."""
    unrecorded: str = ""
    """Why records end before the stream does, if they do."""


Show = Callable[[Glance], None]


def run(config: StreamConfig, show: Show = lambda glance: None, resume: Path | None = None) -> dict[str, Any]:
    """Play a stream as configured; returns the summary that also lies in its folder as `summary.json`.

    Parameters
    ----------
    show
        Called a few times a second.
    resume
        Folder of a run that was cut off: it goes on where its records and state were committed.

    Raises
    ------
    EexError
        If the configuration, the model, the source or the worker cannot be used.
    """
    from eex.policies.schedule import parse_schedule

    config.check()
    schedule = parse_schedule(config.distortion, config.seed)
    rivals = [name.strip() for name in config.compare.split(",") if name.strip()]
    options = dict(split_option(pair) for pair in config.policy_option)
    # only then torch, which takes seconds: what is wrong above is told at once
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(_embedded_worker(config)) if embedded_processes(config.worker) else None
        net = load_network(config)
        policies = [make_policy(config.policy, options, exits=net.edge_exits, seed=config.seed)]
        policies += [make_policy(name, exits=net.edge_exits, seed=config.seed) for name in rivals]
        names = _told_apart([":".join([config.policy, *config.policy_option]), *rivals])
        frames = Frames(config, schedule, net)
        offloader = stack.enter_context(connected(config, worker, net))
        sending = choose_sending(config, net, frames, offloader)
        if resume is not None and frames.live:
            raise EexError("--resume: a camera or a video does not come again")
        folder = resume or make_folder(config.out, config.policy.partition(":")[0])
        _write_json(folder / "config.json", to_json(config))
        stop = stack.enter_context(interrupts())
        stream = Stream(frames, net, config, stop, sending)
        played: list[Played] = []
        for name, policy in zip(names, policies, strict=True):
            if played and (stop() or frames.live):
                break
            played.append(stream.play(name, policy, offloader, show, None if played else folder, resume is not None))
        reference = None
        if config.regret and not frames.live and not stop() and played[0].tally.frames:
            reference = stream.hindsight(played[0].tally, show)
    if not played[0].tally.frames and not stop():
        raise nothing_usable(config, played[0].skipped)
    summary = summarise(config, played, reference, net, interrupted=stop())
    summary["link"] = offloader.report()
    summary["send"] = {
        "encoding": None if sending.encoding is None else str(sending.encoding),
        "why": sending.why,
        "candidates": list(sending.candidates),
    }
    summary["folder"] = str(folder)
    curves = {p.policy: p.tally.curves() for p in played}
    if reference is not None:
        curves["hindsight"] = reference.curves()
    try:
        _write_results(folder, summary, curves, schedule.pieces(played[0].tally.frames))
    except EexError as error:
        if not summary["unrecorded"]:
            raise
        summary["unrecorded"] += f"; {error}"
    return summary


def _write_results(folder: Path, summary: dict[str, Any], curves: dict[str, Any], pieces: Any) -> None:
    """Write what a run leaves besides its records, the summary first."""
    from eex.stream.pictures import draw

    _write_json(folder / "summary.json", summary)
    write_curves(folder / "curves.arrow", curves)
    try:
        draw(folder, pieces)
    except OSError as error:
        raise EexError(f"{folder}: cannot write the pictures: {error.strerror}") from None


def load_network(config: FrameConfig) -> "EarlyExitNet":
    """The network as configured, in the form that infers fast, on its device.

    Raises
    ------
    EexError
        If it cannot be used, or there is no such device or partition point.
    """
    from eex.models.card import load
    from eex.models.fast import optimised

    net = optimised(load(config.model, pick_device(config.device), make_network(config.network)))
    if config.partition > net.exits:
        raise EexError(f"--partition must lie in 1…{net.exits}, the model's stages; got {config.partition}")
    net.partition = config.partition or net.partition
    return net


class Frames:
    """The same frames, as often as they are asked for: a source under a distortion schedule, for a network.

    Attributes
    ----------
    total
        How many there are; 0 = until a live source ends.
    live
        Whether they come but once, from a camera or a video.

    Raises
    ------
    EexError
        If the source cannot be used.
    """

    def __init__(self, config: FrameConfig, schedule: "Schedule", net: "EarlyExitNet") -> None:
        from eex.stream.sources import open_source

        shape = net.architecture.input_shape
        source = open_source(config.source, split=config.split, shape=shape, resize=config.resize)
        self.source = _cached(_relabelled(source, net.classes))
        self.config, self.schedule, self.device = config, schedule, net.mean.device
        self.total = config.frames or schedule.length or len(source)
        self.live = source.stream is not None

    def batches(
        self, total: int, skipped: dict[str, str], first: int = 0
    ) -> Iterator[tuple["torch.Tensor", list[str], "Ints", Any]]:
        """Distorted micro-batches on the network's device, with names, labels and levels; fills in what was skipped.

        Parameters
        ----------
        total
            Frames to give; 0 = until the source ends.
        skipped
            Reasons by name, added to as images are skipped.
        first
            Number of the frame to begin with.
        """
        import torch

        from eex.stream.distortions import distort
        from eex.stream.sources import Frame, Skipped, check_finite, frames

        def usable() -> Iterator[Frame]:
            for frame in frames(self.source, self.config.seed if self.config.shuffle else None):
                if isinstance(frame, Skipped):
                    skipped[frame.name] = frame.reason
                    continue
                try:
                    if frame.image.dtype != np.uint8:
                        check_finite(frame.image)
                except ImageError as error:
                    skipped[frame.name] = str(error)
                    continue
                yield frame

        arriving = itertools.islice(usable(), first, None)
        while first < total or not total:
            taken = list(
                itertools.islice(arriving, min(self.config.batch, total - first) if total else self.config.batch)
            )
            if not taken:
                return
            names, labels, images = ([getattr(f, c) for f in taken] for c in ("name", "label", "image"))
            number = np.arange(first, first + len(images))
            levels = self.schedule.levels(number)
            pixels = _tensor(images).to(self.device)
            pixels = distort(pixels, torch.from_numpy(levels), torch.from_numpy(number), self.config.seed)
            yield pixels, names, np.array(labels), levels
            first += len(images)


class Stream:
    """Frames that one policy after another is played over."""

    def __init__(
        self,
        frames: Frames,
        net: "EarlyExitNet",
        config: StreamConfig,
        stop: Callable[[], bool] = lambda: False,
        sending: "Sending | None" = None,
    ) -> None:
        self.frames, self.net, self.config, self.stop, self.sending = frames, net, config, stop, sending

    def play(
        self,
        name: str,
        policy: Any,
        offloader: "Offloader | None",
        show: Show,
        folder: Path | None = None,
        resume: bool = False,
    ) -> Played:
        """Stream all frames under one policy.

        Parameters
        ----------
        folder
            For records and state; nothing is written without.
        resume
            Go on from the state in the folder, if there is one.
        """
        from eex.stream import state
        from eex.stream.engine import Engine
        from eex.stream.records import RecordWriter
        from eex.stream.tally import Tally

        config, net, frames = self.config, self.net, self.frames
        played = Played(name, Tally(net.edge_exits + 1), 0.0)
        saved = state.read(folder) if folder is not None and resume else None
        first = 0 if saved is None else int(saved["frames"])
        engine = Engine(
            net,
            policy,
            offloader,
            overhead=parse_price(config.overhead),
            exit_cost=config.exit_cost,
            gather=config.gather,
            send=None if self.sending is None else self.sending.encoding,
            drop_below=config.drop_below,
            first=first,
        )
        seconds = 0.0 if saved is None else state.restore(saved, policy, engine.meter, played.tally)
        if folder is not None:
            state.drop_uncommitted(folder, resume)
        writer = RecordWriter(folder / "records", net.classes, net.experts) if folder is not None else None
        started = time.perf_counter() - seconds
        shown, committed = time.perf_counter(), first

        def commit() -> None:
            """Finish what is under way; then records and state go to the disk together."""
            engine.drain()
            take()
            if writer is None or folder is None or played.unrecorded:
                return
            try:
                parts = writer.commit()
                took = time.perf_counter() - started
                state.write(folder, policy, engine.meter, played.tally, engine.next, parts, took)
            except EexError as error:
                played.unrecorded = str(error)
                writer.abandon()

        def take() -> None:
            for rows in engine.take():
                played.tally.add(rows)
                record(rows)

        def record(rows: "Rows | None") -> None:
            """Write finished frames, or with None the end; a stream goes on where a disk is full."""
            if writer is None or played.unrecorded:
                return
            try:
                writer.close() if rows is None else writer.write(rows)
            except EexError as error:
                played.unrecorded = str(error)
                writer.abandon()

        try:
            for pixels, names, labels, levels in frames.batches(frames.total, played.skipped, first):
                if self.stop():
                    break
                engine.feed(pixels, names, labels, levels)
                now = time.perf_counter()
                tell = now - shown > 0.2
                if config.commit and engine.next - committed >= config.commit:
                    commit()
                    committed = engine.next
                elif tell or engine.worth_taking:
                    take()
                if tell:
                    shown = now
                    kind = frames.schedule.names(np.array([engine.next - 1]))[0]
                    show(Glance(name, engine.next, frames.total, now - started, played.tally, str(kind)))
            commit()
            played.seconds = time.perf_counter() - started
        finally:
            record(None)
        played.withheld = engine.meter.withheld
        if engine.next:
            show(Glance(name, engine.next, frames.total, played.seconds, played.tally, finished=True))
        return played

    def hindsight(self, tally: "Tally", show: Show) -> "Reference | None":
        """Run every exit of every frame that a policy was played over; None if interrupted.

        References pay one price for all frames: where it was not constant, the mean of what the policy met. They drop
        frames by the rule that it played by.
        """
        from eex.stream.engine import every_exit
        from eex.stream.tally import Reference, Tally

        price, total = parse_price(self.config.overhead), tally.frames
        overhead = price.of() if price.constant else tally.mean_overhead
        reference = Reference(self.net.edge_exits + 1, overhead, GRID, self.config.exit_cost, self.config.drop_below)
        started = shown = time.perf_counter()
        first = 0
        nothing = Tally(self.net.edge_exits + 1)
        for pixels, names, labels, _ in self.frames.batches(total, {}):
            if self.stop():
                return None
            confidence, prediction, _ = every_exit(self.net, pixels)
            number = np.arange(first, first + len(names))
            reference.add(number, [str(n) for n in self.frames.schedule.names(number)], labels, confidence, prediction)
            first += len(names)
            now = time.perf_counter()
            if now - shown > 0.2:
                shown = now
                show(Glance("hindsight", first, total, now - started, nothing))
        show(Glance("hindsight", first, total, time.perf_counter() - started, nothing, finished=True))
        return reference


# ---- what a run is made of


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that no batch is left half done; yields what tells if one came.

    A second one gets through. A SIGINT that is ignored, as in a shell's background jobs, stays ignored.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(*_: object) -> None:
        came.set()
        restore()

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, hold)
    try:
        yield came.is_set
    finally:
        restore()


def nothing_usable(config: FrameConfig, skipped: dict[str, str]) -> EexError:
    """The error that no frame of a source could be used, with the first reason."""
    name, reason = next(iter(skipped.items()), ("", "it has no frames"))
    return EexError(f"{config.source}: no frame could be used; {name}: {reason}")


def _told_apart(names: list[str]) -> list[str]:
    """The names, with a number behind those that were there before."""
    again = [names[:k].count(name) for k, name in enumerate(names)]
    return [f"{name} ({k + 1})" if k else name for name, k in zip(names, again, strict=True)]


def make_folder(out: Path, name: str) -> Path:
    """A new folder for a run, named by time and policy.

    Raises
    ------
    EexError
        If it cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for k in itertools.count():
        folder = out / (f"{stamp}-{name}" if k == 0 else f"{stamp}-{name}-{k + 1}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not out.is_dir():
                raise EexError(f"{out}: is not a folder (--out)") from None
        except OSError as error:
            raise EexError(f"{out}: cannot write there (--out): {error.strerror}") from None
    raise AssertionError


def make_network(name: str) -> "EarlyExitNet | None":
    """The network that a user's function "module:function" makes; None without a name.

    Raises
    ------
    EexError
        If it cannot be imported or makes something else.
    """
    if not name:
        return None
    import importlib
    import sys

    from eex.models.network import EarlyExitNet

    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        net = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise EexError(f"--network {name}: cannot be imported: {error}; expected module:function") from None
    if not isinstance(net, EarlyExitNet):
        raise EexError(f"--network {name}: must return an EarlyExitNet (eex.models.cut), got {type(net).__name__}")
    return net


def pick_device(name: str) -> str:
    """The device that a user names: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises
    ------
    EexError
        If there is no such device.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise EexError(f"--device {name}: expected auto, cpu or cuda")

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EexError("--device cuda: this torch sees no GPU")
    return name


def _embedded_worker(config: StreamConfig) -> "EmbeddedWorker":
    from eex.stream.embedded import EmbeddedWorker

    models = () if config.model is None else (config.model,)
    return EmbeddedWorker(models, config.network, processes=embedded_processes(config.worker))


@contextlib.contextmanager
def connected(config: StreamConfig, worker: "EmbeddedWorker | None", net: "EarlyExitNet") -> "Iterator[Offloader]":
    """What takes a run's frames to the cloud, over the link that is to be emulated; closed with the block.

    Raises
    ------
    EexError
        If no worker can be used.
    """
    from eex.stream.edge import ZmqOffloader
    from eex.stream.keys import EdgeKeys, default_folder, edge_keys
    from eex.stream.link import emulated
    from eex.stream.offload import NoOffloader

    if config.worker == "none":
        yield NoOffloader()
        return
    keys: EdgeKeys | None
    if worker is not None:
        endpoints, keys = [worker.endpoint(60.0)], worker.keys
    else:
        endpoints = [part.strip() for part in config.worker.split(",")]
        keys = None if config.plain else edge_keys(config.keys or default_folder(), config.key)
    with contextlib.ExitStack() as stack:
        if config.link:
            endpoints = stack.enter_context(emulated(config.link, endpoints, config.seed))
        offloader = ZmqOffloader(
            endpoints, net.fingerprint, config.deadline_ms, keys=keys, anywhere=config.plain_beyond_loopback
        )
        stack.enter_context(contextlib.closing(offloader))
        offloader.connect(PATIENCE_S if config.link else 5.0)
        yield offloader


def choose_sending(config: StreamConfig, net: "EarlyExitNet", frames: Frames, offloader: "Offloader") -> "Sending":
    """How frames are sent, as configured, or what is fastest for the link.

    To a worker on this machine features go as they are, without measuring: nothing is gained on the way, and what
    encoding takes is lost. A worker or link that cannot be measured, such as one that is down at first, gets the fewest
    bytes.
    """
    from eex.stream import measure
    from eex.stream.curve import is_loopback

    if config.worker == "none" or net.partition == net.exits:
        return measure.Sending(None, "nothing is sent")
    if config.send != "auto":
        return measure.Sending(parse_encoding(config.send), "as asked for")
    near = config.worker.startswith("embedded") or all(is_loopback(e.strip()) for e in config.worker.split(","))
    if near and not config.link:
        return measure.Sending(None, "features as they are: the worker is on this machine")
    images = _samples(frames, net)
    found = measure.candidates(net, images, net.partition, agreement=not frames.live)
    try:
        cloud_ms = measure.worker_times(offloader, net, images, sorted({c.stage for c in found}))
        if config.link:
            link = measure.first_condition(parse_link(config.link))
        else:
            link = measure.measure_link(offloader, net, images, net.partition)
    except EexError as error:
        return measure.smallest(found, str(error))
    return measure.cheapest(found, link, cloud_ms)


def _samples(frames: Frames, net: "EarlyExitNet") -> "torch.Tensor":
    """The first frames of a stream, to measure with; of a live one, which gives them but once, noise."""
    import torch

    batches = [] if frames.live else [pixels for pixels, *_ in frames.batches(SAMPLES, {})]
    shape = (SAMPLES, *net.architecture.input_shape)
    return (
        torch.cat(batches)
        if batches
        else torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(frames.device)
    )


def _relabelled(source: "Source", classes: tuple[str, ...]) -> "Source":
    """The source with its labels in the model's order; unknown where the model has no class of that name."""
    import dataclasses

    if source.classes == classes or not source.classes:
        return source
    index = np.array([classes.index(c) if c in classes else -1 for c in source.classes])
    return dataclasses.replace(source, labels=np.where(source.labels >= 0, index[source.labels], -1))


def _cached(source: "Source") -> "Source":
    import dataclasses

    read = source.read
    if read is None or not len(source):
        return source
    kept: dict[int, Any] = {}
    room = CACHE_BYTES

    def cached(i: int) -> Any:
        nonlocal room
        if i in kept:
            return kept[i]
        image = read(i)
        if room >= image.nbytes:
            room -= image.nbytes
            kept[i] = image
        return image

    return dataclasses.replace(source, read=cached)


def _tensor(images: list[Any]) -> "torch.Tensor":
    """(B, 3, H, W) in [0, 1] from images (H, W, 3)."""
    import torch

    if all(image.dtype == np.uint8 for image in images):
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    floats = [image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1) for image in images]
    return torch.from_numpy(np.stack(floats)).permute(0, 3, 1, 2)


# ---- what a run leaves


def summarise(
    config: StreamConfig,
    played: list[Played],
    reference: "Reference | None",
    net: "EarlyExitNet",
    interrupted: bool = False,
) -> dict[str, Any]:
    """What happened, as plain JSON values; the first policy's figures on top, one row a policy under `policies`."""
    rows = [_policy_row(p, reference, config.drop_below > 0) for p in played]
    first = played[0]
    skipped = list(first.skipped.items())
    summary: dict[str, Any] = dict(rows[0])
    summary["skipped"] = len(skipped)
    summary["skipped_images"] = [f"{name}: {reason}" for name, reason in skipped[:NAMED]]
    summary["unrecorded"] = first.unrecorded
    summary["interrupted"] = interrupted
    summary["policies"] = rows
    if reference is not None:
        summary["best_fixed_threshold"] = reference.best
        summary["by_exit"] = reference.rows()
    price = parse_price(config.overhead)
    summary["price"] = price.text
    summary["overhead"] = price.of() if price.constant else first.tally.mean_overhead
    summary["model"] = {"fingerprint": net.fingerprint, "exits": net.exits, "partition": net.partition}
    summary["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return summary


def _policy_row(played: Played, reference: "Reference | None", dropping: bool) -> dict[str, Any]:
    t = played.tally
    frames = max(1, t.frames)
    row: dict[str, Any] = {
        "policy": played.policy,
        "frames": t.frames,
        "answered": int(t.by_exit.sum()),
        "fallbacks": t.fallbacks,
        "withheld": played.withheld,
        "mean_overhead": t.mean_overhead,
        "accuracy": t.accuracy,
        "mean_reward": t.mean_reward,
        "frames_per_second": t.frames / played.seconds if played.seconds else 0.0,
        "seconds": played.seconds,
        "exit_shares": {_exit_name(e, t.exits): float(n) / frames for e, n in enumerate(t.by_exit)},
        "offloaded_share": t.offloaded / frames,
        "device_probability": float(t.by_exit[:-1].sum()) / frames,
        "bytes_offloaded": int(t.bytes),
        "bytes_per_offloaded_frame": t.bytes_per_frame,
        "latency_ms": {name: t.latency_ms(q) if t.frames else None for name, q in (("p50", 0.5), ("p99", 0.99))},
        "latency_split_ms": dict(zip(("edge", "link", "cloud"), (t.split_ms / frames).tolist(), strict=True)),
    }
    if dropping:
        row |= {
            "dropped": t.dropped,
            "dropped_share": t.dropped / frames,
            "bytes_not_sent": None if t.bytes_per_frame is None else round(t.dropped * t.bytes_per_frame),
        }
    if reference is not None:
        row |= regrets(played.tally, reference)
    return row


def regrets(tally: "Tally", reference: "Reference") -> dict[str, float]:
    """What the policy missed, summed over the stream, against the best fixed threshold and against the oracle.

    A frame that was dropped earned 0, whoever dropped it.
    """
    best = reference.curves()
    return {
        "regret_best_arm": float(best["best_fixed"].sum() - tally.reward),
        "regret_oracle": float(best["oracle"].sum() - tally.reward),
    }


def _exit_name(exit: int, exits: int) -> str:
    return "cloud" if exit == exits - 1 else f"exit {exit + 1}"


def write_curves(path: Path, curves: dict[str, dict[str, Any]]) -> None:
    """Tidy rows of what is drawn over time: policy, quantity, first frame of the window, value."""
    import pyarrow as pa

    policy, quantity, start, value = [], [], [], []
    for name, columns in curves.items():
        for column, values in columns.items():
            if column == "start":
                continue
            policy += [name] * len(values)
            quantity += [column] * len(values)
            start.append(columns["start"])
            value.append(values)
    table = pa.table(
        {
            "policy": pa.array(policy).dictionary_encode(),
            "quantity": pa.array(quantity).dictionary_encode(),
            "start": np.concatenate(start).astype(np.int64),
            "value": np.concatenate(value),
        }
    )
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error}") from None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror}") from None
