"""What edges have shared with a worker: the latest sums of each, pooled for the others, kept in a file. No sockets.

Edges form a fleet if they serve the same model with the same policy. A member of it is a key, however many edges have
it; without keys, each edge is one. What a member counts for is bounded (`eex.policies.core.fleet.moderated`), and
halves with each day in which it sends nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError
from eex.policies.core.files import write_file
from eex.policies.core.fleet import MOST_VALUES, Layout, capped, moderated
from eex.stream.wire.protocol import SumsHeader, layout_of

Values = NDArray[np.float32]

EDGES = 1024
"""Edges in a fleet, at most; then the one that has been silent for longest makes room, of the key with most of them."""
FLEETS = 16
MOST_BYTES = 128 << 20
"""Of all sums that are kept; beyond that, edges make room as above, of the fleet with most of them."""
HALF_LIFE_S = 86_400.0
"""Time after which what an edge has shared, and not shared again, counts half."""
POOL_S = 1e-3
"""How old a pool may be that is handed out, for each edge in it: adding up a thousand takes some milliseconds."""
SAVE_S = 60.0
"""Seconds between two times that the file is written."""
FORMAT = 1


@dataclass
class Edge:
    """What an edge has shared last, and when, in seconds since 1970."""

    sums: Values
    at: float


@dataclass
class Pool:
    """The members of a fleet added up.

    Attributes
    ----------
    at
        When, in seconds since 1970.
    total
        All of them, (size,).
    members
        What each one contributes to it.
    edges
        The edges that were added up.
    sums
        Of each member with several edges, what these come to, before it is capped.
    """

    at: float
    total: Floats
    members: dict[str, Values]
    edges: dict[tuple[str, str], Edge]
    sums: dict[str, Floats]


@dataclass
class Fleet:
    """Edges that agree on everything, by key and name."""

    layout: Layout
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)
    pool: Pool | None = None

    @property
    def at(self) -> float:
        """When one of them last shared, in seconds since 1970."""
        return max((edge.at for edge in self.edges.values()), default=0.0)


class Fleets:
    """The fleets of a worker.

    Parameters
    ----------
    path
        File in which they outlast the worker; it is read now, and written by `save`. None keeps them in memory alone.
    clock
        Seconds since 1970.

    Raises
    ------
    EexError
        If the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self.fleets: dict[str, Fleet] = {}
        self._saved_at, self._unsaved = clock(), False
        self._saver: threading.Thread | None = None
        if path is not None:
            self.fleets = _read(path, clock())

    @property
    def edges(self) -> int:
        """Edges in all fleets."""
        return sum(len(fleet.edges) for fleet in self.fleets.values())

    def take_in(self, header: SumsHeader, sums: Values, key: str, answerer: str = "") -> tuple[int, Values]:
        """Keep the sums of an edge in place of its earlier ones.

        Parameters
        ----------
        key
            The edge's; empty in plain text.
        answerer
            Fingerprint of the model that answers in place of the edge's own.

        Returns
        -------
        edges, others
            How many other edges there are, and what they have shared, added up.

        Raises
        ------
        ValueError
            If no stream can have such sums; nothing is kept then.
        """
        layout = layout_of(header)
        problem = layout.problem(sums)
        if problem:
            raise ValueError(problem)
        kept = capped(layout, sums).astype(np.float32)
        if problem := layout.problem(kept):  # rounding may take sums at the limit beyond it; the file is checked, too
            raise ValueError(problem)
        name = f"{header.model} {answerer or '-'} {header.policy} {layout.exits} {layout.bins} {layout.coarse}"
        fleet = self.fleets.get(name)
        if fleet is None:
            if len(self.fleets) >= FLEETS:
                self._drop_one()
            fleet = self.fleets[name] = Fleet(layout)
        now, own = self._clock(), (key, header.edge)
        fleet.edges[own] = Edge(kept, now)
        self._unsaved = True
        while len(fleet.edges) > EDGES:
            _make_room(fleet)
        while sum(4 * f.layout.size * len(f.edges) for f in self.fleets.values()) > MOST_BYTES:
            _make_room(max(self.fleets.values(), key=lambda f: f.layout.size * len(f.edges)))
        return len(fleet.edges.keys() - {own}), self._others(fleet, own, now)

    def _drop_one(self) -> None:
        """Drop a fleet whose every member is in many, of these the one that has been silent for longest."""
        members = {name: {_member(edge) for edge in fleet.edges} for name, fleet in self.fleets.items()}
        count = Counter(member for its in members.values() for member in its)
        fewest = {name: min((count[member] for member in its), default=FLEETS) for name, its in members.items()}
        del self.fleets[min(self.fleets, key=lambda name: (-fewest[name], self.fleets[name].at))]

    def _others(self, fleet: Fleet, own: tuple[str, str], now: float) -> Values:
        """What all edges but one have shared."""
        pool = fleet.pool
        if pool is None or not 0 <= now - pool.at < POOL_S * len(fleet.edges):
            pool = fleet.pool = _pool(fleet, now)
        member = _member(own)
        others = np.maximum(pool.total - pool.members.get(member, 0.0), 0.0)
        if member in pool.sums:
            before = _added([pool.edges[own]], pool.at) if own in pool.edges else 0.0
            others += capped(fleet.layout, np.maximum(pool.sums[member] - before, 0.0))
        return others.astype(np.float32)

    # ---- the file

    def save_when_due(self) -> None:
        """Save aside if it is time to: the disk may be slow."""
        if self.path is None or not self._unsaved or 0 <= self._clock() - self._saved_at < SAVE_S:
            return
        if self._saver is None or not self._saver.is_alive():
            self._saved_at, self._unsaved = self._clock(), False
            self._saver = threading.Thread(target=self._write, args=(self._packed(),), name="eex-fleet", daemon=True)
            self._saver.start()

    def save(self) -> None:
        """Save now what has changed since the last time."""
        if self._saver is not None:
            self._saver.join()
        if self.path is not None and self._unsaved:
            self._unsaved = False
            self._write(self._packed())

    problem = ""
    """Why the file could not be written the last time."""

    def _write(self, packed: "_File") -> None:
        assert self.path is not None
        try:
            write_file(self.path, msgspec.msgpack.encode(packed))
            self.problem = ""
        except EexError as error:
            self.problem, self._unsaved = str(error), True

    def _packed(self) -> "_File":
        fleets = []
        for name, fleet in self.fleets.items():
            rows = [_Edge(key, edge, its.at, its.sums.tobytes()) for (key, edge), its in fleet.edges.items()]
            fleets.append(_Fleet(name, fleet.layout.exits, fleet.layout.bins, fleet.layout.coarse, rows))
        return _File(FORMAT, fleets)


def _member(edge: tuple[str, str]) -> str:
    """The member that an edge is part of: its key, or itself."""
    key, name = edge
    return key or f"\0{name}"


def _added(edges: Sequence[Edge], now: float) -> Floats:
    """Some edges added up, (size,), each faded."""
    total: Floats = sum((edge.sums * 0.5 ** (max(0.0, now - edge.at) / HALF_LIFE_S) for edge in edges), np.zeros(()))
    return total


def _pool(fleet: Fleet, now: float) -> Pool:
    if not fleet.edges:  # there was room for none
        return Pool(now, np.zeros(fleet.layout.size), {}, {}, {})
    by_member: dict[str, list[Edge]] = {}
    for name, edge in fleet.edges.items():
        by_member.setdefault(_member(name), []).append(edge)
    sums = {member: _added(edges, now) for member, edges in by_member.items()}
    rows = np.stack([capped(fleet.layout, total).astype(np.float32) for total in sums.values()])
    rows = moderated(fleet.layout, rows)
    several = {member: sums[member] for member, edges in by_member.items() if len(edges) > 1}
    return Pool(now, rows.sum(axis=0, dtype=float), dict(zip(by_member, rows, strict=True)), dict(fleet.edges), several)


def _make_room(fleet: Fleet) -> None:
    """Drop the edge that has been silent for longest, of the key with most edges."""
    count: dict[str, int] = {}
    for key, _ in fleet.edges:
        count[key] = count.get(key, 0) + 1
    del fleet.edges[min(fleet.edges, key=lambda name: (-count[name[0]], fleet.edges[name].at))]
    fleet.pool = None


# ---- what the file holds


class _Edge(msgspec.Struct, forbid_unknown_fields=True):
    key: Annotated[str, Meta(max_length=1024)]
    edge: Annotated[str, Meta(max_length=256)]
    at: float
    sums: Annotated[bytes, Meta(max_length=4 * MOST_VALUES)]


class _Fleet(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=2048)]
    exits: Annotated[int, Meta(ge=1, le=1000)]
    bins: Annotated[int, Meta(ge=1, le=1000)]
    coarse: Annotated[int, Meta(ge=1, le=1000)]
    edges: Annotated[list[_Edge], Meta(max_length=EDGES)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    fleets: Annotated[list[_Fleet], Meta(max_length=FLEETS)]


def _read(path: Path, now: float) -> dict[str, Fleet]:
    """The fleets in a file; none if there is no file yet.

    Raises
    ------
    EexError
        If it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > 2 * MOST_BYTES:
            raise ValueError("it is too large")
        file = msgspec.msgpack.decode(path.read_bytes(), type=_File)
        if file.format != FORMAT:
            raise ValueError(f"its format is {file.format}, expected {FORMAT}")
        fleets: dict[str, Fleet] = {}
        for given in file.fleets:
            fleet = fleets[given.name] = Fleet(Layout(given.exits, given.bins, given.coarse))
            for edge in given.edges:
                sums: NDArray[Any] = np.frombuffer(edge.sums, dtype="<f4")
                if problem := fleet.layout.problem(sums):
                    raise ValueError(problem)
                fleet.edges[edge.key, edge.edge] = Edge(sums, min(edge.at, now) if edge.at == edge.at else 0.0)
        return {name: fleet for name, fleet in fleets.items() if fleet.edges}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise EexError(
            f"{path}: not what eex-worker keeps of a fleet: {error}; move it away, and the fleet learns anew"
        ) from None
