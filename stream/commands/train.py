"""`eex-train`: train an early-exit model on images."""

import sys
from typing import Any

import tyro

from eex.stream.guard import guarded, hush
from eex.stream.training.options import TrainConfig

NAMED = 20
"""Classes that are shown."""


def main() -> None:
    """Entry point of `eex-train`."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(TrainConfig, prog="eex-train", config=(tyro.conf.FlagCreatePairsOff,))
    if config.quiet:
        hush()
    from eex.stream.training.train import train

    measured = train(config)
    if measured and not config.quiet:
        _print(measured["exits"], measured["classes"], "agreement" if config.teach else "accuracy")


def _print(rows: list[dict[str, Any]], classes: list[dict[str, Any]], share: str) -> None:
    """Print what was measured; the `share` is accuracy, or the agreement with the final exit that taught the others."""
    from rich.console import Console
    from rich.table import Table

    of = "accuracy on the test split" if share == "accuracy" else "agreement with the final exit as it was"
    table = Table(title=of, title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns = ["distortion", "level", "expert", "exit", share, "ece_before", "ece_after"]
    columns = [name for name in columns if name in rows[0]]
    for name in ({"ece_before": "ECE before", "ece_after": "after"}.get(name, name) for name in columns):
        text = name in ("distortion", "expert")
        table.add_column(name, justify="left" if text else "right", no_wrap=text, min_width=14 if text else None)
    for row in rows:
        table.add_row(*(f"{row[c]:.3f}" if c in columns[4:] else str(row[c]) for c in columns))
    console = Console(markup=False)
    console.print(table)
    for line in _by_class(classes, share):
        console.print(line, soft_wrap=True, highlight=False)


def _by_class(classes: list[dict[str, Any]], share: str) -> list[str]:
    """Sentences on the accuracy, or the agreement, of each class, the worst first."""
    worst = sorted(classes, key=lambda row: row[share])
    shown = ", ".join(f"{row['class']} {row[share]:.3f} ({row['images']:,})" for row in worst[:NAMED])
    more = f", … {len(worst) - NAMED} more in card.json" if len(worst) > NAMED else ""
    mean = sum(row[share] for row in classes) / len(classes)
    return [
        "",
        f"final exit, undistorted, by class (test images): {shown}{more}",
        f"mean of the classes: {mean:.3f}",
    ]


if __name__ == "__main__":
    main()
