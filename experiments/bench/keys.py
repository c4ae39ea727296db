"""Many keys, a fleet that comes back at once, and strangers: what they cost a worker and its clients.

A worker process with a trivial model, a folder of keys, and real connections with CURVE on loopback.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import zmq

from eex.experiments.bench.trivial_worker import MODEL, TrivialWorker
from eex.stream.guard import guarded
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import EdgeKeys, Pair, edge_keys, new_pair, write_pair
from eex.stream.wire.protocol import Hello, Welcome, pack, unpack
from eex.stream.wire.security import HANDSHAKE_MS

STRANGERS = """
import sys, time, zmq
endpoint, worker, count = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
until = time.monotonic() + float(sys.argv[4])
context, poller, live = zmq.Context(), zmq.Poller(), {}

def knock():
    s = context.socket(zmq.DEALER)
    s.linger, s.handshake_ivl, s.curve_serverkey = 0, 1000, worker
    s.curve_publickey, s.curve_secretkey = zmq.curve_keypair()
    refused = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED
    seen = s.get_monitor_socket(refused)
    s.connect(endpoint)
    live[seen] = s
    poller.register(seen, zmq.POLLIN)

for _ in range(count):
    knock()
print("ready", flush=True)
while time.monotonic() < until:
    for seen, _ in poller.poll(200):
        seen.recv_multipart()
        poller.unregister(seen)
        s = live.pop(seen)
        s.disable_monitor()
        s.close()
        knock()
context.destroy(linger=0)
"""
RETRY_S = 0.5
"""After which an edge that has no welcome yet greets again."""


@dataclass(frozen=True)
class Bench:
    """Measure how soon a fleet is back after its worker was restarted, and round trips among strangers."""

    keys: int = 10_000
    """Keys in the worker's folder."""
    edges: int = 1000
    """Edges that are connected, and all come back at once after a restart."""
    strangers: int = 100
    """Clients without a known key that knock on without end."""
    seconds: float = 6.0
    """How long round trips are measured, each time."""
    json: bool = False
    """Print the rows as JSON."""


def fleet(context: zmq.Context[Any], pairs: list[Pair], worker: bytes, endpoint: str) -> "list[zmq.Socket[bytes]]":
    """Connections of edges, which come again by themselves."""
    edges = []
    for pair in pairs:
        edge = context.socket(zmq.DEALER)
        edge.linger, edge.immediate, edge.handshake_ivl = 0, True, HANDSHAKE_MS
        edge.reconnect_ivl, edge.reconnect_ivl_max = 50, 400
        edge.curve_publickey, edge.curve_secretkey, edge.curve_serverkey = pair.public, pair.secret, worker
        edge.connect(endpoint)
        edges.append(edge)
    return edges


def until_all_are_in(edges: "list[zmq.Socket[bytes]]", limit_s: float = 60.0) -> float:
    """Seconds until each edge has had a welcome; infinite if one has none in time."""
    began = time.monotonic()
    hello, waiting, greeted, poller = pack(Hello(1, MODEL)), set(edges), dict.fromkeys(edges, -RETRY_S), zmq.Poller()
    for edge in edges:
        poller.register(edge, zmq.POLLIN)
    while waiting:
        now = time.monotonic()
        if now - began > limit_s:
            return float("inf")
        for edge in waiting:
            if now - greeted[edge] > RETRY_S:
                try:
                    edge.send_multipart(hello, zmq.NOBLOCK)
                    greeted[edge] = now
                except zmq.Again:  # not connected yet
                    pass
        for edge, _ in poller.poll(20):
            if isinstance(unpack(edge.recv_multipart())[0], Welcome):
                waiting.discard(edge)
    return time.monotonic() - began


def round_trips(edge: ZmqOffloader, seconds: float, first: int) -> tuple[float, float]:
    """Median and 99th percentile of round trips, one at a time, in milliseconds; numbers count from `first`."""
    frame, taken, end = np.zeros((1, 12), dtype=np.float32), [], time.monotonic() + seconds
    for number in range(first, first + 10**9):
        if time.monotonic() > end:
            break
        while not edge.submit(number, 1, "pristine", frame):
            edge.poll(5)
        taken += [reply.round_trip_ms for reply in edge.poll(60_000)]
    p50, p99 = np.quantile(taken, (0.5, 0.99)).tolist()
    return p50, p99


def measure(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """Rows of the table."""
    write_pair(folder, "worker")
    write_pair(folder, "edge")
    pairs = [new_pair() for _ in range(bench.keys)]
    for k, pair in enumerate(pairs):
        (folder / f"k{k}.pub").write_bytes(pair.public)
    own: EdgeKeys = edge_keys(folder)
    context = zmq.Context()
    context.max_sockets = bench.edges + 1000
    limits = {"clients": bench.edges + 1000, "key_clients": bench.edges + 1000}
    rows = []
    with TrivialWorker(folder=str(folder), limits=limits) as worker:
        edges = fleet(context, pairs[: bench.edges], own.worker, worker.endpoint)
        name = f"{bench.keys:,} keys: {bench.edges:,} edges at once, seconds until all are in"
        rows.append({"measured": name, "value": until_all_are_in(edges), "bound": 10.0})
        worker.kill()
        worker.start()
        rows.append({"measured": f"{name} again after a restart", "value": until_all_are_in(edges), "bound": 10.0})
        context.destroy(linger=0)
        edge = ZmqOffloader(worker.endpoint, MODEL, 60_000.0, keys=own)
        edge.connect(10)
        round_trips(edge, 1.0, 0)  # warming up
        alone = round_trips(edge, bench.seconds, 10**9)
        asked = [worker.endpoint, own.worker.decode(), str(bench.strangers), str(3 * bench.seconds + 10)]
        with subprocess.Popen([sys.executable, "-c", STRANGERS, *asked], stdout=subprocess.PIPE) as strangers:
            assert strangers.stdout is not None
            strangers.stdout.readline()
            among = round_trips(edge, bench.seconds, 2 * 10**9)
            began = time.monotonic()
            late = ZmqOffloader(worker.endpoint, MODEL, keys=own)
            late.connect(30)
            came = time.monotonic() - began
            late.close()
            strangers.kill()
        edge.close()
    rows.append(
        {"measured": f"p99 among {bench.strangers} strangers / alone", "value": among[1] / alone[1], "bound": 2.0}
    )
    rows.append({"measured": "a new edge among them, seconds until it is in", "value": came, "bound": 5.0})
    for name, (p50, p99) in {"alone": alone, "among strangers": among}.items():
        rows += [{"measured": f"round trip {name}, {q} ms", "value": v} for q, v in (("p50", p50), ("p99", p99))]
    return rows


def _main() -> None:
    bench = tyro.cli(Bench, prog="python -m eex.experiments.bench.keys", config=(tyro.conf.FlagCreatePairsOff,))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the worker inherits it
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(bench, Path(folder))
    if bench.json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "value", "bound", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(row["measured"], f"{row['value']:,.2f}", f"{row['bound']:g}" if "bound" in row else "")
    Console(markup=False, width=120).print(table)


if __name__ == "__main__":
    sys.exit(guarded(_main))
