"""`eex-partition`: the command that finds where to cut a network between edge and cloud, and what to send.

The least expected time is a shortest path (Pacheco and Couto, 2020). Nodes are where a frame may be: before each stage
on the edge, or before each stage in the cloud, by where it left the edge. An arc costs its time, multiplied by the
share of frames that come so far:

    edge 0 ─► edge 1 ─► … ─► edge N        a stage and its exit; behind it, only those that did not leave
      │         │                │
      ▼         ▼                ▼
    cloud …   cloud …          answer       one arc a way of sending, to the stage that the cloud goes on from
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from eex.policies.errors import EexError
from eex.policies.link import parse_link
from eex.stream.config import FrameConfig, StreamConfig
from eex.stream.guard import guarded, share_cores

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet
    from eex.policies.base import Floats
    from eex.stream.measure import LinkSpeed

Node = Hashable
Arcs = Mapping[Node, Sequence[tuple[Node, float, str]]]


@dataclass(frozen=True)
class Send:
    """One way to send a frame from a partition point.

    Attributes
    ----------
    name
        As --send takes it.
    stage
        First stage that the cloud runs.
    ms
        From the edge to the cloud and the reply back, encoding and decoding included, without the cloud's stages.
    bytes
        Of a frame.
    """

    name: str
    stage: int
    ms: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Times:
    """All that decides about a cut of a network of N stages; times are milliseconds a frame.

    Attributes
    ----------
    edge_ms, exit_ms
        Of each stage and of the exit behind it on the edge, (N,).
    cloud_ms
        Of each stage in the cloud, (N,).
    cloud_exit_ms
        Of the final exit there.
    leave
        Share of the frames which come to an exit that leave there, (N - 1,): the side branches.
    sends
        Ways of sending from each partition point 0…N - 1.
    """

    edge_ms: "Floats"
    exit_ms: "Floats"
    cloud_ms: "Floats"
    cloud_exit_ms: float
    leave: "Floats"
    sends: Sequence[Sequence[Send]]

    @property
    def stages(self) -> int:
        """N."""
        return len(self.edge_ms)

    @property
    def reach(self) -> "Floats":
        """Share of all frames that come to each stage on the edge, (N,)."""
        return np.concatenate([[1.0], np.cumprod(1 - self.leave)])


@dataclass(frozen=True)
class Plan:
    """A cut, what is sent, and the expected milliseconds a frame, in all and by part."""

    cut: int
    send: str
    bytes: float
    reach: float
    edge_ms: float
    link_ms: float
    cloud_ms: float
    ms: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ms", self.edge_ms + self.link_ms + self.cloud_ms)


def plan(times: Times, cut: int, send: Send | None = None) -> Plan:
    """What a cut takes: stages below it run on the edge, the frames that are left are sent as told.

    Examples
    --------
    >>> one = np.ones(2)
    >>> sends = [[Send("input", 0, 30.0)], [Send("fp32", 1, 20.0)]]
    >>> times = Times(10 * one, 0 * one, one, 0.0, np.array([0.75]), sends)
    >>> plan(times, 1, times.sends[1][0]).ms  # 10, and for a frame in four 20 + 1
    15.25
    """
    edge_ms = float((times.reach[:cut] * (times.edge_ms + times.exit_ms)[:cut]).sum())
    if cut == times.stages:
        return Plan(cut, "", 0.0, 0.0, edge_ms, 0.0, 0.0)
    if send is None:
        raise ValueError(f"frames that go on from stage {cut} must be sent")
    reach = float(times.reach[cut])
    cloud_ms = float(times.cloud_ms[send.stage :].sum()) + times.cloud_exit_ms
    return Plan(cut, send.name, send.bytes, reach, edge_ms, reach * send.ms, reach * cloud_ms)


def every_plan(times: Times) -> list[Plan]:
    """The best way of sending at every cut, from all in the cloud (0) to all on the edge (N)."""
    plans = [min((plan(times, k, s) for s in times.sends[k]), key=lambda p: p.ms) for k in range(times.stages)]
    return [*plans, plan(times, times.stages)]


def graph(times: Times, first: int = 0) -> Arcs:
    """The arcs behind each node, with their costs and the way of sending; the answer is "answer".

    Parameters
    ----------
    first
        The lowest cut that is allowed: 1 where the edge must run a stage.
    """
    arcs: dict[Node, list[tuple[Node, float, str]]] = defaultdict(list)
    n, reach = times.stages, times.reach
    for k in range(n):
        arcs["edge", k].append((("edge", k + 1), float(reach[k] * (times.edge_ms[k] + times.exit_ms[k])), ""))
        if k < first:
            continue
        for send in times.sends[k]:
            arcs["edge", k].append((("cloud", k, send.stage), float(reach[k] * send.ms), send.name))
        for j in range(min((s.stage for s in times.sends[k]), default=n), n):
            arcs["cloud", k, j].append((("cloud", k, j + 1), float(reach[k] * times.cloud_ms[j]), ""))
        arcs["cloud", k, n].append(("answer", float(reach[k] * times.cloud_exit_ms), ""))
    arcs["edge", n].append(("answer", 0.0, ""))
    return arcs


def shortest_path(arcs: Arcs, start: Node, end: Node) -> tuple[float, list[tuple[Node, str]]]:
    """Cost of the cheapest way through a graph without circles, and its nodes, each with the arc's name that led there.

    Raises
    ------
    ValueError
        If there is no way.

    Examples
    --------
    >>> arcs = {"a": [("b", 1.0, ""), ("c", 5.0, "direct")], "b": [("c", 2.0, "on")]}
    >>> shortest_path(arcs, "a", "c")
    (3.0, [('a', ''), ('b', ''), ('c', 'on')])
    """
    known: dict[Node, tuple[float, Node | None, str]] = {}

    def cost(node: Node) -> float:
        """Of the cheapest way from a node to the end."""
        if node == end:
            return 0.0
        if node not in known:
            ways = [(ms + cost(following), following, name) for following, ms, name in arcs.get(node, ())]
            known[node] = min(ways, key=lambda w: w[0], default=(math.inf, None, ""))
        return known[node][0]

    total = cost(start)
    if math.isinf(total):
        raise ValueError(f"there is no way from {start} to {end}")
    path: list[tuple[Node, str]] = [(start, "")]
    while path[-1][0] != end:
        _, following, name = known[path[-1][0]]
        path.append((following, name))
    return total, path


def best(times: Times, first: int = 1) -> Plan:
    """The cut and the way of sending of least expected time, by the shortest path."""
    total, path = shortest_path(graph(times, first), ("edge", 0), "answer")
    cut = max(node[1] for node, _ in path if isinstance(node, tuple) and node[0] == "edge")
    name = next((name for _, name in path if name), "")
    send = next((s for s in times.sends[cut] if s.name == name), None) if cut < times.stages else None
    found = plan(times, cut, send)
    assert math.isclose(found.ms, total, rel_tol=1e-9, abs_tol=1e-9)
    return found


def leaving(confidence: "Floats", threshold: float) -> "Floats":
    """Share of the frames which come to each side branch that leave there.

    Parameters
    ----------
    confidence
        Of every exit of every frame, (frames, N); the last is the final exit's.
    threshold
        Of all side branches.

    Examples
    --------
    >>> leaving(np.array([[0.9, 0.9, 1.0], [0.5, 0.9, 1.0], [0.5, 0.5, 1.0], [0.5, 0.5, 1.0]]), 0.8)
    array([0.25      , 0.33333333])
    """
    left = confidence[:, :-1] >= threshold
    here = np.ones(len(confidence), dtype=bool)
    shares = []
    for column in left.T:
        shares.append(float(column[here].mean()) if here.any() else 0.0)
        here &= ~column
    return np.array(shares)


# ---- the command


@dataclass(frozen=True)
class Command:
    """Find where to cut the network between edge and cloud, so that a frame's answer is there soonest on average.

    Measures stages and exits on this machine, the worker and the link where --worker names one, and each way of
    sending; takes the shares of the exits from a trace or from a run over the source's frames.
    """

    measure: tyro.conf.OmitArgPrefixes[FrameConfig] = field(
        default_factory=lambda: FrameConfig(distortion="pristine:200, gaussian_blur@1:200, gaussian_noise@20:200")
    )
    threshold: float = 0.8
    """A frame leaves at a side branch whose confidence reaches this."""
    trace: Path | None = None
    """Take the shares of the exits from this trace of eex-record, instead of running the frames."""
    link: str = ""
    """Link to the cloud: sao-paulo, north-california, paris, wifi, or MS@MBIT such as 40@10. With --worker it is
    measured instead; without either it costs nothing."""
    worker: str = ""
    """Cloud worker to measure, tcp://host:port."""
    keys: Path | None = None
    """Folder with this edge's key and worker.pub; by default where eex-keys puts them."""
    key: str = "edge"
    """Name of this edge's key there."""
    plain: bool = False
    """Talk plain text to a worker on this machine that was started with --plain."""
    cloud_speed: float = 1.0
    """How many times faster the cloud is than this machine, where no worker is measured."""
    send: str = "auto"
    """How frames are sent: auto finds what is fastest at each cut; or fp32, fp16, int8, input, each also with +zstd."""
    at_once: int = 1
    """Frames in a micro-batch while stages are measured."""
    json: bool = False
    """Print JSON to standard output, and nothing else there."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range."""
        from eex.stream.encoding import parse_encoding

        self.measure.check()
        if not 0 <= self.threshold <= 1:
            raise EexError(f"--threshold must lie in [0, 1], got {self.threshold:g}")
        if not 0 < self.cloud_speed < math.inf:
            raise EexError(f"--cloud-speed must be more than 0, got {self.cloud_speed:g}")
        if not 1 <= self.at_once <= 4096:
            raise EexError(f"--at-once must lie in 1…4096, got {self.at_once}")
        if self.link and self.worker:
            raise EexError("--link and --worker: the link to a worker is measured; give one of them")
        if self.send != "auto":
            parse_encoding(self.send)
        if self.link:
            parse_link(self.link)


def measured(command: Command) -> "tuple[Times, LinkSpeed, EarlyExitNet]":
    """Measure all that decides about a cut.

    Raises
    ------
    EexError
        If model, source, trace, link or worker cannot be used.
    """
    command.check()
    from eex.policies.schedule import parse_schedule
    from eex.stream.run import Frames, connected, load_network

    net = load_network(command.measure)
    net.partition = max(1, net.exits - 1)  # so that every side branch counts as the edge's
    import torch

    from eex.stream import measure

    frames = Frames(command.measure, parse_schedule(command.measure.distortion, command.measure.seed), net)
    images = torch.cat([pixels for pixels, *_ in frames.batches(64, {})] or [torch.zeros(0)])
    if not len(images):
        raise EexError(f"{command.measure.source}: no frame could be used")
    leave = leaving(_confidence(command, net, frames), command.threshold)
    edge_ms, exit_ms = measure.stage_times(net, images, command.at_once)
    cloud_ms, cloud_exit_ms = edge_ms / command.cloud_speed, float(exit_ms[-1]) / command.cloud_speed
    link = measure.first_condition(parse_link(command.link)) if command.link else measure.LinkSpeed(0.0, math.inf)
    if command.worker:
        asked = StreamConfig(
            worker=command.worker, keys=command.keys, key=command.key, plain=command.plain, deadline_ms=5000.0
        )
        asked.check()
        with connected(asked, None, net) as offloader:
            whole = measure.worker_times(offloader, net, images, range(net.exits))
            link = measure.measure_link(offloader, net, images, 1)
        rest = np.array([whole[k] for k in range(net.exits)])  # from each stage to the answer
        cloud_ms, cloud_exit_ms = np.maximum(0.0, rest - np.append(rest[1:], 0.0)), 0.0  # the exit is in the last
    sends = []
    for cut in range(net.exits):
        found = measure.candidates(net, images, cut)
        if command.send != "auto":
            asked_for = [c for c in found if str(c.encoding) == command.send]
            found = asked_for or found
        elif any(c.agrees for c in found):
            found = [c for c in found if c.agrees]
        sends.append([Send(str(c.encoding), c.stage, measure.cost_ms(c, link, 0.0), c.bytes) for c in found])
    return Times(edge_ms, exit_ms, cloud_ms, cloud_exit_ms, leave, sends), link, net


def _confidence(command: Command, net: "EarlyExitNet", frames: Any) -> "Floats":
    """What every exit says of every frame, (frames, N)."""
    if command.trace is not None:
        from eex.policies.trace import read_trace

        confidence = read_trace(command.trace, net.classes).confidence
        if confidence.shape[1] != net.exits:
            raise EexError(
                f"{command.trace}: knows {confidence.shape[1]} exits, the model has {net.exits}; "
                f"record it with eex-record --partition {max(1, net.exits - 1)}"
            )
        return confidence
    from eex.stream.engine import every_exit

    return np.concatenate([every_exit(net, pixels)[0] for pixels, *_ in frames.batches(frames.total, {})])


def report(command: Command) -> dict[str, Any]:
    """What was measured and found, as plain JSON values."""
    times, link, net = measured(command)
    plans, chosen = every_plan(times), best(times)
    return {
        "plans": [_row(p) for p in plans],
        "recommended": _row(chosen),
        "option": option(chosen, times.stages),
        "threshold": command.threshold,
        "leave": times.leave.tolist(),
        "link": {"round_trip_ms": link.round_trip_ms, "mbit": None if math.isinf(link.mbit) else link.mbit},
        "edge_ms": times.edge_ms.tolist(),
        "exit_ms": times.exit_ms.tolist(),
        "cloud_ms": times.cloud_ms.tolist(),
        "cloud_exit_ms": times.cloud_exit_ms,
        "model": net.fingerprint,
    }


def option(chosen: Plan, stages: int) -> str:
    """What to type to eex-stream."""
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


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("partition", "sent as", box=None, padding=(0, 2, 0, 0))
    for title in ("bytes", "sent", "edge ms", "link ms", "cloud ms", "all ms"):
        table.add_column(title, justify="right")
    last, chosen = found["plans"][-1]["partition"], found["recommended"]
    for row in found["plans"]:
        where = {0: "0 (cloud)", last: f"{last} (edge)"}.get(row["partition"], str(row["partition"]))
        table.add_row(
            where,
            row["send"] or "–",
            f"{row['bytes']:,.0f}" if row["send"] else "–",
            f"{100 * row['sent_share']:.1f} %",
            *(f"{row[k]:.2f}" for k in ("edge_ms", "link_ms", "cloud_ms", "ms")),
            style="bold" if row["partition"] == chosen["partition"] else "",
        )
    link, console = found["link"], Console()
    rate = "without limit" if link["mbit"] is None else f"{link['mbit']:.3g} Mbit/s"
    leave = " ".join(f"{100 * share:.0f} %" for share in found["leave"])
    console.print(
        f"expected time of a frame; threshold {found['threshold']:g}: of the frames that come to each side branch, "
        f"{leave} leave; link {link['round_trip_ms']:.3g} ms, {rate}",
        highlight=False,
    )
    console.print(table)
    console.print(f"fastest: eex-stream {found['option']}   ({chosen['ms']:.2f} ms)", soft_wrap=True, highlight=False)
    if chosen["partition"] == last:
        cloud = min(found["plans"][1:-1], key=lambda row: row["ms"], default=None)
        if cloud is not None:
            console.print(
                f"with the cloud: eex-stream --partition {cloud['partition']} --send {cloud['send']}   "
                f"({cloud['ms']:.2f} ms)",
                soft_wrap=True,
                highlight=False,
            )
    if found["plans"][0]["ms"] < chosen["ms"]:
        console.print(
            f"sending every image at once would take {found['plans'][0]['ms']:.2f} ms, but then nothing is learned on "
            f"the edge, and eex-stream runs at least one stage there",
            soft_wrap=True,
            highlight=False,
        )


def main() -> None:
    """Entry point of `eex-partition`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-partition", config=(tyro.conf.FlagCreatePairsOff,))
    share_cores()
    found = report(command)
    if command.json:
        print(json.dumps(found))
    else:
        _print(found)


if __name__ == "__main__":
    main()
