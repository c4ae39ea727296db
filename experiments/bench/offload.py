"""`make bench-offload`: what offloading costs compared with HTTP and gRPC, and how soon faults are noticed.

Round trips of 1 KiB, 64 KiB and 1 MiB on loopback TCP, one at a time, the competitors taking turns, each server in a
process of its own with a trivial model: eex in plain text and with CURVE, bare pyzmq sockets, Flask with `requests`
(raw bytes, and JSON as a list of numbers), gRPC (raw bytes). Then requests per second of 8 KiB from eight edges to one
worker, how long faults go unnoticed, and memory.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zmq

from eex.experiments.bench.trivial_worker import MODEL, WAIT_S, TrivialWorker, free_port
from eex.stream.wire.client import ZmqOffloader

SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20}
EDGES = 8

SERVERS = {
    "flask": """
import sys, logging
import numpy as np
from flask import Flask, request, jsonify
app = Flask("bench")
logging.getLogger("werkzeug").setLevel(logging.ERROR)
@app.post("/raw")
def raw():
    x = np.frombuffer(request.get_data(), dtype=np.float32)
    return np.array([0.9, 1.0, len(x)], dtype=np.float32).tobytes()
@app.post("/json")
def numbers():
    x = np.array(request.get_json(), dtype=np.float32)
    return jsonify([0.9, 1, len(x)])
from werkzeug.serving import make_server, WSGIRequestHandler
WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keeps connections
server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True)
print("ready", flush=True)
server.serve_forever()
""",
    "grpc": """
import sys
from concurrent import futures
import grpc
import numpy as np
def answer(body, context):
    x = np.frombuffer(body, dtype=np.float32)
    return np.array([0.9, 1.0, len(x)], dtype=np.float32).tobytes()
handler = grpc.method_handlers_generic_handler("Bench", {"Answer": grpc.unary_unary_rpc_method_handler(answer)})
server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 1 << 26)])
server.add_generic_rpc_handlers((handler,))
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
""",
    "pyzmq": """
import sys, zmq
import numpy as np
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("tcp://127.0.0.1:" + sys.argv[1])
print("ready", flush=True)
while True:
    client, body = socket.recv_multipart(copy=False)
    x = np.frombuffer(body.buffer, dtype=np.float32)
    socket.send_multipart([client.bytes, np.array([0.9, 1.0, len(x)], dtype=np.float32).tobytes()])
""",
}

Call = Callable[[np.ndarray[Any, Any]], None]


@contextlib.contextmanager
def server(name: str) -> Iterator[int]:
    """One of the servers in a process of its own; yields its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVERS[name], str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield port
    finally:
        process.kill()
        process.wait()


def eex_call(worker: TrivialWorker, stack: contextlib.ExitStack) -> Call:
    """A round trip through eex."""
    offloader = stack.enter_context(contextlib.closing(_connected(worker)))
    ids = iter(range(1 << 62))

    def call(x: np.ndarray[Any, Any]) -> None:
        while not offloader.submit(next(ids), 1, "pristine", x.reshape(1, -1)):
            offloader.poll(1)
        replies = offloader.poll(1000 * WAIT_S)
        assert not replies[0].failed

    return call


def _connected(worker: TrivialWorker) -> ZmqOffloader:
    offloader = ZmqOffloader(worker.endpoint, MODEL, 1000 * WAIT_S, keys=worker.keys)
    offloader.connect(WAIT_S)
    return offloader


def ways(stack: contextlib.ExitStack) -> dict[str, Call]:
    """All kinds of round trip, by name."""
    import grpc
    import requests

    web, rpc, bare = (stack.enter_context(server(name)) for name in ("flask", "grpc", "pyzmq"))
    session = stack.enter_context(requests.Session())
    session.trust_env = False
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{rpc}"))
    answer = channel.unary_unary("/Bench/Answer")
    context = stack.enter_context(zmq.Context())
    dealer: zmq.Socket[bytes] = stack.enter_context(context.socket(zmq.DEALER))
    dealer.linger = 0
    dealer.connect(f"tcp://127.0.0.1:{bare}")

    def flask_json(x: np.ndarray[Any, Any]) -> None:
        session.post(f"http://127.0.0.1:{web}/json", json=x.tolist()).json()

    def flask_raw(x: np.ndarray[Any, Any]) -> None:
        np.frombuffer(session.post(f"http://127.0.0.1:{web}/raw", data=x.tobytes()).content, dtype=np.float32)

    def grpc_raw(x: np.ndarray[Any, Any]) -> None:
        np.frombuffer(answer(x.tobytes()), dtype=np.float32)

    def pyzmq(x: np.ndarray[Any, Any]) -> None:
        dealer.send_multipart([x.data], copy=False)
        np.frombuffer(dealer.recv_multipart(copy=False)[0].buffer, dtype=np.float32)

    return {
        "eex": eex_call(stack.enter_context(TrivialWorker()), stack),
        "eex, CURVE": eex_call(stack.enter_context(TrivialWorker(guarded=True)), stack),
        "bare pyzmq": pyzmq,
        "Flask, raw": flask_raw,
        "Flask, JSON": flask_json,
        "gRPC": grpc_raw,
    }


def round_trips(seconds: float) -> dict[str, dict[str, float]]:
    """Median round trip in milliseconds, by size and kind; the kinds take turns, for `seconds` per size."""
    found: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        calls = ways(stack)
        for size, count in SIZES.items():
            x = np.random.default_rng(0).random(count // 4, dtype=np.float32)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for call in calls.values():
                for _ in range(5):
                    call(x)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                for name, call in calls.items():
                    for _ in range(3 if name == "Flask, JSON" else 10):
                        start = time.perf_counter()
                        call(x)
                        times[name].append(1000 * (time.perf_counter() - start))
            found[size] = {name: statistics.median(t) for name, t in times.items()}
    return found


EDGE = """
import json, sys, time
import numpy as np
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import EdgeKeys, Pair
o = json.loads(sys.argv[1])
keys = EdgeKeys(Pair(*(k.encode() for k in o["keys"][:2])), o["keys"][2].encode()) if o["keys"] else None
offloader = ZmqOffloader(o["endpoint"], o["model"], 60_000, keys=keys)
offloader.connect(60)
print("ready", flush=True)
sys.stdin.readline()
x, done, id = np.zeros((1, 2048), dtype=np.float32), 0, 0
end = time.monotonic() + o["seconds"]
while time.monotonic() < end:
    while offloader.submit(id, 1, "pristine", x):
        id += 1
    done += len(offloader.poll(50))
print(done, flush=True)
"""


def throughput(seconds: float, guarded: bool = False) -> float:
    """Requests per second of 8 KiB from eight edges, each a process, to one worker."""
    with TrivialWorker(guarded) as worker, contextlib.ExitStack() as stack:
        keys = worker.keys
        options = {"endpoint": worker.endpoint, "model": MODEL, "seconds": seconds, "keys": None}
        if keys is not None:
            options["keys"] = [k.decode() for k in (keys.own.public, keys.own.secret, keys.worker)]
        edges = []
        for _ in range(EDGES):
            edge = subprocess.Popen(
                [sys.executable, "-c", EDGE, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(edge.wait)
            stack.callback(edge.kill)
            edges.append(edge)
        for edge in edges:
            assert edge.stdout is not None
            edge.stdout.readline()
        for edge in edges:
            assert edge.stdin is not None
            edge.stdin.write("\n")
            edge.stdin.flush()
        return sum(int(edge.stdout.readline()) for edge in edges if edge.stdout is not None) / seconds


class Play:
    """Requests one after another; as in a stream, a request without an answer holds up nothing."""

    def __init__(self, worker: TrivialWorker, deadline_ms: float = 500.0) -> None:
        self.offloader = ZmqOffloader(worker.endpoint, MODEL, deadline_ms, keys=worker.keys)
        self.offloader.connect(WAIT_S)
        self.x = np.zeros((4, 2048), dtype=np.float32)
        self.id = self.answered = 0
        self.took_ms: list[float] = []

    def step(self) -> None:
        """Send a request if possible, and collect replies."""
        self.id += 1
        self.offloader.submit(self.id, 1, "pristine", self.x)
        for reply in self.offloader.poll(1):
            self.answered += not reply.failed
            self.took_ms.append(reply.round_trip_ms)
        time.sleep(0.001)  # what the edge's own stages would take

    def until(self, what: Callable[[], bool]) -> float:
        """Go on until something is so; the milliseconds it took."""
        start = time.perf_counter()
        while not what():
            if time.perf_counter() - start > WAIT_S:
                return float("nan")
            self.step()
        return 1000 * (time.perf_counter() - start)

    def gone(self) -> bool:
        """No worker is believed to be alive."""
        return not self.offloader.reachable

    def again(self) -> Callable[[], bool]:
        """A function that tests whether an answer has come since."""
        before = self.answered
        return lambda: self.answered > before


def faults(folder: str) -> dict[str, float]:
    """How long faults go unnoticed, and how long until the worker is in use again, in milliseconds."""
    found: dict[str, float] = {}
    with TrivialWorker(guarded=True) as worker:
        play = Play(worker)
        play.until(play.again())
        os.kill(worker.process.pid, signal.SIGKILL)
        found["killed: noticed"] = play.until(play.gone)
        worker.kill()
        restarted = threading.Thread(target=worker.start)
        restarted.start()
        play.until(lambda: not restarted.is_alive())
        found["killed: in use again after it listens"] = play.until(play.again())
        os.kill(worker.process.pid, signal.SIGSTOP)
        found["stopped: noticed"] = play.until(play.gone)
        time.sleep(0.5)
        os.kill(worker.process.pid, signal.SIGCONT)
        found["continued: in use again"] = play.until(play.again())
        play.offloader.close()
    hang = os.path.join(folder, "hang")
    with TrivialWorker(guarded=True, hang=hang) as worker:
        play = Play(worker)
        play.until(play.again())
        open(hang, "w").close()
        play.took_ms.clear()
        found["model hangs: noticed"] = play.until(play.gone)
        end = time.perf_counter() + 3
        play.until(lambda: time.perf_counter() > end)
        found["model hangs: p99 beyond the deadline"] = (
            float(np.quantile(play.took_ms, 0.99)) - play.offloader.deadline_ms
        )
        os.remove(hang)
        found["model goes on: in use again"] = play.until(play.again())
        play.offloader.close()
    return found


def growth(requests: int, leak: int = 0) -> float:
    """Growth of a worker's memory in MiB over some requests of 8 KiB, after half as many to warm up."""
    with TrivialWorker(leak=leak) as worker, contextlib.closing(_connected(worker)) as offloader:
        x = np.zeros((1, 2048), dtype=np.float32)

        def ask(first: int, count: int) -> None:
            sent = done = 0
            while done < count:
                while sent < count and offloader.submit(first + sent, 1, "pristine", x):
                    sent += 1
                done += len(offloader.poll(1000))

        ask(0, requests // 2)
        before = worker.resident_kib()
        ask(requests, requests)
        return (worker.resident_kib() - before) / 1024


def hanging_growth(folder: str, seconds: float = 3.0) -> float:
    """Growth of this process in MiB while it offloads requests of 1 MiB to a worker that hangs."""

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    hang = os.path.join(folder, "hang")
    with TrivialWorker(guarded=True, hang=hang) as worker:
        play = Play(worker)
        play.x = np.zeros((1, 1 << 18), dtype=np.float32)
        play.until(play.again())
        before = most = resident()
        open(hang, "w").close()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            play.x = np.zeros((1, 1 << 18), dtype=np.float32)
            play.step()
            most = max(most, resident())
        os.remove(hang)
        play.offloader.close()
    return most - before


def main() -> None:
    """Measure and print."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds for each size, and for throughput")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args()
    trips = round_trips(options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, Any]] = {
            "round_trip_ms": trips,
            "requests_per_second": {
                "plain text": throughput(options.seconds),
                "CURVE": throughput(options.seconds, guarded=True),
            },
            "faults_ms": faults(folder),
            "grown_mib": {
                "worker, 10,000 requests": growth(10_000),
                "a worker that leaks 1 KiB per request": growth(10_000, leak=1024),
                "edge, its peer hangs": hanging_growth(folder),
            },
        }
    if options.json:
        print(json.dumps(found))
        return
    names = list(next(iter(trips.values())))
    print("median round trip, ms  " + "".join(f"{name:>13}" for name in names))
    for size, row in trips.items():
        print(f"{size:<23}" + "".join(f"{row[name]:>13.3f}" for name in names))
    for title in ("requests_per_second", "faults_ms", "grown_mib"):
        print(f"\n{title.replace('_', ' ')}")
        for name, value in found[title].items():
            print(f"  {name:<42}{value:>10,.1f}")


if __name__ == "__main__":
    main()
