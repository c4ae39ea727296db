"""A run: a source is streamed through the engine under one policy after another, recorded and summed up."""

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy, split_option
from eex.stream.config import StreamConfig, embedded_processes, to_json
from eex.stream.frames.frames import Frames, nothing_usable
from eex.stream.network import load_network
from eex.stream.planning.sending import choose_sending
from eex.stream.run.connection import connected, embedded_worker
from eex.stream.run.play import Played, Show, Stream
from eex.stream.run.summary import summarise, write_curves


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
    from eex.policies.core.schedule import parse_schedule

    config.check()
    schedule = parse_schedule(config.distortion, config.seed)
    rivals = [name.strip() for name in config.compare.split(",") if name.strip()]
    options = dict(split_option(pair) for pair in config.policy_option)
    # only then torch, which takes seconds: what is wrong above is told at once
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(embedded_worker(config)) if embedded_processes(config.worker) else None
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
    from eex.stream.run.pictures import draw

    _write_json(folder / "summary.json", summary)
    write_curves(folder / "curves.arrow", curves)
    try:
        draw(folder, pieces)
    except OSError as error:
        raise EexError(f"{folder}: cannot write the pictures: {error.strerror}") from None


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


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror}") from None
