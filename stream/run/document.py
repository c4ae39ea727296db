"""One or more runs in one HTML file: tables, curves and faults side by side, which needs nothing else and no script."""

import html
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eex.policies.core.errors import EexError
from eex.policies.core.files import parse_json
from eex.policies.core.schedule import Piece
from eex.stream.config import StreamConfig, from_json, to_json
from eex.stream.run import pictures
from eex.stream.run.display import bought, cells, titles
from eex.stream.run.scan import Scan, scan

FAULTS_SHOWN = 40
LATEST = 253_402_300_800.0
"""The year 10000, in seconds since 1970."""
_FIGURES = itertools.count()
STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--text:#16202c;--soft:#5b6776;--line:#d9dee5}
@media(prefers-color-scheme:dark){:root{--back:#11161c;--card:#1a212a;--text:#e6ebf1;--soft:#9aa7b5;--line:#2d3743}}
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:110rem;background:var(--back);color:var(--text);
font:15px/1.45 system-ui,sans-serif}h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}
h3{font-size:.95rem;margin:.2rem 0 .4rem;overflow-wrap:anywhere}.side{display:grid;gap:.8rem;align-items:start;
grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr))}.card{background:var(--card);
border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem;min-width:0;overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.15rem .9rem .15rem 0;
border-bottom:1px solid var(--line);text-align:right;vertical-align:top}th{color:var(--soft);font-weight:500}
td:first-child,th:first-child{text-align:left}figure{margin:0;background:#fff;border-radius:.4rem;position:relative}
figure svg{display:block;width:100%;height:auto}figcaption{color:#333;font-size:.85rem;padding:.1rem .6rem;
min-height:1.6em}
.soft{color:var(--soft)}@media print{.card{break-inside:avoid}}
"""
SCRIPT = """
for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const data = JSON.parse(figure.dataset.curves), svg = figure.querySelector("svg");
  const wide = svg.viewBox.baseVal.width, high = svg.viewBox.baseVal.height;
  const line = document.createElementNS(svg.namespaceURI, "line");
  line.setAttribute("stroke", "#888");
  line.setAttribute("y2", high);
  svg.append(line);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * wide;
    const share = (x - data.left) / (data.right - data.left);
    if (share < 0 || share > 1) return;
    const frame = Math.round(share * data.end), next = data.start.findIndex((s) => s > frame);
    const k = (next < 0 ? data.start.length : next) - 1;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    figure.querySelector("figcaption").textContent = `frame ${frame.toLocaleString("en")}: ` +
      Object.entries(data.series).map(([name, values]) => `${name} ${values[k] ?? "\u2013"}`).join(", ");
  });
}
"""


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes
    ----------
    folder
        Its folder, or a folder of records alone.
    summary, config
        None where there are records alone.
    found
        What the records say.
    curves
        Tidy rows, as `pictures.read_curves` gives them.
    """

    folder: Path
    summary: dict[str, Any] | None
    config: StreamConfig | None
    found: Scan
    curves: pd.DataFrame

    @property
    def name(self) -> str:
        """Of its folder."""
        path = self.folder.resolve()
        return path.parent.name if path.name == "records" else path.name

    @property
    def policies(self) -> list[str]:
        """The policies that were played, or "live"."""
        return ["live"] if self.summary is None else [row["policy"] for row in self.summary["policies"]]

    def pieces(self) -> Sequence[Piece]:
        """The distortion schedule; nothing for a live run."""
        return () if self.config is None else self.config.schedule().pieces(self.found.frames)


def read_run(folder: Path | str) -> Run:
    """Read a run.

    Raises
    ------
    EexError
        If the folder holds no records, or something in it is damaged.
    """
    folder = Path(folder)
    found = scan(folder)
    summary = None
    if (path := folder / "summary.json").exists():
        try:
            summary = parse_json(path.read_bytes())
            if not [cells(row) for row in summary["policies"]] or not bought(summary):
                raise ValueError("no policies in it")
        except OSError as error:
            raise EexError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise EexError(f"{path}: not the summary of a run: {error}") from None
    config = from_json(folder / "config.json", StreamConfig) if (folder / "config.json").exists() else None
    first = "live" if summary is None else str(summary["policies"][0]["policy"])
    curves = found.curves(first)
    if summary is not None and (folder / "curves.arrow").exists():
        try:
            curves = pictures.read_curves(folder / "curves.arrow")
        except Exception as error:  # pyarrow raises many kinds
            raise EexError(f"{folder / 'curves.arrow'}: cannot be read: {' '.join(str(error).split())}") from None
    return Run(folder, summary, config, found, curves)


def document(runs: Sequence[Run]) -> str:
    """The HTML file of some runs."""
    names = " · ".join(html.escape(run.name) for run in runs)
    sections = [
        _section("What was run", [_about(run, runs) for run in runs], runs),
        _section("Results", [_table(run) for run in runs], runs),
        _section("Thresholds, exits and accuracy over the stream", [_adaptation(run) for run in runs], runs),
        _section("Regret", [_regret(run) for run in runs], runs),
        _section("Reliability of the confidence", [_reliability(run) for run in runs], runs),
        _section("Each exit alone, by distortion", [_exits(run) for run in runs], runs),
        _section("Faults and fallbacks", [_faults(run) for run in runs], runs),
        _section("Streams", [_streams(run) for run in runs], runs),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>eex: {names}</title><style>{STYLE}</style></head><body>'
        f"<h1>eex: {names}</h1>{''.join(sections)}<script>{SCRIPT}</script></body></html>\n"
    )


def _section(title: str, parts: list[str], runs: Sequence[Run]) -> str:
    if not any(parts):
        return ""
    cards = [
        f'<div class="card"><h3>{html.escape(run.name)}</h3>{part or _soft("nothing of this was recorded")}</div>'
        for run, part in zip(runs, parts, strict=True)
    ]
    return f'<h2>{title}</h2><div class="side">{"".join(cards)}</div>'


def _soft(text: str) -> str:
    return f'<p class="soft">{html.escape(text)}</p>'


def _rows(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def _about(run: Run, runs: Sequence[Run]) -> str:
    rows: list[tuple[str, str]] = [("folder", str(run.folder)), ("frames", f"{run.found.frames:,}")]
    if not math.isnan(run.found.began):
        rows.append(("from, to (UTC)", f"{_when(run.found.began)}, {_when(run.found.ended)}"))
    if run.summary is not None:
        rows.append(("model", str(run.summary.get("model", {}).get("fingerprint", "–"))[:16]))
        rows.append(("machine", ", ".join(f"{v} {k}" for k, v in run.summary.get("machine", {}).items())))
    if run.config is not None:
        usual, theirs = to_json(StreamConfig()), to_json(run.config)
        others = [to_json(other.config) for other in runs if other.config is not None and other is not run]
        changed = [key for key, value in theirs.items() if value != usual[key] or any(o[key] != value for o in others)]
        rows += [(f"--{key.replace('_', '-')}", _brief(theirs[key])) for key in changed]
    return _rows(rows)


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}…"


def _table(run: Run) -> str:
    if run.summary is None:
        found, curves = run.found, run.curves
        sums = curves.groupby("quantity")["value"].sum()
        rows = [("frames", f"{found.frames:,}")]
        rows += [(f"answered at {n}", _share(sums[f"exit_{e + 1}"], found.frames)) for e, n in enumerate(found.names)]
        rows += [("offloaded", _share(sums["offloaded"], found.frames))]
        rows += [("fallbacks", f"{sums['fallback']:,.0f}"), ("accuracy", _share(sums["correct"], sums["labelled"]))]
        for name, quantile in (("p50", 0.5), ("p99", 0.99)):
            ms = found.latency_ms(quantile)
            rows.append((f"latency {name}, ms", "–" if ms is None else f"{ms:,.1f}"))
        return _rows(rows)
    columns = [cells(row) for row in run.summary["policies"]]
    head, *names = titles(columns)
    table = _rows(
        [[name, *(column.get(name, "–") for column in columns)] for name in names], ["", *(c[head] for c in columns)]
    )
    return table + "".join(f"<p>{html.escape(text)}</p>" for text in bought(run.summary))


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _adaptation(run: Run) -> str:
    policy = run.policies[0]
    figure = pictures.adaptation(run.curves, policy, run.pieces())
    wide = run.curves[run.curves["policy"] == policy].pivot(index="start", columns="quantity", values="value")
    frames = wide["frames"].to_numpy()
    exits = [name for name in wide.columns if name.startswith("exit_")]
    series = {"threshold": wide["threshold"] / frames, "offloaded": wide["offloaded"] / frames}
    names = run.found.names
    series |= {names[int(name.removeprefix("exit_")) - 1]: wide[name] / frames for name in exits}
    if wide["labelled"].sum():
        series["accuracy"] = wide["correct"] / wide["labelled"].where(wide["labelled"] > 0)
    end = int(wide.index[-1] + frames[-1])
    return _figure(figure, {name: values.to_numpy() for name, values in series.items()}, wide.index.to_numpy(), end)


def _regret(run: Run) -> str:
    if run.summary is None or "hindsight" not in set(run.curves["policy"]):
        return ""
    figure = pictures.regret(run.curves, run.policies, run.summary["best_fixed_threshold"], run.pieces())
    values = run.curves.pivot_table(index="start", columns=["policy", "quantity"], values="value", sort=True)
    best = values["hindsight", "best_fixed"].to_numpy()
    series = {policy: np.cumsum(best - values[policy, "reward"].to_numpy()) for policy in run.policies}
    end = int(values.index[-1] + values[run.policies[0], "frames"].iloc[-1])
    return _figure(figure, series, values.index.to_numpy(), end)


def _reliability(run: Run) -> str:
    bins = run.found.bins()
    return "" if bins.empty else _figure(pictures.reliability(bins, run.found.names))


def _exits(run: Run) -> str:
    if run.summary is None or run.summary.get("accuracy") is None or not run.summary.get("by_exit"):
        return ""
    return _figure(pictures.exits(pd.DataFrame(run.summary["by_exit"])))


def _faults(run: Run) -> str:
    parts = []
    if run.summary is not None:
        link = run.summary.get("link", {})
        counts = [(name.replace("_", " "), f"{n:,}") for name, n in link.items() if isinstance(n, int)]
        for worker in link.get("workers", ()):
            counts.append((f"worker {worker['endpoint']}", f"{worker['state']}, {worker['connections_lost']} lost"))
        parts.append(_rows(counts))
    faults = run.found.faults
    if not faults:
        return "".join(parts) + _soft("no frame fell back on the edge")
    rows = [
        (
            _when(f.began),
            "–" if math.isnan(f.ended - f.began) else f"{f.ended - f.began:,.1f}",
            f"{f.first:,}…{f.last:,}",
            f"{f.frames:,}",
            f"{f.unreachable:,}",
            f"{100 * f.first / run.found.frames:.1f} %",
        )
        for f in faults[:FAULTS_SHOWN]
    ]
    heads = ["began, UTC", "seconds", "frames", "fell back", "while no worker was reachable", "stream before it"]
    parts.append(_rows(rows, heads))
    if more := len(faults) - FAULTS_SHOWN:
        parts.append(_soft(f"and {more} more faults") if more > 0 else "")
    return "".join(parts)


def _when(seconds: float) -> str:
    """Seconds since 1970 as date and time in UTC, for a table.

    >>> _when(1.8e9)
    '2027-01-15 08:00:00'
    """
    if not 0 <= seconds < LATEST:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _streams(run: Run) -> str:
    found = run.found.by_stream
    if set(found) == {""}:
        return ""
    rows = [
        (name, f"{n:,.0f}", _share(off, n), f"{back:,.0f}", _share(right, known))
        for name, (n, off, back, known, right) in sorted(found.items())
    ]
    return _rows(rows, ["stream", "frames", "offloaded", "fallbacks", "accuracy"])


def _figure(figure: Figure, series: dict[str, Any] | None = None, start: Any = None, end: int = 0) -> str:
    """A figure as SVG, whose text stays text; with the series of a curve, what they are under the pointer."""
    file, salt = io.StringIO(), f"eex {next(_FIGURES)}"  # ids in one file must differ
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify_threshold": 0.3}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    if not series:
        return f"<figure>{svg}</figure>"
    place = figure.axes[0].get_position()
    width = figure.get_size_inches()[0] * 72
    data = {
        "left": round(place.x0 * width, 1),
        "right": round(place.x1 * width, 1),
        "end": end,
        "start": [int(s) for s in start],
        "series": {
            name: [round(float(v), 3) if np.isfinite(v) else None for v in values] for name, values in series.items()
        },
    }
    shown = html.escape(json.dumps(data, separators=(",", ":")))
    return f'<figure data-curves="{shown}">{svg}<figcaption></figcaption></figure>'
