"""`eex-keys`: make the keys with which a worker and its edges authenticate each other."""

import sys
from dataclasses import dataclass
from pathlib import Path

from eex.stream.guard import guarded
from eex.stream.wire.keys import default_folder, make_keys


@dataclass(frozen=True)
class Keys:
    """Make the key pairs with which a worker and its clients authenticate each other.

    Without names, it makes the pairs 'worker' and 'edge'. A worker serves the clients whose .pub files are in its
    folder. An edge needs its own .key file and worker.pub. Keep the .key files secret.
    """

    folder: Path | None = None
    """Folder to write the keys to. By default, the one where eex-worker and eex-stream look for them."""
    names: tuple[str, ...] = ()
    """Names of more clients; each gets its own pair."""


def main() -> None:
    """Entry point of `eex-keys`."""
    sys.exit(guarded(_main))


def _main() -> None:
    import tyro

    options = tyro.cli(Keys, prog="eex-keys", config=(tyro.conf.Positional,))
    print("\n".join(make_keys(options.folder or default_folder(), options.names)))


if __name__ == "__main__":
    main()
