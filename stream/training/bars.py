"""Progress bars of a training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eex.models.training import Progress

Bars = Callable[[str], "Callable[[Progress], None]"]
"""From the name of a part that is trained to a function that reports its progress."""


@contextmanager
def training_bars(quiet: bool) -> Iterator[Bars]:
    """Progress bars on standard error, one for each part that is trained; without a terminal, one line per epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=console, disable=quiet or not console.is_terminal) as bars:

        def bar(name: str) -> "Callable[[Progress], None]":
            task = bars.add_task(name, text="", total=None)
            validation = ""

            def report(progress: "Progress") -> None:
                nonlocal validation
                epoch = f"{progress.epoch + 1}/{progress.epochs}"
                if progress.accuracy:
                    validation = "validation " + " / ".join(f"{100 * a:.1f}" for a in progress.accuracy) + " %"
                    if not console.is_terminal and not quiet:
                        console.print(f"{name}: epoch {epoch}: {validation}", highlight=False)
                done = progress.epoch * progress.steps + progress.step
                text = f"{progress.phase} {epoch}  loss {progress.loss:.3f}  "
                text += f"{progress.images_per_second:,.0f} images/s  {validation}"
                bars.update(task, completed=done, total=progress.epochs * progress.steps, text=text)

            return report

        yield bar
