"""`eex-train`: train an early-exit model on images."""

import sys

import tyro

from eex.stream.guard import guarded
from eex.stream.training import TrainConfig, train


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
