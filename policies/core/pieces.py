"""Columns that come in pieces: joined in memory while they are small, else in files that are mapped into memory."""

import atexit
import mmap
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError

MOST_IN_MEMORY = 1 << 26
"""Bytes of columns that are held in memory: 64 MiB; twice as many while their pieces are joined."""


class Mapped(np.memmap):
    """An array in a file, of which memory holds what was read last; sent to another process by its name alone."""

    def __reduce__(self) -> Any:
        """The file instead of its content; views are sent as plain arrays."""
        if isinstance(self.base, np.ndarray):
            return np.array(self).__reduce__()
        return mapped, (str(self.filename), self.dtype.str, self.shape)


def let_go(area: mmap.mmap) -> None:
    """Give the memory of a mapped file back; what is needed of it again is read again."""
    if hasattr(area, "madvise"):  # not everywhere
        area.madvise(mmap.MADV_DONTNEED)


def mapped(path: str, dtype: str, shape: tuple[int, ...]) -> "Mapped":
    """The array in a file, to be read only.

    Raises
    ------
    EexError
        If the file is not there.
    """
    if not Path(path).exists():
        raise EexError(f"{path}: not found; a trace this large is played on the machine that reads it, without --ray")
    return Mapped(path, dtype=dtype, mode="r", shape=shape)


class Pieces:
    """Columns by name that come piece by piece, the rows of each following those of the one before.

    Where they outgrow `MOST_IN_MEMORY`, they lie in a folder of their own where temporary files do (`TMPDIR`), which
    is removed when the process ends.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._bytes = 0
        self._held: list[Mapping[str, NDArray[Any]]] = []
        self._folder: Path | None = None
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows.

        Raises
        ------
        EexError
            If the disk is full.
        """
        self._held.append(columns)
        self.rows += len(next(iter(columns.values())))
        self._bytes += sum(column.nbytes for column in columns.values())
        if self._bytes > MOST_IN_MEMORY:
            self._write()

    def whole(self) -> dict[str, NDArray[Any]]:
        """All rows of each column."""
        if self._folder is None:
            return {name: np.concatenate([held[name] for held in self._held]) for name in self._held[0]}
        self._write()
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, width) in self._kinds.items():
            arrays[name] = mapped(str(self._folder / name), dtype, (self.rows, *width))
        return arrays

    def _write(self) -> None:
        """Move what is held in memory to the folder."""
        for held in self._held:
            for name, column in held.items():
                self._kinds.setdefault(name, (column.dtype.str, column.shape[1:]))
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="eex-trace-"))
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            for name in self._kinds:
                with (self._folder / name).open("ab") as file:
                    for held in self._held:
                        file.write(np.ascontiguousarray(held[name]).data.cast("B"))
        except OSError as error:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            raise EexError(
                f"is too large for memory, and cannot be kept in {self._folder or tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a folder with more room"
            ) from None
        self._held, self._bytes = [], 0
