"""Which row of a trace each episode plays next: in order, resampled, or its distortions in a new order."""

from typing import Literal

import numpy as np

from eex.policies.core.base import Floats, Ints
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.options import check_word
from eex.policies.core.trace import Trace

EpisodeOrder = Literal["in-order", "resampled", "segments", "switching"]
_START, _ROW, _PIECE = 11, 12, 13  # purposes of draws
_CHUNK = 64  # rounds whose draws are made at once
_EPISODE = 2**40  # rounds and pieces of an episode are numbered from a multiple of this
_EPISODES = 2**22  # after which an environment plays the same ones again


class Playlist:
    """Draws the row of the trace that each of many episodes plays next; all episodes are at the same round.

    Parameters
    ----------
    order
        "in-order": row after row, from one that is drawn so that the episode fits. "resampled": any row, with
        replacement. "segments": as in order, but each row is drawn from its stretch of unchanged distortion.
        "switching": stretches of unchanged distortion in a drawn order, none twice in a row, rows drawn from each. Two
        stretches of the trace may have the same distortion.
    rounds
        Frames of an episode; 0 = as many as the trace has.
    switch
        Fewest and most frames until "switching" goes to another stretch.

    Raises
    ------
    EexError
        If there is no such order, the trace is too short for the episode, or a number is out of range.
    """

    def __init__(self, trace: Trace, order: EpisodeOrder, rounds: int, switch: tuple[int, int]) -> None:
        check_word("order", order, EpisodeOrder)
        if rounds < 0:
            raise EexError(f"an episode must have at least 1 round (0 = all of the trace), got {rounds}")
        self.order, self.length, self.rounds = order, len(trace), rounds or len(trace)
        if order in ("in-order", "segments") and self.rounds > self.length:
            raise EexError(
                f"a trace too short for the episode: expected {self.rounds} frames or more, found {self.length} "
                "(order 'resampled' and 'switching' draw frames again)"
            )
        self.low, self.high = switch
        if not 1 <= self.low <= self.high:
            raise EexError(f"switch must be the fewest and most frames of a piece, got {self.low} and {self.high}")
        self.segment = trace.segments
        self.first = np.searchsorted(self.segment, np.arange(self.segment[-1] + 1))  # row of each segment
        self.count = np.diff(np.append(self.first, self.length))

    def begin(self, seeds: Ints, episode: int) -> None:
        """Start an episode in each environment (envs,), drawn from its seed and the number of the episode."""
        self.seeds, self.t, self.offset = seeds, 0, episode % _EPISODES * _EPISODE
        u = uniform(0, seeds, np.array([self.offset]), 1, _START)[:, 0, 0]
        self.start = (u * (self.length - self.rounds + 1)).astype(np.int64)
        self.piece = np.zeros(len(seeds), dtype=np.int64)
        self.ends = np.zeros(len(seeds), dtype=np.int64)
        self.now = np.full(len(seeds), -1)  # segment that is played

    def keep(self, envs: Ints) -> None:
        """Go on with some of the environments only."""
        for name in ("seeds", "start", "piece", "ends", "now", *(["u"] * (self.order != "in-order"))):
            setattr(self, name, getattr(self, name)[..., envs])

    def next(self) -> Ints:
        """The row of the next round in each environment, (envs,)."""
        at = np.minimum(self.start + self.t, self.length - 1)  # after the last round, the last row again
        if self.order != "in-order":
            if self.t % _CHUNK == 0:
                rounds = self.offset + np.arange(self.t, self.t + _CHUNK)
                self.u = np.ascontiguousarray(uniform(0, self.seeds, rounds, 1, _ROW)[..., 0].T)
            u: Floats = self.u[self.t % _CHUNK]
            if self.order == "resampled":
                at = (u * self.length).astype(np.int64)
            else:
                if self.order == "switching":
                    self._switch()
                segment = self.now if self.order == "switching" else self.segment[at]
                at = self.first[segment] + (u * self.count[segment]).astype(np.int64)
        self.t += 1
        return at

    def _switch(self) -> None:
        """Go on to another segment where a piece has ended."""
        over = np.flatnonzero(self.t >= self.ends)
        if not len(over):
            return
        u = uniform(0, self.seeds[over], self.offset + self.piece[over, None], 2, _PIECE)[:, 0]
        count, before = len(self.first), self.now[over]
        others = (before + 1 + (u[:, 0] * (count - 1)).astype(np.int64)) % count
        self.now[over] = np.where(before < 0, (u[:, 0] * count).astype(np.int64), others)
        self.ends[over] = self.t + self.low + (u[:, 1] * (self.high - self.low + 1)).astype(np.int64)
        self.piece[over] += 1


def reordered(trace: Trace, rounds: int, switch: tuple[int, int] = (500, 3000), seed: int = 0) -> Trace:
    """A trace whose distortions switch every so many frames: what an environment of order "switching" plays."""
    if rounds < 1:
        raise EexError(f"rounds must be at least 1, got {rounds}")
    playlist = Playlist(trace, "switching", rounds, switch)
    playlist.begin(np.array([seed]), 0)
    return trace[np.concatenate([playlist.next() for _ in range(rounds)])]
