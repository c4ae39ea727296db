"""Edges and workers over real sockets of this machine: what several tests play them with."""

import contextlib
import threading
import time

import numpy as np
import zmq
from simulated import WELCOME, tail

from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.protocol import Hello, Ping, Pong, ReplyHeader, Welcome, pack, unpack
from eex.stream.worker.front import Front
from eex.stream.worker.serve import serve

PATIENCE_S = 30.0  # for what must happen; nothing waits so long on an idle machine
A = Welcome("model-a", 3, ("pristine", "blur"), ("cat", "dog"), models=("model-a", "model-b"))
B = Welcome("model-b", 2, ("pristine",), ("cat", "dog"), models=("model-a", "model-b"))


def frames(n=1, value=0.0):
    return np.full((n, 2, 2), value, dtype=np.float32)


def features(n=1, value=0.0):
    return np.full((n, 4), value, dtype=np.float32)


@contextlib.contextmanager
def bound_router():
    """A bound ROUTER, for a test to play the worker with."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind("tcp://127.0.0.1:*")
        yield socket


def endpoint_of(socket):
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def collect(offloader, count):
    """The next `count` replies, by id."""
    replies, end = [], time.monotonic() + PATIENCE_S
    while len(replies) < count and time.monotonic() < end:
        replies += offloader.poll(100)
    assert len(replies) == count
    assert len({reply.id for reply in replies}) == count
    return {reply.id: reply for reply in replies}


def wait(offloader, until):
    """Let the offloader do what it does in the background until something is so; nothing may be awaited."""
    end = time.monotonic() + PATIENCE_S
    while not until() and time.monotonic() < end:
        assert not offloader.outstanding
        offloader.poll()
        time.sleep(0.002)
    assert until()


def submit(offloader, *arguments):
    """Submit as soon as a worker is there and its socket, whose queue is short, has room."""
    end = time.monotonic() + PATIENCE_S
    if not offloader.reachable:
        wait(offloader, lambda: offloader.reachable)
    while not (sent := offloader.submit(*arguments)) and time.monotonic() < end:
        time.sleep(0.001)
    assert sent


@contextlib.contextmanager
def serving(socket, tail=tail, welcome=WELCOME):
    """`serve` in a thread; yields what it logs."""
    stop, lines = threading.Event(), []
    thread = threading.Thread(target=serve, args=(socket, tail, stop, welcome, lines.append), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def offloading(socket, fingerprint="model-a", by_hand=False, **options):
    """An offloader; `by_hand` where the test plays the worker, and only greets."""
    endpoint = endpoint_of(socket)
    options = {"deadline_ms": 1000 * PATIENCE_S} | options
    with contextlib.closing(ZmqOffloader(endpoint, fingerprint, **options)) as offloader:
        if by_hand:
            greet(socket, offloader)
        yield offloader


def greet(router, offloader):
    end = time.monotonic() + PATIENCE_S
    while not offloader.reachable and time.monotonic() < end:
        offloader.poll()
        if router.poll(10):
            entertain(router, router.recv_multipart())
    assert offloader.reachable


def entertain(router, message):
    """Answer a hello or a ping; whether it was one."""
    client, *frames = message
    header, _ = unpack(frames)
    if isinstance(header, Hello):
        router.send_multipart([client, *pack(WELCOME)])
    elif isinstance(header, Ping):
        router.send_multipart([client, *pack(Pong(header.id))])
    return isinstance(header, Hello | Ping)


def receive(router):
    """The next request: (client, header, features)."""
    while True:
        assert router.poll(1000 * PATIENCE_S)
        message = router.recv_multipart()
        if not entertain(router, message):
            header, arrays = unpack(message[1:])
            return message[0], header, arrays[0]


def reply(router, client, id, confidence=(0.5,), prediction=(1,)):
    header = ReplyHeader(id, len(confidence), 2.0)
    arrays = np.array(confidence, dtype=np.float32), np.array(prediction, dtype=np.int32)
    router.send_multipart([client, *pack(header, *arrays)])


class Cloud:
    """A front with its socket, served in a thread."""

    def __init__(self, replicas, welcomes=(A, B), endpoint="tcp://127.0.0.1:*", **options):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(endpoint)
        self.endpoint = endpoint_of(self.socket)
        self.lines = []
        self.front = Front(self.socket, welcomes, replicas, log=self.lines.append, **options)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.front.serve, args=(self.stop,), daemon=True)
        self.thread.start()

    def edge(self, model="model-a", **options):
        offloader = ZmqOffloader(self.endpoint, model, 1000 * PATIENCE_S, **options)
        offloader.connect(PATIENCE_S)
        return contextlib.closing(offloader)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.socket.close(linger=0)
        self.context.term()


class Gate:
    """A tail that waits until it may go on, and tells the batches that it saw."""

    def __init__(self):
        self.entered, self.open, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, stage, expert, features):
        self.batches.append((stage, expert, len(features)))
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return np.full(len(features), 0.5), features.reshape(len(features), -1)[:, 0].astype(int)


def until(what):
    """Wait for another thread to make something so."""
    end = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    assert what()
