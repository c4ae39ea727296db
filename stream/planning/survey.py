"""Measuring everything that a cut of the network depends on; `eex-partition` finds the best cut by it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.models.arrays import joined
from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError
from eex.policies.core.link import SimulatedLink
from eex.stream.frames.frames import Frames, nothing_usable
from eex.stream.planning import measure
from eex.stream.planning.measure import LinkSpeed
from eex.stream.planning.partition import Plan, Send, Times, best, every_plan, leaving
from eex.stream.wire.connection import Connection, connected
from eex.stream.wire.encoding import parse_encoding

if TYPE_CHECKING:
    from eex.models.architecture import Network

SAMPLES = 64
"""Frames that stages and ways of sending are measured with."""


def exits_of_trace(path: Path, net: "Network") -> Floats:
    """Confidence of every exit in every frame of a trace, (frames, N).

    Raises
    ------
    EexError
        If it cannot be read, or was recorded with another model or another number of exits.
    """
    from eex.policies.core.trace import read_trace

    trace = read_trace(path, net.classes)
    # a model at a reduced precision may do with the trace of that which it was made of; tables name no model
    if trace.model not in ("", net.fingerprint, net.tail_fingerprint):
        raise EexError(
            f"{path}: was recorded with another model, {trace.model}, this one is {net.fingerprint}; "
            "record it with eex-record and the same --model"
        )
    confidence = trace.confidence
    if confidence.shape[1] != net.exits:
        raise EexError(
            f"{path}: holds {confidence.shape[1]} exits, the model has {net.exits}; "
            f"record it with eex-record --partition {max(1, net.exits - 1)}"
        )
    return confidence


def exits_of_frames(frames: Frames, net: "Network") -> Floats:
    """Confidence of every exit in every frame of a source, (frames, N)."""
    from eex.stream.groups import every_exit

    skipped: dict[str, str] = {}
    found = [every_exit(net, batch.images)[0] for batch in frames.batches(frames.total, skipped)]
    if not found:
        raise nothing_usable(frames.config, skipped)
    return np.concatenate(found)


def survey(
    net: "Network",
    frames: Frames,
    trace: Path | None,
    threshold: float,
    *,
    link: SimulatedLink | None = None,
    connection: Connection | None = None,
    cloud_speed: float = 1.0,
    send: str = "auto",
    at_once: int = 1,
) -> tuple[Times, LinkSpeed]:
    """Measure stages and exits here, ways of sending, and the worker with its link.

    Parameters
    ----------
    frames, trace
        What to run; the trace to count the frames that leave at each exit in, None to run all frames for that.
    threshold
        Threshold of all side branches.
    link
        Link to the cloud; None sends in no time.
    connection
        To a worker, which is measured instead of `link` and `cloud_speed`.
    cloud_speed
        How many times faster than this machine the cloud is.
    send
        An encoding as --send takes it, or "auto" for all that leave the answers as they are.
    at_once
        Frames per micro-batch.

    Raises
    ------
    EexError
        If source, trace, link or worker cannot be used.
    """
    images = joined([batch.images for batch in frames.batches(SAMPLES, {})] or [np.zeros(0)])
    if not len(images):
        raise EexError(f"{frames.config.source}: no frame could be used")
    confidence = exits_of_frames(frames, net) if trace is None else exits_of_trace(trace, net)
    edge_ms, exit_ms = measure.stage_times(net, images, at_once)
    cloud_ms, cloud_exit_ms = edge_ms / cloud_speed, float(exit_ms[-1]) / cloud_speed
    speed = LinkSpeed(0.0, math.inf) if link is None else measure.first_condition(link)
    if connection is not None:
        with connected(replace(connection, required=True), net.tail_fingerprint, 0) as offloader:
            whole = measure.worker_times(offloader, net, images, range(net.exits))
            speed = measure.measure_link(offloader, net, images, 1)
        rest = np.array([whole[k] for k in range(net.exits)])  # from each stage to the answer
        cloud_ms, cloud_exit_ms = np.maximum(0.0, rest - np.append(rest[1:], 0.0)), 0.0  # the exit is in the last
    sends = [_sends(net, images, cut, speed, send) for cut in range(net.exits)]
    return Times(edge_ms, exit_ms, cloud_ms, cloud_exit_ms, leaving(confidence, threshold), sends), speed


def _sends(net: "Network", images: Any, cut: int, speed: LinkSpeed, send: str) -> list[Send]:
    """The ways of sending from a partition point that are to be compared."""
    found = measure.candidates(net, images, cut)
    if send != "auto":
        wanted = parse_encoding(send)
        if cut or wanted.kind == "input":  # before the first stage there are no features, images alone can be sent
            found = [c for c in found if c.encoding == wanted]
    elif any(c.agrees for c in found):
        found = [c for c in found if c.agrees]
    return [Send(str(c.encoding), c.stage, measure.cost_ms(c, speed, 0.0), c.bytes) for c in found]


def recommendation(times: Times, speed: LinkSpeed) -> dict[str, Any]:
    """What was measured and the best plan at every cut, as plain JSON values."""
    chosen = best(times)
    return {
        "plans": [_row(p) for p in every_plan(times)],
        "recommended": _row(chosen),
        "option": option(chosen, times.stages),
        "leave": times.leave.tolist(),
        "link": {"round_trip_ms": speed.round_trip_ms, "mbit": None if math.isinf(speed.mbit) else speed.mbit},
        "edge_ms": times.edge_ms.tolist(),
        "exit_ms": times.exit_ms.tolist(),
        "cloud_ms": times.cloud_ms.tolist(),
        "cloud_exit_ms": times.cloud_exit_ms,
    }


def option(chosen: Plan, stages: int) -> str:
    """The options to give to eex-stream."""
    return f"--partition {chosen.cut}" + (f" --send {chosen.send}" if chosen.cut < stages else "")


def _row(p: Plan) -> dict[str, Any]:
    return {
        "partition": p.cut,
        "send": p.send or None,
        "bytes": p.bytes,
        "sent_share": p.reach,
        "edge_ms": p.edge_ms,
        "link_ms": p.link_ms,
        "cloud_ms": p.cloud_ms,
        "ms": p.ms,
    }
