"""`eex-serve`: answer images over HTTP, watch it on a page, change settings while it runs."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from eex.policies.core.options import check_threads
from eex.stream.guard import guarded, hush, keep_memory_flat, say_unless, share_cores
from eex.stream.live.config import LiveConfig
from eex.stream.serving.config import ServeConfig


@dataclass(frozen=True)
class Command:
    """Answer images over HTTP, while a policy learns where each should stop.

    POST an image to /v1/answer, or send many over the WebSocket /v1/frames; requests of all clients share
    micro-batches. / is a page that shows what happens, /docs describes the API. SIGTERM and Ctrl-C end the service
    after every frame that was taken in has its answer.
    """

    serve: tyro.conf.OmitArgPrefixes[ServeConfig] = field(default_factory=ServeConfig)
    live: tyro.conf.OmitArgPrefixes[LiveConfig] = field(default_factory=LiveConfig)
    summary: Path | None = None
    """File for the summary at the end, as JSON: totals, and a row per stream."""
    quiet: bool = False
    """Print errors only."""
    threads: int = 0
    """Number of CPU threads for the edge part; 0 = all cores."""

    def check(self) -> None:
        """Raise `EexError` if an option is out of range."""
        check_threads(self.threads)
        self.serve.check()
        self.live.check()


def main() -> None:
    """Entry point of `eex-serve`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = tyro.cli(Command, prog="eex-serve", config=(tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction))
    command.check()
    command.serve.token()  # a mistake is reported before the network is loaded
    if command.quiet:
        hush()
    share_cores()
    keep_memory_flat()
    from eex.stream.live.run import Stop
    from eex.stream.live.summary import concluded
    from eex.stream.serving.run import serve

    if command.threads:
        from eex.stream.network import use_threads

        use_threads(command.threads)
    with Stop().by_signals() as stop:
        summary = serve(command.live, command.serve, say=say_unless(command.quiet), stop=stop)
    return concluded(summary, command.summary)


if __name__ == "__main__":
    main()
