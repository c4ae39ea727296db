"""Terminal output of `eex-stream`: a live line while it streams, tables at the end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eex.policies.core.price import parse_price
from eex.policies.core.schedule import PRISTINE
from eex.policies.wrappers.aim import sentences
from eex.stream.run.agreement import warning
from eex.stream.run.play import Glance


@contextmanager
def display(console: Console | None = None) -> Iterator[Callable[[Glance], None]]:
    """Show a live progress line on standard error; the final line of each policy stays on the screen."""
    console = console or Console(markup=False, stderr=True)
    if not console.is_terminal:
        yield lambda glance: console.print(line(glance), soft_wrap=True) if glance.finished else None
        return
    with Live(Text("loading the model and starting the cloud worker …"), console=console, refresh_per_second=8) as live:
        last: Glance | None = None

        def show(glance: Glance) -> None:
            nonlocal last
            if last is not None and last.policy != glance.policy:
                live.console.print(line(last, console.width))
            last = glance
            live.update(line(glance, console.width))

        yield show


def line(glance: Glance, width: int | None = None) -> Text:
    """One line on progress, exits, accuracy and speed; less important parts are left out to fit `width` columns."""
    t = glance.tally
    # importance (the least important part is dropped first), long form, short form, style
    parts = [(9, glance.policy, glance.policy, "bold")]
    done = f"{glance.done:,}" + (f"/{glance.total:,}" if glance.total else "")
    parts.append((8, f"{done} frames", done, ""))
    if t.frames:
        shares = [f"{100 * n / t.frames:.0f}" for n in t.by_exit]
        edge = [f"{e}:{share}%" for e, share in enumerate(shares[:-1], 1)]
        parts.append(
            (7, f"exit {' '.join(edge)} cloud:{shares[-1]}%", f"exit {'/'.join(shares[:-1])} cloud {shares[-1]}%", "")
        )
        if t.accuracy is not None:
            parts.append((6, f"accuracy {t.accuracy:.1%}", f"acc {t.accuracy:.1%}", "green"))
        offloaded = f"{t.offloaded / t.frames:.0%}"
        parts.append((1, f"offloaded {offloaded}", f"off {offloaded}", ""))
        parts.append((5, f"threshold {t.threshold:.2f}", f"thr {t.threshold:.2f}", "magenta"))
        if t.mean_reward is not None:
            parts.append((2, f"reward {t.mean_reward:+.4f}", f"reward {t.mean_reward:+.4f}", "blue"))
    if glance.problem:
        parts.append((7, glance.problem, "a wish cannot be kept", "red"))
    if glance.distortion:
        parts.append((4, glance.distortion, glance.distortion, "yellow"))
    speed = f"{glance.done / max(glance.seconds, 1e-9):,.0f}"
    parts.append((3, f"{speed} frames/s", f"{speed}/s", "cyan"))
    texts = [(long, style) for _, long, _, style in parts]
    if width is not None and _columns(texts) > width:
        while len(parts) > 1 and _columns([(short, "") for _, _, short, _ in parts]) > width:
            parts.remove(min(parts))
        texts = [(short, style) for _, _, short, style in parts]
    return Text("  ", no_wrap=True, overflow="ellipsis").join(Text(*part) for part in texts)


def _columns(texts: list[tuple[str, str]]) -> int:
    return sum(len(text) + 2 for text, _ in texts) - 2


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print the policies side by side, then the gain from adapting in sentences."""
    console = console or Console(markup=False)
    policies = [cells(row) for row in summary["policies"]]
    names = titles(policies)
    label = 2 + max(map(len, names))
    widths = [2 + max(len(line) for cell in column.values() for line in cell.split("\n")) for column in policies]
    start = 0
    while start < len(policies):  # as many policies side by side as fit
        stop = start + 1
        while stop < len(policies) and label + sum(widths[start : stop + 1]) <= console.width:
            stop += 1
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("" if start else "the same frames,\npolicy by policy")
        for k in range(start, stop):
            table.add_column(policies[k][POLICY], justify="right", style="bold" if k == 0 else "")
        for name in names[1:]:
            table.add_row(name, *(policies[k].get(name, "–") for k in range(start, stop)))
        console.print(table)
        console.print()
        start = stop
    for text in bought(summary):
        console.print(text, soft_wrap=not console.is_terminal, highlight=False)  # in a pipe, one sentence per line
    drawn = (Path(summary["folder"]) / "adaptation.png").exists()
    left = "records, summary and pictures" if drawn else "records and summary"
    console.print(f"{left}: {summary['folder']}", soft_wrap=True, highlight=False)
    console.print(f"in one file to send: eex-report {summary['folder']}", soft_wrap=True, highlight=False)


POLICY = "policy"
SLOW_SOURCE = 0.25
"""Share of a run's time, spent waiting for frames, from which on it is mentioned."""


def cells(row: dict[str, Any]) -> dict[str, str]:
    """The table column of one policy: cells by row title."""
    cells = {
        POLICY: row["policy"].replace(":", ":\n"),
        "frames": f"{row['frames']:,}",
        "accuracy": _percent(row["accuracy"]),
        "reward per frame": "–" if row["mean_reward"] is None else f"{row['mean_reward']:+.4f}",
    }
    came = row.get("accuracy_less_costs")  # runs of an older eex have none
    cells["accuracy less costs"] = "–" if came is None else f"{came:+.4f}"
    if "regret_best_arm" in row:
        cells["regret, best threshold"] = _plain(row["regret_best_arm"])
        cells["regret, oracle"] = _plain(row["regret_oracle"])
    for name, share in row["exit_shares"].items():
        cells[f"answered by {name}" if name == "cloud" else f"answered at {name}"] = _percent(share)
    cells["offloaded"] = _percent(row["offloaded_share"])
    if "dropped" in row:
        cells["dropped"] = _percent(row["dropped_share"])
    cells["MB sent"] = f"{row['bytes_offloaded'] / 1e6:.1f}"
    each = row["bytes_per_offloaded_frame"]
    cells["bytes per sent frame"] = "–" if each is None else f"{each:,.0f}"
    cells["seconds"] = f"{row['seconds']:.1f}"
    cells["frames/s"] = f"{row['frames_per_second']:,.0f}"
    for quantile, ms in row["latency_ms"].items():
        cells[f"latency {quantile}, ms"] = "–" if ms is None else f"{ms:,.1f}"
    return cells


def titles(columns: Iterable[dict[str, str]]) -> list[str]:
    """Titles of the rows that columns of `cells` have side by side, that of the policies first."""
    return list(dict.fromkeys(name for column in columns for name in column))


def bought(summary: dict[str, Any]) -> list[str]:
    """Sentences on what was played, what adapting gained and what went wrong."""
    first, *rivals = summary["policies"]
    lines = played(summary)
    for rival in rivals:
        if rival["frames"] != first["frames"]:  # interrupted: not the same stream
            continue
        parts = []
        if None not in (first["mean_reward"], rival["mean_reward"]):
            parts.append(f"{first['mean_reward'] - rival['mean_reward']:+.4f} reward per frame")
        if None not in (first["accuracy"], rival["accuracy"]):
            parts.append(f"{100 * (first['accuracy'] - rival['accuracy']):+.1f} points of accuracy")
        parts.append(f"{100 * (first['offloaded_share'] - rival['offloaded_share']):+.1f} points of frames offloaded")
        if "dropped" in first:  # accuracy covers answered frames only, which differ between policies
            parts.append(f"{100 * (first['dropped_share'] - rival['dropped_share']):+.1f} points of frames dropped")
        parts.append(f"{(first['bytes_offloaded'] - rival['bytes_offloaded']) / 1e6:+.1f} MB sent")
        lines.append(f"{first['policy']} against {rival['policy']}: {', '.join(parts)}")
    lines += [line for row in summary["policies"] for line in _wishes(row, len(summary["policies"]) > 1)]
    if "best_fixed_threshold" in summary:
        lines.append(
            f"in hindsight the best fixed threshold was {summary['best_fixed_threshold']:g} "
            f"(overhead {round(summary['overhead'], 4):g}{'' if constant(summary) else ', the mean'})"
        )
    if summary["send"]["encoding"] is not None:
        lines.append(f"sent as {summary['send']['encoding']}: {summary['send']['why']}")
    if not constant(summary):
        lines.append(f"price of offloading {summary['price']}: {summary['mean_overhead']:.4f} per frame on average")
    if summary["withheld"]:
        lines.append(f"{summary['withheld']:,} frames were kept on the edge by the budget")
    if "dropped" in summary:
        dropped, bytes = summary["dropped"], summary["bytes_not_sent"]
        saved = "" if bytes is None else f" and about {bytes / 1e6:.1f} MB"
        lines.append(
            f"{dropped:,} frames were dropped without an answer, which saved {dropped:,} offloads{saved}; "
            f"accuracy is that of the answered frames"
        )
    if unanswered := summary["fallbacks"] - summary["withheld"]:
        if summary["worker"]:
            lines.append(f"{unanswered:,} frames got no reply from the cloud and were answered on the edge")
        else:
            lines.append(f"{unanswered:,} frames would have been offloaded; without a worker the edge answered them")
    lines += filter(None, [warning(first["agreement"])])
    if summary["unrecorded"]:
        lines.append(f"{summary['unrecorded_frames']:,} frames are not recorded: {summary['unrecorded']}")
    if summary["skipped"]:
        named = "; ".join(summary["skipped_images"][:3])
        more = f" and {summary['skipped'] - 3} more, named in summary.json" if summary["skipped"] > 3 else ""
        lines.append(f"{summary['skipped']:,} {summary['source'].get('items', 'images')} skipped: {named}{more}")
    if summary["interrupted"]:
        lines.append("interrupted: all finished frames were saved")
    return lines


def _wishes(row: dict[str, Any], several: bool) -> list[str]:
    """What came of a policy's wishes."""
    return [f"{row['policy']}: {line}" if several else line for line in sentences(row.get("aims", ()))]


def played(summary: dict[str, Any]) -> list[str]:
    """Sentences on the frames: where they came from, what was done to them, and how each class fared."""
    source, frames = summary["source"], summary["frames"]
    name, distortion = source["name"], source["distortion"]
    number, items = f"{frames:,} frame{'s' if frames != 1 else ''}", source.get("items", "images")
    if source["images"] is None:
        what = f"{number} of {name}"
    else:
        usable = source["images"] - summary["skipped"]
        if frames == usable:
            what = f"{number}: each of the {items} of {name} once"
        elif frames > usable:
            what = f"{number}: {usable:,} {items} of {name}, each {frames / usable:.3g} times on average"
        else:
            what = f"{number} of {name}, which has {source['images']:,} {items}"
    lines = [f"{what}; {'not distorted' if distortion == PRISTINE else f'distorted: {distortion}'}"]
    lines += [f"{name}: {note}" for note in source["notes"]]
    share = summary.get("source_seconds", 0) / max(summary["seconds"], 1e-9)
    if share > SLOW_SOURCE:
        lines.append(f"the run waited {100 * share:.0f} % of its time for {items} to be read, decoded and distorted")
    ours = ", ".join(source["model_classes"][:3])
    unknown = ", ".join(source["unknown_classes"][:3]) + (", …" if len(source["unknown_classes"]) > 3 else "")
    if not source["labelled"]:
        lines.append(f"no accuracy: the {items} have no labels")
    elif not source["known_classes"]:
        lines.append(f"no accuracy: the source's classes ({unknown}) are none of the model's ({ours}, …)")
    elif source["unknown_classes"]:
        lines.append(f"accuracy leaves out classes that the model does not have: {unknown}")
    classes = sorted(summary["by_class"], key=lambda row: row["accuracy"])
    if len(classes) > 1:
        low, high = (
            f"{_percent(row['accuracy'])} ({row['class']}, {row['frames']:,} frames)"
            for row in (classes[0], classes[-1])
        )
        mean = sum(row["accuracy"] for row in classes) / len(classes)
        lines.append(f"accuracy by class from {low} to {high}, {_percent(mean)} on average")
    return lines


def constant(summary: dict[str, Any]) -> bool:
    """Whether every frame of a run had the same price."""
    return parse_price(summary["price"]).constant


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _plain(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no -0.0
