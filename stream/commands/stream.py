"""`eex-stream`: the command that streams images under a policy and shows what adapting bought."""

import json
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.stream.config import StreamConfig, earlier, from_json
from eex.stream.guard import guarded, share_cores


@dataclass(frozen=True)
class Command:
    """Stream images through an early-exit network while a policy learns where each frame should stop.

    The last screen, and a folder of its own under --out, say what adapting bought.
    """

    stream: tyro.conf.OmitArgPrefixes[StreamConfig]
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the summary as JSON to standard output, and nothing else there."""
    threads: int = 0
    """Processor threads for the edge part; 0 = all cores."""
    download: Path | None = None
    """Fetch CIFAR-10 (170 MB, checked) into this folder first and stream from it."""
    resume: Path | None = None
    """Go on with a run that was cut off, by its folder; options given here win."""
    config: Path | None = None
    """Start from the config.json of an earlier run; other options given here win."""
    list_policies: bool = False
    """Show the policies and their options, and stop."""


def main() -> None:
    """Entry point of `eex-stream`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = _parse(sys.argv[1:])
    share_cores()
    if command.list_policies:
        return _list_policies()
    from eex.stream.run.runner import run

    config = command.stream
    if command.download is not None:
        from eex.stream.frames.sources import download_cifar10

        config = replace(config, source=str(download_cifar10(command.download)))
    if command.threads < 0:
        raise EexError(f"--threads must be at least 0, got {command.threads}")
    if command.threads:
        import torch

        torch.set_num_threads(command.threads)
    if command.quiet or command.json:
        summary = run(config, resume=command.resume)
    else:
        from eex.stream.run.display import display

        with display() as show:
            summary = run(config, show, command.resume)
    if command.json:
        print(json.dumps(summary))
    elif not command.quiet:
        from eex.stream.run.display import print_summary

        print_summary(summary)
    return 130 if summary["interrupted"] else 0


def _parse(arguments: list[str]) -> Command:
    resumed = [a.partition("=")[2] or b for a, b in pairwise([*arguments, ""]) if a.partition("=")[0] == "--resume"]
    start = from_json(Path(resumed[-1]) / "config.json", StreamConfig) if resumed else earlier(arguments, StreamConfig)
    return tyro.cli(
        Command,
        prog="eex-stream",
        args=arguments,
        default=Command(stream=start),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _list_policies() -> int:
    from rich.console import Console
    from rich.table import Table

    from eex.policies.registry import list_policies

    table = Table("policy", "what it does", "options and their defaults", box=None, padding=(0, 2, 0, 0))
    for name, summary, options in list_policies():
        table.add_row(name, summary, options)
    Console().print(table)
    return 0


if __name__ == "__main__":
    main()
