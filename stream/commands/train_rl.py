"""`eex-train-rl`: train an agent that chooses thresholds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import tyro

from eex.envs.train import RIVALS, Say, TrainRLConfig, train_rl


@contextmanager
def _bar(config: TrainRLConfig) -> Iterator[Say]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(markup=False, stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed:,} of {task.total:,} steps"), TimeRemainingColumn())
    shown = (*columns, TextColumn("{task.description}"))
    last = ""
    progress = Progress(*shown, console=console, disable=config.quiet or not console.is_terminal)
    task = progress.add_task("", total=config.steps)

    def say(steps: int, text: str) -> None:
        nonlocal last
        progress.start()  # not earlier: an error before training prints one line, without a bar
        progress.update(task, completed=min(steps, config.steps), description=text)
        if text != last and not config.quiet and not console.is_terminal:
            console.print(f"{steps:,} steps: {text}", highlight=False, soft_wrap=True)
        last = text

    try:
        yield say
    finally:
        progress.stop()


def main() -> None:
    """Entry point of `eex-train-rl`."""
    from eex.stream.guard import guarded

    sys.exit(guarded(_main))


def _main() -> None:
    from eex.stream.guard import hush

    config = tyro.cli(TrainRLConfig, prog="eex-train-rl", config=(tyro.conf.FlagCreatePairsOff,))
    if config.quiet:
        hush()
    with _bar(config) as say:
        best = train_rl(config, say)
    if not config.quiet:
        rivals = ", ".join(f"{name} {best[name]['regret']:.2f}" for name in RIVALS[config.reward])
        print(f"{config.out}: regret {best['regret']:.2f} per 1,000 frames on held-out schedules ({rivals})")


if __name__ == "__main__":
    main()
