"""`eex-stream`: stream images under a policy and show what adapting gained."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.options import check_threads
from eex.stream.config import StreamConfig, earlier, from_json, last_given, overridden
from eex.stream.guard import (
    SOURCE_LOST,
    UNRECORDED,
    WORKER_LOST,
    guarded,
    hush,
    keep_memory_flat,
    say_unless,
    share_cores,
)


@dataclass(frozen=True)
class Command:
    """Stream images through an early-exit network while a policy learns where each frame should stop.

    At the end, a table shows what adapting gained. Records, summary and pictures go to a new folder under --out.
    """

    stream: tyro.conf.OmitArgPrefixes[StreamConfig]
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print only the summary, as JSON, to standard output."""
    threads: int = 0
    """Number of CPU threads for the edge part; 0 = all cores."""
    download: Path | None = None
    """Download CIFAR-10 (170 MB) into this folder, verify it, and use it as the source."""
    resume: Path | None = None
    """Folder of an interrupted run to continue. Options given here override its own, except those that say which frames
    it plays and what they earn."""
    config: Path | None = None
    """Read options from the config.json of an earlier run. Options given here override those in it."""
    page: int | None = None
    """Port on which this machine can see the live page of the run; 0 takes a free one. To show regret as it grows,
    every exit is also run on some frames."""
    list_policies: bool = False
    """List the policies and their options, then exit."""


def main() -> None:
    """Entry point of `eex-stream`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = _parse(sys.argv[1:])
    if command.quiet:
        hush()
    share_cores()
    keep_memory_flat()
    if command.list_policies:
        return _list_policies()
    from eex.stream.run.runner import run

    config = command.stream
    if command.download is not None:
        from eex.stream.frames.sources import download_cifar10

        config = replace(config, source=str(download_cifar10(command.download)))
    check_threads(command.threads)
    if command.threads:
        from eex.stream.network import use_threads

        use_threads(command.threads)
    view = None
    if command.page is not None:
        from eex.stream.serving.config import ServeConfig
        from eex.stream.serving.run import page_of_run

        page = ServeConfig(port=command.page)
        page.check()
        view = page_of_run(page, say_unless(command.quiet))
    if command.quiet or command.json:
        summary = run(config, resume=command.resume, view=view)
    else:
        from eex.stream.run.display import display

        with display() as show:
            summary = run(config, show, command.resume, view)
    if command.json:
        print(json.dumps(summary))
    elif not command.quiet:
        from eex.stream.run.display import print_summary

        print_summary(summary)
    if summary["interrupted"]:
        return 130
    if lost := summary["source"]["lost"]:
        print(f"error: {lost}; {summary['frames']:,} frames were played before", file=sys.stderr)
        return SOURCE_LOST
    if why := summary["unrecorded"]:
        print(f"error: {summary['unrecorded_frames']:,} frames are not recorded: {why}", file=sys.stderr)
        return UNRECORDED
    if deaths := summary["worker_deaths"]:
        fell_back = summary["fallbacks"] - summary["withheld"]
        if fell_back:
            print(
                f"error: the embedded worker died ({deaths} times); {fell_back:,} frames were answered on the edge",
                file=sys.stderr,
            )
            return WORKER_LOST
    return 0


def _parse(arguments: list[str]) -> Command:
    resumed = last_given(arguments, "--resume")
    if resumed and last_given(arguments, "--config"):
        raise EexError("--config and --resume exclude each other: a run goes on with its own options")
    start = from_json(Path(resumed) / "config.json", StreamConfig) if resumed else earlier(arguments, StreamConfig)
    start = overridden(start, arguments)
    # also the flags' form that repeats what an earlier run had, as in --no-regret
    one = () if start != StreamConfig() else (tyro.conf.FlagCreatePairsOff,)
    config = (*one, tyro.conf.UseAppendAction)
    return tyro.cli(Command, prog="eex-stream", args=arguments, default=Command(stream=start), config=config)


def _list_policies() -> int:
    from rich.console import Console
    from rich.table import Table

    from eex.policies.registry import list_policies

    table = Table("policy", "what it does", "options and their defaults", box=None, padding=(0, 2, 0, 0))
    for name, summary, options in list_policies():
        table.add_row(name, summary, options)
    Console(markup=False).print(table)
    return 0


if __name__ == "__main__":
    main()
