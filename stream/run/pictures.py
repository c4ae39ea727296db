"""Pictures of a run, drawn from the rows that it saved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eex.policies.core.files import replacing
from eex.policies.core.schedule import MOST_PIECES, Piece

# Okabe and Ito's palette: distinguishable for colour-blind readers and in print
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
SHADES = ["#ffffff", "#dce9f5", "#fbe6d4", "#e3f1e0", "#efe3f2", "#f4f1d8"]


def draw(folder: Path, pieces: Sequence[Piece]) -> list[Path]:
    """Draw a run's pictures into its folder.

    Parameters
    ----------
    folder
        With `curves.arrow` and `summary.json`.
    pieces
        The distortion schedule, for the bands behind curves over time.

    Returns
    -------
    list of Path
        `adaptation.png`, with hindsight `regret.png`, and where frames had labels too `exits.png`.
    """
    curves = read_curves(folder / "curves.arrow")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if curves.empty:
        return []
    figures = {"adaptation.png": adaptation(curves, summary["policies"][0]["policy"], pieces)}
    if "hindsight" in set(curves["policy"]):
        names = [row["policy"] for row in summary["policies"]]
        figures["regret.png"] = regret(curves, names, summary["best_fixed_threshold"], pieces)
    if "by_exit" in summary and summary["accuracy"] is not None:
        figures["exits.png"] = exits(pd.DataFrame(summary["by_exit"]))
    for name, figure in figures.items():
        with replacing(folder / name) as part:
            figure.savefig(part, dpi=120, format="png")
    return [folder / name for name in figures]


def read_curves(path: Path) -> pd.DataFrame:
    """Tidy rows: policy, quantity, start (first frame of a window), value."""
    with path.open("rb") as source, pa.ipc.open_file(source) as reader:
        return reader.read_all().to_pandas()


def adaptation(curves: pd.DataFrame, policy: str, pieces: Sequence[Piece]) -> Figure:
    """Threshold, shares of the exits, and accuracy of one policy over time."""
    wide = curves[curves["policy"] == policy].pivot(index="start", columns="quantity", values="value")
    frames = wide["frames"].to_numpy()
    end = wide.index[-1] + frames[-1]
    at = np.append(wide.index.to_numpy(), end)  # a window's value holds up to its end
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    smooth = max(1, len(frames) // 60)

    top.step(at, _smoothed(wide["threshold"].to_numpy(), frames, smooth), where="post", color=COLOURS[0])
    top.set(ylabel="threshold", ylim=(-0.03, 1.03), title=f"{policy}: thresholds over the stream")
    _bands(top, pieces, text=True)

    names = sorted((n for n in wide.columns if n.startswith("exit_")), key=lambda n: int(n.removeprefix("exit_")))
    shares = [_smoothed(wide[name].to_numpy(), frames, smooth) for name in names]
    labels = [*(f"exit {k + 1}" for k in range(len(names) - 1)), "cloud"]
    colours = [*("#08519c", "#4292c6", "#9ecae1")[: len(names) - 1], "#fd8d3c"]
    if len(names) > 4:
        colours = [*(str(0.2 + 0.6 * k / len(names)) for k in range(len(names) - 1)), "#fd8d3c"]
    middle.stackplot(at, shares, labels=labels, colors=colours)
    middle.set(ylabel="share of frames", ylim=(0, 1))
    middle.legend(loc="upper left", bbox_to_anchor=(1, 1), reverse=True)
    for piece in pieces[1:] if len(pieces) <= MOST_PIECES else ():
        middle.axvline(piece.start, color="black", lw=0.8, ls=":")

    if wide["labelled"].sum():
        right = _smoothed(wide["correct"].to_numpy(), np.maximum(wide["labelled"].to_numpy(), 1), smooth)
        bottom.plot(at, right, color=COLOURS[2], label="accuracy")
    bottom.plot(at, _smoothed(wide["offloaded"].to_numpy(), frames, smooth), color=COLOURS[1], label="offloaded share")
    bottom.set(xlabel="frame", ylim=(0, 1.03), xlim=(0, end))
    bottom.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _bands(bottom, pieces)
    return figure


def regret(curves: pd.DataFrame, policies: Sequence[str], threshold: float, pieces: Sequence[Piece]) -> Figure:
    """Cumulative regret of each policy against the best fixed threshold and against the per-frame oracle."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    values = curves.pivot_table(index="start", columns=["policy", "quantity"], values="value", sort=True)
    at = np.append(values.index.to_numpy(), values.index[-1] + values[policies[0], "frames"].iloc[-1])
    titles = (f"against the best fixed threshold in hindsight ({threshold:g})", "against the per-frame oracle")
    for axis, reference, title in zip(axes, ("best_fixed", "oracle"), titles, strict=True):
        best = values["hindsight", reference].to_numpy()
        for k, policy in enumerate(policies):
            missed = np.append(0, np.cumsum(best - values[policy, "reward"].to_numpy()))
            style = "-" if k == 0 else (0, (4, 1 + k))
            axis.plot(at, missed, label=policy, color=COLOURS[k % len(COLOURS)], ls=style, lw=2 if k == 0 else 1.5)
        axis.set(ylabel="cumulative regret", title=title, xlim=(0, at[-1]))
        axis.axhline(0, color="black", lw=0.6)
        _bands(axis, pieces, text=axis is axes[0])
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes[1].set_xlabel("frame")
    return figure


def exits(rows: pd.DataFrame) -> Figure:
    """Accuracy and mean confidence of each exit alone, by distortion."""
    names = list(dict.fromkeys(rows["distortion"]))
    figure = Figure(figsize=(max(6.0, 2.6 * len(names)), 4), layout="constrained")
    axis = figure.subplots()
    count = int(rows["exit"].max())
    width = 0.8 / count
    for e in range(count):
        part = rows[rows["exit"] == e + 1].set_index("distortion").loc[names]
        x = np.arange(len(names)) + (e - (count - 1) / 2) * width
        label = f"exit {e + 1}" if e < count - 1 else "final exit"
        axis.bar(x, part["accuracy"], width * 0.92, color=COLOURS[e % len(COLOURS)], label=label)
        axis.scatter(
            x,
            part["confidence"],
            marker="_",
            s=160,
            color="black",
            zorder=3,
            label="mean confidence" if not e else None,
        )
    axis.set_xticks(np.arange(len(names)), names)
    axis.set(ylabel="accuracy", ylim=(0, 1), title="each exit alone, on all frames")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def reliability(rows: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Reliability diagrams: accuracy of frames by confidence, one panel per exit.

    Parameters
    ----------
    rows
        One per filled bin: exit (from 1), low and high (its edges), frames, confidence and accuracy (means).
    names
        What to write above each exit's panel.
    """
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(max(4.5, 2.6 * across), 2.6 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for e, panel in enumerate(panels):
        if e >= len(names):
            panel.set_visible(False)
            continue
        part = rows[rows["exit"] == e + 1]
        shade = 0.25 + 0.75 * (part["frames"] / part["frames"].max()) ** 0.5  # a bar of three frames means little
        for (_, bin), alpha in zip(part.iterrows(), shade, strict=True):
            width = bin["high"] - bin["low"]
            panel.bar(bin["low"], bin["accuracy"], 0.92 * width, align="edge", color=COLOURS[0], alpha=alpha, lw=0)
            panel.plot([bin["low"], bin["low"] + 0.92 * width], [bin["confidence"]] * 2, color="black", lw=1.6)
        panel.plot([0, 1], [0, 1], color="0.4", lw=0.8, ls="--")
        panel.set_title(names[e], fontsize=9)
        panel.set(xlim=(0, 1), ylim=(0, 1))
    for panel in panels[: len(names)][-across:]:
        panel.set_xlabel("confidence")
        panel.tick_params(labelbottom=True)
    for panel in panels[::across]:
        panel.set_ylabel("accuracy")
    figure.suptitle("bars: accuracy, paler where there are fewer frames; black: mean confidence", fontsize=8)
    return figure


def _smoothed(sums: Any, weights: Any, width: int) -> Any:
    """Moving mean over `width` windows of sums that belong to so many frames; the last one twice, for where it ends."""
    kernel = np.ones(width)
    means = np.convolve(sums, kernel, "same") / np.maximum(np.convolve(weights, kernel, "same"), 1e-9)
    return np.append(means, means[-1])


def _bands(axis: Axes, pieces: Sequence[Piece], text: bool = False) -> None:
    if len(pieces) > MOST_PIECES:
        return
    names = list(dict.fromkeys(piece.name for piece in pieces))
    for piece in pieces:
        axis.axvspan(piece.start, piece.stop, color=SHADES[names.index(piece.name) % len(SHADES)], lw=0, zorder=0)
        share = (piece.stop - piece.start) / pieces[-1].stop
        if text and share > 0.03:
            axis.text(
                (piece.start + piece.stop) / 2,
                0.02,
                piece.text,
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                color="0.3",
                bbox={"facecolor": "white", "alpha": 0.6, "lw": 0, "pad": 1},  # lines may pass behind it
                rotation=0 if share > 0.011 * len(piece.text) else 90,
            )
