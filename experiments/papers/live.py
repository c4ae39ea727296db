"""Images through the real engine, alone or with a worker process over an emulated link."""

import contextlib
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eex.models.network import EarlyExitNet
from eex.policies.core.base import Policy
from eex.policies.core.columns import Rows, joined
from eex.policies.core.errors import OffloadError
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch

if TYPE_CHECKING:
    from eex.stream.wire.offload import Offloader

PATIENCE_MS = 20_000.0
"""Deadline of a reply: long, because a paper's slow link must not turn into a fallback."""


@contextlib.contextmanager
def cloud(model: Path, fingerprint: str, link: str) -> "Iterator[Offloader]":
    """A worker process with a saved model, over a link (`eex.policies.core.link`); yields an offloader to it."""
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.emulated_link import emulated
    from eex.stream.worker.embedded import EmbeddedWorker

    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(EmbeddedWorker([model], threads=1))
        endpoints = [worker.endpoint(120.0)]
        if link:
            endpoints = stack.enter_context(emulated(link, endpoints))
        offloader = ZmqOffloader(endpoints, fingerprint, PATIENCE_MS, keys=worker.keys)
        stack.enter_context(contextlib.closing(offloader))
        offloader.connect(30.0)
        yield offloader


@contextlib.contextmanager
def tiers(
    model: Path, fingerprint: str, partition: int, p_tar: float, near: str, far: str
) -> "Iterator[tuple[Offloader, Callable[[], dict[str, int]]]]":
    """A worker between edge and cloud: eex-worker --upstream and the worker upstream, each over a link of its own.

    Yields an offloader to the nearer worker, and a function that reads its counts: frames answered `here`,
    `forwarded` and, of those, `fallback`.
    """
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.emulated_link import emulated
    from eex.stream.wire.keys import edge_keys, make_keys

    with contextlib.ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("near", "far"):
            make_keys(keys / name)
        top, _ = stack.enter_context(_worker(model, keys / "far"))
        if far:
            [top] = stack.enter_context(emulated(far, [top]))
        patience = ("--deadline-ms", str(PATIENCE_MS / 2))
        upstream = ("--upstream", top, "--upstream-keys", str(keys / "far"), "--partition", str(partition))
        middle, metrics = stack.enter_context(
            _worker(model, keys / "near", *upstream, "--p-tar", str(p_tar), *patience, "--metrics-port", "0")
        )
        [middle] = stack.enter_context(emulated(near, [middle]))
        offloader = ZmqOffloader([middle], fingerprint, PATIENCE_MS, keys=edge_keys(keys / "near"))
        stack.enter_context(contextlib.closing(offloader))
        offloader.connect(30.0)

        def counted() -> dict[str, int]:
            with urllib.request.urlopen(metrics, timeout=10) as reply:
                lines = reply.read().decode().splitlines()
            found = {}
            for line in lines:
                if line.startswith("eex_upstream_frames_total{"):
                    found[line.split('"')[1]] = int(float(line.split()[-1]))
            return found

        yield offloader, counted


@contextlib.contextmanager
def _worker(model: Path, keys: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """`eex-worker` in a process of its own, which ends with this one; yields its endpoint and its metrics' address."""
    from eex.stream.wire.keys import WORKER, edge_keys, read_pair
    from eex.stream.worker.embedded import COMMAND, READY

    command = [*COMMAND, str(model), "--bind", "tcp://127.0.0.1:*", "--threads", "1", "--with-parent", *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            secret, client = read_pair(keys / f"{WORKER}.key").secret, edge_keys(keys).own.public
            process.stdin.write(f"{secret.decode()} {client.decode()}\n")
            process.stdin.flush()
            metrics = ""
            for line in process.stdout:
                if line.startswith(READY):
                    yield line.removeprefix(READY).strip(), metrics
                    break
                if address := re.search(r"http://\S+/metrics", line):
                    metrics = address[0]
            else:
                raise OffloadError("the worker could not start; its message is above")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def play(
    net: EarlyExitNet,
    policy: Policy,
    images: Tensor,
    labels: Tensor,
    *,
    offloader: "Offloader | None" = None,
    batch: int = 32,
    one_by_one: bool = False,
) -> tuple[Rows, float]:
    """Frames in order through the engine; their rows, and the seconds from the first to the last answer.

    Parameters
    ----------
    net
        Usually `eex.models.fast.optimised`.
    images, labels
        Floats (N, C, H, W) in [0, 1], already distorted, and classes (N,).
    offloader
        Offloads what does not leave on the edge; None runs the rest of the network here.
    one_by_one
        Wait for the answers of a batch before feeding the next.
    """
    engine = Driver(net, policy, offloader, capacity=max(8192, 4 * batch))
    parts: list[Rows] = []
    device = net.mean.device
    started = time.perf_counter()
    for at in range(0, len(images), batch):
        x = images[at : at + batch].to(device)
        engine.feed(Batch(x, [""] * len(x), labels[at : at + batch].numpy()))
        if one_by_one:
            engine.drain()
        parts += list(engine.take())
    engine.drain()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    parts += list(engine.take())
    return joined(parts), seconds
