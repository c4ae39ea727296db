"""`eex-keys`: make the keys by which a worker and its edges know each other."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from eex.stream.guard import guarded
from eex.stream.wire.keys import default_folder, make_keys


@dataclass(frozen=True)
class Command:
    """Make keys for a worker and its clients, so that they know each other and nobody else gets in.

    Without names it makes the pairs 'worker' and 'edge'. A worker serves the clients whose .pub lie in its folder; an
    edge needs its own .key and worker.pub. The files NAME.key are secret.
    """

    folder: Path = field(default_factory=default_folder)
    """Where to; eex-worker and eex-stream look in the default."""
    names: tuple[str, ...] = ()
    """Further clients, each with a pair of its own."""


def main() -> None:
    """Entry point of `eex-keys`."""
    sys.exit(guarded(_main))


def _main() -> None:
    import tyro

    command = tyro.cli(Command, prog="eex-keys", config=(tyro.conf.Positional,))
    print("\n".join(make_keys(command.folder, command.names)))


if __name__ == "__main__":
    main()
