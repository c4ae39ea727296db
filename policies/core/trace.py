"""Traces: what every exit would say of every frame; the currency between engine, replay and environments."""

import csv
import gzip
import itertools
import mmap
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing
from eex.policies.core.pieces import Pieces, let_go
from eex.policies.core.schedule import PRISTINE

FORMAT = b"eex-trace-1"
MOST_CLASSES = 1_000_000
MOST_EXITS = 1000
PIECE = 1 << 16
"""Frames that are read, checked and written at once."""
ROUNDING = 1e-6
"""How far above 1 a softmax in single precision may come."""


@dataclass(frozen=True)
class Trace:
    """The output of every exit for every frame, one row per frame, in the order of the stream.

    The columns of a large trace lie in files that are mapped into memory (`eex.policies.core.pieces`).

    Attributes
    ----------
    confidence
        (frames, edge exits + 1), in [0, 1]; the last column is the cloud's.
    prediction
        Class of each exit's answer, (frames, edge exits + 1).
    label
        True class, (frames,); -1 where unknown.
    classes
        Their names.
    distortion, level
        Kind of distortion (frames,), "pristine" for none, and its level, (frames,); mixtures are named "a+b" and have
        the level of the first.
    probabilities
        The distortion classifier's, (frames, experts); None without a classifier.
    experts
        Names of those columns.
    seconds
        Time each exit was reached after, on the machine that recorded it, (frames, edge exits + 1); None if not known.
    model
        Name or fingerprint of the network; "" if not known.

    Raises
    ------
    EexError
        On construction, if columns are missing, do not fit each other or hold what they must not.
    """

    confidence: Floats
    prediction: Ints
    label: Ints
    classes: tuple[str, ...]
    distortion: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=str))
    level: Floats = field(default_factory=lambda: np.empty(0))
    probabilities: Floats | None = None
    experts: tuple[str, ...] = ()
    seconds: Floats | None = None
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("confidence", "level", "probabilities", "seconds"):
            self._take(name, "f", np.float64)
        for name in ("prediction", "label"):
            self._take(name, "i", np.int64)
        if not isinstance(self.distortion, np.ndarray):
            object.__setattr__(self, "distortion", np.asarray(self.distortion, dtype=str))
        for what, names in (("classes", self.classes), ("experts", self.experts)):
            if len(set(names)) < len(names):
                raise EexError(f"{what} must have different names, got {', '.join(map(str, names))[:200]}")
        c = self.confidence
        if c.ndim != 2 or c.shape[1] < 2:
            raise EexError(f"a trace needs confidences of an edge exit and of the cloud, got shape {c.shape}")
        if not len(c):
            raise EexError("a trace needs at least one frame, got none")
        if not len(self.distortion):
            object.__setattr__(self, "distortion", np.broadcast_to(np.array(PRISTINE), len(c)))
        if not len(self.level):
            object.__setattr__(self, "level", np.broadcast_to(np.array(0.0), len(c)))
        shapes: dict[str, tuple[int, ...]] = {
            "prediction": c.shape,
            "label": c.shape[:1],
            "distortion": c.shape[:1],
            "level": c.shape[:1],
            "seconds": c.shape,
            "probabilities": (len(c), len(self.experts)),
        }
        for name, shape in shapes.items():
            column = getattr(self, name)
            if column is not None and column.shape != shape:
                raise EexError(f"column {name} must have shape {shape}, got {column.shape}")
        if c.max() > 1 and c.max() <= 1 + ROUNDING:
            object.__setattr__(self, "confidence", np.minimum(c, 1.0))
        _check_range("confidence", self.confidence, 0.0, 1.0)
        _check_range("prediction", self.prediction, 0, len(self.classes) - 1)
        _check_range("label", self.label, -1, len(self.classes) - 1)
        _check_range("level", self.level, 0.0, np.inf)
        if self.probabilities is not None:
            _check_range("probabilities", self.probabilities, 0.0, 1.0)
        if self.seconds is not None:
            _check_range("seconds", self.seconds, 0.0, np.inf)

    def _take(self, name: str, kind: str, dtype: type) -> None:
        """Make a column an array of floats ("f") or of whole numbers ("i") where it is not one."""
        given = getattr(self, name)
        if given is None or (isinstance(given, np.ndarray) and given.dtype.kind == kind):
            return
        column = np.asarray(given)
        if column.dtype.kind not in ("fiub" if kind == "f" else "iub"):
            raise EexError(
                f"column {name} must hold {'numbers' if kind == 'f' else 'whole numbers'}, got {column.dtype}"
            )
        object.__setattr__(self, name, column.astype(dtype))

    def __len__(self) -> int:
        return len(self.confidence)

    def __getitem__(self, rows: Any) -> "Trace":
        """The same trace with some of its frames: a slice, numbers or a mask."""
        per_frame = ("confidence", "prediction", "label", "distortion", "level", "probabilities", "seconds")
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return Trace(**kept | {k: kept[k][rows] for k in per_frame if kept[k] is not None})

    @property
    def edge_exits(self) -> int:
        """Exits on the edge; the cloud's column comes on top."""
        return int(self.confidence.shape[1]) - 1

    @property
    def correct(self) -> Bools:
        """Whether each exit is right, (frames, edge exits + 1); false where the label is unknown."""
        right: Bools = (self.prediction == self.label[:, None]) & (self.label >= 0)[:, None]
        return right

    @property
    def segments(self) -> Ints:
        """Number of the stretch of unchanged distortion that each frame lies in, (frames,)."""
        changed = (self.distortion[1:] != self.distortion[:-1]) | (self.level[1:] != self.level[:-1])
        return np.concatenate([[0], np.cumsum(changed)])


def _check_range(name: str, column: NDArray[Any], low: float, high: float) -> None:
    for start in range(0, len(column), PIECE):
        piece = column[start : start + PIECE].reshape(min(PIECE, len(column) - start), -1)
        bad = ~((piece >= low) & (piece <= high))  # NaN too
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            value, frame = piece[row][bad[row]][0], start + row
            raise EexError(f"{name} must lie in [{low:g}, {high:g}]: frame {frame} (of {len(column)}) has {value:g}")


# ---- files


def write_trace(path: Path | str, trace: Trace) -> None:
    """Write a trace as an Arrow file, whole or not at all.

    Raises
    ------
    EexError
        If the file cannot be written.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "label": _names(trace.label, trace.classes),
        "distortion": pa.array(trace.distortion).dictionary_encode(),
        "level": trace.level,
    }
    for e in range(trace.edge_exits + 1):
        columns[f"confidence_{e + 1}"] = trace.confidence[:, e]
        columns[f"prediction_{e + 1}"] = _names(trace.prediction[:, e], trace.classes)
        if trace.seconds is not None:
            columns[f"seconds_{e + 1}"] = trace.seconds[:, e]
    if trace.probabilities is not None:
        columns |= {f"probability_{name}": trace.probabilities[:, k] for k, name in enumerate(trace.experts)}
    table = pa.table(columns).replace_schema_metadata({b"format": FORMAT, b"model": trace.model.encode()})
    with replacing(Path(path)) as part, part.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=PIECE)


def read_trace(path: Path | str, classes: Sequence[str] = ()) -> Trace:
    """Read a trace: an Arrow file that `eex-record` wrote, the same columns as Parquet, or a CSV file.

    Files are read in pieces, and what is larger than memory should hold is mapped from disk, as
    `eex.policies.core.pieces` says; but a CSV file with one row per frame and exit, whose rows may be in any order, is
    read as a whole.

    Parameters
    ----------
    path
        What ends in .csv or .csv.gz is read as CSV. Its columns are recognised by their names: those of AdaEE's
        authors, one row per frame (`CSV_LAYOUTS`), or one row per frame and exit (`LONG_COLUMNS`). What ends in
        .parquet is read as Parquet.
    classes
        If given, the classes that the trace must have, as on a model's card.

    Raises
    ------
    EexError
        If the file cannot be read, is something else, or holds what a trace must not.
    """
    path = Path(path)
    try:
        name = path.name.lower()
        trace = _read_csv(path) if name.endswith((".csv", ".csv.gz")) else _read_arrow(path)
    except EexError as error:
        raise EexError(f"{path}: {error}") from None
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror or error}") from None
    if classes and tuple(classes) != trace.classes:
        raise EexError(
            f"{path}: its classes ({_few(trace.classes)}) are not those of the model's card ({_few(tuple(classes))})"
        )
    return trace


def _read_arrow(path: Path) -> Trace:
    import pyarrow as pa

    schema = next(_tables(path)).schema
    metadata, names = schema.metadata or {}, schema.names
    if metadata.get(b"format", FORMAT) != FORMAT:
        raise EexError(f"is an Arrow file, but not a trace: expected the format {FORMAT.decode()} in its metadata")
    if b"format" not in metadata and "confidence_1" not in names:  # a library may have dropped the metadata
        raise EexError(f"is an Arrow file, but not a trace; its columns: {_few(tuple(names))}")
    exits = _exits(names, "confidence_{}", "prediction_{}", "seconds_{}")
    exits = max(2, exits)  # one on the edge and the cloud at least
    wanted = ["label", "distortion", "level"]
    timed = "seconds_1" in names
    columns = ("confidence", "prediction", "seconds") if timed else ("confidence", "prediction")
    wanted += [f"{column}_{e + 1}" for column in columns for e in range(exits)]
    _need(names, wanted)
    experts = tuple(n.removeprefix("probability_") for n in names if n.startswith("probability_"))
    by_class = ["label", *(f"prediction_{e + 1}" for e in range(exits))]
    alike = all(pa.types.is_dictionary(schema.field(name).type) for name in by_class) and not _is_parquet(path)
    number = {} if alike else {c: k for k, c in enumerate(_classes_in(path, by_class))}
    kinds: dict[str, int] = {}  # of distortion, by their numbers
    pieces = Pieces()
    for table in _tables(path):
        if not len(table):
            continue
        found = {name: _index(table, name) for name in by_class}
        number = number or {c: k for k, c in enumerate(found["label"][1])}
        for name, (_, named) in found.items():
            if alike and named != tuple(number):
                raise EexError(f"{name} has other classes ({_few(named)}) than label ({_few(tuple(number))})")
        label, *prediction = (
            index if alike else np.array([*(number[c] for c in named), -1])[index] for index, named in found.values()
        )
        kind, kinds_here = _index(table, "distortion")
        if (kind < 0).any():
            raise EexError(f"distortion must be named: frame {pieces.rows + int((kind < 0).argmax())} has none")
        new = np.array([kinds.setdefault(name, len(kinds)) for name in kinds_here], dtype=np.int64)
        piece: dict[str, NDArray[Any]] = {
            "confidence": np.column_stack([_floats(table, f"confidence_{e + 1}") for e in range(exits)]),
            "prediction": np.column_stack(prediction),
            "label": label,
            "level": _floats(table, "level"),
            "distortion": new[kind],
        }
        if timed:
            piece["seconds"] = np.column_stack([_floats(table, f"seconds_{e + 1}") for e in range(exits)])
        if experts:
            piece["probabilities"] = np.column_stack([_floats(table, f"probability_{e}") for e in experts])
        pieces.add(_rounded(piece))
    model = metadata.get(b"model", b"").decode(errors="replace")
    return _trace(pieces, tuple(number), tuple(kinds), experts, model)


def _trace(
    pieces: Pieces, classes: tuple[str, ...], kinds: Sequence[str], experts: tuple[str, ...] = (), model: str = ""
) -> Trace:
    """The trace of all pieces, in which distortions are numbered as in `kinds`."""
    if not pieces.rows:
        raise EexError("has no rows")
    columns = pieces.whole()
    number, named = columns.pop("distortion"), np.array(kinds)
    names = Pieces()
    for start in range(0, len(number), PIECE):
        names.add({"distortion": named[number[start : start + PIECE]]})
    columns |= names.whole()
    trace = Trace(**columns, classes=classes, experts=experts, model=model)
    for column in (number, *columns.values()):
        if isinstance(column.base, mmap.mmap):
            let_go(column.base)  # all of it was looked at, and seldom is again
    return trace


def _rounded(piece: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A piece whose confidences are not above 1 by rounding alone."""
    confidence = piece["confidence"]
    np.copyto(confidence, 1.0, where=(confidence > 1) & (confidence <= 1 + ROUNDING))
    return piece


def _tables(path: Path) -> Iterator[Any]:
    """The pieces of an Arrow or Parquet file as tables; at least one.

    Raises
    ------
    EexError
        If it is something else, or damaged.
    """
    import pyarrow as pa

    with open(path, "rb"):
        pass  # what the system says of it comes before what it holds
    try:
        if _is_parquet(path):
            import pyarrow.parquet as pq

            with path.open("rb") as file, pq.ParquetFile(file) as parquet:  # a path need not be UTF-8
                yield parquet.schema_arrow.empty_table()
                for batch in parquet.iter_batches(batch_size=PIECE):
                    yield pa.Table.from_batches([batch])
            return
        with path.open("rb") as file:
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.BufferReader(pa.py_buffer(area)) as source, pa.ipc.open_file(source) as reader:
            reader.schema.names  # noqa: B018, may be no text in a damaged file
            yield reader.schema.empty_table()
            for k in range(reader.num_record_batches):
                table = pa.Table.from_batches([reader.get_batch(k)])
                table.validate(full=True)
                for start in range(0, len(table), PIECE):
                    yield table[start : start + PIECE]
                let_go(area)
    except (pa.ArrowException, OSError, ValueError):  # of a file that can be opened: what it holds
        if _is_parquet(path):
            raise EexError("is no Parquet file, or is cut off") from None
        raise EexError("is neither a trace that eex-record wrote (Arrow) nor a .csv file, or is cut off") from None


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(".parquet")


def _classes_in(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """The classes that columns name in all of a file: where they are text, as libraries make of dictionaries, just
    those that occur."""
    found: dict[str, dict[str, None]] = {name: {} for name in columns}
    for table in _tables(path):
        for name in columns:
            found[name] |= dict.fromkeys(_index(table, name)[1])
    return tuple(dict.fromkeys(c for name in columns for c in found[name]))


def _names(index: Ints, names: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(
        pa.array(index.astype(np.int32), mask=index < 0), pa.array(list(names), pa.string())
    )


def _index(table: Any, name: str) -> tuple[Ints, tuple[str, ...]]:
    """Numbers and names of a dictionary column; -1 for null."""
    import pyarrow as pa

    _check_names(table, name)
    column = table[name]
    whole = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    whole = whole.combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    index = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return index, tuple(whole.dictionary.to_pylist())


def _check_names(table: Any, name: str) -> None:
    import pyarrow as pa

    kind = table[name].type
    named = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(named) or pa.types.is_large_string(named)):
        raise EexError(f"{name} must hold names, got {kind}")


def _floats(table: Any, name: str) -> Floats:
    import pyarrow as pa

    column = table[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise EexError(f"{name} must hold numbers, got {column.type}")
    numbers: Floats = column.to_numpy().astype(np.float64)
    return numbers


def _exits(names: Sequence[str], *columns: str) -> int:
    """The highest exit that one of the columns, as "confidence_{}", is there for; 0 for none.

    Raises
    ------
    EexError
        If there is a column twice, or one for an exit beyond `MOST_EXITS`.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise EexError(f"has the column {_few((twice,))} twice; keep the right one")
    found = [(name, name[len(c) - 2 :]) for name in names for c in columns if name.startswith(c[:-2])]
    numbered = [(name, number) for name, number in found if number.isascii() and number.isdecimal()]
    for name, number in numbered:
        if len(number) > 6 or int(number) > MOST_EXITS:
            raise EexError(
                f"the column {_few((name,))} is for an exit beyond the {MOST_EXITS}th, the last that is read"
            )
    return max((int(number) for _, number in numbered), default=0)


# CSV files of AdaEE's authors: what a column is called in each of their layouts, {} standing for the exit
CSV_LAYOUTS: dict[str, dict[str, str]] = {
    "adaptive_early_exit": {
        "confidence": "conf_branch_{}",
        "prediction": "infered_class_branches_{}",
        "correct": "correct_branch_{}",
        "label": "target",
    },
    "edOffTS": {
        "confidence": "conf_branch_{}",
        "prediction": "prediction_branch_{}",
        "correct": "correct_branch_{}",
        "label": "target",
        "seconds": "cum_inf_time_branch_{}",
        "name": "class_name",
    },
}

# CSV files with one row per frame and exit: what a column may be called; case, blanks and punctuation do not count
LONG_COLUMNS: dict[str, tuple[str, ...]] = {
    "frame": ("sampleid", "sample", "sampleidx", "sampleindex", "frame", "frameid", "imageid", "image", "id", "index"),
    "exit": ("exit", "exitid", "exitidx", "exitindex", "exitlayer", "layer", "layerid", "branch", "branchid"),
    "confidence": ("confidence", "conf", "maxprob", "maxprobability", "maxsoftmax", "score"),
    "prediction": ("prediction", "pred", "predicted", "predictedlabel", "predictedclass", "predlabel", "predclass"),
    "label": ("label", "target", "truelabel", "groundtruth", "trueclass", "goldlabel", "gold"),
}
UNLABELLED = ("", "-1", "nan", "none", "null")


def _read_csv(path: Path) -> Trace:
    rows = _csv_rows(path)
    header = next(rows, [])
    if not header:
        raise EexError("is empty")
    layout = next((names for names in CSV_LAYOUTS.values() if _exits(header, names["prediction"])), None)
    if layout is None and (named := _long_columns(header)):
        return _read_long(header, list(rows), named, path.stem)
    if layout is None:
        known = "; ".join(f"{n}: {', '.join(c.values())}".replace("{}", "1") for n, c in CSV_LAYOUTS.items())
        known += "; one row per frame and exit: Sample_ID, Exit, Confidence, Prediction, Label"
        raise EexError(f"has columns of no layout that is known ({known}); its columns: {_few(tuple(header))}")
    per_exit = [k for k in layout if "{}" in layout[k]]
    exits = max(2, _exits(header, *(layout[k] for k in per_exit)))  # one on the edge and the cloud at least
    _need(header, [layout[k].format(e + 1) for k in per_exit for e in range(exits)] + [layout["label"]])
    pieces, names, count = Pieces(), dict[int, str](), 0
    while (table := list(itertools.islice(rows, PIECE))) or not pieces.rows:
        piece, named_here = _csv_piece(layout, exits, header, table, pieces.rows)
        names |= named_here
        count = max(count, int(piece["label"].max()) + 1, int(piece["prediction"].max()) + 1)
        pieces.add(_rounded(piece))
    return _trace(pieces, tuple(names.get(k, str(k)) for k in range(count)), (PRISTINE,), model=path.stem)


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file that are not blank, the header first."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            yield from (row for row in csv.reader(file) if row)
        except csv.Error as error:
            raise EexError(f"is not CSV: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise EexError(f"is not a whole gzip file: {error}") from None


def _csv_piece(
    layout: Mapping[str, str], exits: int, header: Sequence[str], table: Sequence[Sequence[str]], before: int
) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """The columns of some rows of a layout, `before` others, and the names that they give to classes."""
    columns = _columns(header, table, before)

    def numbers(kind: str) -> Floats:
        names = [layout[kind].format(e + 1) for e in range(exits)] if "{}" in layout[kind] else [layout[kind]]
        return np.column_stack([_parsed(name, columns[name], before) for name in names])

    label = _classes("label", numbers("label"), before)[:, 0]
    prediction = _classes("prediction", numbers("prediction"), before)
    wrong = ((prediction == label[:, None]) != (numbers("correct") != 0)).any(axis=1)
    if wrong.any():
        raise EexError(f"row {before + int(wrong.argmax()) + 1}: correct_branch contradicts its label and prediction")
    piece: dict[str, NDArray[Any]] = {
        "confidence": numbers("confidence"),
        "prediction": prediction,
        "label": label,
        "level": np.zeros(len(label)),
        "distortion": np.zeros(len(label), dtype=np.int64),
    }
    if "seconds" in layout:
        piece["seconds"] = numbers("seconds")
    named = layout.get("name")
    return piece, dict(zip(label.tolist(), columns[named], strict=True)) if named in columns else {}


def _columns(header: Sequence[str], table: Sequence[Sequence[str]], before: int = 0) -> dict[str, list[str]]:
    """The fields of each column, whole ones only, of rows that come after `before` others."""
    if not table:
        raise EexError("has no rows")
    short = next((k for k, row in enumerate(table) if len(row) != len(header)), None)
    if short is not None:
        row = f"row {before + short + 1}"
        raise EexError(f"{row} has {len(table[short])} fields, the header {len(header)}: cut off?")
    return {name: [row[k] for row in table] for k, name in enumerate(header)}


def _long_columns(header: Sequence[str]) -> dict[str, str]:
    """The columns of a table with one row per frame and exit, by what they hold; empty if it is no such table."""
    plain = {name: "".join(c for c in name.lower() if c.isalnum()) for name in header}
    found = {}
    for kind, called in LONG_COLUMNS.items():
        fitting = [name for name in header if plain[name] in called]
        if len(fitting) > 1:  # the word that is listed first is meant
            fitting.sort(key=lambda name: called.index(plain[name]))
        if fitting:
            found[kind] = fitting[0]
    return found if {"frame", "exit", "confidence", "prediction"} <= found.keys() else {}


def _read_long(header: Sequence[str], table: Sequence[Sequence[str]], named: Mapping[str, str], model: str) -> Trace:
    """One row per frame and exit, in any order; the last exit is the cloud's. Frames come as they first occur."""
    _exits(header)  # no column twice
    columns = _columns(header, table)
    frames = {name: k for k, name in enumerate(dict.fromkeys(columns[named["frame"]]))}
    depth = _parsed(named["exit"], columns[named["exit"]])
    exits, column = np.unique(depth, return_inverse=True)
    if not np.isfinite(exits).all() or not 2 <= len(exits) <= MOST_EXITS:
        raise EexError(f"{named['exit']} must number 2 to {MOST_EXITS} exits, got {len(exits)}")
    row = np.array([frames[name] for name in columns[named["frame"]]])
    count = np.zeros((len(frames), len(exits)), dtype=np.int64)
    np.add.at(count, (row, column), 1)
    if (count != 1).any():
        frame, exit = np.argwhere(count != 1)[0]
        rows = f"{count[frame, exit]} rows" if count[frame, exit] else "no row"
        where = f"{named['frame']} {_few((list(frames)[frame],))}"
        raise EexError(f"{where} has {rows} for {named['exit']} {exits[exit]:g}, expected 1")

    def per_exit(values: NDArray[Any]) -> NDArray[Any]:
        placed = np.empty(count.shape, dtype=values.dtype)
        placed[row, column] = values
        return placed

    answers = [_as_class(text) for text in columns[named["prediction"]]]
    truth = [_as_class(text) for text in columns[named["label"]]] if "label" in named else [""] * len(table)
    unknown = np.array([text.lower() in UNLABELLED for text in truth])
    classes, number = _named_classes({*answers, *(text for text, no in zip(truth, unknown, strict=True) if not no)})
    labels = per_exit(np.array([-1 if no else number[text] for text, no in zip(truth, unknown, strict=True)]))
    if (labels != labels[:, :1]).any():
        frame = int((labels != labels[:, :1]).any(axis=1).argmax())
        raise EexError(f"{named['frame']} {_few((list(frames)[frame],))} has different labels at different exits")
    return Trace(
        confidence=per_exit(_parsed(named["confidence"], columns[named["confidence"]])),
        prediction=per_exit(np.array([number[text] for text in answers])),
        label=labels[:, 0],
        classes=classes,
        model=model,
    )


def _as_class(text: str) -> str:
    """A class as it is written elsewhere: 3.0, as libraries write whole numbers in a column with gaps, is 3."""
    text = text.strip()
    return text.removesuffix(".0") if text.removesuffix(".0").isdecimal() else text


def _named_classes(names: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes, and the number of each name: numbered ones from 0 on, those between that do not occur too; others in
    alphabetical order."""
    if all(name.isascii() and name.isdecimal() and len(name) <= 7 for name in names):
        most = max(map(int, names))
        if most >= MOST_CLASSES:
            raise EexError(f"classes must be numbers below {MOST_CLASSES:,}, got {most}")
        return tuple(str(k) for k in range(most + 1)), {name: int(name) for name in names}  # 03 is 3
    if "" in names:
        raise EexError("a prediction is empty")
    ordered = tuple(sorted(names))
    return ordered, {name: k for k, name in enumerate(ordered)}


def _classes(name: str, values: Floats, before: int) -> Ints:
    bad = ~((values >= 0) & (values < MOST_CLASSES) & (values == np.round(values)))
    if bad.any():
        row = before + np.argwhere(bad)[0, 0] + 1
        raise EexError(f"row {row}: {name} must be a class 0, 1, …, got {values[bad][0]:g}")
    return values.astype(np.int64)


def _parsed(name: str, texts: list[str], before: int = 0) -> Floats:
    try:
        return np.array(texts, dtype=np.float64)
    except ValueError:
        row = next(k for k, text in enumerate(texts) if not _is_number(text))
        raise EexError(f"row {before + row + 1}: {name} must be a number, got '{texts[row]}'") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _need(have: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in have]
    if missing:
        raise EexError(f"column {missing[0]} is missing; its columns: {_few(tuple(have))}")


def _few(names: Sequence[str], most: int = 12) -> str:
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) for name in names[:most]]
    return ", ".join(shown) + (f", … ({len(names)})" if len(names) > most else "")
