"""Figures of experiments, drawn from saved rows alone; vector graphics for print, and PNG to look at."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from eex.policies.core.errors import EexError

# Okabe and Ito's palette without its yellow, too faint on white: told apart by colour-blind readers and in print
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
MARKERS = ["", "o", "^", "s"]
TITLES = {
    "regret_best_arm": "regret against the best fixed threshold in hindsight",
    "regret_best_per_exit": "regret against the best fixed thresholds in hindsight, one an exit",
    "regret_dynamic": "regret against the best fixed threshold of each segment",
    "regret_oracle": "regret against the per-frame oracle",
}


def read_curves(folder: Path) -> pd.DataFrame:
    """The saved rows of a comparison: trace, policy, overhead, run, round, and cumulative quantities.

    Raises
    ------
    EexError
        If the folder has none.
    """
    path = folder / "curves.arrow"
    try:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
            curves: pd.DataFrame = reader.read_all().to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise EexError(f"{path}: cannot be read: {error}; a comparison that is finished has one") from None
    return curves


def draw_regret(folder: Path) -> list[Path]:
    """Draw a comparison's regret curves into its folder, for each trace and reference, as PDF and PNG.

    A reference that is the same as the best fixed threshold throughout is left out.

    Raises
    ------
    EexError
        If the folder has no saved rows, or cannot be written to.
    """
    curves = read_curves(folder)
    paths = []
    for k, (trace, rows) in enumerate(curves.groupby("trace", sort=False, observed=True)):
        for quantity, title in TITLES.items():
            if quantity != "regret_best_arm" and np.allclose(rows[quantity], rows["regret_best_arm"]):
                continue
            figure = regret_curves(rows, quantity, title=f"{trace}: {title}")
            for kind in ("pdf", "png"):
                path = folder / f"{quantity}{f'-{k + 1}' if curves['trace'].nunique() > 1 else ''}.{kind}"
                try:
                    figure.savefig(path, dpi=150)
                except OSError as error:
                    raise EexError(f"{path}: cannot be written: {error.strerror}") from None
                paths.append(path)
    return paths


def regret_curves(rows: pd.DataFrame, quantity: str, by: str = "overhead", title: str = "") -> Figure:
    """Mean curves over the runs with bands of their 95 % intervals, one panel a value of `by`, one line a policy.

    The axis of regret is linear up to 1 and logarithmic beyond, so that policies far apart share a panel.

    Parameters
    ----------
    rows
        Of one trace, as `read_curves` gives them.
    quantity
        The column to draw.
    """
    values, policies = list(dict.fromkeys(rows[by])), list(dict.fromkeys(rows["policy"]))
    curves = rows.groupby([by, "policy", "round"], observed=True)[quantity].agg(["mean", "std", "count"])
    across = min(3, len(values))
    down = math.ceil(len(values) / across)
    height = 2.5 * down + 0.6 + 0.2 * math.ceil(len(policies) / 4)
    figure = Figure(figsize=(max(3.4 * across, 6.5), height), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for value, panel in itertools.zip_longest(values, panels.ravel()):
        if value is None:
            panel.set_visible(False)
            continue
        for k, policy in enumerate(policies):
            _curve(panel, curves.loc[value, policy], k)
        panel.set_title(f"{by} {value:g}", fontsize=9, loc="left")
    panels[0, 0].set_yscale("symlog", linthresh=1, linscale=0.4)
    panels[0, 0].set_xlim(0, rows["round"].max())
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
    panels[0, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panels[0, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}"))
    for panel in panels[:, 0]:
        panel.set_ylabel("cumulative regret")
    for panel in panels[-1]:
        panel.set_xlabel("round")
    figure.suptitle(title, fontsize=10)
    lines = [Line2D([], [], **_style(k), label=policy) for k, policy in enumerate(policies)]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)), frameon=False, handlelength=3.5)
    return figure


def _curve(panel: Axes, curve: pd.DataFrame, k: int) -> None:
    from scipy.special import stdtrit

    runs = curve["count"].iloc[0]
    panel.plot(curve.index, curve["mean"], **_style(k))
    if runs > 1:
        half = stdtrit(runs - 1, 0.975) * curve["std"] / runs**0.5
        low, high = curve["mean"] - half, curve["mean"] + half
        panel.fill_between(curve.index, low, high, color=_style(k)["color"], alpha=0.15, lw=0)
    panel.grid(color="0.9", lw=0.5)


def _style(k: int) -> dict[str, Any]:
    """Colour, dashes and marks of the k-th policy: no two of the first 28 are alike."""
    marker = MARKERS[k // len(COLOURS) % len(MARKERS)]
    return {
        "color": COLOURS[k % len(COLOURS)],
        "ls": DASHES[k % len(DASHES)],
        "lw": 1.4,
        "marker": marker,
        "ms": 4,
        "markevery": (40 + 5 * (k % 7), 25),
    }


def paper_figure(
    rows: pd.DataFrame,
    x: str,
    y: str,
    line: str,
    panel: str = "",
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    level: float | None = None,
    identity: bool = False,
) -> Figure:
    """Lines over `x`, one a value of `line`, one panel a value of `panel`; published ones are dashed.

    Parameters
    ----------
    rows
        Tidy rows; in the column `source`, if there is one, "published" marks a paper's own figures. In a column
        `half`, if there is one, the half-width of each value's interval.
    x, y, line, panel
        Columns.
    level
        Where to draw a grey horizontal line.
    identity
        Whether to draw a grey line where y = x.
    """
    values = list(dict.fromkeys(rows[panel])) if panel else [""]
    across = min(3, len(values))
    down = math.ceil(len(values) / across)
    names = list(dict.fromkeys(rows[line]))
    sources = list(dict.fromkeys(rows["source"])) if "source" in rows else ["ours"]
    height = 2.9 * down + 0.5 + 0.2 * math.ceil((len(names) + len(sources)) / 4)
    figure = Figure(figsize=(max(3.6 * across, 6.5), height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for value, axis in itertools.zip_longest(values, axes):
        if value is None:
            axis.set_visible(False)
            continue
        shown = rows[rows[panel] == value] if panel else rows
        for k, name in enumerate(names):
            for source in sources:
                part = shown[shown[line] == name]
                part = (part[part["source"] == source] if "source" in rows else part).dropna(subset=[y]).sort_values(x)
                colour, dash = COLOURS[k % len(COLOURS)], "--" if source == "published" else "-"
                axis.plot(part[x], part[y], color=colour, ls=dash, lw=1.4, marker=_PLAIN_MARKS[k % 7], ms=3.5)
                if "half" in part:
                    low, high = part[y] - part["half"], part[y] + part["half"]
                    axis.fill_between(part[x], low, high, color=colour, alpha=0.15, lw=0)
        if level is not None:
            axis.axhline(level, color="0.6", lw=0.8, zorder=0)
        if identity:
            ends = [rows[x].min(), rows[x].max()]
            axis.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
        axis.set_title(f"{value}", fontsize=9, loc="left")
        axis.grid(color="0.9", lw=0.5)
        axis.set_xlabel(xlabel or x)
    for axis in axes[len(values) - across : len(values)]:
        axis.tick_params(labelbottom=True)  # also where the panel below is left out
    for axis in axes[::across]:
        axis.set_ylabel(ylabel or y)
    figure.suptitle(title, fontsize=10)
    handles = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], marker=_PLAIN_MARKS[k % 7], ms=3.5, lw=1.4, label=str(name))
        for k, name in enumerate(names)
    ]
    if len(sources) > 1:
        handles += [Line2D([], [], color="0.4", ls="--" if s == "published" else "-", label=s) for s in sources]
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(4, int(figure.get_figwidth() * 13 / (longest + 8))))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
    return figure


_PLAIN_MARKS = ["o", "^", "s", "v", "D", "<", ">"]


def confusion_figure(matrices: dict[str, Any], classes: Sequence[str]) -> Figure:
    """Confusion matrices side by side, by title: rows are the true classes (shares of each row), columns answers.

    Parameters
    ----------
    matrices
        Counts or shares, (classes, classes) each.
    """
    figure = Figure(figsize=(max(3.4, 0.42 * len(classes) + 1.6) * len(matrices), 0.42 * len(classes) + 2.2))
    figure.set_layout_engine("constrained")
    for axis, (title, counts) in zip(
        figure.subplots(1, len(matrices), squeeze=False).ravel(), matrices.items(), strict=True
    ):
        counts = np.asarray(counts, dtype=float)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for i, j in np.ndindex(*shares.shape):
            if shares[i, j] >= 0.005:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axis.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axis.set_yticks(range(len(classes)), classes, fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("answer")
    figure.axes[0].set_ylabel("class")
    return figure
