"""What the tests of faults and strangers share: a network that breaks, a stream that counts."""

import contextlib
import os
import select
import socket
import threading
import time

import numpy as np
import torch
from torch import nn

from eex.experiments.bench.trivial_worker import MODEL
from eex.models.network import Architecture, EarlyExitNet
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.wire.client import ZmqOffloader

PATIENCE_S = 60.0  # for what must happen; an idle machine takes a hundredth of it


class Link:
    """A TCP relay to an endpoint, which can be cut without a word: then bytes wait, as where packets are lost."""

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = threading.Event()
        self.up.set()
        self.from_clients = bytearray()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        pairs = {}
        while not self._ended.is_set():
            if not self.up.is_set():
                self.up.wait(0.05)
                continue
            for ready in select.select([self._listener, *pairs], [], [], 0.05)[0]:
                try:
                    if ready is self._listener:
                        client = self._listener.accept()[0]
                        worker = socket.create_connection(self._to, timeout=1)
                        pairs |= {client: (worker, True), worker: (client, False)}
                        continue
                    other, is_client = pairs[ready]
                    data = ready.recv(1 << 16)
                    if is_client:
                        self.from_clients += data
                    if not data:
                        raise ConnectionError
                    other.sendall(data)
                except (OSError, KeyError):
                    if ready in pairs:
                        for s in (ready, pairs[ready][0]):
                            s.close()
                            pairs.pop(s, None)
                    elif ready is self._listener:
                        client.close()
        for s in pairs:
            s.close()
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.up.set()
        self._thread.join(PATIENCE_S)


def tiny_net():
    architecture = Architecture("custom", tuple("abcd"), (0,), ("custom",) * 2, input_shape=(3, 2, 2))
    branches = [{"pristine": nn.Sequential(nn.Flatten(), nn.Linear(12, 4))} for _ in range(2)]
    return EarlyExitNet([nn.Identity(), nn.Identity()], branches, architecture).eval()


class Stream:
    """A stream whose every frame is hard; it counts what becomes of them.

    Attributes
    ----------
    fallback, latency_ms
        Of the frames answered so far, in order.
    """

    def __init__(self, *endpoints, deadline_ms=1000.0, keys=None, batch=4):
        torch.manual_seed(0)
        self.batch, self.fed = batch, 0
        self.offloader = ZmqOffloader(endpoints, MODEL, deadline_ms, keys=keys)
        self.offloader.connect(PATIENCE_S)
        self.engine = Driver(tiny_net(), make_policy("fixed", {"p_tar": "1.0"}, exits=1), self.offloader)
        self.frames, self.fallback, self.latency_ms, self.answer = [], [], [], []

    def feed(self):
        """One micro-batch."""
        n = self.batch
        labels = np.zeros(n, dtype=np.int64)
        self.engine.feed(Batch(torch.rand(n, 3, 2, 2), [""] * n, labels))
        self.fed += n
        self._take()

    def feed_until(self, what, limit_s=PATIENCE_S):
        """Feed until something is so; how long it took, in seconds."""
        start = time.monotonic()
        while not what():
            assert time.monotonic() - start < limit_s
            self.feed()
        return time.monotonic() - start

    def answered(self, more=8):
        """A function that says whether the cloud has answered this many more frames."""
        before = self.from_cloud()
        return lambda: self.from_cloud() >= before + more

    def from_cloud(self):
        return len(self.fallback) - sum(self.fallback)

    def end(self):
        """End the stream: every frame has one answer, none two."""
        self.engine.drain()
        self._take()
        report = self.offloader.report()
        self.offloader.close()
        assert self.frames == list(range(self.fed))
        assert all(0 <= a < 4 for a in self.answer)
        assert report["requests"] == report["replies"] + report["missed_deadlines"] + report["lost"] + report["failed"]
        return report

    def _take(self):
        for rows in self.engine.take():
            self.frames += rows.frame.tolist()
            self.fallback += rows.fallback.tolist()
            self.latency_ms += rows.latency_ms.tolist()
            self.answer += rows.answer.tolist()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.offloader.close()


@contextlib.contextmanager
def unwritable(kind):
    """A file that takes no lines: on "a full device", or "a pipe that nobody reads", which is full."""
    with contextlib.ExitStack() as stack:
        if kind == "a full device":
            yield stack.enter_context(open("/dev/full", "w"))
            return
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        yield stack.enter_context(os.fdopen(writer, "w"))
