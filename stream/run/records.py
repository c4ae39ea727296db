"""Records of a run: one row per frame, in column-wise parts that stay readable if the run is killed."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Floats, Ints, Outcomes
from eex.policies.core.columns import COLUMNS, DTYPES, OUTCOMES, Column, Rows
from eex.policies.core.errors import EexError
from eex.policies.core.replay import Feedback
from eex.policies.core.schedule import KINDS

ROWS_IN_BATCH = 1024
"""Rows written at once: what a killed run may lose of its records, at most."""
ROWS_IN_PART = 262_144
STREAM, DROPPED, REACHABLE = "stream", "dropped", "reachable"
LATER = {STREAM: "", DROPPED: False, REACHABLE: True}
"""The last columns; parts that an older eex wrote lack some, and read as if they held these values."""


class RecordWriter:
    """Writes finished frames into `folder`/part-00000.arrows and so on, in Arrow's streaming format.

    A part is readable up to the last batch written, however the run ends. Exits are counted from 1 here, as in the
    columns' names; `confidence_2` is that of exit 2, null if the frame never got there. A frame that was dropped has no
    exit, answer and correct.

    Parameters
    ----------
    folder
        Made if need be.
    classes, experts
        Names, for the columns `label`, `answer` and `expert`.

    Attributes
    ----------
    part, part_begun
        The part that is being written, None between two; and since when, in seconds since 1970.

    Raises
    ------
    EexError
        If the folder cannot be written to.
    """

    def __init__(self, folder: Path, classes: Sequence[str], experts: Sequence[str]) -> None:
        self.folder, self.classes, self.experts = folder, list(classes), list(experts)
        self._parts = self._rows_in_part = self._waiting = 0
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self.part: Path | None = None
        self.part_begun = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._parts = max(map(_number, parts_of(folder)), default=-1) + 1  # earlier parts stay
        except OSError as error:
            raise EexError(f"{folder}: cannot write records: {error.strerror}") from None

    def write(self, rows: Rows) -> None:
        """Take in finished frames; they reach the disk in batches."""
        if not len(rows):
            return
        self._held.append(self._batch(rows))
        self._waiting += len(rows)
        if self._waiting >= ROWS_IN_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write all that was taken in.

        Raises
        ------
        EexError
            If the disk is full or not writable; the rows before stay readable.
        """
        if not self._held:
            return
        table = pa.Table.from_batches(self._held).combine_chunks()
        try:
            if self._writer is None:
                path = self.folder / f"part-{self._parts:05d}.arrows"
                self._sink = pa.OSFile(str(path), "wb")
                self.part, self.part_begun = path, time.time()
                self._writer = pa.ipc.new_stream(self._sink, table.schema)
            self._writer.write_table(table)
            self._sink.flush()
            self._rows_in_part += len(table)
            if self._rows_in_part >= ROWS_IN_PART:
                self._end_part()
        except (OSError, pa.ArrowException) as error:
            raise EexError(f"{self.folder}: cannot write records: {error}") from None
        self._held, self._waiting = [], 0

    def commit(self) -> int:
        """Write all that was taken in, and end the part; how many parts there are.

        Raises
        ------
        EexError
            If the disk is full or not writable.
        """
        self.flush()
        try:
            self._end_part()
        except (OSError, pa.ArrowException) as error:
            raise EexError(f"{self.folder}: cannot write records: {error}") from None
        return self._parts

    def abandon(self) -> None:
        """Let go of what is left, after an error; what reached the disk stays readable."""
        self._held, self._waiting = [], 0
        with contextlib.suppress(OSError, pa.ArrowException):
            self._end_part()

    def close(self) -> None:
        """Write what is left."""
        self.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer, self._rows_in_part, self.part = None, 0, None
            self._parts += 1

    @property
    def part_bytes(self) -> int:
        """Bytes of the part that is being written."""
        return 0 if self.part is None else int(self._sink.tell())

    def _batch(self, rows: Rows) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        for column in COLUMNS:
            values = getattr(rows, column.name)
            for k, name in enumerate(recorded_names(column, rows.exit_at.shape[1])):
                columns[name] = self._array(column, values[:, k] if column.width else values, rows.dropped)
            if column.name == "answer":
                wrong = (rows.label < 0) | rows.dropped
                columns["correct"] = pa.array(rows.answer == rows.label, mask=wrong)
        return pa.RecordBatch.from_pydict(columns)

    def _array(self, column: Column, values: NDArray[Any], dropped: Bools) -> pa.Array:
        """One column as it is stored."""
        if column.stored in ("class", "expert"):
            return self._names(values, self.classes if column.stored == "class" else self.experts)
        if column.stored == "exit":
            return pa.array((values + 1).astype(np.int32), mask=dropped)
        return pa.array(values, pa.type_for_alias(column.stored.rstrip("?")), from_pandas=column.stored.endswith("?"))

    @staticmethod
    def _names(index: np.ndarray[Any, Any], names: Sequence[str]) -> pa.DictionaryArray:
        # the dictionary is the same in every batch: streams need it once
        return pa.DictionaryArray.from_arrays(
            pa.array(index.astype(np.int32), mask=index < 0), pa.array(list(names), pa.string())
        )


def recorded_names(column: Column, exits: int) -> list[str]:
    """Names of a column in the records of a network with so many exits, the final one included; they count from 1."""
    if not column.stored:
        return []
    if column.width == "kinds":
        return list(KINDS)
    return [f"{column.name}_{k + 1}" for k in range(column.values(exits, 0))] if column.width else [column.name]


def parts_of(folder: Path) -> list[Path]:
    """The parts in a folder of records, in the order in which they were written."""
    return sorted((path for path in folder.glob("part-*.arrows") if _number(path) >= 0), key=_number)


def _number(part: Path) -> int:
    digits = part.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1


def read_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """All record batches of a run in order, also of one that was killed.

    Parameters
    ----------
    folder
        The run's, or its folder of records.

    Raises
    ------
    EexError
        If the folder holds no records.
    """
    folder = folder / "records" if (folder / "records").is_dir() else folder
    parts = parts_of(folder)
    if not parts:
        raise EexError(f"{folder}: no records here; expected part-00000.arrows")
    for part in parts:
        with pa.OSFile(str(part), "rb") as source:
            try:
                for batch in pa.ipc.open_stream(source):
                    for name, value in LATER.items():
                        if name not in batch.schema.names:
                            batch = batch.append_column(name, pa.array(np.full(len(batch), value)))
                    yield batch
            except (pa.ArrowInvalid, OSError, StopIteration):
                continue  # cut off in the middle of a batch: what came before is whole


def read_records(folder: Path) -> pa.Table:
    """All records of a run, by its folder or its folder of records, as one table with one row per frame.

    Raises
    ------
    EexError
        If the folder holds no records.
    """
    batches = list(read_batches(folder))
    if not batches:
        raise EexError(f"{folder}: the records were cut off before their first batch was whole")
    names = batches[0].schema.names  # parts that an older eex wrote have them in another order
    return pa.Table.from_batches([batch.select(names) for batch in batches])


def feedback_of(records: pa.Table | Path) -> Feedback:
    """Order of feedback in a recorded run, and the state of the link known to its policy, for replay.

    Parameters
    ----------
    records
        The table that `read_records` returns, or the folder. Records of a killed run are enough: feedback after its
        last row did not affect these rows.

    Raises
    ------
    EexError
        If the records hold other frames than 0, 1, … or lack a column.
    """
    table = _in_order(records)
    heard = np.argsort(_numbers(table, "heard"), kind="stable")
    return Feedback(
        frame=heard,
        chosen=_numbers(table, "heard_at")[heard],
        queue=_numbers(table, "queue"),
        link_ms=_floats(table, "link_estimate_ms"),
        sent=_flags(table, "sent"),
        fallback=_flags(table, "fallback"),
        dropped=_flags(table, DROPPED),
        reachable=_flags(table, REACHABLE),
    )


def outcomes_of(records: pa.Table | Path) -> Outcomes:
    """The outcomes that the policy of a recorded run learned from, in the order of the frames.

    Parameters
    ----------
    records
        The table that `read_records` gives, or the folder.

    Raises
    ------
    EexError
        If the records hold other frames than 0, 1, … or lack a column.
    """
    table = _in_order(records)
    exits = range(1, 1 + sum(name.startswith("exit_at_") for name in table.column_names))
    if len(exits) < 2:
        raise EexError("the records lack the column exit_at_1 or exit_at_2: written by an older eex?")
    read: dict[str, Any] = {"run": np.zeros(len(table), dtype=np.int64)}
    for column in COLUMNS:
        if column.name in OUTCOMES and column.stored:
            values = [_values(table, column, name) for name in recorded_names(column, len(exits))]
            read[column.name] = np.column_stack(values) if column.width else values[0]
    return Outcomes(**read)


def labels_of(records: pa.Table | Path) -> Ints:
    """The true class of each frame of a recorded run, numbered as in `outcomes_of`; -1 where it is not known.

    Raises
    ------
    EexError
        If the records hold other frames than 0, 1, … or lack a column.
    """
    return _index(_in_order(records), "label")


def _in_order(records: pa.Table | Path) -> pa.Table:
    table = read_records(records) if isinstance(records, Path) else records
    frame = _numbers(table, "frame")
    if not (frame == np.arange(len(frame))).all():
        row = int((frame != np.arange(len(frame))).argmax())
        raise EexError(f"the records are not those of one whole run: row {row} is frame {frame[row]}")
    return table


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        raise EexError(f"the records lack the column {name}: written by an older eex?")
    return table[name]


def _values(table: pa.Table, column: Column, name: str) -> NDArray[Any]:
    """A recorded column as it was in memory."""
    if column.stored in ("class", "expert"):
        return _index(table, name)
    if column.stored == "exit":
        return np.asarray(_column(table, name).fill_null(0), dtype=np.int64) - 1
    return np.asarray(_column(table, name), dtype=DTYPES[column.kind])  # null becomes NaN


def _numbers(table: pa.Table, name: str) -> Ints:
    return np.asarray(_column(table, name), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(_column(table, name), dtype=np.float64)  # null becomes NaN


def _flags(table: pa.Table, name: str) -> Bools:
    return np.asarray(_column(table, name), dtype=np.bool_)


def _index(table: pa.Table, name: str) -> Ints:
    chunks = [chunk.indices.fill_null(-1).to_numpy() for chunk in _column(table, name).chunks]
    return np.concatenate(chunks).astype(np.int64)
