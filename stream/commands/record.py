"""`eex-record`: record the answer of every exit to every frame."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace, write_trace
from eex.stream.config import FrameConfig, earlier
from eex.stream.guard import SOURCE_LOST, guarded, hush
from eex.stream.run.recording import record
from eex.stream.wire.connection import answerer


@dataclass(frozen=True)
class Command:
    """Run every exit on every frame of a source under a distortion schedule, and write the answers to a trace.

    With the same options, eex-stream sees the same frames. Use eex-regret to replay and compare policies over traces.
    The trace is written at the end, in one step; an interrupted recording leaves no file.
    """

    record: tyro.conf.OmitArgPrefixes[FrameConfig]
    out: Path = Path("trace.arrow")
    """File to write."""
    answer_with: str = "own"
    """Model whose answers are recorded as the cloud's: 'own' for the network's final exit, a folder of another model of
    the same classes, or 'auto', as for eex-stream."""
    quiet: bool = False
    """Print errors only."""
    config: Path | None = None
    """Record the frames of an eex-stream run: path of its config.json. Options given here override those in it."""


def closing_line(path: Path, trace: Trace, skipped: int) -> str:
    """Describe the written trace in one line."""
    from rich.filesize import decimal

    names = [*(f"exit {e + 1}" for e in range(trace.edge_exits)), "cloud"]
    known = trace.label >= 0
    right = 100 * trace.correct[known].mean(axis=0) if known.any() else []
    accuracy = ", ".join(f"{name} {share:.1f} %" for name, share in zip(names, right, strict=False))
    parts = [
        f"{path}: {len(trace):,} frames",
        f"accuracy {accuracy}" if accuracy else f"{', '.join(names)}; no labels",
        decimal(path.stat().st_size),
    ]
    if skipped:
        parts.append(f"{skipped} image{'s' if skipped > 1 else ''} skipped")
    return "; ".join(parts)


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(markup=False, stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("frames", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def _check_out(path: Path) -> None:
    """Raise `EexError` early if the trace could not be written at the end."""
    if path.name.lower().endswith(ending := (".csv", ".csv.gz", ".parquet")):
        raise EexError(
            f"{path}: a trace is an Arrow file; one that ends in {' or '.join(ending)} is read otherwise (--out)"
        )
    try:
        Path(f"{path}.part").exists()  # the file that is written first; its name may be too long
        folder = next((p for p in path.absolute().parents if p.exists()), path)
        writable = not path.is_dir() and folder.is_dir() and os.access(folder, os.W_OK)
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror} (--out)") from None
    if not writable:
        raise EexError(f"{path}: cannot be written (--out)")


def main() -> None:
    """Entry point of `eex-record`."""
    sys.exit(guarded(_main))


def _main() -> int:
    arguments = sys.argv[1:]
    command = tyro.cli(
        Command,
        prog="eex-record",
        args=arguments,
        default=Command(record=earlier(arguments, FrameConfig)),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if command.quiet:
        hush()
    _check_out(command.out)
    with _bar(command.quiet) as report:
        cloud = answerer(command.answer_with, command.record.usual_answerer)
        trace, skipped, lost = record(command.record, report, cloud)
    write_trace(command.out, trace)
    if not command.quiet:
        print(closing_line(command.out, trace, skipped))
    if lost:
        print(f"error: {lost}; the trace ends there", file=sys.stderr)
        return SOURCE_LOST
    return 0


if __name__ == "__main__":
    main()
