"""Rows of frames under way, in constant memory: frames enter in order, finish in any order, and leave in order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.columns import COLUMNS, DTYPES, OUTCOMES, Bools, Column, Floats, Ints, Rows

_PRIVATE = (
    Column("When the frame arrived.", unit="s", default=np.nan, name="entered", kind="float"),
    Column("The budget's part of the price when the policy chose.", default=0.0, name="scarcity", kind="float"),
    Column("Number of its stream.", default=0, name="source", kind="int"),
    Column("Whether its stream kept its thresholds.", default=False, name="frozen", kind="bool"),
)


def place_of(slots: Ints) -> Any:
    """Slots as an index: the number of a single one, whose values are then numbers, not arrays of one number."""
    return int(slots[0]) if len(slots) == 1 else slots


class Ring:
    """A table of frames under way, addressed by slot: the frame's number modulo the capacity.

    Columns of the same type are stored side by side, so that a few numpy calls reset or read a row: for frames that
    arrive one at a time, the cost of each call matters.

    Parameters
    ----------
    capacity
        Maximum number of frames under way.
    exits
        Exits of the network, the final one included.
    kinds
        Number of distortion kinds in the frames' levels.
    first
        Number of the first frame.

    Attributes
    ----------
    rows
        Views of all slots by column; write to them to set values.
    entered, scarcity, source, frozen
        Four internal columns: when each frame arrived, in seconds; the budget's part of the price at which its
        thresholds were chosen; the number of its stream; whether the stream kept its thresholds, whatever was chosen.
    head, next
        The oldest frame that has not been taken; the number of the next one to enter.
    """

    def __init__(self, capacity: int, exits: int, kinds: int, first: int = 0) -> None:
        self.capacity, self.head, self.next = capacity, first, first
        end = dict.fromkeys(DTYPES, 0)
        self._place: dict[str, tuple[str, int | slice]] = {}  # of a column: which table, and where in it
        columns = (*COLUMNS, *_PRIVATE)
        for c in columns:
            start, end[c.kind] = end[c.kind], end[c.kind] + c.values(exits, kinds)
            self._place[c.name] = c.kind, slice(start, end[c.kind]) if c.width else start
        self._tables: dict[str, NDArray[Any]] = {k: np.empty((capacity, end[k]), DTYPES[k]) for k in DTYPES}
        self._fresh: dict[str, NDArray[Any]] = {k: np.empty(end[k], DTYPES[k]) for k in DTYPES}
        for c in columns:
            self._fresh[c.kind][self._place[c.name][1]] = c.default
        places = ((name, *self._place[name]) for name in OUTCOMES)
        self._outcomes = [(name, kind, (slice(None), at)) for name, kind, at in places]
        self._done = np.zeros(capacity, dtype=bool)
        for kind, values in self._fresh.items():
            self._tables[kind][:] = values
        self._views = views = self.columns(slice(None))
        views = dict(views)
        self.entered: Floats = views.pop("entered")
        self.scarcity: Floats = views.pop("scarcity")
        self.source: Ints = views.pop("source")
        self.frozen: Bools = views.pop("frozen")
        self.rows = Rows(**views)

    def has_room(self, count: int) -> bool:
        """Whether `count` frames can enter now."""
        return self.next + count - self.head <= self.capacity

    def enter(self, count: int) -> tuple[Ints, Ints | slice | int]:
        """Add `count` rows of default values; return their frame numbers, and their slots as `write` takes them."""
        first = self.next % self.capacity
        place: Ints | slice | int
        if count == 1:
            frame, place = np.array([self.next]), first
        else:
            frame = np.arange(self.next, self.next + count)
            place = slice(first, first + count) if first + count <= self.capacity else frame % self.capacity
        self.next += count
        for kind, values in self._fresh.items():
            self._tables[kind][place] = values
        return frame, place

    def write(self, place: Ints | slice | int, **values: Any) -> None:
        """Write columns of some rows, by name: one value for all rows, or an array of one for each.

        The numbers of a single row, whose place is one number, are written ten times as fast as slices are.
        """
        views = self._views
        if isinstance(place, int):
            for name, value in values.items():
                views[name][place] = value[0] if isinstance(value, np.ndarray) else value
            return
        for name, value in values.items():
            views[name][place] = value

    def columns(self, slots: Ints | slice) -> dict[str, Any]:
        """The columns of some rows by name; views of the table if `slots` is a slice."""
        if isinstance(slots, slice):
            parts = {kind: values[slots] for kind, values in self._tables.items()}
        else:  # `take` needs a fifth of the time that an index needs
            parts = {kind: values.take(slots, axis=0) for kind, values in self._tables.items()}
        return {name: parts[kind][:, at] for name, (kind, at) in self._place.items()}

    def outcomes(self, slots: Ints) -> dict[str, Any]:
        """A copy of the columns of `Outcomes` of some rows, by name."""
        parts = {kind: self._tables[kind].take(slots, axis=0) for kind in ("float", "int", "bool")}
        return {name: parts[kind][at] for name, kind, at in self._outcomes}

    def finish(self, slots: Ints) -> None:
        """Mark rows as complete."""
        self._done[place_of(slots)] = True

    @property
    def ready(self) -> int:
        """How many frames, from the oldest on, are complete."""
        ahead: Bools = self._done[np.arange(self.head, self.next) % self.capacity]
        return int(ahead.argmin()) if not ahead.all() else len(ahead)

    def take(self) -> Iterator[Rows]:
        """Yield the complete frames that are next in order, in at most two pieces at a time; each is returned once."""
        while ready := self.ready:
            start = self.head % self.capacity
            stop = min(start + ready, self.capacity)
            columns = self.columns(np.arange(start, stop))
            for column in _PRIVATE:
                del columns[column.name]
            self._done[start:stop] = False
            self.head += stop - start
            yield Rows(**columns)
