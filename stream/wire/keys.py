"""CURVE keys, and the files that hold them.

A folder of keys holds pairs. `NAME.key` is the secret half, readable by its owner only; `NAME.pub` the public half, 40
printable characters. The pair `worker` belongs to the worker, the others to clients; a worker serves the clients whose
public halves lie in its folder. An edge needs its own pair and `worker.pub`. `eex-keys` makes them.
"""

import errno
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.utils.z85

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
    """What a worker needs: its own pair, and which clients it knows.

    Attributes
    ----------
    refresh
        Reads again what may have changed; to be called about once per second.
    """

    own: Pair
    known: Known
    refresh: Callable[[], None] = lambda: None


def default_folder() -> Path:
    """Where keys are by default: $EEX_KEYS, or eex/keys in the user's configuration folder.

    Raises
    ------
    EexError
        If the user has no home, as one that a container made up.
    """
    if folder := os.environ.get("EEX_KEYS"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "eex" / "keys"
    except RuntimeError:
        raise EexError("this user has no home folder to keep keys in; name one by an option or in EEX_KEYS") from None


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
    _check_new(folder, name)
    pair, made = new_pair(), list[Path]()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for ending, text, mode in ((".key", pair.secret, 0o600), (".pub", pair.public, 0o644)):
            path = folder / f"{name}{ending}"
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                made.append(path)
                os.fchmod(file.fileno(), mode)  # whatever the umask
                file.write(text + b"\n")
    except BaseException as error:  # a half without its other is of no use, and would pass for one that has it
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise EexError(f"{folder}: cannot be written: {error.strerror}") from None
        raise
    return pair


def _check_new(folder: Path, name: str) -> None:
    """Raise `EexError` if a pair cannot have this name, or there is one of it, or half of one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise EexError(
            f"'{name}': a key's name is at most 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    for path in (folder / f"{name}.key", folder / f"{name}.pub"):
        if path.exists():
            raise EexError(f"{path}: exists already; to replace the pair, delete it first")


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
        text = _head(path).strip()
    except FileNotFoundError:
        raise EexError(f"{path}: there is no such key; make keys with: eex-keys {path.parent}") from None
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    if not is_key(text):
        raise EexError(f"{path}: not a key, expected 40 characters of Z85 that stand for 32 bytes")
    return text


def is_key(text: bytes) -> bool:
    """Whether a text is 32 bytes in Z85; groups of five characters can stand for more than four bytes hold."""
    if not _Z85.fullmatch(text):
        return False
    try:
        zmq.utils.z85.decode(text)
    except (ValueError, struct.error):
        return False
    return True


class KeyFolder:
    """The public halves in a folder, kept in memory: looking one up costs a `stat` of the folder and a dictionary.

    Only regular, small, readable files with a printable UTF-8 name count; others are skipped and reported once.
    A change of the folder (a key added, deleted or renamed) is noticed at the next look-up. A file that is changed in
    place is noticed by `refresh`, which is to be called every now and then, from any thread.

    Parameters
    ----------
    log
        Receives one line per file that is skipped.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self._log = os.fsencode(folder), log
        self._lock = threading.Lock()  # `refresh` may run in several threads
        self._files: dict[bytes, tuple[_Version, bytes]] = {}  # by file name: what was read, empty if it is no key
        self._names: dict[bytes, str] = {}  # of clients, by public half
        self._seen: int | None = None  # the folder's time of change at the last reading; None: read it again
        self._reported: set[bytes] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._names)

    def known(self, public: bytes) -> str:
        """The name of the client with a public half; empty for a stranger. Never raises."""
        if self._seen is None or self._seen != self._changed():
            self.refresh()
        return self._names.get(public, "")

    def refresh(self) -> None:
        """Read what has changed since the last time. Never raises."""
        with self._lock:
            changed, now = self._changed(), time.time_ns()
            try:
                found = self._read()
            except FileNotFoundError:
                found = {}
            except OSError as error:  # as when no descriptor is free: what was known still is
                self._report(b"", f"the folder of keys cannot be read: {error.strerror}")
                return
            self._reported &= found.keys()
            names: dict[bytes, str] = {}
            for name in sorted(found):
                if found[name][1]:
                    names.setdefault(found[name][1], os.fsdecode(name.removesuffix(_PUB)))
            self._files, self._names = found, names
            # a change just after this one may carry the same time
            self._seen = changed if changed is not None and abs(now - changed) > _GRAIN_NS else None

    def _changed(self) -> int | None:
        try:
            return os.stat(self._folder).st_mtime_ns
        except OSError:
            return None

    def _read(self) -> dict[bytes, tuple["_Version", bytes]]:
        found: dict[bytes, tuple[_Version, bytes]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                if not name.endswith(_PUB) or name == os.fsencode(WORKER) + _PUB:
                    continue
                try:
                    state = entry.stat()  # of what a link leads to
                except OSError as error:
                    found[name] = (0, 0, 0, 0), b""
                    self._report(name, error.strerror)
                    continue
                version = state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size
                if name in self._files and self._files[name][0] == version:
                    found[name] = self._files[name]
                    continue
                try:
                    found[name] = version, self._key(name, state)
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE):  # those pass: it is read the next time
                        found[name] = version, b""
                        self._report(name, error.strerror)
        return found

    def _key(self, name: bytes, state: os.stat_result) -> bytes:
        """The public half in a file; empty if there is none."""
        problem = ""
        if not _printable(name):
            problem = "its name is not printable UTF-8 of at most 200 bytes"
        elif not stat.S_ISREG(state.st_mode):
            problem = "it is not a regular file"
        elif state.st_size > _MOST_BYTES:
            problem = f"it has {state.st_size:,} bytes, a key has 40"
        else:
            text = _head(os.path.join(self._folder, name)).strip()
            if is_key(text):
                return text
            problem = "it does not hold 40 characters of Z85"
        self._report(name, problem)
        return b""

    def _report(self, name: bytes, problem: str | None) -> None:
        if name not in self._reported:
            self._reported.add(name)
            path = os.path.join(self._folder, name).decode(errors="backslashreplace") if name else ""
            self._log(f"{ascii(path)[1:-1]}: not used as a client's key: {problem}" if name else f"{problem}")


_Version = tuple[int, int, int, int]
_PUB = b".pub"
_MOST_BYTES = 200
_GRAIN_NS = 50_000_000  # file systems date changes by a clock that may tick this slowly


def _printable(name: bytes) -> bool:
    try:
        return name.decode().isprintable() and len(name) <= 200
    except UnicodeDecodeError:
        return False


def _head(path: bytes | Path) -> bytes:
    """The first bytes of a regular file; a FIFO or a device is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def worker_keys(folder: Path | str, log: Callable[[str], None] = lambda line: None) -> WorkerKeys:
    """A worker's keys from a folder. Clients' keys may come and go while the worker runs.

    Parameters
    ----------
    log
        Receives one line per `.pub` file that cannot be used.

    Raises
    ------
    EexError
        If the worker's own pair cannot be read.
    """
    folder = Path(folder)
    own = read_pair(folder / f"{WORKER}.key")
    clients = KeyFolder(folder, log)
    return WorkerKeys(own, clients.known, clients.refresh)


def edge_keys(folder: Path | str, name: str = EDGE) -> EdgeKeys:
    """An edge's keys from a folder.

    Raises
    ------
    EexError
        If its pair or the worker's public half cannot be read.
    """
    folder = Path(folder)
    return EdgeKeys(read_pair(folder / f"{name}.key"), read_public(folder / f"{WORKER}.pub"))


def ephemeral_keys() -> tuple[WorkerKeys, EdgeKeys]:
    """Keys of one worker and one edge that know nobody else."""
    worker, edge = new_pair(), new_pair()
    return only(worker, edge.public), EdgeKeys(edge, worker.public)


def only(worker: Pair, client: bytes) -> WorkerKeys:
    """Keys of a worker that serves a single client."""
    return WorkerKeys(worker, lambda public: EDGE if public == client else "")


def make_keys(folder: Path | str, names: tuple[str, ...] = ()) -> list[str]:
    """Make pairs by name, or else one for a worker and one for an edge; the lines to print.

    Raises
    ------
    EexError
        If a name cannot be one, or is given twice, or is that of a pair that exists, where none is made; or if one
        cannot be written.
    """
    folder, names = Path(folder), names or (WORKER, EDGE)
    for name in names:
        _check_new(folder, name)
        if names.count(name) > 1:
            raise EexError(f"'{name}' is named twice")
    made = [f"{folder / name}.pub  {write_pair(folder, name).public.decode()}" for name in names]
    return [*made, f"secret halves beside them, {folder}/*.key, readable only by you"]
