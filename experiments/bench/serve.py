"""`make bench-serve`: the shipped model behind `eex-serve`, beside the whole network behind FastAPI, in one run.

Each server is a process of its own; they are asked in turns, by the same client, with the same JPEG files.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded, share_cores

POINTS = 0.3
"""Points of accuracy that `eex-serve` may lose against the whole network."""
TIMES = 1.7
"""How many times the better rival's throughput is aimed at."""
START_S = 120.0

Server = Literal["eex", "torch", "onnxruntime"]
SERVERS: tuple[Server, ...] = ("eex", "torch", "onnxruntime")
Answered = tuple[str, float]
"""Class, and seconds."""


@dataclass(frozen=True)
class Bench:
    """Compare eex-serve with FastAPI on the shipped model: throughput and latency by the number of clients."""

    seconds: float = 6.0
    """How long each server is asked, by each number of clients."""
    rounds: int = 2
    """Turns of all servers; the best of each counts."""
    threads: int = 2
    """Threads of the network, in each server."""
    clients: tuple[int, ...] = (1, 8, 64)
    """Numbers of clients, each with one request at a time."""
    idle: int = 1000
    """Idle connections beside which eex-serve is asked once more, with a page that is not read."""
    json: bool = False
    """Print the rows as JSON."""
    server: Server | None = None
    """Be one of the servers; of use to this bench alone."""
    threshold: float = 0.0
    """Threshold of that server's exits."""
    model: Path | None = None
    """Folder of the exported model that eex-serve answers with. By default, the shipped model is exported."""


# ---- servers


def be_eex(threads: int, threshold: float, model: Path) -> None:
    """`eex-serve` with a fixed threshold; what no early exit answers goes through the rest of the network here.

    It serves an exported model, which ONNX Runtime runs faster than torch one image at a time: what a user who wants
    speed serves, and what the faster rival runs on too.
    """
    from eex.models.card import read_card
    from eex.stream.live.config import LiveConfig
    from eex.stream.network import use_threads
    from eex.stream.serving.config import ServeConfig
    from eex.stream.serving.run import serve

    use_threads(threads)
    stages = len(read_card(model).temperatures)
    exits = [f"{threshold:g}"] * (stages - 1) + ["0"]  # the final exit always answers for itself
    live = LiveConfig(
        model=model,
        backend="onnx",
        worker="none",
        partition=stages,
        policy="fixed",
        policy_option=(f"p_tar={','.join(exits)}",),
        batch=64,
        queue=256,
    )
    serve(live, ServeConfig(port=0, rate=1e9, most_connections=4096), say=lambda line: print(line, flush=True))


def be_fastapi(kind: Server, threads: int) -> None:
    """The usual way: an endpoint that decodes an image and runs the whole network on it."""
    import socket

    import fastapi
    import torch
    import uvicorn
    from fastapi.concurrency import run_in_threadpool

    from eex.experiments.bench.engine import Whole
    from eex.models.card import load
    from eex.models.export import to_onnx
    from eex.models.fast import optimised
    from eex.stream.frames.decoding import decode

    torch.set_num_threads(threads)
    net = load(None)
    classes, shape = net.classes, net.architecture.input_shape
    if kind == "torch":
        fast = optimised(net)

        def logits(x: Any) -> Any:
            with torch.inference_mode():
                images = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
                for i in range(fast.exits):
                    images = fast.stage(i, images)
                return fast.branch(fast.exits - 1, "pristine", images).numpy()

    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        data = to_onnx(Whole(net), torch.rand(2, *shape), "the whole network")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def logits(x: Any) -> Any:
            return session.run(None, {name: x})[0]

    def predict(body: bytes) -> dict[str, Any]:
        image = decode(body)
        found = logits((image.astype(np.float32) / 255).transpose(2, 0, 1)[None])[0]
        found = np.exp(found - found.max())
        index = int(found.argmax())
        return {"label": classes[index], "index": index, "confidence": float(found[index] / found.sum())}

    app = fastapi.FastAPI()

    async def answer(request: fastapi.Request) -> dict[str, Any]:
        found: dict[str, Any] = await run_in_threadpool(predict, await request.body())
        return found

    app.post("/v1/answer")(answer)
    bound = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([bound])


@contextlib.contextmanager
def started(kind: Server, bench: Bench, threshold: float, model: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; yields its host and port."""
    command = [sys.executable, "-m", "eex.experiments.bench.serve", "--server", kind]
    command += ["--threads", str(bench.threads), "--threshold", str(threshold), "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("serving on ")), "")
        if not line:
            raise EexError(f"the server '{kind}' did not start; are the extras serve and bench installed?")
        url = urlsplit(line.split()[2])
        yield url.hostname or "", url.port or 0
    finally:
        process.kill()
        process.wait(30)


# ---- the client


class Client:
    """One connection that is kept."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    async def __aenter__(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def ask(self, image: bytes) -> Answered:
        """Send an image and wait for its class."""
        head = b"POST /v1/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(image)
        began = time.perf_counter()
        self._writer.write(head + image)
        headers = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in headers.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        took = time.perf_counter() - began
        if not headers.startswith(b"HTTP/1.1 200"):
            raise EexError(f"a server answered {headers[:40]!r}: {body[:200]!r}")
        return json.loads(body)["label"], took


async def asked(address: tuple[str, int], images: Sequence[bytes], clients: int, seconds: float) -> list[float]:
    """Seconds that each request took, of so many clients that ask all the time."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def one(k: int) -> None:
        async with Client(address) as client:
            while time.perf_counter() < until:
                took.append((await client.ask(images[k % len(images)]))[1])
                k += clients

    await asyncio.gather(*(one(k) for k in range(clients)))
    return took


async def accuracy(address: tuple[str, int], images: Sequence[bytes], labels: Sequence[str]) -> float:
    """Share of the images answered right."""

    async def one(k: int) -> int:
        right = 0
        async with Client(address) as client:
            for i in range(k, len(images), 8):
                right += (await client.ask(images[i]))[0] == labels[i]
        return right

    return sum(await asyncio.gather(*map(one, range(8)))) / len(images)


@contextlib.asynccontextmanager
async def strangers(address: tuple[str, int], count: int) -> Any:
    """Idle connections, and a page of events that nobody reads."""
    idle = [await asyncio.open_connection(*address) for _ in range(count)]
    reader, writer = await asyncio.open_connection(*address, limit=1)
    writer.write(b"GET /v1/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    try:
        yield
    finally:
        for _, w in [*idle, (reader, writer)]:
            w.close()


# ---- the comparison


def threshold_of() -> float:
    """The threshold of equal accuracy, on the shipped images."""
    import torch

    from eex.experiments.bench.engine import best_threshold
    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.frames.sources import load_all, open_source
    from eex.stream.groups import every_exit

    images, labels, _ = load_all(open_source("sample", split="all"))
    net = optimised(load(None))
    found = [every_exit(net, torch.from_numpy(images[i : i + 200]).float() / 255) for i in range(0, len(images), 200)]
    confidence, prediction = (np.concatenate([row[k] for row in found]) for k in (0, 1))
    return round(best_threshold(confidence, prediction, labels)[0], 2)


def sample() -> tuple[list[bytes], list[str]]:
    """The shipped images as JPEG files, and their classes, in an order that mixes them."""
    import eex.stream.shipped

    folder = Path(next(iter(eex.stream.shipped.__path__)))
    with zipfile.ZipFile(folder / "cifar10-sample.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        order = np.random.default_rng(0).permutation(len(names))
        return [archive.read(names[k]) for k in order], [names[k].split("/")[0] for k in order]


def measure(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of server, clients, requests per second, p50 and p99 in milliseconds, accuracy."""
    from eex.models.export import export

    images, labels = sample()
    threshold = threshold_of()
    with contextlib.ExitStack() as stack:
        model = bench.model
        if model is None:
            model = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            export(None, model)
        addresses = {kind: stack.enter_context(started(kind, bench, threshold, model)) for kind in SERVERS}
        right = {kind: asyncio.run(accuracy(addresses[kind], images, labels)) for kind in SERVERS}
        for clients in bench.clients:
            best: dict[str, tuple[float, list[float]]] = {}
            for _ in range(bench.rounds):
                for kind in SERVERS:
                    took = asyncio.run(asked(addresses[kind], images, clients, bench.seconds))
                    if kind not in best or len(took) > len(best[kind][1]):
                        best[kind] = len(took) / bench.seconds, took
            for kind in SERVERS:
                rate, took = best[kind]
                yield _row(kind, clients, rate, took) | {"accuracy": right[kind], "threshold": threshold}
        yield from _beside(addresses["eex"], bench, images)


def _beside(address: tuple[str, int], bench: Bench, images: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """`eex-serve` alone and beside strangers, in turns."""

    async def with_strangers() -> list[float]:
        async with strangers(address, bench.idle):
            return await asked(address, images, 8, bench.seconds)

    alone, beside = [], []
    for _ in range(bench.rounds):
        alone.append(asyncio.run(asked(address, images, 8, bench.seconds)))
        beside.append(asyncio.run(with_strangers()))
    for name, took in (("eex, alone", max(alone, key=len)), (f"eex, {bench.idle} idle beside", max(beside, key=len))):
        yield _row(name, 8, len(took) / bench.seconds, took)


def _row(server: str, clients: int, rate: float, took: list[float]) -> dict[str, Any]:
    p50, p99 = 1000 * np.percentile(took, (50, 99))
    return {"server": server, "clients": clients, "per_second": rate, "p50_ms": float(p50), "p99_ms": float(p99)}


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows, and whether the aims are met."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("server", "clients", "requests/s", "p50, ms", "p99, ms", "accuracy"):
        table.add_column(title, justify="left" if title == "server" else "right")
    for row in rows:
        known = f"{row['accuracy']:.1%}" if "accuracy" in row else ""
        figures = (f"{row['per_second']:,.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", known)
        table.add_row(row["server"], str(row["clients"]), *figures)
    console.print(table)
    console.print("eex serves the model as eex-export writes it, in ONNX Runtime, at the threshold of equal accuracy.")
    for clients in dict.fromkeys(row["clients"] for row in rows):
        of = {row["server"]: row for row in rows if row["clients"] == clients and "accuracy" in row}
        mine, rivals = of["eex"], [row for name, row in of.items() if name != "eex"]
        times = mine["per_second"] / max(row["per_second"] for row in rivals)
        sooner = mine["p50_ms"] < min(row["p50_ms"] for row in rivals)
        console.print(
            f"{clients} clients: {times:.2f} times the better rival's throughput (aim: {TIMES}), p50 "
            f"{'lower' if sooner else 'higher'}"
        )


def _main() -> int:
    bench = tyro.cli(Bench, config=(tyro.conf.FlagCreatePairsOff,))
    share_cores()
    os.environ["OMP_NUM_THREADS"] = str(bench.threads)
    if bench.server == "eex":
        assert bench.model is not None
        be_eex(bench.threads, bench.threshold, bench.model)
    elif bench.server is not None:
        be_fastapi(bench.server, bench.threads)
    else:
        rows = list(measure(bench))
        if bench.json:
            print(json.dumps(rows))
        else:
            show(rows, Console(markup=False))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
