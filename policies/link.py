"""A simulated link between edge and cloud, for replay and environments: when replies come, and which never do."""

from dataclasses import dataclass

import numpy as np

from eex.policies.base import Bools, Floats, Ints
from eex.policies.draws import uniform
from eex.policies.errors import EexError

DOWN = float("inf")
_PURPOSE = 2  # of draws


@dataclass(frozen=True)
class SimulatedLink:
    """Round trips that change over a stream of frames at a steady rate.

    Attributes
    ----------
    pieces
        (round trip in milliseconds, frames) one after another, from the first again after the last; `DOWN` = nothing
        comes back.
    jitter_ms
        Round trips are spread evenly by up to this much to both sides.
    frame_ms
        Time between frames.
    deadline_ms
        A reply that takes longer never comes.

    Raises
    ------
    EexError
        On construction, if a value is outside its range.
    """

    pieces: tuple[tuple[float, int], ...]
    jitter_ms: float = 0.0
    frame_ms: float = 10.0
    deadline_ms: float = 1000.0

    def __post_init__(self) -> None:
        if not self.pieces or any(not ms >= 0 or frames < 1 for ms, frames in self.pieces):
            raise EexError(f"a link needs round trips of at least 0 ms for at least 1 frame each, got {self.pieces}")
        for name, least in (("jitter_ms", 0.0), ("frame_ms", 1e-3), ("deadline_ms", 1e-3)):
            if not least <= getattr(self, name) < np.inf:
                raise EexError(f"a link's {name} must be at least {least:g}, got {getattr(self, name)}")

    def round_trip_ms(self, frame: int, keys: Ints, seed: int) -> tuple[Floats, Bools]:
        """How long offloading a frame takes in each run, and whether it is in vain: the deadline then, both (runs,)."""
        ends = np.cumsum([frames for _, frames in self.pieces])
        base = self.pieces[int(np.searchsorted(ends, frame % ends[-1], side="right"))][0]
        u = uniform(seed, keys, np.array([frame]), 1, _PURPOSE)[:, 0, 0]
        took = np.maximum(0.0, base + self.jitter_ms * (2 * u - 1))
        lost = took > self.deadline_ms
        return np.where(lost, self.deadline_ms, took), lost


def parse_link(text: str) -> SimulatedLink:
    """A link from text: round trips in milliseconds and for how many frames, and its settings, between commas.

    Raises
    ------
    EexError
        If the text is none.

    Examples
    --------
    >>> parse_link("12:3000, down:200, 213:3000, jitter=5, frame=10, deadline=500").pieces
    ((12.0, 3000), (inf, 200), (213.0, 3000))
    """
    pieces, settings = [], {}
    for word in (w.strip() for w in text.split(",")):
        name, equals, value = word.partition("=")
        try:
            if equals:
                if name.strip() not in ("jitter", "frame", "deadline"):
                    raise ValueError
                settings[name.strip() + "_ms"] = float(value)
            else:
                ms, _, frames = word.partition(":")
                pieces.append((DOWN if ms.strip() == "down" else float(ms), int(frames or 1)))
        except ValueError:
            raise EexError(
                f"link '{text}': '{word}' is neither MS:FRAMES, down:FRAMES nor jitter=, frame= or deadline=MS"
            ) from None
    return SimulatedLink(tuple(pieces), **settings)
