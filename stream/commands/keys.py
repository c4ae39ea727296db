"""`eex-keys`: make the keys by which a worker and its edges know each other."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from eex.stream.guard import guarded
from eex.stream.wire.keys import default_folder, make_keys


@dataclass(frozen=True)
class Keys:
    """Make keys for a worker and its clients, so that they know each other and nobody else gets in.

    Without names, the pairs 'worker' and 'edge' are made. A worker serves the clients whose .pub files lie in its
    folder; an edge needs its own .key file and worker.pub. Keep the .key files secret.
    """

    folder: Path = field(default_factory=default_folder)
    """Where to write the keys; the default is where eex-worker and eex-stream look for them."""
    names: tuple[str, ...] = ()
    """Names of further clients, each of which gets a pair of its own."""


def main() -> None:
    """Entry point of `eex-keys`."""
    sys.exit(guarded(_main))


def _main() -> None:
    import tyro

    options = tyro.cli(Keys, prog="eex-keys", config=(tyro.conf.Positional,))
    print("\n".join(make_keys(options.folder, options.names)))


if __name__ == "__main__":
    main()
