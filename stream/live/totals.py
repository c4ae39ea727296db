"""What a session's finished frames come to: running totals, of all and of each stream, and their records."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eex.policies.core.columns import Rows
from eex.stream.run.recorder import Attempts
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
        Receives a line when records cannot be written, and when they are written again.

    Attributes
    ----------
    all
        Of all streams.
    seconds
        Spent here.
    watchers
        Called with the finished frames of each stream.
    """

    def __init__(
        self, exits: int, records: RecordWriter | None, retention: Retention, note: Callable[[str], None]
    ) -> None:
        self.all = Tally(exits, curves=False)
        self.seconds = 0.0
        self._records = None if records is None else Attempts(records, note)
        self._retention = retention
        self.watchers: list[Callable[[str, Rows], None]] = []
        self.prune()

    def add(self, rows: Rows, tally_of: Callable[[str], Tally]) -> None:
        """Add finished frames.

        Parameters
        ----------
        tally_of
            The totals of a stream, by its name.
        """
        started = time.perf_counter()
        self.all.add(rows)
        for name, mine in _by_stream(rows):
            tally_of(name).add(mine)
            for watcher in self.watchers:
                watcher(name, mine)
        if (records := self._records) is not None:
            records(partial(records.writer.write, rows))
        self.seconds += time.perf_counter() - started

    def flush(self) -> None:
        """Let what was added reach the file system."""
        if (records := self._records) is not None:
            records(records.writer.flush)

    def close(self) -> None:
        """Record what is left, delete what is too old, and let the folder go."""
        if (records := self._records) is not None:
            records(records.writer.commit)
            self.prune()
            records(records.writer.close)

    def prune(self) -> None:
        """Delete the oldest records if there are too many; call it now and then, also while no frames come."""
        if (records := self._records) is not None:
            records(partial(self._retention.apply, records.writer))

    @property
    def labels(self) -> Path | None:
        """The file for true labels that come later; None without records."""
        return None if self._records is None else self._records.writer.labels

    @property
    def unrecorded(self) -> dict[str, Any]:
        """What the records lack, for a summary: why, and how many frames."""
        return {"unrecorded": "", "unrecorded_frames": 0} if self._records is None else self._records.unrecorded


def _by_stream(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """The rows of each stream, in their order, by name."""
    places: dict[str, list[int]] = {}
    for k, name in enumerate(rows.stream.tolist()):
        places.setdefault(name, []).append(k)
    if len(places) == 1:
        yield rows.stream[0], rows
        return
    names = sorted(places)
    together, first = rows[np.array([k for name in names for k in places[name]])], 0  # then each is a slice
    for name in names:
        last = first + len(places[name])
        yield name, together[first:last]
        first = last
