"""Figures of experiments, drawn from saved rows alone: regret curves as PDF and PNG, and a paper's figures."""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

# Okabe and Ito's palette without its yellow, too faint on white: distinguishable for colour-blind readers and in print
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
MARKERS = ["", "o", "^", "s"]
HOLLOW: dict[str, Any] = {"ls": "", "mfc": "white", "ms": 6}
TITLES = {
    "regret_best_arm": "regret against the best fixed threshold in hindsight",
    "regret_best_per_exit": "regret against the best fixed thresholds in hindsight, one per exit",
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
        with path.open("rb") as source, pa.ipc.open_file(source) as reader:
            curves: pd.DataFrame = reader.read_all().to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise EexError(f"{path}: cannot be read: {error}; expected the folder of a finished comparison") from None
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
    """Mean curves over the runs with bands of their 95 % intervals, one panel per value of `by`, one line per policy.

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
    for panel in panels.ravel()[len(values) - across : len(values)]:  # also where the panel below is left out
        panel.tick_params(labelbottom=True)
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


@dataclass(frozen=True)
class Plot:
    """A figure of a paper as data: which rows it shows, and how.

    Attributes
    ----------
    name
        Of its file. Name, title and xlabel may hold columns of the rows in braces, filled in from the first row.
    rows
        Query over the kept tables, by name; or the name of one of them.
    x, y, line, panel
        Columns: one line per value of `line`, one panel per value of `panel`. All but `y` may be texts that hold
        columns in braces, filled in for each row. Where the rows have a column `source`, what is "published" is dashed,
        or hollow points where it has fewer than ours; where they have `half`, it is the half-width of each value's
        interval.
    per
        Unit of x: its values are divided by this.
    each
        Column: one figure per value.
    level
        Where to draw a grey horizontal line.
    identity
        Whether to draw a grey line where y = x.
    share
        Whether y is a share, which no band leaves: from 0 to 1.
    scales
        Whether each panel has a y axis of its own.
    matrix
        Draw confusion matrices instead, one per panel: true classes in `y`, answers in `x`, counts in `line`.
    """

    name: str
    rows: Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame] | str
    x: str
    y: str
    line: str
    panel: str = ""
    per: float = 1.0
    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    each: str = ""
    level: float | None = None
    identity: bool = False
    share: bool = False
    scales: bool = False
    matrix: bool = False


def draw_all(plots: Sequence[Plot], tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
    """File names and figures of specifications, drawn from kept tables alone."""
    for plot in plots:
        rows = tables[plot.rows] if isinstance(plot.rows, str) else plot.rows(tables)
        texts = {text for text in (plot.x, plot.line, plot.panel) if "{" in text}
        rows = rows.assign(**{text: [text.format_map(row) for row in rows.to_dict("records")] for text in texts})
        if plot.per != 1:
            rows = rows.assign(**{plot.x: rows[plot.x] / plot.per})
        for _, part in rows.groupby(plot.each, sort=False) if plot.each else [("", rows)]:
            if len(part):
                first = part.iloc[0].to_dict()
                filled = replace(plot, **{f: getattr(plot, f).format_map(first) for f in ("name", "title", "xlabel")})
                yield filled.name, (confusion_figure if plot.matrix else lines_figure)(part, filled)


def lines_figure(rows: pd.DataFrame, plot: Plot) -> Figure:
    """Lines over `plot.x`, one per value of `plot.line`, one panel per value of `plot.panel`."""
    values = list(dict.fromkeys(rows[plot.panel])) if plot.panel else [""]
    across = min(3, len(values))
    down = math.ceil(len(values) / across)
    names = list(dict.fromkeys(rows[plot.line]))
    rows = rows if "source" in rows else rows.assign(source="ours")
    sources = list(dict.fromkeys(rows["source"]))
    height = 2.9 * down + 0.5 + 0.2 * math.ceil((len(names) + len(sources)) / 4)
    figure = Figure(figsize=(max(3.6 * across, 6.5), height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=not plot.scales).ravel()
    for value, axis in itertools.zip_longest(values, axes):
        if value is None:
            axis.set_visible(False)
            continue
        shown = rows[rows[plot.panel] == value] if plot.panel else rows
        values_drawn = (shown if plot.scales else rows)[plot.y]
        beyond = 0.25 * np.ptp(values_drawn.dropna())
        reach = values_drawn.min() - beyond, values_drawn.max() + beyond  # of bands, which may be far wider than lines
        reach = (max(reach[0], 0.0), min(reach[1], 1.0)) if plot.share else reach
        for (k, name), source in itertools.product(enumerate(names), sources):
            part = shown[(shown[plot.line] == name) & (shown["source"] == source)]
            few = shown["source"].nunique() > 1 and part[plot.x].nunique() < shown[plot.x].nunique()
            dashes = ("" if few else "--") if source == "published" else "-"
            _line(axis, part.dropna(subset=[plot.y]).sort_values(plot.x), plot, k, dashes, reach)
        if plot.level is not None:
            axis.axhline(plot.level, color="0.6", lw=0.8, zorder=0)
        if plot.identity:
            ends = [rows[plot.x].min(), rows[plot.x].max()]
            axis.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
        axis.set_title(f"{value}", fontsize=9, loc="left")
        axis.grid(color="0.9", lw=0.5)
    if rows[plot.x].dtype.kind in "iuf" and (rows[plot.x] % 1 == 0).all():
        many = rows[plot.x].max() >= 10_000  # whose labels are long
        axes[0].xaxis.set_major_locator(MaxNLocator(4 if many else 8, integer=True, steps=[1, 2, 5, 10]))
        axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axis in axes[len(values) - across : len(values)]:  # also where the panel below is left out
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(plot.xlabel or plot.x)
    for axis in axes[::across]:
        axis.set_ylabel(textwrap.fill(plot.ylabel or plot.y, 32))  # a longer line would not fit beside a panel
    figure.suptitle(plot.title, fontsize=10)
    _legend(figure, names, sources)
    return figure


def _line(axis: Axes, part: pd.DataFrame, plot: Plot, k: int, dashes: str, reach: tuple[float, float]) -> None:
    style: dict[str, Any] = _plain_style(k) | ({"ls": dashes} if dashes else HOLLOW)
    drawn = [line for line in axis.lines if np.array_equal(line.get_xdata(), part[plot.x])]
    near = 0.05 * np.ptp(part[plot.y]) if len(part) else 0.0
    if dashes == "-" and any(np.allclose(line.get_ydata(), part[plot.y], rtol=0, atol=near) for line in drawn):
        style |= {"ls": ":", "ms": 2}  # so that the line below shows
    axis.plot(part[plot.x], part[plot.y], **style)
    if "half" in part:
        low, high = ((part[plot.y] + sign * part["half"]).clip(*reach) for sign in (-1, 1))
        axis.fill_between(part[plot.x], low, high, color=style["color"], alpha=0.15, lw=0)


def _legend(figure: Figure, names: Sequence[object], sources: Sequence[str]) -> None:
    handles = [Line2D([], [], **_plain_style(k), label=str(name)) for k, name in enumerate(names)]
    if len(sources) > 1:
        styles = {"published": HOLLOW | {"ls": "--", "marker": "o"}}
        handles += [Line2D([], [], color="0.4", label=s, **styles.get(s, {})) for s in sources]
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(4, int(figure.get_figwidth() * 13 / (longest + 8))))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)


def _plain_style(k: int) -> dict[str, Any]:
    """Colour and mark of the k-th line: no two of the first 49 are alike."""
    return {"color": COLOURS[k % len(COLOURS)], "marker": "o^svD<>"[(k + k // len(COLOURS)) % 7], "ms": 3.5, "lw": 1.4}


def confusion_figure(rows: pd.DataFrame, plot: Plot) -> Figure:
    """Confusion matrices side by side: rows are the true classes (shares of each row), columns the answers."""
    classes = list(dict.fromkeys(rows[plot.y]))
    side = 0.42 * len(classes)
    panels = list(rows.groupby(plot.panel, sort=False))
    figure = Figure(figsize=(max(3.4, side + 1.6) * len(panels), side + 2.2), layout="constrained")
    for axis, (title, part) in zip(figure.subplots(1, len(panels), squeeze=False).ravel(), panels, strict=True):
        counts = part.pivot(index=plot.y, columns=plot.x, values=plot.line).loc[classes, classes].to_numpy(dtype=float)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for i, j in np.ndindex(*shares.shape):
            if shares[i, j] > 0.005:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axis.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axis.set_yticks(range(len(classes)), classes, fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("answer")
    figure.axes[0].set_ylabel("class")
    figure.suptitle(plot.title, fontsize=10)
    return figure
