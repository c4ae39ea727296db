"""Records and state of a run, kept together on the disk.

A disk that is full does not stop the stream; once there is room again, records and state go on.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eex.policies.core.errors import EexError
from eex.stream.run import state
from eex.stream.run.records import RecordWriter, gaps

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.policies.core.base import Policy
    from eex.policies.core.columns import Rows
    from eex.policies.core.price import Meter
    from eex.stream.run.tally import Tally


def warn(text: str) -> None:
    """Print a warning on standard error, also under --quiet."""
    with contextlib.suppress(OSError):  # no run ends because a full disk, or nobody, takes its warnings
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Attempts:
    """Attempts to write that may fail: the first failure is reported at once, and so is the first success after it.

    Parameters
    ----------
    writer
        Of the records.
    warn
        Called with one line when writing begins to fail, and when it succeeds again.

    Attributes
    ----------
    problem
        Why something is not on the disk now; empty if all that should be is.
    """

    def __init__(self, writer: RecordWriter, warn: Callable[[str], None] = warn) -> None:
        self.writer, self._warn = writer, warn
        self.problem = self._first = ""
        self._in_writer = False

    def __call__(self, action: Callable[[], object]) -> None:
        """Do something that may raise an `EexError`, such as to write rows or to commit."""
        try:
            action()
        except EexError as error:
            self._in_writer = bool(self.writer.problem)
            if not self.problem:
                self._warn(f"{error}; frames are held, and the next write is tried as usual")
            self.problem = str(error)
            self._first = self._first or self.problem
            return
        if self.problem and not (self._in_writer and self.writer.problem):  # rows may be taken in without a write
            self._warn("records are written again")
            self.problem = ""

    @property
    def unrecorded(self) -> dict[str, Any]:
        """What is missing, for a summary: why, and how many frames."""
        lost = self.writer.lost
        return {"unrecorded": self.problem or (self._first if lost else ""), "unrecorded_frames": lost}


class Recorder:
    """Writes finished frames and commits the state with them.

    Parameters
    ----------
    folder
        Folder of the run; None writes nothing.
    net
        Names its classes and experts.
    resume
        Continue from the folder's state, if there is one; records after it are deleted, as their frames come again.

    Attributes
    ----------
    first
        Number of the first frame.

    Raises
    ------
    EexError
        If the folder's state cannot be read, or another run is writing to the folder.
    """

    def __init__(self, folder: Path | None, net: "Network", resume: bool) -> None:
        self.folder, self._resume = folder, resume
        self._missing = 0
        self._saved = None
        self._attempt: Attempts | None = None
        if folder is not None:
            writer = RecordWriter(folder / "records", net.classes, net.experts)
            self._attempt = Attempts(writer)
            try:
                self._saved = state.read(folder) if resume else None
            except EexError:
                writer.close()
                raise
        self.first = 0 if self._saved is None else int(self._saved["frames"])

    def begin(self, policy: "Policy", meter: "Meter", tally: "Tally", config: Mapping[str, Any] | None = None) -> float:
        """Restore policy, budget and totals, and return the seconds that the stream had taken until then.

        Parameters
        ----------
        config
            The options of the run, which are written to its folder.

        Raises
        ------
        EexError
            If the state is that of another policy or price, or the folder cannot be written to; nothing is changed.
        """
        seconds = 0.0 if self._saved is None else state.restore(self._saved, policy, meter, tally)
        if self.folder is None or self._attempt is None:
            return seconds
        if self._resume:
            committed = 0 if self._saved is None else int(self._saved["parts"])
            for gap in gaps(self.folder / "records", committed, self.first):
                warn(str(gap))
                self._missing += gap.frames
            self._attempt.writer.go_on_from(committed)
        if config is not None:
            from eex.stream.run.summary import write_json

            write_json(self.folder / "config.json", config)
        return seconds

    def write(self, rows: "Rows") -> None:
        """Take in finished frames."""
        if self._attempt is not None:
            self._attempt(partial(self._attempt.writer.write, rows))

    def commit(self, policy: "Policy", meter: "Meter", tally: "Tally", frames: int, seconds: float) -> None:
        """Write all that was taken in, and the state with it; after a failure, the next commit tries again."""
        folder, attempt = self.folder, self._attempt
        if folder is not None and attempt is not None:
            attempt(lambda: state.write(folder, policy, meter, tally, frames, attempt.writer.commit(), seconds))

    @property
    def unrecorded(self) -> dict[str, Any]:
        """What is missing in the records, for the summary: why, and how many frames; "" and 0 if nothing is."""
        found: dict[str, Any] = (
            {"unrecorded": "", "unrecorded_frames": 0} if self._attempt is None else self._attempt.unrecorded
        )
        if self._missing:
            damaged = "parts that were written before this resumption are damaged"
            found["unrecorded"] = "; ".join(filter(None, (damaged, found["unrecorded"])))
            found["unrecorded_frames"] += self._missing
        return found

    def close(self) -> None:
        """Write what is left, and let go of the folder."""
        if self._attempt is not None:
            self._attempt(self._attempt.writer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
