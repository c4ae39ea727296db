"""Files that are written whole or not at all, and JSON that somebody else wrote.

A reader sees the old content or the new, never a part of it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from eex.policies.core.errors import EexError

MOST_LEVELS = 200
"""Levels of nesting of a configuration or a card."""


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Give the path of a part file, which takes the place of `path` when the block ends without an error.

    If the block fails, on Ctrl-C too, the part file is removed and `path` stays as it was. The folder is made if it is
    missing. Two files that belong together are written in one block: `with replacing(a) as x, replacing(b) as y`.

    Parameters
    ----------
    path
        The file to write; the part file lies beside it, with ".part" added to its name.
    durable
        Wait until the content is on the disk, so that it also survives a loss of power.

    Raises
    ------
    EexError
        If the file cannot be written: an `OSError` of the block becomes one line that names the file and the reason.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with replacing(path) as part:
    ...     size = part.write_text("frame,exit")
    >>> path.read_text()
    'frame,exit'
    """
    if not path.name:
        raise EexError(f"{path}: cannot be written: it is a folder")
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # Path.exists raises for too long a name
        raise EexError(f"{path}: cannot be written: it is a device, a pipe or a socket, and no file")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
        if durable:
            sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise EexError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


def take_paths(config: Any) -> None:
    """Let a dataclass of options take a path in either form, as text or as a `Path`; called by its `__post_init__`.

    Afterwards a field holds what it declares: a `Path`, a tuple of them or of texts, also where one is given, or text.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Options:
    ...     model: Path | None = None
    ...     __post_init__ = take_paths
    >>> Options(model="folder").model == Path("folder")
    True
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in (Path, Path | None) and isinstance(value, str | os.PathLike):
            object.__setattr__(config, field.name, Path(value))
        elif field.type == tuple[Path, ...]:
            several = [value] if isinstance(value, str | os.PathLike) else value
            object.__setattr__(config, field.name, tuple(map(Path, several)))
        elif field.type == tuple[str, ...] and isinstance(value, str):
            object.__setattr__(config, field.name, (value,))
        elif field.type in (str, str | None) and isinstance(value, os.PathLike):
            object.__setattr__(config, field.name, os.fspath(value))


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file by a text, as UTF-8, or by bytes; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def parse_json(text: str | bytes) -> Any:
    """The plain values in a JSON text that somebody else wrote.

    Raises
    ------
    ValueError
        If it is not JSON, is nested deeper than `MOST_LEVELS`, holds a whole number of more than 64 bits, or a text
        that cannot be written as UTF-8 or as the name of a file: half a surrogate pair, or a NUL.

    Examples
    --------
    >>> parse_json('{"exits": [1, 2]}')
    {'exits': [1, 2]}
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_plain_values(values)
    return values


def read_metadata(data: bytes, name: str) -> Any:
    """The plain values that stand as JSON under a name in the metadata of a safetensors file, given its bytes.

    Raises
    ------
    ValueError
        If they are no JSON (`parse_json`), or there is nothing of this name.
    """
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if name not in metadata:
        raise ValueError(f"its metadata has no '{name}'")
    return parse_json(metadata[name])


def check_plain_values(values: Any) -> None:
    """Raise `ValueError` for values of JSON or TOML that are nested too deeply or hold impossible texts or numbers."""
    level = [values]
    for _ in range(MOST_LEVELS):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                for key in value:
                    _check_text(key)
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, int) and value.bit_length() > 63:
                raise ValueError("it holds a whole number of more than 64 bits")
        if not deeper:
            return
        level = deeper
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"it is nested deeper than {MOST_LEVELS} levels"


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8", "surrogateescape")  # names of files that are not UTF-8 may stand in it
        possible = "\0" not in text
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"the text {text[:40]!a} holds a NUL or half a surrogate pair")


def append(descriptor: int, data: bytes) -> None:
    """Write to the end of an open file, whole or not at all; to a pipe, as far as it goes.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    end = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:  # the disk is full: what got there of it goes again
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
            os.lseek(descriptor, end, os.SEEK_SET)
        raise


def lock(descriptor: int, path: Path) -> None:
    """Keep other processes from locking an open file or folder until it is closed, where there are locks.

    Raises
    ------
    EexError
        If another process has it.
    """
    try:
        import fcntl  # Windows has none

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EexError(f"{path}: another process is writing there; wait for its end, or stop it") from None
    except (ImportError, OSError):  # some network file systems have none
        return


def lock_folder(folder: Path) -> int:
    """Open a folder and `lock` it; returns its descriptor.

    Raises
    ------
    EexError
        If another process has it.
    OSError
        If there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(descriptor, folder)
    except EexError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other processes, and other blocks of this one, from a file until the block ends.

    A file that is replaced cannot be locked itself: "<path>.lock" is, which is there as long. Where it cannot be made,
    nothing is kept away.

    Raises
    ------
    EexError
        If another process has it.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock_file(beside, path)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                beside.unlink()
            os.close(descriptor)


def _lock_file(beside: Path, path: Path) -> int:
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock(descriptor, path)
            if os.path.samestat(os.fstat(descriptor), beside.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # who had it removed it meanwhile
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder until the block ends (`lock_folder`); it is made if it is missing.

    Raises
    ------
    EexError
        If another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock_folder(folder)
    except OSError as error:
        raise EexError(f"{folder}: cannot write there (--out): {error.strerror}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises
    ------
    EexError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; where a file system cannot, nothing happens."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
