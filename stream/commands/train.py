"""`eex-train`: train an early-exit model on images."""

import sys
from typing import Any

import tyro

from eex.stream.guard import guarded
from eex.stream.training.options import TrainConfig


def main() -> None:
    """Entry point of `eex-train`."""
    sys.exit(guarded(_main))


def _main() -> None:
    config = tyro.cli(TrainConfig, prog="eex-train", config=(tyro.conf.FlagCreatePairsOff,))
    from eex.stream.training.train import train

    measured = train(config)
    if measured and not config.quiet:
        _print(measured["exits"])


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy on the test split", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("distortion", "level", "expert", "exit", "accuracy", "ECE before", "after"):
        table.add_column(name, justify="left" if name in ("distortion", "expert") else "right")
    columns = ("distortion", "level", "expert", "exit", "accuracy", "ece_before", "ece_after")
    for row in rows:
        table.add_row(*(f"{row[c]:.3f}" if c in columns[4:] else str(row[c]) for c in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
