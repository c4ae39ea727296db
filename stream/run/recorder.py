"""Records and state of a run, kept together on the disk; a full disk ends them, not the stream."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from eex.policies.core.errors import EexError
from eex.stream.run import state
from eex.stream.run.records import RecordWriter

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet
    from eex.policies.core.base import Policy
    from eex.policies.core.columns import Rows
    from eex.policies.core.price import Meter
    from eex.stream.run.tally import Tally


class Recorder:
    """Writes finished frames and commits the state with them.

    Parameters
    ----------
    folder
        Folder of the run; None writes nothing.
    net
        Names its classes and experts.
    resume
        Go on from the folder's state, if there is one; records after it are deleted, as their frames come again.

    Attributes
    ----------
    first
        Number of the first frame.
    problem
        Why nothing more is written; empty as long as all goes well.

    Raises
    ------
    EexError
        If the folder's state cannot be read.
    """

    def __init__(self, folder: Path | None, net: "EarlyExitNet", resume: bool) -> None:
        self.folder = folder
        self.problem = ""
        self._saved = state.read(folder) if folder is not None and resume else None
        self.first = 0 if self._saved is None else int(self._saved["frames"])
        self._net, self._resume = net, resume
        self._writer: RecordWriter | None = None

    def begin(self, policy: "Policy", meter: "Meter", tally: "Tally") -> float:
        """Put policy, budget and totals back to where they were; the seconds that the stream had taken until then.

        Raises
        ------
        EexError
            If the state is that of another policy or price, or the folder cannot be written to; nothing is changed.
        """
        seconds = 0.0 if self._saved is None else state.restore(self._saved, policy, meter, tally)
        if self.folder is not None:
            state.drop_uncommitted(self.folder, self._resume)
            self._writer = RecordWriter(self.folder / "records", self._net.classes, self._net.experts)
        return seconds

    def write(self, rows: "Rows") -> None:
        """Take in finished frames."""
        if self._writer is not None:
            self._attempt(lambda writer: writer.write(rows))

    def commit(self, policy: "Policy", meter: "Meter", tally: "Tally", frames: int, seconds: float) -> None:
        """Write all that was taken in, and the state with it."""
        folder = self.folder
        if folder is not None:
            self._attempt(lambda writer: state.write(folder, policy, meter, tally, frames, writer.commit(), seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attempt(RecordWriter.close)

    def _attempt(self, action: Callable[[RecordWriter], None]) -> None:
        if self._writer is None or self.problem:
            return
        try:
            action(self._writer)
        except EexError as error:
            self.problem = str(error)
            self._writer.abandon()
