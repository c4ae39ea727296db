"""Images through the real engine, alone or with a worker process behind an emulated link."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eex.models.network import EarlyExitNet
from eex.policies.base import Policy
from eex.stream.engine import Engine, Rows

if TYPE_CHECKING:
    from eex.stream.offload import Offloader

PATIENCE_MS = 20_000.0
"""Deadline of a reply: long, because a paper's slow link must not turn into a fallback."""


@contextlib.contextmanager
def cloud(model: Path, fingerprint: str, link: str = "", threads: int = 1) -> "Iterator[Offloader]":
    """A worker process with a saved model, behind a link (`eex.policies.link`); yields what takes frames to it."""
    from eex.stream.edge import ZmqOffloader
    from eex.stream.embedded import EmbeddedWorker
    from eex.stream.link import emulated

    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(EmbeddedWorker([model], threads=threads))
        endpoints = [worker.endpoint(120.0)]
        if link:
            endpoints = stack.enter_context(emulated(link, endpoints))
        offloader = ZmqOffloader(endpoints, fingerprint, PATIENCE_MS, keys=worker.keys)
        stack.enter_context(contextlib.closing(offloader))
        offloader.connect(30.0)
        yield offloader


def play(
    net: EarlyExitNet,
    policy: Policy,
    images: Tensor,
    labels: Tensor,
    *,
    offloader: "Offloader | None" = None,
    batch: int = 32,
    one_by_one: bool = False,
    names: Sequence[str] = (),
) -> tuple[Rows, float]:
    """Frames in order through the engine; their rows, and the seconds from the first to the last answer.

    Parameters
    ----------
    net
        Usually `eex.models.fast.optimised`.
    images, labels
        Floats (N, C, H, W) in [0, 1], already distorted, and classes (N,).
    offloader
        Takes what does not leave on the edge; None runs the rest here.
    one_by_one
        Wait for the answers of a batch before feeding the next.
    """
    engine = Engine(net, policy, offloader, capacity=max(8192, 4 * batch))
    parts: list[Rows] = []
    device = net.mean.device
    started = time.perf_counter()
    for at in range(0, len(images), batch):
        x = images[at : at + batch].to(device)
        engine.feed(x, names or [""] * len(x), labels[at : at + batch].numpy(), np.zeros((len(x), 2)))
        if one_by_one:
            engine.drain()
        parts += list(engine.take())
    engine.drain()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    parts += list(engine.take())
    return Rows(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in Rows.__dataclass_fields__}), seconds
