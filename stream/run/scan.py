"""What the records of a run say, read once in constant memory: curves, reliability, faults."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError
from eex.stream.run.records import CAPTURED, DROPPED, REACHABLE, STREAM, read_batches
from eex.stream.run.tally import Tally, Windows

BINS = 15
"""Bins of the reliability diagrams."""
APART = 50
"""Frames without a fallback after which the next one begins another fault."""
FAULTS = 200
"""Faults that are told apart, at most; those after it count as one."""
STREAMS = 50


@dataclass
class Fault:
    """Frames next to each other that fell back on the edge.

    Attributes
    ----------
    first, last
        Rows in the records, counted from 0.
    frames
        How many of them fell back.
    unreachable
        How many while no worker was believed reachable.
    began, ended
        When the first and the last frame was captured or arrived, in seconds since 1970; NaN where the records lack it.
    """

    first: int
    last: int
    frames: int = 0
    unreachable: int = 0
    began: float = math.nan
    ended: float = math.nan


@dataclass
class Scan:
    """What was found.

    Attributes
    ----------
    exits
        Exits of the network, the final one included.
    windows
        Sums over windows of consecutive frames, see `curves`.
    reliability
        Per exit and bin: frames, sum of confidences, right answers, (exits, bins, 3).
    latency
        Frames by latency, in the bins of `Tally.BOUNDS`.
    by_stream
        Per name: frames, offloaded, fallbacks, labelled, correct.
    began, ended
        When the first and the last frame was captured or arrived, in seconds since 1970; NaN where the records lack it.
    """

    exits: int
    windows: Windows
    reliability: Floats
    latency: Floats
    frames: int = 0
    faults: list[Fault] = field(default_factory=list)
    by_stream: dict[str, Floats] = field(default_factory=dict)
    began: float = math.nan
    ended: float = math.nan

    @property
    def names(self) -> list[str]:
        """Of the exits."""
        return [*(f"exit {e + 1}" for e in range(self.exits - 1)), "cloud"]

    def curves(self, policy: str) -> pd.DataFrame:
        """Tidy rows, as `eex.stream.run.pictures.read_curves` gives them."""
        w = self.windows
        wide = pd.DataFrame(w.sums[: w.used], columns=[*_SUMMED, *(f"exit_{e + 1}" for e in range(self.exits))])
        wide["frames"], wide["start"] = w.frames[: w.used], np.arange(w.used) * w.length
        rows = wide.melt(id_vars="start", var_name="quantity", value_name="value")
        return rows.assign(policy=policy)

    def bins(self) -> pd.DataFrame:
        """Rows of the reliability diagrams, as `eex.stream.run.pictures.reliability` takes them."""
        edges, rows = np.linspace(0, 1, BINS + 1), []
        for e, k in zip(*np.nonzero(self.reliability[:, :, 0]), strict=True):
            frames, confidence, right = self.reliability[e, k].tolist()
            rows.append((e + 1, edges[k], edges[k + 1], frames, confidence / frames, right / frames))
        return pd.DataFrame(rows, columns=["exit", "low", "high", "frames", "confidence", "accuracy"])

    def latency_ms(self, quantile: float) -> float | None:
        """Latency that this share of the answered frames stays below, to 5 %; None without any."""
        total = self.latency.sum()
        if not total:
            return None
        k = int(np.searchsorted(self.latency.cumsum(), quantile * total))
        return float(Tally.BOUNDS[min(k, len(Tally.BOUNDS) - 1)])


_SUMMED = ("threshold", "correct", "labelled", "offloaded", "fallback")


def scan(folder: Path | str) -> Scan:
    """Read the records of a run, by its folder or its folder of records.

    Raises
    ------
    EexError
        If there are none, they are damaged, or lack a column.
    """
    found: Scan | None = None
    for batch in read_batches(folder):
        exits = sum(name.startswith("exit_at_") for name in batch.schema.names)
        if found is None:
            found = Scan(
                exits,
                Windows(len(_SUMMED) + exits),
                np.zeros((exits, BINS, 3)),
                np.zeros(len(Tally.BOUNDS) + 1),
            )
        if exits != found.exits:
            raise EexError(f"{folder}: the parts have different columns; are they of several networks?")
        if len(batch):
            try:
                _add(found, batch)
            except KeyError as error:
                raise EexError(f"{folder}: the records lack the column {error}: written by an older eex?") from None
    if found is None or not found.frames:
        raise EexError(f"{folder}: the records hold no frame")
    return found


def _add(found: Scan, batch: pa.RecordBatch) -> None:
    exits, count = found.exits, len(batch)
    exit = _of(batch, "exit", 0).astype(np.int64) - 1
    label, answer = _index(batch, "label"), _index(batch, "answer")
    dropped, fallback = _of(batch, DROPPED, False), _of(batch, "fallback", False)
    known = (label >= 0) & ~dropped
    right = known & (answer == label)
    offloaded = _of(batch, "offloaded", False) & ~dropped
    exit_at = np.column_stack([_of(batch, f"exit_at_{e + 1}", np.nan) for e in range(exits - 1)])
    last = np.where(np.isfinite(exit_at) & (exit_at > 0), exit_at, 0.0).max(axis=1)
    left = (exit[:, None] == np.arange(exits)).astype(float)
    found.windows.add(
        np.arange(found.frames, found.frames + count),
        np.column_stack([last, right, known, offloaded, fallback, left]),
    )
    latency = _of(batch, "latency_ms", np.nan)[~dropped]
    found.latency += np.bincount(np.searchsorted(Tally.BOUNDS, latency), minlength=len(found.latency))
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    for e in range(exits):
        confidence, prediction = _of(batch, f"confidence_{e + 1}", np.nan), _index(batch, f"prediction_{e + 1}")
        seen = (label >= 0) & ~np.isnan(confidence)
        at = np.searchsorted(edges, confidence[seen])
        for k, weights in enumerate((None, confidence[seen], (prediction == label)[seen].astype(float))):
            found.reliability[e, :, k] += np.bincount(at, weights, minlength=BINS)
    captured = _of(batch, CAPTURED, np.nan)
    found.began = float(np.fmin(found.began, np.fmin.reduce(captured)))
    found.ended = float(np.fmax(found.ended, np.fmax.reduce(captured)))
    for row in np.flatnonzero(fallback).tolist():
        number = found.frames + row
        new = not found.faults or number - found.faults[-1].last > APART
        if new and len(found.faults) < FAULTS:
            found.faults.append(Fault(number, number, began=float(captured[row])))
        fault = found.faults[-1]
        fault.last, fault.ended = number, float(captured[row])
        fault.frames += 1
    reachable = _of(batch, REACHABLE, True)
    if found.faults:
        for row in np.flatnonzero(fallback & ~reachable).tolist():
            number = found.frames + row
            next(f for f in reversed(found.faults) if f.first <= number).unreachable += 1
    streams = np.array(batch[STREAM].to_pylist(), dtype=object)
    for name in set(streams.tolist()):
        key = name if name in found.by_stream or len(found.by_stream) < STREAMS else "others"
        of = streams == name
        sums = np.array(
            [of.sum(), (of & offloaded).sum(), (of & fallback).sum(), (of & known).sum(), (of & right).sum()]
        )
        found.by_stream[key] = found.by_stream.get(key, np.zeros(5)) + sums
    found.frames += count


def _of(batch: pa.RecordBatch, name: str, missing: Any) -> Any:
    """A column as it is in memory."""
    if name not in batch.schema.names:
        raise KeyError(name)
    return batch[name].fill_null(missing).to_numpy(zero_copy_only=False)


def _index(batch: pa.RecordBatch, name: str) -> Any:
    """Numbers of a column of names; -1 for null."""
    if name not in batch.schema.names:
        raise KeyError(name)
    return batch[name].indices.fill_null(-1).to_numpy(zero_copy_only=False)
