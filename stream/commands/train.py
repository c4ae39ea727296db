"""`eex-train`: train an early-exit model on images."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tyro

from eex.stream.guard import guarded
from eex.stream.training import TrainConfig, train

if TYPE_CHECKING:
    from eex.models.training import Progress


@contextmanager
def training_bars(quiet: bool) -> Iterator[Any]:
    """Progress bars on standard error: one for each thing that is trained."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=quiet or not console.is_terminal) as bars:

        def for_part(name: str) -> Any:
            task = bars.add_task(name, text="", total=None)
            best: list[str] = [""]

            def report(progress: "Progress") -> None:
                done = progress.epoch * progress.steps + progress.step
                if progress.accuracy:
                    best[0] = "validation " + " / ".join(f"{100 * a:.1f}" for a in progress.accuracy) + " %"
                    if not console.is_terminal and not quiet:
                        console.print(
                            f"{name}: epoch {progress.epoch + 1}/{progress.epochs}: {best[0]}", highlight=False
                        )
                text = f"{progress.phase} {progress.epoch + 1}/{progress.epochs}  loss {progress.loss:.3f}  "
                text += f"{progress.images_per_second:,.0f} images/s  {best[0]}"
                bars.update(task, completed=done, total=progress.epochs * progress.steps, text=text)

            return report

        yield for_part


def main() -> None:
    """Entry point of `eex-train`."""
    sys.exit(guarded(_main))


def _main() -> int:
    config = tyro.cli(TrainConfig, prog="eex-train", config=(tyro.conf.FlagCreatePairsOff,))
    measured = train(config)
    if measured and not config.quiet:
        from rich.console import Console
        from rich.table import Table

        table = Table(title="accuracy on the test split", title_justify="left")
        columns = ("distortion", "level", "expert", "exit", "accuracy", "ece_before", "ece_after")
        for name in columns:
            table.add_column(name, justify="left" if name in ("distortion", "expert") else "right")
        for row in measured["exits"]:
            table.add_row(*(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
        Console().print(table)
    return 0


if __name__ == "__main__":
    main()
