"""What a session's finished frames come to: running totals, of all and of each stream, and their records."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from eex.policies.core.columns import Rows
from eex.policies.core.errors import EexError
from eex.stream.run.records import RecordWriter
from eex.stream.run.retention import Retention
from eex.stream.run.tally import Tally


class Totals:
    """Sums up and records frames that have left the engine.

    Parameters
    ----------
    exits
        Exits of the network, the final one included.
    records
        Where to record; None for nowhere.
    note
        Receives a line when records end.

    Attributes
    ----------
    all
        Of all streams.
    seconds
        Spent here.
    unrecorded
        Why records ended; empty if they did not.
    """

    def __init__(
        self, exits: int, records: RecordWriter | None, retention: Retention, note: Callable[[str], None]
    ) -> None:
        self.all = Tally(exits)
        self.seconds, self.unrecorded = 0.0, ""
        self._records, self._retention, self._note = records, retention, note

    def add(self, rows: Rows, tally_of: Callable[[str], Tally]) -> None:
        """Add finished frames.

        Parameters
        ----------
        tally_of
            The totals of a stream, by its name.
        """
        started = time.perf_counter()
        self.all.add(_renumbered(rows, self.all.frames))
        names = rows.stream
        alone = (names == names[0]).all()
        for name in [names[0]] if alone else sorted(set(names.tolist())):
            tally = tally_of(name)
            tally.add(_renumbered(rows if alone else rows[names == name], tally.frames))
        if self._records is not None and not self.unrecorded:
            try:
                self._records.write(rows)
                self._retention.apply(self._records)
            except EexError as error:
                self._records.abandon()
                self._end(error)
        self.seconds += time.perf_counter() - started

    def close(self) -> None:
        """Record what is left."""
        if self._records is not None and not self.unrecorded:
            try:
                self._records.close()
            except EexError as error:
                self._end(error)

    def _end(self, error: EexError) -> None:
        self.unrecorded = str(error)
        self._note(f"records end here: {error}")


def _renumbered(rows: Rows, first: int) -> Rows:
    """The rows with frames counted in the order in which they leave: learners' own numbers start where they were."""
    return replace(rows, frame=np.arange(first, first + len(rows)))
