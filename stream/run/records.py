"""Records of a run: one row per frame, in column-wise parts that stay readable if the run is killed.

arro3 writes them, which is small enough for an edge device; what reads and analyses them needs pyarrow.
"""

import contextlib
import io
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
from arro3.core import Array, DataType, RecordBatch, RecordBatchReader
from arro3.io import read_ipc_stream, write_ipc_stream
from numpy.typing import NDArray

from eex.models.architecture import UNKNOWN
from eex.policies.core.base import Bools, Floats, Ints, Outcomes
from eex.policies.core.columns import COLUMNS, DTYPES, OUTCOMES, Column, Rows, joined
from eex.policies.core.errors import EexError
from eex.policies.core.files import lock_folder, replacing, sync_folder
from eex.policies.core.replay import Feedback
from eex.policies.core.schedule import KINDS

if TYPE_CHECKING:
    import pyarrow as pa

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Last bytes of a part that was ended: the end-of-stream marker of Arrow's streaming format."""

ROWS_IN_BATCH = 1024
"""Rows written at once: what a killed run may lose of its records, at most."""
ROWS_IN_PART = 262_144
HELD = 65_536
"""Rows that are held while the disk cannot be written to; some 20 MB."""
STREAM, DROPPED, REACHABLE, CAPTURED = "stream", "dropped", "reachable", "captured"
LATER: dict[str, Any] = {
    STREAM: "",
    DROPPED: False,
    REACHABLE: True,
    CAPTURED: math.nan,
    **dict.fromkeys(KINDS, np.float32(0)),
}
"""Columns that parts written by an earlier version of eex may lack, with the values that such parts read as: kinds of
distortion that were not known yet had not been applied."""


class RecordWriter:
    """Writes finished frames into `folder`/part-00000.arrows and so on, in Arrow's streaming format.

    A part is readable up to the last batch written, however the run ends. Exits are counted from 1 here, as in the
    columns' names; `confidence_2` is that of exit 2, null if the frame never got there. A frame that was dropped has no
    exit, answer and correct.

    After an error the writer can still be used: frames that did not reach the disk are held, `HELD` of them at most,
    and written with the next ones into a part of their own.

    Parameters
    ----------
    folder
        Made if need be. Only one writer can have it at a time.
    classes, experts
        Names, for the columns `label`, `answer` and `expert`; after the experts, `UNKNOWN` stands for none of them. Of
        several classes with one name, as ImageNet's cranes, the later ones are recorded with their number.

    Attributes
    ----------
    part, part_begun
        The part that is being written, None between two; and since when, in seconds since 1970.
    pruned, labels_pruned
        When old parts were last looked for (`Retention`), minus infinity if a part has ended since; and bytes of
        `labels` afterwards.
    problem
        Why the last attempt to write failed; empty if it did not.
    lost
        Frames that are not recorded because the disk could not be written to for too long.
    labels
        File for true labels of these frames that come later, a line of JSON each: stream, frame, label. It holds for
        the parts from its number on, up to the next such file.

    Raises
    ------
    EexError
        If the folder cannot be written to, or another process writes to it.
    """

    def __init__(self, folder: Path, classes: Sequence[str], experts: Sequence[str]) -> None:
        self.folder, self.classes, self.experts = folder, _distinct(classes), _distinct([*experts, UNKNOWN])
        self._rows_in_part = self._waiting = self._good = self.lost = 0
        self._flush_at = ROWS_IN_BATCH
        self._sink: IO[bytes] | None = None
        self._held: list[Rows] = []
        self.part: Path | None = None
        self.part_begun, self.problem, self.pruned, self.labels_pruned = 0.0, "", -math.inf, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = lock_folder(folder)
            earlier = [*map(number_of, parts_of(folder)), *(first - 1 for first, _ in labels_of_parts(folder))]
            self._parts = max(earlier, default=-1) + 1  # earlier parts stay, and labels of parts that are gone
            self.labels = folder / f"labels-{self._parts:05d}.jsonl"
            if labels_of_parts(folder):
                # else the last ones would count for these frames too, also those of frames that were never recorded
                self.labels.write_bytes(b"")
        except OSError as error:
            raise EexError(f"{folder}: cannot write records: {error.strerror}") from None

    def go_on_from(self, part: int) -> None:
        """Delete the parts from a number on, whose frames come again, and number the next ones from there.

        Raises
        ------
        EexError
            If they cannot be deleted.
        """
        try:
            for path in parts_of(self.folder):
                if number_of(path) >= part:
                    path.unlink()
        except OSError as error:
            raise EexError(f"{self.folder}: cannot write records: {error.strerror}") from None
        self._parts = part

    def write(self, rows: Rows) -> None:
        """Take in finished frames; they reach the disk in batches.

        Raises
        ------
        EexError
            If a batch cannot be written; the next attempt comes with the next batch.
        """
        if not len(rows):
            return
        self._held.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self._flush_at:
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
        batch = self._batch(joined(self._held))
        try:
            if self._sink is None:
                path = self.folder / f"part-{self._parts:05d}.arrows"
                self._sink = path.open("wb")
                self.part, self.part_begun, self._good = path, time.time(), 0
            self._sink.write(_following(batch) if self._good else _stream(batch).removesuffix(_END))
            self._sink.flush()
            self._good = self._sink.tell()
        except OSError as error:
            self._cut_back()
            if self._waiting > HELD:
                self.lost += self._waiting
                self._held, self._waiting = [], 0
            self._flush_at = self._waiting + ROWS_IN_BATCH
            raise self._failed(error) from None
        self.problem = ""
        self._held, self._waiting, self._flush_at = [], 0, ROWS_IN_BATCH
        self._rows_in_part += batch.num_rows
        if self._rows_in_part >= ROWS_IN_PART:
            self._end_part()

    def commit(self) -> int:
        """Write all that was taken in, end the part, and wait until the disk has it; how many parts there are.

        Raises
        ------
        EexError
            If the disk is full or not writable.
        """
        self.flush()
        self._end_part()
        return self._parts

    def close(self) -> None:
        """Write what is left, and let other writers have the folder.

        Raises
        ------
        EexError
            If the disk is full or not writable; what did not reach it is lost.
        """
        try:
            self.commit()
        finally:
            self.lost += self._waiting
            self._held, self._waiting = [], 0
            lock, self._lock = self._lock, None
            if lock is not None:
                os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_part(self) -> None:
        """End the part, so that it survives a loss of power."""
        if self._sink is None:
            return
        try:
            self._sink.write(_END)
            self._sink.flush()
            os.fsync(self._sink.fileno())
            self._sink.close()
            sync_folder(self.folder)
        except OSError as error:
            self._cut_back()
            raise self._failed(error) from None
        self._sink, self._rows_in_part, self.part = None, 0, None
        self._parts += 1
        self.pruned = -math.inf

    def _failed(self, error: OSError) -> EexError:
        self.problem = f"{self.folder}: cannot write records: {error.strerror or error}"
        return EexError(self.problem)

    def _cut_back(self) -> None:
        """Leave a part, after an error, with the batches that it holds whole; the next one gets a new number."""
        part, sink, self.part, self._sink, self._rows_in_part = self.part, self._sink, None, None, 0
        if part is None or sink is None:
            return
        with contextlib.suppress(OSError):
            sink.close()
        with contextlib.suppress(OSError):
            if self._good:
                os.truncate(part, self._good)
            else:
                part.unlink()
        self._parts += bool(self._good)
        self.pruned = -math.inf

    @property
    def part_bytes(self) -> int:
        """Bytes of the part that is being written."""
        return 0 if self.part is None else self._good

    @property
    def labels_bytes(self) -> int:
        """Bytes of the labels that came later."""
        try:
            return self.labels.stat().st_size
        except OSError:  # none came
            return 0

    def _batch(self, rows: Rows) -> RecordBatch:
        columns: dict[str, Any] = {}
        for column in COLUMNS:
            values = getattr(rows, column.name)
            for k, name in enumerate(recorded_names(column, rows.exit_at.shape[1])):
                columns[name] = self._array(column, values[:, k] if column.width else values, rows.dropped)
            if column.name == "answer":
                columns["correct"] = _nullable(rows.answer == rows.label, (rows.label < 0) | rows.dropped, "bool")
        return RecordBatch.from_pydict(columns)

    def _array(self, column: Column, values: NDArray[Any], dropped: Bools) -> Array:
        """One column as it is stored."""
        if column.stored in ("class", "expert"):
            return named_array(values, self.classes if column.stored == "class" else self.experts)
        if column.stored == "exit":
            return _nullable(values + 1, dropped, "int32")
        if column.stored == "string":
            return Array(values.tolist(), DataType.utf8())
        kind = column.stored.rstrip("?")
        return _nullable(values, np.isnan(values) if column.stored.endswith("?") else np.False_, kind)


def named_array(index: Ints, names: Sequence[str]) -> Array:
    """A column of names, which must be distinct, by their index (rows,); null where it is negative."""
    kind = DataType.dictionary(DataType.int32(), DataType.utf8())
    every = Array([*names, None], DataType.utf8()).cast(kind)  # numbered as they first come
    return every.take(Array.from_numpy(np.where(index < 0, len(names), index).astype(np.uint32)))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, each only once: another of the same name has its number, from 0, added."""
    return [f"{name} ({k})" if name in names[:k] else name for k, name in enumerate(names)]


def _nullable(values: NDArray[Any], null: Any, kind: str) -> Array:
    """Numbers or truth values as a column of a type of Arrow's, null where `null` is true."""
    values = np.ascontiguousarray(values, dtype=kind)
    if not null.any():
        return Array.from_numpy(values)
    filled = values.astype(object)
    filled[null] = None
    return Array(filled.tolist(), Array.from_numpy(values[:0]).type)


def _stream(*batches: RecordBatch) -> bytes:
    """Batches in Arrow's streaming format."""
    stream = io.BytesIO()
    write_ipc_stream(RecordBatchReader.from_batches(batches[0].schema, batches), stream, compression=None)
    return stream.getvalue()


def _following(batch: RecordBatch) -> bytes:
    """The message of a batch that follows others in a stream, without schema and names: they are the same in all."""
    empty = batch.slice(0, 0)
    return _stream(empty, batch).removeprefix(_stream(empty).removesuffix(_END)).removesuffix(_END)


def recorded_names(column: Column, exits: int) -> list[str]:
    """Names of a column in the records of a network with so many exits, the final one included; they count from 1."""
    if not column.stored:
        return []
    if column.width == "kinds":
        return list(KINDS)
    return [f"{column.name}_{k + 1}" for k in range(column.values(exits, 0))] if column.width else [column.name]


def parts_of(folder: Path) -> list[Path]:
    """The parts in a folder of records, in the order in which they were written."""
    return sorted((path for path in folder.glob("part-*.arrows") if number_of(path) >= 0), key=number_of)


def labels_of_parts(folder: Path) -> list[tuple[int, Path]]:
    """The files of true labels that came later, each with the number of the first part that it is for, in order."""
    return sorted((n, path) for path in folder.glob("labels-*.jsonl") if (n := number_of(path)) >= 0)


class _Label(msgspec.Struct):
    """A line of such a file."""

    stream: str
    frame: int
    label: str


def _read_labels(path: Path) -> dict[tuple[str, int], str]:
    """The labels of a file by stream and frame; of several for one frame, the last counts.

    Raises
    ------
    EexError
        If a line is damaged. A last line that was cut off is left out.
    """
    found: dict[tuple[str, int], str] = {}
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    for k, line in enumerate(lines):
        try:
            given = msgspec.json.decode(line, type=_Label)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            why = f"{path}: line {k + 1} is no label: {error}"
            raise EexError(f"{why}; move the file away to read the records without it") from None
        found[given.stream, given.frame] = given.label
    return found


def last_frames(part: Path) -> dict[str, int]:
    """The last frame of each stream in a part, as far as it can be read."""
    last: dict[str, int] = {}
    with contextlib.suppress(Exception):  # arro3's errors, where the part was cut off: what comes before counts
        for batch in read_ipc_stream(part):
            frames = batch["frame"].to_pylist()
            streams = batch[STREAM].to_pylist() if STREAM in batch.schema.names else [""] * len(frames)
            last |= zip(streams, frames, strict=True)
    return last


def forget_labels(path: Path, last: dict[str, int]) -> int:
    """Delete the labels of frames up to the `last` of each stream, and those that a later one replaced; their bytes.

    Raises
    ------
    EexError
        If the file cannot be written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    kept: dict[Any, bytes] = {}
    for line in data.split(b"\n"):
        try:
            given = msgspec.json.decode(line, type=_Label)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            kept[line] = line  # whoever reads the records is told; a last one may be cut off
            continue
        kept.pop(key := (given.stream, given.frame), None)
        if given.frame > last.get(given.stream, -1):
            kept[key] = line
    left = b"\n".join(kept.values())
    if len(left) < len(data):
        with replacing(path) as part:
            part.write_bytes(left)
    return len(data) - len(left)


def _with_labels(batch: "pa.RecordBatch", labels: dict[tuple[str, int], str]) -> "pa.RecordBatch":
    """A batch with the labels that came later."""
    import pyarrow as pa

    if not labels or "label" not in batch.schema.names:
        return batch
    keys = zip(batch[STREAM].to_pylist(), batch["frame"].to_pylist(), strict=True)
    found = [(row, labels[key]) for row, key in enumerate(keys) if key in labels]
    known = {name: k for k, name in enumerate(batch["label"].dictionary.to_pylist())}
    found = [(row, name) for row, name in found if name in known]
    if not found:
        return batch
    rows = np.array([row for row, _ in found])
    index = batch["label"].indices.fill_null(-1).to_numpy(zero_copy_only=False).copy()
    index[rows] = [known[name] for _, name in found]
    arrays = {name: batch[name] for name in batch.schema.names}
    arrays["label"] = pa.DictionaryArray.from_arrays(pa.array(index, mask=index < 0), batch["label"].dictionary)
    if "answer" in arrays and "correct" in arrays:
        answer = batch["answer"].indices.fill_null(-1).to_numpy(zero_copy_only=False)
        arrays["correct"] = pa.array(answer == index, mask=(index < 0) | (answer < 0))
    return pa.RecordBatch.from_pydict(arrays)


def number_of(part: Path) -> int:
    """The number in the name of a part or of a file of labels; -1 if it has none."""
    digits = part.stem.removeprefix("part-").removeprefix("labels-")
    return int(digits) if digits.isdecimal() and digits.isascii() else -1


def read_batches(folder: Path | str) -> "Iterator[pa.RecordBatch]":
    """All record batches of a run in order, also of one that was killed; their content is checked.

    Parameters
    ----------
    folder
        The run's, or its folder of records.

    Raises
    ------
    EexError
        If the folder holds no records, or a part is damaged or cannot be read. A part that was cut off is read up to
        there.
    """
    import pyarrow as pa

    folder = Path(folder)
    folder = folder / "records" if (folder / "records").is_dir() else folder
    parts = parts_of(folder)
    if not parts:
        runs = sorted(folder.glob("*/records"))
        expected = f"the folder of one run, such as {runs[-1].parent}" if runs else "part-00000.arrows"
        raise EexError(f"{folder}: no records here; expected {expected}")
    later = labels_of_parts(folder)
    first, labels, seen = -1, dict[tuple[str, int], str](), _Continuity()
    for part in parts:
        its = max((n for n, _ in later if n <= number_of(part)), default=-1)
        if its != first:
            first, labels = its, _read_labels(dict(later)[its])
        for batch in _batches_of(part):
            for name, value in LATER.items():
                if name not in batch.schema.names:
                    batch = batch.append_column(name, pa.array(np.full(len(batch), value), from_pandas=True))
            seen.see(batch)
            yield _with_labels(batch, labels)
    if seen.lacking:
        why = "a part was cut off, deleted or moved away"
        warnings.warn(f"{folder}: the frames before {seen.lacking} are missing: {why}", stacklevel=3)


class _Continuity:
    """Finds where frames lack between those of a stream: a part was cut off, deleted or moved away.

    Frames are numbered by stream, or all together where the streams share a learner. Where a session began anew, they
    count from an earlier number on; that is no lack.
    """

    def __init__(self) -> None:
        self.lacking = ""
        self._last = dict[str, int]()  # by stream
        self._before: int | None = None  # of the row before, whatever its stream

    def see(self, batch: "pa.RecordBatch") -> None:
        """The next batch."""
        frame = np.asarray(batch["frame"], dtype=np.int64)
        if self.lacking or not len(frame):
            return
        stream = np.asarray(batch[STREAM].to_pylist(), dtype=object)
        together = np.diff(frame, prepend=frame[0] - 1 if self._before is None else self._before) == 1
        for name in dict.fromkeys(stream.tolist()):
            own = frame[rows := stream == name]
            jumps = np.diff(own, prepend=self._last.get(name, own[0] - 1)) > 1
            if (found := own[jumps & ~together[rows]]).size and not self.lacking:
                self.lacking = f"frame {found[0]:,}" + (f" of stream '{name}'" if name else "")
            self._last[name] = int(own[-1])
        self._before = int(frame[-1])


def _batches_of(part: Path) -> "Iterator[pa.RecordBatch]":
    """The batches of a part up to where it was cut off, if it was.

    Raises
    ------
    EexError
        If it is damaged, or cannot be read.
    """
    import pyarrow as pa

    try:
        with part.open("rb") as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                batch.validate(full=True)
                _check_columns(batch)
                yield batch
    except (pa.ArrowException, OSError, StopIteration, ValueError, MemoryError) as error:  # sizes may be damaged, too
        if isinstance(error, OSError) and error.errno:  # of the system; Arrow's have no number
            raise EexError(f"{part}: cannot be read: {error.strerror}") from None
        if _ended(part) or not isinstance(error, pa.ArrowInvalid | OSError | StopIteration):
            reason = " ".join(str(error).split())
            raise EexError(
                f"{part}: this part is damaged ({reason}); move it out of the folder to read the others"
            ) from None


def _check_columns(batch: "pa.RecordBatch") -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    names_of, arrow = pa.dictionary(pa.int32(), pa.string()), {"exit": pa.int32()}
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise ValueError("it has a column twice")
    if "frame" not in names:
        raise ValueError("it has no column 'frame'")
    exits = sum(name.startswith("exit_at_") for name in names)
    for column in COLUMNS:
        kind = column.stored.rstrip("?")
        for name in recorded_names(column, exits):
            if name not in names:
                continue
            values = batch[name]
            if values.type != (names_of if kind in ("class", "expert") else arrow.get(kind) or pa.type_for_alias(kind)):
                raise ValueError(f"its column '{name}' is of type {values.type}")
            if values.null_count and kind == column.stored and kind not in ("class", "expert", "exit"):
                raise ValueError(f"its column '{name}' lacks values")
            if (
                kind == "exit"
                and len(values.drop_null())
                and not 1 <= pc.min(values).as_py() <= pc.max(values).as_py() <= exits
            ):
                raise ValueError(f"its column '{name}' holds an exit beyond 1…{exits}")
            if kind in ("class", "expert") and values.dictionary.null_count:
                raise ValueError(f"its column '{name}' has a class or an expert without a name")


def _ended(part: Path) -> bool:
    """Whether a part ends as its writer ends it, and was not cut off."""
    try:
        with part.open("rb") as file:
            return (
                file.seek(0, os.SEEK_END) >= len(_END)
                and file.seek(-len(_END), os.SEEK_END) >= 0
                and file.read() == _END
            )
    except OSError:
        return False


@dataclass(frozen=True)
class Gap:
    """Frames that are missing in a part that was cut off, as by a loss of power."""

    part: Path
    first: int
    last: int

    @property
    def frames(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.part}: the part was cut off: frames {self.first:,}…{self.last:,} are missing"


def gaps(folder: Path, parts: int, frames: int) -> list[Gap]:
    """What is missing in a run's parts numbered below `parts`, which held its frames below `frames` when committed.

    Parts that were deleted are not counted as missing.
    """
    found = []
    committed = [part for part in parts_of(folder) if number_of(part) < parts]
    for k, part in enumerate(committed):
        if _ended(part):
            continue
        own = _frames_of(part)
        before = next((last for p in committed[k - 1 :: -1] if (last := _frames_of(p)[1]) >= 0), -1) if k else -1
        after = next((first for p in committed[k + 1 :] if (first := _frames_of(p)[0]) >= 0), frames)
        first = max(own[1], before) + 1
        if first < after:
            found.append(Gap(part, first, after - 1))
    return found


def _frames_of(part: Path) -> tuple[int, int]:
    """First and last frame in a part; -1 if it holds none."""
    first = last = -1
    with contextlib.suppress(Exception):  # arro3's errors, where the part was cut off: what comes before counts
        for batch in read_ipc_stream(part):
            frame = batch["frame"].to_numpy()
            if len(frame):
                first, last = int(frame[0]) if first < 0 else first, int(frame[-1])
    return first, last


def read_records(folder: Path | str) -> "pa.Table":
    """All records of a run, by its folder or its folder of records, as one table with one row per frame.

    Raises
    ------
    EexError
        If the folder holds no records, or they are damaged or of several networks.
    """
    import pyarrow as pa

    batches = list(read_batches(folder))
    if not batches:
        raise EexError(f"{folder}: the records were cut off before their first batch was whole")
    names = batches[0].schema.names  # parts that an older eex wrote have them in another order
    first = {name: batches[0].schema.field(name).type for name in names}
    for batch in batches:
        if {name: batch.schema.field(name).type for name in batch.schema.names} != first:
            raise EexError(f"{folder}: the parts have different columns; are they of several networks?")
    return pa.Table.from_batches([batch.select(names) for batch in batches]).unify_dictionaries()


def feedback_of(records: "pa.Table | Path | str") -> Feedback:
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
    table = _table(records)
    order = np.argsort(_numbers(table, "feedback_rank"), kind="stable")
    return Feedback(
        frame=order,
        chosen=_numbers(table, "feedback_at")[order],
        queue=_numbers(table, "queue"),
        link_ms=_floats(table, "link_estimate_ms"),
        sent=_flags(table, "sent"),
        fallback=_flags(table, "fallback"),
        dropped=_flags(table, DROPPED),
        reachable=_flags(table, REACHABLE),
        latency_ms=_floats(table, "latency_ms"),
    )


def outcomes_of(records: "pa.Table | Path | str", *, whole: bool = True) -> Outcomes:
    """The outcomes that the policies of recorded runs learned from, row by row.

    Parameters
    ----------
    records
        The table that `read_records` gives, or the folder.
    whole
        Whether the rows have to be the frames 0, 1, … of one run; else they may be of several streams and sessions,
        and some may lack.

    Raises
    ------
    EexError
        If the records hold other frames, or lack a column.
    """
    table = _table(records, whole)
    exits = range(1, 1 + sum(name.startswith("exit_at_") for name in table.column_names))
    if len(exits) < 2:
        raise EexError("the records lack the column exit_at_1 or exit_at_2: written by an older eex?")
    read: dict[str, Any] = {"run": np.zeros(len(table), dtype=np.int64)}
    for column in COLUMNS:
        if column.name in OUTCOMES and column.stored:
            values = [_values(table, column, name) for name in recorded_names(column, len(exits))]
            read[column.name] = np.column_stack(values) if column.width else values[0]
    return Outcomes(**read)


def labels_of(records: "pa.Table | Path | str", *, whole: bool = True) -> Ints:
    """The true class of each recorded frame, numbered as in `outcomes_of`; -1 where it is not known.

    Raises
    ------
    EexError
        As `outcomes_of` does.
    """
    return _index(_table(records, whole), "label")


def _table(records: "pa.Table | Path | str", whole: bool = True) -> "pa.Table":
    table = read_records(records) if isinstance(records, Path | str) else records
    frame = _numbers(table, "frame")
    if whole and not (frame == np.arange(len(frame))).all():
        row = int((frame != np.arange(len(frame))).argmax())
        raise EexError(
            f"the records are not those of one whole run: row {row:,} is frame {frame[row]:,}, expected frame {row:,}; "
            "records that were cut off, deleted or written by several runs lack frames"
        )
    return table


def _column(table: "pa.Table", name: str) -> Any:
    if name not in table.column_names:
        raise EexError(f"the records lack the column {name}: written by an older eex?")
    return table[name]


def _values(table: "pa.Table", column: Column, name: str) -> NDArray[Any]:
    """A recorded column as it was in memory."""
    if column.stored in ("class", "expert"):
        return _index(table, name)
    if column.stored == "exit":
        return np.asarray(_column(table, name).fill_null(0), dtype=np.int64) - 1
    return np.asarray(_column(table, name), dtype=DTYPES[column.kind])  # null becomes NaN


def _numbers(table: "pa.Table", name: str) -> Ints:
    return np.asarray(_column(table, name), dtype=np.int64)


def _floats(table: "pa.Table", name: str) -> Floats:
    return np.asarray(_column(table, name), dtype=np.float64)  # null becomes NaN


def _flags(table: "pa.Table", name: str) -> Bools:
    return np.asarray(_column(table, name), dtype=np.bool_)


def _index(table: "pa.Table", name: str) -> Ints:
    chunks = [chunk.indices.fill_null(-1).to_numpy() for chunk in _column(table, name).chunks]
    return np.concatenate(chunks).astype(np.int64)
