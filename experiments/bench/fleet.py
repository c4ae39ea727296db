"""Edges of a fleet in replay: how soon each is within a percent of the best, alone and together, and what liars do.

python -m eex.experiments.bench.fleet trace.arrow --edges 1,10,100,1000 --liars 0.05
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from eex.policies.algorithms.stop_curve import StopCurve
from eex.policies.core.base import Context, Floats, Ints, Thresholds
from eex.policies.core.errors import EexError
from eex.policies.core.fleet import MOST_FRAMES, Layout, moderated
from eex.policies.core.references import best_per_exit
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace, read_trace
from eex.policies.core.world import step
from eex.stream.guard import guarded

GRID = np.linspace(0.0, 1.0, 51)
CLOSE = 0.01
"""How far below the best utility, as a share of it, an edge has arrived."""
WINDOW = 8
"""Rounds over which that is averaged, beside all edges."""

Streams = Literal["alike", "mixed", "unlike"]


@dataclass(frozen=True)
class Bench:
    """Play fleets of edges over a trace, and print a JSON row for each."""

    trace: tyro.conf.Positional[Path]
    """A trace written by eex-record, with a segment for each distortion."""
    edges: str = "1,10,100"
    """Comma-separated sizes of fleets; an edge that is alone shares nothing."""
    streams: tuple[Streams, ...] = ("alike", "mixed", "unlike")
    """What edges see: all of them the same segment ('alike'), all segments at random ('mixed'), or one of them another
    segment than all others ('unlike'); segments are played in turn."""
    liars: float = 0.05
    """Share of the edges of a fleet that make up what they share, in one more row each; 0 plays none."""
    rounds: int = 1500
    """Frames that each edge plays."""
    runs: int = 200
    """Edges that are measured, at least, over all fleets of a size."""
    first: int = 4
    """Round in which edges share for the first time; the time between two exchanges doubles from there on."""
    overhead: float = 0.1
    """Price of offloading a frame."""
    exit_cost: float = 0.02
    """Price of each further exit."""
    seed: int = 0
    """Of the draws."""


class Together(StopCurve):
    """Fleets of edges side by side, that exchange their sums every so often as a worker does it for them.

    Parameters
    ----------
    fleets, edges
        Fleets, and edges of each; the runs are the first one's edges, then the second's, …
    when
        Rounds before which they exchange.
    lies
        What the last edges of each fleet share instead of what they learned, (liars, size).
    """

    def __init__(self, fleets: int, edges: int, when: set[int], lies: Floats, exits: int) -> None:
        super().__init__(exits=exits, runs=fleets * edges)
        self.of_fleets, self.of_edges, self.when, self.lies = fleets, edges, when, lies

    def choose(self, context: Context) -> Thresholds:
        """As `stop-curve`, after an exchange if it is time for one."""
        if self.of_edges > 1 and int(np.max(context.first)) in self.when:
            sums = self.sums().reshape(self.of_fleets, self.of_edges, -1)
            if len(self.lies):
                sums[:, -len(self.lies) :] = self.lies
            pooled = [moderated(self.layout, fleet) for fleet in sums]
            self.take_fleet(np.concatenate([fleet.sum(axis=0) - fleet for fleet in pooled]))
        return super().choose(context)


def exchanges(first: int, rounds: int, most: int = 1024) -> set[int]:
    """The rounds before which edges exchange."""
    when, wait = set(), first
    at = first
    while at < rounds:
        when.add(at)
        at, wait = at + wait, min(2 * wait, most)
    return when


def lies_of(layout: Layout, count: int, gain: float) -> Floats:
    """What liars share: as many frames as count, at every confidence, all of which were offloaded from each exit and
    gained as much as they could, or nothing."""
    flat = np.zeros((count, layout.size))
    of = layout.views(flat)
    of["seen"][:, 0] = MOST_FRAMES / layout.bins
    of["offloads"][:, 0] = MOST_FRAMES / layout.bins / 2
    for i in range(1, layout.exits):  # half of those that are left go on, to where they were
        going = MOST_FRAMES / layout.coarse / 2**i
        of["moves"][:, i - 1] = np.eye(layout.coarse) * going
        of["seen"][:, i] = going * layout.coarse / layout.bins
        of["offloads"][:, i] = of["seen"][:, i] / (2 if i < layout.exits - 1 else 1)
    of["gains"][:] = gain * of["offloads"]
    of["squares"][:] = gain**2 * of["offloads"].sum(axis=-1)
    return flat


def play(bench: Bench, trace: Trace, edges: int, streams: Streams, lie: float | None = None) -> dict[str, Any]:
    """How far edges of a fleet fall short of the best thresholds of their stream, round by round.

    Parameters
    ----------
    lie
        Relative gain that liars claim; None without liars.
    """
    rows = [np.arange(len(trace))] if streams == "mixed" else _segments(trace)
    fleets = max(len(rows), bench.runs // edges)
    liars = 0 if lie is None else max(1, round(bench.liars * edges))
    lies = lies_of(Layout(trace.edge_exits), liars, lie or 0.0)
    policy = Together(fleets, edges, exchanges(bench.first, bench.rounds), lies, trace.edge_exits)
    fleet, place = np.divmod(np.arange(fleets * edges), edges)
    own = (fleet + ((place == 0) & (edges > 1) if streams == "unlike" else 0)) % len(rows)
    measured = place == 0 if streams == "unlike" else place < edges - liars
    rng = np.random.default_rng(bench.seed)
    drawn = np.stack([rows[k][rng.integers(0, len(rows[k]), bench.rounds)] for k in own])
    played = _played(bench, policy, trace, drawn)
    best = np.stack([_best(bench, trace[its]) for its in rows])  # (streams, exits)
    short = _utility(bench, trace.confidence[drawn], best[own]) - played
    reference = float(_utility(bench, trace.confidence[drawn], best[own])[measured].mean())
    short = short[measured].mean(axis=0) / reference
    row = {
        "edges": edges,
        "streams": streams,
        "liars": None if lie is None else {"edges": liars, "gain": lie},
        "rounds_to_1_percent": _arrived(short),
        "short_percent": {f"{a}-{b}": round(100 * float(short[a:b].mean()), 3) for a, b in _spans(bench.rounds)},
        "utility_of_best": round(reference, 4),
    }
    if edges > 1 and streams != "unlike":
        late = newcomers(bench, trace, policy, best, rows, fleet[place == 0] % len(rows), rng)
        row["newcomer_rounds_to_1_percent"] = _arrived(late)
        row["newcomer_short_percent"] = round(100 * float(late[:64].mean()), 3)
    return row


def newcomers(
    bench: Bench, trace: Trace, fleets: Together, best: Floats, rows: list[Ints], own: Ints, rng: np.random.Generator
) -> Floats:
    """How far edges that join the fleets now fall short of the best, as a share of it, round by round; (rounds,).

    Parameters
    ----------
    best, rows
        Thresholds and rows of the trace of each stream.
    own
        Which of them each fleet sees.
    """
    sums = fleets.sums().reshape(fleets.of_fleets, fleets.of_edges, -1)
    if len(fleets.lies):
        sums[:, -len(fleets.lies) :] = fleets.lies
    each = -(-bench.runs // len(own))
    policy = StopCurve(exits=fleets.exits, runs=each * len(own))
    policy.take_fleet(np.repeat([moderated(fleets.layout, fleet).sum(axis=0) for fleet in sums], each, axis=0))
    own = np.repeat(own, each)
    drawn = np.stack([rows[k][rng.integers(0, len(rows[k]), bench.rounds)] for k in own])
    utility = _utility(bench, trace.confidence[drawn], best[own])
    short: Floats = (utility - _played(bench, policy, trace, drawn)).mean(axis=0) / utility.mean()
    return short


def _played(bench: Bench, policy: StopCurve, trace: Trace, drawn: Ints) -> Floats:
    paid: dict[str, Any] = {"exit_cost": bench.exit_cost, "kind": "utility"}
    return replay(policy, trace, bench.overhead, frames=drawn, **paid).utility


def _arrived(short: Floats) -> int | None:
    """The first round from which edges are close to the best; None if they never are."""
    there = np.flatnonzero(np.convolve(short, np.ones(WINDOW) / WINDOW, "valid") <= CLOSE)
    return int(there[0]) if len(there) else None


def _best(bench: Bench, trace: Trace) -> Floats:
    """The best thresholds of hindsight, (exits,)."""
    best: Floats = best_per_exit(trace.confidence, bench.overhead, GRID, bench.exit_cost, "utility")[0]
    return best


def _utility(bench: Bench, confidence: Floats, exit_at: Floats) -> Floats:
    """What frames earn under fixed thresholds: (runs, rounds), from confidences (runs, rounds, exits + 1)."""
    at = np.broadcast_to(exit_at[:, None], (*confidence.shape[:2], exit_at.shape[-1]))
    utility: Floats = step(confidence, at, None, bench.overhead, bench.exit_cost, kind="utility").reward
    return utility


def _segments(trace: Trace) -> list[Ints]:
    """Rows of each segment."""
    return [np.flatnonzero(trace.segments == k) for k in np.unique(trace.segments)]


def _spans(rounds: int) -> Iterator[tuple[int, int]]:
    """Spans of rounds, each twice as long as the one before it."""
    start, end = 0, 16
    while start < rounds:
        yield start, min(end, rounds)
        start, end = end, 2 * end


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> int:
    bench = tyro.cli(Bench, prog="python -m eex.experiments.bench.fleet")
    trace = read_trace(bench.trace)
    try:
        sizes = [int(size) for size in bench.edges.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1 or bench.rounds < 2 * WINDOW or bench.runs < 1 or bench.first < 1:
        raise EexError(f"--edges, --runs and --first must be at least 1, --rounds at least {2 * WINDOW}")
    if not 0 <= bench.liars < 1:
        raise EexError(f"--liars must lie in [0, 1), got {bench.liars:g}")
    for streams in bench.streams:
        for size in sizes:
            given = (None, 0.0, 1.0) if bench.liars and size > 1 and streams != "unlike" else (None,)
            for lie in given:
                print(json.dumps(play(bench, trace, size, streams, lie)), flush=True)
    return 0


if __name__ == "__main__":
    main()
