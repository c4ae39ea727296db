"""`eex-report`: runs in one HTML file that can be sent to somebody."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded


@dataclass(frozen=True)
class Command:
    """Write one HTML file about one or more runs, side by side: what was run, results, curves, calibration, faults.

    The file needs nothing else: it can be sent, opened without a network, and read without scripts.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or their folders of records."""
    out: Path | None = None
    """File to write. By default, report.html in the folder of the first run."""

    def check(self) -> None:
        """Raise `EexError` if no run is given."""
        if not self.runs:
            raise EexError("give the folder of at least one run, such as runs/20261121-173855-ucb")


def main() -> None:
    """Entry point of `eex-report`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = tyro.cli(Command, prog="eex-report")
    command.check()
    from eex.policies.core.files import write_file
    from eex.stream.run.document import document, read_run

    out = command.out or command.runs[0] / "report.html"
    write_file(out, document([read_run(folder) for folder in command.runs]))
    print(out)
    return 0


if __name__ == "__main__":
    main()
