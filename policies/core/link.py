"""An emulated link between edge and cloud: when replies come, and which never do.

Replay and environments ask it in frames (`SimulatedLink.round_trip_ms`), the emulation of a link under a live stream in
seconds (`SimulatedLink.piece_at`, `eex.stream.wire.emulated_link`); both read the same text:

link      = part {"," part}
part      = condition [":" length] | name "=" number
condition = MS ["@" MBIT] | "down" | preset     round trip, and megabits per second each way; no limit without them
length    = FRAMES | SECONDS "s"                one is the other by frame=, the milliseconds from frame to frame
name      = "jitter" | "frame" | "deadline" | "bytes"
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError

DOWN = float("inf")
_PURPOSE = 2  # of draws

PRESETS = {"sao-paulo": "12@93", "north-california": "182@68", "paris": "213@42", "wifi": "5@18.8"}
"""Round trip in milliseconds and megabits per second: from an edge in Brazil to three sites of a cloud (Pacheco and
Couto, 2020), and the wireless networks usual in that literature, here to a machine nearby."""

SEGMENT = 1448
"""Bytes of a full TCP segment on a link with the usual 1,500-byte packets."""
FIRST_WINDOW = 10 * SEGMENT
"""Bytes that TCP sends on an idle connection before the first acknowledgement (RFC 6928)."""


class Piece(NamedTuple):
    """How a link is for some frames: round trip in milliseconds (`DOWN`: nothing gets through), and its rate."""

    round_trip_ms: float
    frames: int
    mbit: float = float("inf")


@dataclass(frozen=True)
class SimulatedLink:
    """A link that changes over a stream of frames at a steady rate, or over time.

    Attributes
    ----------
    pieces
        In turn, starting again after the last; `DOWN` = nothing gets through.
    jitter_ms
        Round trips are spread evenly by up to this much in both directions.
    frame_ms
        Time between frames.
    deadline_ms
        A reply that takes longer never comes.
    bytes
        What an offloaded frame sends, in replay: it takes `transfer_ms` there and half a round trip back. A live
        stream knows what it sends.

    Raises
    ------
    EexError
        On construction, if a value is outside its range.
    """

    pieces: tuple[Piece, ...]
    jitter_ms: float = 0.0
    frame_ms: float = 10.0
    deadline_ms: float = 1000.0
    bytes: float = 0.0

    def __post_init__(self) -> None:
        pieces = tuple(Piece(*p) for p in self.pieces)
        object.__setattr__(self, "pieces", pieces)
        if not pieces or any(not p.round_trip_ms >= 0 or p.frames < 1 for p in pieces):
            given = tuple(tuple(p) for p in pieces)
            raise EexError(f"a link needs round trips of at least 0 ms for at least 1 frame each, got {given}")
        if any(not p.mbit > 0 for p in pieces):
            raise EexError(f"a link's rate must be more than 0 Mbit/s, got {min(p.mbit for p in pieces):g}")
        for name, least in (("jitter_ms", 0.0), ("frame_ms", 1e-3), ("deadline_ms", 1e-3), ("bytes", 0.0)):
            if not least <= getattr(self, name) < np.inf:
                raise EexError(f"a link's {name} must be at least {least:g}, and finite, got {getattr(self, name)}")

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(p.frames for p in self.pieces))

    def piece(self, frame: int) -> Piece:
        """How the link is for a frame."""
        return self.pieces[bisect_right(self._ends, frame % self._ends[-1])]

    def piece_at(self, seconds: float) -> Piece:
        """The link's condition at a time, in seconds from its beginning."""
        return self.piece(int(seconds * 1000 / self.frame_ms))

    def up_at(self, seconds: float) -> float:
        """The first time from then on, in seconds, at which the link is not down; inf if it never is."""
        if all(p.round_trip_ms == DOWN for p in self.pieces):
            return float("inf")
        while self.piece_at(seconds).round_trip_ms == DOWN:
            frame = int(seconds * 1000 / self.frame_ms)
            start = frame - frame % self._ends[-1]
            end = start + self._ends[bisect_right(self._ends, frame % self._ends[-1])]
            seconds = max(end * self.frame_ms / 1000, np.nextafter(seconds, np.inf))
        return seconds

    def round_trip_ms(self, frame: int, keys: Ints, seed: int) -> tuple[Floats, Bools]:
        """How long offloading a frame takes in each run, and whether its reply never comes: the deadline then, both
        (runs,)."""
        piece = self.piece(frame)
        base = piece.round_trip_ms
        if self.bytes and base < DOWN:
            base = transfer_ms(self.bytes, base, piece.mbit) + base / 2
        u = uniform(seed, keys, np.array([frame]), 1, _PURPOSE)[:, 0, 0]
        took = np.maximum(0.0, base + self.jitter_ms * (2 * u - 1))
        lost = took > self.deadline_ms
        return np.where(lost, self.deadline_ms, took), lost


def transfer_ms(bytes: float, round_trip_ms: float, mbit: float, window: float = FIRST_WINDOW) -> float:
    """Milliseconds from the first byte sent until the last one has arrived, over a TCP connection that starts slowly.

    A connection sends one window of bytes, and twice as many each round trip as they are acknowledged, until they fill
    the link. A window that is large from the beginning gives bytes / rate + half a round trip.

    Examples
    --------
    >>> transfer_ms(5_000, 213.0, 42.0)  # fits the first window: 1 ms on the wire, and half a round trip
    107.45238095238095
    >>> round(transfer_ms(65_536, 213.0, 42.0))  # three windows: two round trips more
    537
    """
    per_ms, elapsed = 125.0 * mbit, 0.0
    while bytes > window and window < per_ms * round_trip_ms:
        bytes -= window
        elapsed += round_trip_ms
        window *= 2
    return elapsed + bytes / per_ms + round_trip_ms / 2


def parse_link(text: str) -> SimulatedLink:
    """A link from text: comma-separated conditions and their lengths, and settings.

    Raises
    ------
    EexError
        If the text is not a link.

    Examples
    --------
    >>> link = parse_link("12:3000, down:200, paris:30s, jitter=5, frame=10, deadline=500")
    >>> [tuple(piece) for piece in link.pieces]
    [(12.0, 3000, inf), (inf, 200, inf), (213.0, 3000, 42.0)]
    """
    found: list[tuple[float, float, str]] = []
    settings: dict[str, float] = {}
    for word in (w.strip() for w in text.split(",")):
        name, equals, value = word.partition("=")
        try:
            if equals:
                name = name.strip()
                if name not in ("jitter", "frame", "deadline", "bytes"):
                    raise ValueError
                settings[name if name == "bytes" else name + "_ms"] = float(value)
            else:
                condition, _, length = (part.strip() for part in word.partition(":"))
                ms, _, mbit = PRESETS.get(condition, condition).partition("@")
                found.append((DOWN if ms == "down" else float(ms), float(mbit or "inf"), length))
                float(length.removesuffix("s") or 1)
        except ValueError:
            names = ", ".join(PRESETS)
            raise EexError(
                f"link '{text}': '{word}' is neither MS:FRAMES, MS@MBIT:SECONDSs, down:FRAMES, one of {names} nor "
                f"jitter=, frame= or deadline=MS"
            ) from None
    link = SimulatedLink((Piece(0.0, 1),), **settings)  # checks the settings
    try:
        pieces = tuple(Piece(ms, _frames(length, link.frame_ms), mbit) for ms, mbit, length in found)
    except (ValueError, OverflowError):
        raise EexError(f"link '{text}': a length is a whole number of frames, or seconds as in 30s") from None
    return SimulatedLink(pieces, **settings)


def _frames(length: str, frame_ms: float) -> int:
    if length.endswith("s"):
        return max(1, round(1000 * float(length[:-1]) / frame_ms))
    return int(length or 1)
