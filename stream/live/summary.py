"""What a session has done: totals, and a row per stream."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eex.stream.guard import UNREAD, UNRECORDED
from eex.stream.live.sinks import unread
from eex.stream.run.agreement import agreement

if TYPE_CHECKING:
    from eex.stream.live.playing import Stream
    from eex.stream.live.session import Session
    from eex.stream.run.tally import Tally


def concluded(summary: dict[str, Any], path: Path | None) -> int:
    """Write a session's last summary to a file, if one is named, and say what was not kept; the exit status."""
    if path is not None:
        from eex.stream.run.summary import write_json

        write_json(path, summary)
    if why := summary["unrecorded"]:
        print(f"error: {summary['unrecorded_frames']:,} frames are not recorded: {why}", file=sys.stderr)
    if undelivered := [row for row in summary["sinks"] if row.get("lost") and not unread([row])]:
        for row in undelivered:
            share = f"{row['lost']:,} of {row['delivered'] + row['lost']:,} answers"
            print(f"error: {share} did not get to {row['sink']}: {row['problem']}", file=sys.stderr)
    if why or undelivered:
        return UNRECORDED
    return UNREAD if unread(summary["sinks"]) else 0


def summarise(session: "Session") -> dict[str, Any]:
    """Plain JSON values; called in the session's thread, or after its end."""
    playing = session._playing
    playing.sum_up()
    intake = session._intake
    with intake.lock:
        rows = [_row(name, stream) for name, stream in [*intake.streams.items(), *intake.closed.items()]]
        opened, past, past_refused = len(intake.streams), Counter(intake.past), dict(intake.past_refused)
    seconds = time.perf_counter() - session._started
    engine = playing.driver.engine
    summary: dict[str, Any] = {
        "seconds": seconds,
        "frames": past["frames"] + sum(row["frames"] for row in rows),
        "answered": past["answered"] + sum(row["answered"] for row in rows),
        "refused": _added([past_refused, *(row["refused"] for row in rows)]),
    }
    summary |= _figures(playing.totals.all)
    summary |= {
        "open_streams": opened,
        "policy_seconds": engine.policy_seconds,
        "routing_seconds": engine.routing_seconds,
        "record_seconds": playing.totals.seconds,
        "unread": session._outbox.missed,
        **playing.totals.unrecorded,
        "sinks": [{"sink": _named(sink), "errors": dict(errors)} for sink, errors in session._outbox.sinks],
        "notes": list(session.notes),
        "link": playing.offloader.report(),
        "streams": rows,
    }
    return summary


def _row(name: str, stream: "Stream") -> dict[str, Any]:
    row: dict[str, Any] = {
        "stream": name,
        "frames": stream.queue.submitted,
        "answered": stream.answered,
        "refused": dict(stream.refused),
        "waiting": len(stream.queue.frames),
        "under_way": stream.under_way,
    }
    if stream.aims:
        row["aims"] = stream.aims
    return row if stream.tally is None else row | _figures(stream.tally)


def _figures(tally: "Tally") -> dict[str, Any]:
    """What a tally says; latency counts from capture or arrival."""
    frames = max(1, tally.frames)
    names = [*(f"exit {e + 1}" for e in range(tally.exits - 1)), "cloud"]
    quantiles = {"p50": 0.5, "p99": 0.99}
    return {
        "accuracy": tally.accuracy,
        "mean_reward": tally.mean_reward,
        "exit_shares": {name: float(n) / frames for name, n in zip(names, tally.by_exit, strict=True)},
        "offloaded_share": tally.offloaded / frames,
        "fallbacks": tally.fallbacks,
        "dropped": tally.dropped,
        "bytes_offloaded": int(tally.bytes),
        "latency_ms": {
            name: tally.latency_ms(q) if tally.frames > tally.dropped else None for name, q in quantiles.items()
        },
        "threshold": tally.threshold,
        "agreement": agreement(tally.agreement),
    }


def _added(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for reason, n in count.items():
            total[reason] = total.get(reason, 0) + n
    return total


def _named(sink: Any) -> str:
    return str(getattr(sink, "name", None) or getattr(sink, "__qualname__", None) or type(sink).__name__)
