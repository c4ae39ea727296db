"""Where to cut a network between edge and cloud, and what to send; `eex-partition` prints it.

The least expected time is a shortest path (Pacheco and Couto, 2020). Nodes are where a frame may be: before each stage
on the edge, or before each stage in the cloud, by where it left the edge. An arc costs its time, multiplied by the
share of frames that reach it:

    edge 0 ─► edge 1 ─► … ─► edge N        a stage and its exit; after it, only frames that did not leave
      │         │                │
      ▼         ▼                ▼
    cloud …   cloud …          answer       one arc per way of sending, to the stage where the cloud continues
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from eex.policies.core.base import Floats


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
        Bytes per frame.
    """

    name: str
    stage: int
    ms: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Times:
    """Everything that a cut of a network with N stages depends on; times are milliseconds per frame.

    Attributes
    ----------
    edge_ms, exit_ms
        Of each stage, and of the exit after it, on the edge, (N,).
    cloud_ms
        Of each stage in the cloud, (N,).
    cloud_exit_ms
        Time of the final exit in the cloud.
    leave
        Share of the frames reaching each side branch that leave there, (N - 1,).
    sends
        Ways of sending from each partition point, 0…N - 1.
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
        """Share of all frames that reach each stage on the edge, (N,)."""
        return np.concatenate([[1.0], np.cumprod(1 - self.leave)])


@dataclass(frozen=True)
class Plan:
    """A cut, what is sent, and the expected milliseconds per frame, in total and by part."""

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
    """The cost of a cut: stages before it run on the edge, and the frames left after them are sent in a given way.

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
        raise ValueError(f"frames that continue from stage {cut} must be sent")
    reach = float(times.reach[cut])
    cloud_ms = float(times.cloud_ms[send.stage :].sum()) + times.cloud_exit_ms
    return Plan(cut, send.name, send.bytes, reach, edge_ms, reach * send.ms, reach * cloud_ms)


def every_plan(times: Times) -> list[Plan]:
    """The best way of sending at every cut, from all in the cloud (0) to all on the edge (N)."""
    plans = [min((plan(times, k, s) for s in times.sends[k]), key=lambda p: p.ms) for k in range(times.stages)]
    return [*plans, plan(times, times.stages)]


def graph(times: Times, first: int = 0) -> Arcs:
    """The arcs from each node, with their costs and the way of sending; the last node is "answer".

    Parameters
    ----------
    first
        The lowest cut that is allowed: 1 if the edge must run a stage.
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
    """Cost of the cheapest path through an acyclic graph, and its nodes, each with the name of the arc that led there.

    Raises
    ------
    ValueError
        If there is no path.

    Examples
    --------
    >>> arcs = {"a": [("b", 1.0, ""), ("c", 5.0, "direct")], "b": [("c", 2.0, "on")]}
    >>> shortest_path(arcs, "a", "c")
    (3.0, [('a', ''), ('b', ''), ('c', 'on')])
    """
    known: dict[Node, tuple[float, Node | None, str]] = {}

    def cost(node: Node) -> float:
        """Cost of the cheapest path from a node to the end."""
        if node == end:
            return 0.0
        if node not in known:
            ways = [(ms + cost(following), following, name) for following, ms, name in arcs.get(node, ())]
            known[node] = min(ways, key=lambda w: w[0], default=(math.inf, None, ""))
        return known[node][0]

    total = cost(start)
    if math.isinf(total):
        raise ValueError(f"there is no path from {start} to {end}")
    path: list[tuple[Node, str]] = [(start, "")]
    while path[-1][0] != end:
        _, following, name = known[path[-1][0]]
        path.append((following, name))
    return total, path


def best(times: Times, first: int = 1) -> Plan:
    """The cut and the way of sending with the least expected time, by the shortest path."""
    total, path = shortest_path(graph(times, first), ("edge", 0), "answer")
    cut = max(node[1] for node, _ in path if isinstance(node, tuple) and node[0] == "edge")
    name = next((name for _, name in path if name), "")
    send = next((s for s in times.sends[cut] if s.name == name), None) if cut < times.stages else None
    found = plan(times, cut, send)
    assert math.isclose(found.ms, total, rel_tol=1e-9, abs_tol=1e-9)
    return found


def leaving(confidence: "Floats", threshold: float) -> "Floats":
    """Share of the frames reaching each side branch that leave there.

    Parameters
    ----------
    confidence
        Confidence of every exit in every frame, (frames, N); the last is the final exit's.
    threshold
        Threshold of all side branches.

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
