"""The connections of a worker's socket are counted and bounded."""

import contextlib
import socket
import time

import pytest
import zmq
from loopback import PATIENCE_S

from eex.stream.worker.connections import Connections


@contextlib.contextmanager
def bounded(most=3, message_bytes=1 << 20):
    """A bound socket, its connections, and its port."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        connections = Connections(router, context, most, message_bytes)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        try:
            yield router, connections, port
        finally:
            connections.close()


def until(connections, what):
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        connections.update(time.monotonic())
        time.sleep(0.005)


def test_connections_come_and_go():
    with bounded() as (_, connections, port):
        with socket.create_connection(("127.0.0.1", port)):
            until(connections, lambda: len(connections) == 1)
        until(connections, lambda: len(connections) == 0)
        assert connections.ended == 0


def test_of_too_many_those_without_a_handshake_end_first():
    with (
        bounded(most=2) as (router, connections, port),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as known,
        contextlib.ExitStack() as stack,
    ):
        known.linger = 0
        known.connect(f"tcp://127.0.0.1:{port}")
        known.send(b"hello")
        assert router.poll(1000 * PATIENCE_S)
        frames = router.recv_multipart(copy=False)
        connections.update(time.monotonic())
        connections.took(frames[-1], frames[0].bytes, "", time.monotonic())
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        until(connections, lambda: connections.ended >= 3 and len(connections) <= 2)
        router.send_multipart([frames[0].bytes, b"still here"])
        assert known.poll(1000 * PATIENCE_S)


def test_strangers_are_ended_and_others_are_not():
    with (
        bounded() as (router, connections, port),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as a,
        context.socket(zmq.DEALER) as b,
    ):
        for client, name in ((a, b"a"), (b, b"b")):
            client.linger = 0
            client.connect(f"tcp://127.0.0.1:{port}")
            client.send(name)
        for _ in range(2):
            assert router.poll(1000 * PATIENCE_S)
            frames = router.recv_multipart(copy=False)
            connections.update(time.monotonic())
            connections.took(frames[-1], frames[0].bytes, frames[-1].bytes.decode(), time.monotonic())
        connections.end_strangers(lambda key: key == "b")
        assert connections.ended == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="reads what the kernel has received")
def test_a_message_that_is_too_large_is_ended_before_it_is_whole():
    with (
        bounded(message_bytes=1 << 20) as (_, connections, port),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as client,
    ):
        client.linger = 0
        client.connect(f"tcp://127.0.0.1:{port}")
        part = bytes(1 << 20)
        for k in range(200):
            client.send(part, zmq.SNDMORE if k < 199 else 0, copy=False)
        end = time.monotonic() + PATIENCE_S
        while not connections.ended:
            assert time.monotonic() < end
            connections.update(time.monotonic())
            connections.check(time.monotonic(), lambda: True)
