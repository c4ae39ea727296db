"""Progress bars of a training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eex.models.training import Progress

Bars = Callable[[str], "Callable[[Progress], None]"]
"""From the name of a part that is trained to a function that reports its progress."""


@contextmanager
def training_bars(quiet: bool, notes: Sequence[str] = (), of: str = "validation") -> Iterator[Bars]:
    """Progress bars on standard error, one for each part that is trained; without a terminal, one line per epoch.

    Parameters
    ----------
    notes
        Lines to print once the training begins.
    of
        What the shares are that are shown after each epoch.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display
    from rich.table import Column

    console, first = Console(markup=False, stderr=True), list(notes)
    columns = (
        TextColumn("{task.description}", table_column=Column(min_width=len("gaussian_noise"), no_wrap=True)),
        BarColumn(bar_width=6),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=console, disable=quiet or not console.is_terminal) as bars:

        def say() -> None:
            while first and not quiet:
                console.print(first.pop(0), highlight=False, soft_wrap=True)

        def bar(name: str) -> "Callable[[Progress], None]":
            task = bars.add_task(name, text="", total=None)
            accuracy = ""

            def report(progress: "Progress") -> None:
                nonlocal accuracy
                say()
                if progress.resumed:
                    if not quiet:
                        at = f"{progress.phase}, after epoch {progress.epoch} of {progress.epochs}"
                        console.print(f"{name}: goes on from its checkpoint: {at}", highlight=False, soft_wrap=True)
                    return
                epoch = f"{progress.epoch + 1}/{progress.epochs}"
                if progress.accuracy:
                    shares = [f"{100 * a:.1f}" for a in progress.accuracy]
                    validation, accuracy = f"{of} {' / '.join(shares)} %", f"{of[:3]} {'/'.join(shares)} %"
                    if not console.is_terminal and not quiet:
                        line = f"{name}: epoch {epoch}: {validation}, {progress.images_per_second:,.0f} images/s"
                        console.print(line, highlight=False, soft_wrap=True)
                done = progress.epoch * progress.steps + progress.step
                text = f"{progress.phase} {epoch} loss {progress.loss:.2f} {accuracy}"
                bars.update(task, completed=done, total=progress.epochs * progress.steps, text=text)

            return report

        yield bar
        say()
