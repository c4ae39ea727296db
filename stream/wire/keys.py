"""CURVE keys, and the files that hold them.

A folder of keys holds pairs. `NAME.key` is the secret half, readable by its owner only; `NAME.pub` the public half, 40
printable characters. The pair `worker` belongs to the worker, the others to clients; a worker serves the clients whose
public halves lie in its folder. An edge needs its own pair and `worker.pub`. `eex-keys` makes them.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from eex.policies.core.errors import EexError

WORKER, EDGE = "worker", "edge"
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class Pair:
    """A CURVE key pair, both halves in Z85, 40 characters each."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Pair({self.public.decode()})"


@dataclass(frozen=True)
class EdgeKeys:
    """What an edge needs: its own pair, and the public half of the worker's."""

    own: Pair
    worker: bytes


Known = Callable[[bytes], str]
"""Maps a public half to the name of the client; empty for a stranger."""


@dataclass(frozen=True)
class WorkerKeys:
    """What a worker needs: its own pair, and which clients it knows."""

    own: Pair
    known: Known


def default_folder() -> Path:
    """Where keys are unless an option says otherwise: $EEX_KEYS, or eex/keys in the user's configuration folder."""
    if folder := os.environ.get("EEX_KEYS"):
        return Path(folder)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "eex" / "keys"


def new_pair() -> Pair:
    """A new pair of keys, drawn from the system's randomness."""
    return Pair(*zmq.curve_keypair())


def write_pair(folder: Path, name: str) -> Pair:
    """Make a pair and write `name.key` (mode 600) and `name.pub`.

    Raises
    ------
    EexError
        If a pair of that name exists, or the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise EexError(
            f"'{name}': a key's name is at most 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    pair = new_pair()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, text, mode in (
            (folder / f"{name}.key", pair.secret, 0o600),
            (folder / f"{name}.pub", pair.public, 0o644),
        ):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                os.fchmod(file.fileno(), mode)  # whatever the umask
                file.write(text + b"\n")
    except FileExistsError as error:
        raise EexError(f"{error.filename}: exists already; to replace the pair, delete it first") from None
    except OSError as error:
        raise EexError(f"{folder}: cannot be written: {error.strerror}") from None
    return pair


def read_public(path: Path) -> bytes:
    """The public half in a file.

    Raises
    ------
    EexError
        If there is no key in it.
    """
    return _read(path)


def read_pair(path: Path) -> Pair:
    """The pair whose secret half is in a file, which nobody but its owner may be able to read.

    Raises
    ------
    EexError
        If there is no key in it, or others can read it.
    """
    secret = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise EexError(f"{path}: others can read this secret key (mode {mode:o}); chmod 600 {path}")
    return Pair(zmq.curve_public(secret), secret)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(200).strip()
    except FileNotFoundError:
        raise EexError(f"{path}: there is no such key; make keys with: eex-keys {path.parent}") from None
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    if not _Z85.fullmatch(text):
        raise EexError(f"{path}: not a key, expected 40 characters of Z85")
    return text


def worker_keys(folder: Path) -> WorkerKeys:
    """A worker's keys from a folder. Clients are looked up as they connect, so their keys may come and go meanwhile.

    Raises
    ------
    EexError
        If the worker's own pair cannot be read.
    """

    def known(public: bytes) -> str:
        for path in sorted(folder.glob("*.pub")):
            try:
                if path.stem != WORKER and _read(path) == public:
                    return path.stem
            except EexError:  # somebody else's file, or one that is just being written
                continue
        return ""

    return WorkerKeys(read_pair(folder / f"{WORKER}.key"), known)


def edge_keys(folder: Path, name: str = EDGE) -> EdgeKeys:
    """An edge's keys from a folder.

    Raises
    ------
    EexError
        If its pair or the worker's public half cannot be read.
    """
    return EdgeKeys(read_pair(folder / f"{name}.key"), read_public(folder / f"{WORKER}.pub"))


def ephemeral_keys() -> tuple[WorkerKeys, EdgeKeys]:
    """Keys of one worker and one edge that know nobody else."""
    worker, edge = new_pair(), new_pair()
    return only(worker, edge.public), EdgeKeys(edge, worker.public)


def only(worker: Pair, client: bytes) -> WorkerKeys:
    """Keys of a worker that serves a single client."""
    return WorkerKeys(worker, lambda public: EDGE if public == client else "")


def make_keys(folder: Path, names: tuple[str, ...] = ()) -> list[str]:
    """Make pairs by name, or else one for a worker and one for an edge; lines that say what was made.

    Raises
    ------
    EexError
        If one exists already or cannot be written.
    """
    made = [f"{folder / name}.pub  {write_pair(folder, name).public.decode()}" for name in names or (WORKER, EDGE)]
    return [*made, f"secret halves beside them, {folder}/*.key, readable only by you"]
