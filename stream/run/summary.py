"""What a run leaves: the summary and the curves."""

import io
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from arro3.core import Array, RecordBatch
from arro3.io import write_ipc

from eex.models.architecture import UNKNOWN
from eex.policies.core.base import ExitCost
from eex.policies.core.files import write_file
from eex.policies.core.price import Price
from eex.stream.config import StreamConfig
from eex.stream.run.agreement import agreement
from eex.stream.run.play import Played
from eex.stream.run.records import named_array

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.run.tally import Reference, Tally

NAMED = 20
"""Skipped images that a summary names; it counts them all."""


def summarise(
    config: StreamConfig,
    price: Price,
    exit_cost: ExitCost,
    played: list[Played],
    reference: "Reference | None",
    net: "Network",
    interrupted: bool = False,
) -> dict[str, Any]:
    """What happened, as plain JSON values; the first policy's figures on top, one row per policy under `policies`."""
    rows = [_policy_row(p, reference, exit_cost, config.drop_below > 0) for p in played]
    first = played[0]
    skipped = list(first.skipped.items())
    summary: dict[str, Any] = dict(rows[0])
    summary["skipped"] = len(skipped)
    summary["skipped_images"] = [f"{name}: {reason}" for name, reason in skipped[:NAMED]]
    summary |= first.unrecorded
    summary["interrupted"] = interrupted
    summary["policies"] = rows
    summary["by_class"] = [
        {"class": name, "frames": int(seen), "accuracy": right / seen}
        for name, (seen, right) in zip(net.classes, first.tally.by_class.tolist(), strict=True)
        if seen
    ]
    summary["by_expert"] = [
        {"expert": name, "frames": int(seen)}
        for name, seen in zip((*net.experts, UNKNOWN), first.tally.by_expert.tolist(), strict=False)
    ]
    if reference is not None:
        summary["best_fixed_threshold"] = reference.best
        summary["by_exit"] = reference.rows()
    summary["price"] = price.text
    summary["exit_cost"] = np.broadcast_to(exit_cost, net.edge_exits - 1).tolist()
    summary["overhead"] = price.of() if price.constant else first.tally.mean_overhead
    summary["model"] = {"fingerprint": net.fingerprint, "exits": net.exits, "partition": net.partition}
    summary["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return summary


def _policy_row(played: Played, reference: "Reference | None", exit_cost: ExitCost, dropping: bool) -> dict[str, Any]:
    t = played.tally
    cost = t.mean_cost(exit_cost)
    frames = max(1, t.frames)
    row: dict[str, Any] = {
        "policy": played.policy,
        "frames": t.frames,
        "answered": int(t.by_exit.sum()),
        "fallbacks": t.fallbacks,
        "withheld": played.withheld,
        "mean_overhead": t.mean_overhead,
        "accuracy": t.accuracy,
        "mean_reward": t.mean_reward,
        "mean_cost": cost,
        "accuracy_less_costs": None if t.accuracy is None else t.accuracy - cost,
        "frames_per_second": t.frames / played.seconds if played.seconds else 0.0,
        "seconds": played.seconds,
        "source_seconds": played.source_seconds,
        "exit_shares": {_exit_name(e, t.exits): float(n) / frames for e, n in enumerate(t.by_exit)},
        "offloaded_share": t.offloaded / frames,
        "device_probability": float(t.by_exit[:-1].sum()) / frames,
        "bytes_offloaded": int(t.bytes),
        "bytes_per_offloaded_frame": t.bytes_per_frame,
        "latency_ms": {
            name: t.latency_ms(q) if t.frames > t.dropped else None for name, q in (("p50", 0.5), ("p99", 0.99))
        },
        "agreement": agreement(t.agreement),
        "latency_split_ms": dict(zip(("edge", "link", "cloud"), (t.split_ms / frames).tolist(), strict=True)),
    }
    if dropping:
        row |= {
            "dropped": t.dropped,
            "dropped_share": t.dropped / frames,
            "bytes_not_sent": None if t.bytes_per_frame is None else round(t.dropped * t.bytes_per_frame),
        }
    if played.aims:
        row["aims"] = played.aims
    row["link"] = played.link
    if reference is not None:
        row |= regrets(played.tally, reference)
    return row


def regrets(tally: "Tally", reference: "Reference") -> dict[str, float]:
    """What the policy missed, summed over the stream, against the best fixed threshold and against the oracle.

    A frame that was dropped earned 0, whoever dropped it.
    """
    best = reference.curves()
    return {
        "regret_best_arm": float(best["best_fixed"].sum() - tally.reward),
        "regret_oracle": float(best["oracle"].sum() - tally.reward),
    }


def _exit_name(exit: int, exits: int) -> str:
    return "cloud" if exit == exits - 1 else f"exit {exit + 1}"


def write_curves(path: Path, curves: dict[str, dict[str, Any]]) -> None:
    """Tidy rows of what is drawn over time: policy, quantity, first frame of the window, value."""
    policy, quantity, start, value = [], [], [], []
    for name, columns in curves.items():
        for column, values in columns.items():
            if column == "start":
                continue
            policy += [name] * len(values)
            quantity += [column] * len(values)
            start.append(columns["start"])
            value.append(values)

    def named(values: list[str]) -> Array:
        names = list(dict.fromkeys(values))
        return named_array(np.array([names.index(value) for value in values], dtype=np.int64), names)

    columns = {
        "policy": named(policy),
        "quantity": named(quantity),
        "start": Array.from_numpy(np.concatenate(start).astype(np.int64)),
        "value": Array.from_numpy(np.concatenate(value)),
    }
    file = io.BytesIO()
    write_ipc(RecordBatch.from_pydict(columns), file, compression=None)
    write_file(path, file.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON values, indented."""
    write_file(path, json.dumps(value, indent=1) + "\n")
