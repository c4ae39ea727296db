"""The picture of what `stop-curve` learns at each exit, beside what the whole trace says.

python -m eex.experiments.stop_curves trace.arrow --out docs/stop-curve.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from eex.policies.algorithms.curves import BINS, CENTRES, bins_of
from eex.policies.algorithms.stop_curve import StopCurve
from eex.policies.core.base import Context, Floats
from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace, read_trace
from eex.stream.guard import guarded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 20
"""Frames of the trace below which a dot would say little."""


@dataclass(frozen=True)
class Picture:
    """Play stop-curve over a trace, and draw what going on is worth at each exit: as learned, and in hindsight."""

    trace: tyro.conf.Positional[Path]
    """A trace written by eex-record."""
    out: Path = Path("stop-curve.png")
    """The picture to write."""
    rounds: int = 2000
    """Frames that it learns from."""
    overhead: float = 0.1
    """Price of offloading a frame."""
    exit_cost: float = 0.02
    """Price of each further exit."""
    seed: int = 0
    """Of the draws of frames."""


def hindsight(trace: Trace, overhead: float, exit_cost: float) -> tuple[Floats, Floats]:
    """What going on was worth on average, by confidence at each exit, and how many frames were there; (exits, bins)
    each, by backward induction over the whole trace."""
    confidence, exits = trace.confidence, trace.edge_exits
    worth, frames = np.empty((exits, BINS)), np.empty((exits, BINS))
    on = np.maximum(confidence[:, -1], confidence[:, -2]) - overhead
    for i in range(exits - 1, -1, -1):
        here = bins_of(confidence[:, i])
        frames[i] = np.bincount(here, minlength=BINS)
        worth[i] = np.bincount(here, on, BINS) / np.maximum(frames[i], 1)
        on = np.where(worth[i][here] > confidence[:, i], on, confidence[:, i]) - (exit_cost if i else 0.0)
    return worth, frames


def draw(picture: Picture, trace: Trace) -> "Figure":
    """One panel per edge exit."""
    from matplotlib.figure import Figure

    policy = StopCurve(exits=trace.edge_exits)
    replay(
        policy,
        trace,
        picture.overhead,
        rounds=picture.rounds,
        seed=picture.seed,
        exit_cost=picture.exit_cost,
        kind="utility",
    )
    at = policy.choose(Context(overhead=picture.overhead, exit_cost=picture.exit_cost)).exit_at[0, 0]
    learned = policy.going_on(picture.overhead, picture.exit_cost)[0]
    worth, frames = hindsight(trace, picture.overhead, picture.exit_cost)
    figure = Figure(figsize=(3.2 * trace.edge_exits, 3.4), layout="constrained")
    panels = figure.subplots(1, trace.edge_exits, sharey=True, squeeze=False)[0]
    for i, panel in enumerate(panels):
        panel.bar(CENTRES, frames[i] / frames[i].max() * 0.2, 1 / BINS, color="#dddddd", label="frames that arrive")
        panel.plot([0, 1], [0, 1], color="#000000", linewidth=1, label="leaving")
        panel.plot(CENTRES, learned[i], color="#D55E00", label="going on, as it plausibly is")
        there = frames[i] >= FEW
        panel.plot(CENTRES[there], worth[i][there], ".", color="#0072B2", label="going on, in hindsight")
        panel.axvline(at[i], color="#D55E00", linewidth=1, linestyle=(0, (4, 2)), label="threshold")
        panel.set(title=f"exit {i + 1}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("utility")
    panels[0].legend(fontsize=7, loc="upper left", frameon=False)
    return figure


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> int:
    from matplotlib.figure import Figure

    picture = tyro.cli(Picture, prog="python -m eex.experiments.stop_curves")
    kinds = Figure().canvas.get_supported_filetypes()
    if (kind := picture.out.suffix.lstrip(".").lower() or "png") not in kinds:
        raise EexError(f"--out {picture.out}: no picture ends so; expected one of {', '.join(sorted(kinds))}")
    if picture.rounds < 1:
        raise EexError(f"--rounds must be at least 1, got {picture.rounds}")
    figure = draw(picture, read_trace(picture.trace))
    with replacing(picture.out) as part:
        figure.savefig(part, dpi=110, format=kind)
    return 0


if __name__ == "__main__":
    main()
