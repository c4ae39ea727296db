"""`eex-live`: answer frames of cameras, videos, folders and URLs as they arrive."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.options import check_threads
from eex.stream.guard import guarded, hush, keep_memory_flat, say_unless, share_cores
from eex.stream.live.config import LiveConfig
from eex.stream.serving.config import ServeConfig


@dataclass(frozen=True)
class Command:
    """Answer the frames of live sources as they arrive, while a policy learns where each should stop.

    Answers go to standard output as JSON Lines, or wherever --answers says, each as soon as it is known. The run ends
    when all sources have ended, or at SIGINT or SIGTERM, after every frame that was taken in has its answer. SIGHUP
    reads the file of --streams again.
    """

    source: tuple[str, ...] = ()
    """Source of a stream, as NAME=SPEC or SPEC: camera:0, a video file, rtsp://…, http(s)://…, a folder that is
    watched, - for standard input, or zmq+pull://…. Can be repeated."""
    streams: Path | None = None
    """TOML file of streams with options of their own: a table [streams.NAME] each, and [defaults]."""
    answers: tuple[str, ...] = ()
    """Where answers go: - for standard output, a file, zmq+pub://HOST:PORT or mqtt://HOST/TOPIC. Can be repeated. By
    default, standard output."""
    require_all: bool = False
    """Refuse to start unless every source can be opened. By default, the others go on."""
    fps: float = 0.0
    """Frames taken of each --source per second, at most. 0 takes all."""
    changed: float = 0.0
    """Take a frame of a --source only if some part of the picture differs from the last one taken by more than this
    share of full scale. 0 takes all."""
    realtime: bool = False
    """Play video files at their own speed, not as fast as possible."""
    existing: bool = False
    """Of watched folders, take the files that are there at the start, too."""
    live: tyro.conf.OmitArgPrefixes[LiveConfig] = field(default_factory=LiveConfig)
    status_s: float = 60.0
    """Seconds between two lines of status on standard error. 0 prints none."""
    page: int | None = None
    """Port on which this machine can see the live page and call the HTTP service, as eex-serve has them; 0 takes a free
    one."""
    summary: Path | None = None
    """File for the summary at the end, as JSON: totals, and a row per stream."""
    quiet: bool = False
    """Print errors only."""
    threads: int = 0
    """Number of CPU threads for the edge part; 0 = all cores."""


def main() -> None:
    """Entry point of `eex-live`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = tyro.cli(Command, prog="eex-live", config=(tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction))
    check_threads(command.threads)
    if command.status_s < 0:
        raise EexError(f"--status-s must be at least 0, got {command.status_s:g}")
    command.live.check()
    page = None if command.page is None else ServeConfig(port=command.page)
    if page is not None:
        page.check()
    if command.quiet:
        hush()
    share_cores()
    keep_memory_flat()
    from eex.stream.live.run import Sources, Stop, live
    from eex.stream.live.summary import concluded
    from eex.stream.serving.run import beside

    given: dict[str, Any] = {name: getattr(command, name) for name in ("fps", "changed", "realtime", "existing")}
    sources = Sources(command.source, command.streams, given)
    sources.read()  # a mistake is reported before the network is loaded
    if command.threads:
        from eex.stream.network import use_threads

        use_threads(command.threads)
    say = say_unless(command.quiet)
    with Stop().by_signals() as stop:
        summary = live(
            command.live,
            sources,
            command.answers or ("-",),
            require_all=command.require_all,
            say=say,
            status_s=command.status_s,
            stop=stop,
            beside=None if page is None else beside(page, say),
        )
    if not command.quiet:
        _print(summary)
    return concluded(summary, command.summary)


def _print(summary: dict[str, Any]) -> None:
    """A table with a row per stream, on standard error, where it does not mix with answers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("stream")
    titles = (
        "frames",
        "answered",
        "stale",
        "other refusals",
        "offloaded",
        "fallbacks",
        "accuracy",
        "p50, ms",
        "p99, ms",
    )
    for title in titles:
        table.add_column(title, justify="right")
    for row in summary["streams"]:
        stale = row["refused"].get("stale", 0)
        others = sum(row["refused"].values()) - stale
        cells = [f"{n:,}" for n in (row["frames"], row["answered"], stale, others)]
        if "latency_ms" in row:
            latency, accuracy = row["latency_ms"], row["accuracy"]
            cells += [f"{row['offloaded_share']:.1%}", f"{row['fallbacks']:,}"]
            cells.append("–" if accuracy is None else f"{accuracy:.1%}")
            cells += ["–" if latency[q] is None else f"{latency[q]:,.1f}" for q in ("p50", "p99")]
        table.add_row(row["stream"] or "–", *cells)
    console = Console(markup=False, stderr=True)
    if not console.is_terminal:
        console = Console(markup=False, stderr=True, width=160)  # a log has no width
    console.print(table)
    for sink in summary["sinks"]:
        if sink.get("lost"):
            console.print(f"{sink['sink']}: {sink['lost']:,} answers were lost: {sink['problem']}", soft_wrap=True)
    if summary["unrecorded"]:
        frames = f"{summary['unrecorded_frames']:,} frames"
        console.print(f"{frames} are not recorded: {summary['unrecorded']}", soft_wrap=True)


if __name__ == "__main__":
    main()
