"""What `eex-stream` shows on a terminal: one live line while it streams, tables at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eex.stream.run import Glance


@contextmanager
def display(console: Console | None = None) -> Iterator[Callable[[Glance], None]]:
    """A live progress line on standard error; its last state of each policy stays on the screen."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda glance: console.print(line(glance), soft_wrap=True) if glance.done == glance.total else None
        return
    with Live(Text("loading the model and starting the cloud worker …"), console=console, refresh_per_second=8) as live:
        last: Glance | None = None

        def show(glance: Glance) -> None:
            nonlocal last
            if last is not None and last.policy != glance.policy:
                live.console.print(line(last))
            last = glance
            live.update(line(glance))

        yield show


def line(glance: Glance) -> Text:
    """One line: how far, how fast, where frames are answered, how well."""
    t = glance.tally
    parts = [(f"{glance.policy:<12.24} ", "bold")]
    parts.append((f"{glance.done:>7,}" + (f"/{glance.total:,}" if glance.total else "") + " ", ""))
    parts.append((f"{glance.done / max(glance.seconds, 1e-9):>6,.0f} frames/s  ", "cyan"))
    if t.frames:
        shares = t.by_exit / t.frames
        told = [f"{e + 1}:{share:.0%}" for e, share in enumerate(shares[:-1])]
        parts.append((f"exit {' '.join(told)} cloud:{shares[-1]:.0%}  ", ""))
        if t.accuracy is not None:
            parts.append((f"accuracy {t.accuracy:.1%}  ", "green"))
        if t.mean_reward is not None:
            parts.append((f"reward {t.mean_reward:+.4f}  ", ""))
        parts.append((f"threshold {t.threshold:.2f}  ", "magenta"))
    if glance.distortion:
        parts.append((glance.distortion, "yellow"))
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """The last screen: the policies side by side, and what adapting bought in words."""
    console = console or Console()
    rows = summary["policies"]
    exits = list(rows[0]["exit_shares"])
    table = Table(title="the same frames, policy by policy", title_justify="left", header_style="bold")
    table.add_column("policy")
    for name in ("accuracy", "reward\na frame", "regret,\nbest fixed", "regret,\noracle", "offloaded"):
        table.add_column(name, justify="right")
    for name in exits:
        table.add_column(name, justify="right")
    for name in ("MB\nsent", "seconds", "frames\n/s", "ms p50\n/p99"):
        table.add_column(name, justify="right")
    for k, row in enumerate(rows):
        table.add_row(
            row["policy"],
            _percent(row["accuracy"]),
            "–" if row["mean_reward"] is None else f"{row['mean_reward']:+.4f}",
            f"{row['regret_best_arm']:.1f}" if "regret_best_arm" in row else "–",
            f"{row['regret_oracle']:.1f}" if "regret_oracle" in row else "–",
            _percent(row["offloaded_share"]),
            *(_percent(row["exit_shares"][name]) for name in exits),
            f"{row['bytes_offloaded'] / 1e6:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['frames_per_second']:,.0f}",
            f"{row['latency_ms']['p50']:.0f}/{row['latency_ms']['p99']:.0f}",
            style="bold" if k == 0 else "",
        )
    console.print(table)
    for text in bought(summary):
        console.print(text, soft_wrap=True, highlight=False)


def bought(summary: dict[str, Any]) -> list[str]:
    """What adapting bought, and what went wrong, in sentences."""
    first, *rivals = summary["policies"]
    lines = []
    for rival in rivals:
        parts = []
        if None not in (first["mean_reward"], rival["mean_reward"]):
            parts.append(f"{first['mean_reward'] - rival['mean_reward']:+.4f} reward a frame")
        if None not in (first["accuracy"], rival["accuracy"]):
            parts.append(f"{100 * (first['accuracy'] - rival['accuracy']):+.1f} points of accuracy")
        parts.append(f"{100 * (first['offloaded_share'] - rival['offloaded_share']):+.1f} points of frames offloaded")
        parts.append(f"{(first['bytes_offloaded'] - rival['bytes_offloaded']) / 1e6:+.1f} MB sent")
        parts.append(f"{first['seconds'] - rival['seconds']:+.1f} s")
        lines.append(f"{first['policy']} against {rival['policy']}: {', '.join(parts)}")
    if "best_fixed_threshold" in summary:
        lines.append(
            f"in hindsight the best fixed threshold was {summary['best_fixed_threshold']:g} "
            f"(overhead {summary['overhead']:g})"
        )
    if summary["fallbacks"]:
        lines.append(f"{summary['fallbacks']:,} frames got no reply from the cloud and were answered on the edge")
    if summary["skipped"]:
        named = "; ".join(summary["skipped_images"][:3])
        more = f" and {summary['skipped'] - 3} more, named in summary.json" if summary["skipped"] > 3 else ""
        lines.append(f"{summary['skipped']} images skipped: {named}{more}")
    if summary["interrupted"]:
        lines.append("interrupted: all that was finished is written")
    lines.append(f"records, summary and pictures: {summary['folder']}")
    return lines


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
