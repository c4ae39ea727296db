"""Strangers get nowhere, and the clients that are known are served meanwhile: a worker process under attack."""

import contextlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
import zmq
from faults import PATIENCE_S, Link, Stream

from eex.experiments.bench.fuzz_worker import fuzz_unpack, fuzz_worker
from eex.experiments.bench.trivial_worker import MODEL, TrivialWorker
from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import EdgeKeys, new_pair
from eex.stream.wire.protocol import Hello, Request, Welcome, pack, unpack
from eex.stream.wire.reach import UnreachableError

pytestmark = [pytest.mark.timeout(240), pytest.mark.process]

NOTICE_S = 2.0


def turned_away(endpoint, keys):
    """Why an edge is not let in, and how long it took to find out."""
    offloader = ZmqOffloader(endpoint, MODEL, keys=keys)
    start = time.monotonic()
    with pytest.raises(OffloadError) as caught:
        offloader.connect(PATIENCE_S)
    return str(caught.value), time.monotonic() - start


def request(id=7, **changes):
    """A good request, or one whose header is then changed."""
    header = Request(id, MODEL, 1, "pristine", "float32", (2, 12))
    frames = [bytes(f) for f in pack(header, np.zeros((2, 12), dtype=np.float32))]
    if changes:
        frames[0] = msgspec.msgpack.encode(msgspec.msgpack.decode(frames[0]) | changes)
    return frames


@contextlib.contextmanager
def dealer(endpoint, **options):
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        for name, value in options.items():
            setattr(client, name, value)
        client.connect(endpoint)
        yield client


# ---- keys


def test_who_is_not_known_learns_why_while_others_are_served():
    with TrivialWorker(guarded=True) as worker, Stream(worker.endpoint, keys=worker.keys) as stream:
        stranger = new_pair()
        found = {
            "no key": turned_away(worker.endpoint, None),
            "unknown key": turned_away(worker.endpoint, EdgeKeys(stranger, worker.keys.worker)),
            "wrong worker": turned_away(worker.endpoint, EdgeKeys(worker.keys.own, new_pair().public)),
        }
        assert "clients with keys only" in found["no key"][0]
        assert "know this edge's key" in found["unknown key"][0]
        assert "worker.pub" in found["wrong worker"][0]
        assert all(seconds < 5 * NOTICE_S for _, seconds in found.values()), found  # here others share the cores
        stream.feed_until(stream.answered())
        stream.end()


def test_an_edge_with_keys_does_not_talk_to_a_worker_without():
    with TrivialWorker() as worker:
        found, _ = turned_away(worker.endpoint, EdgeKeys(new_pair(), new_pair().public))
        assert "plain text" in found


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_connections_that_use_up_all_descriptors_do_not_end_the_worker():
    with TrivialWorker(guarded=True) as worker, Stream(worker.endpoint, keys=worker.keys) as stream:
        stream.feed_until(stream.answered())
        pid = worker.process.pid
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 10, open_now + 10))
        host, port = worker.endpoint.removeprefix("tcp://").split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
            stream.feed_until(stream.answered(40))
        stream.feed_until(stream.answered(40))
        assert worker.process.poll() is None
        stream.end()


def test_a_recorded_connection_cannot_be_replayed():
    with (
        TrivialWorker(guarded=True) as worker,
        Link(worker.endpoint) as link,
        Stream(link.endpoint, keys=worker.keys) as stream,
    ):
        stream.feed_until(stream.answered())
        recorded = bytes(link.from_clients)
        assert len(recorded) > 1000
        host, port = worker.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as replay:
            with contextlib.suppress(ConnectionError):
                replay.sendall(recorded)
            answered = 0
            with contextlib.suppress(ConnectionError):
                while data := replay.recv(1 << 16):
                    answered += len(data)
        assert answered < 1000  # a greeting and a handshake that led nowhere
        before = stream.from_cloud()
        stream.feed_until(lambda: stream.from_cloud() > before)
        stream.end()


# ---- messages


MESSAGES = pytest.mark.parametrize("messages", [10_000, pytest.param(100_000, marks=pytest.mark.soak)])


@MESSAGES
def test_mutated_messages_to_unpack(messages):
    fuzz_unpack(messages)


@MESSAGES
def test_mutated_messages_to_a_live_worker(messages):
    with TrivialWorker() as worker, dealer(worker.endpoint) as attack:
        other = ZmqOffloader(worker.endpoint, MODEL, deadline_ms=1000 * PATIENCE_S)
        with contextlib.closing(other):
            other.connect(PATIENCE_S)
            found = fuzz_worker(attack, other, messages, worker.resident_kib)
        assert found.failed == 0
        assert found.grown_kib < 8 << 10
        assert worker.process.poll() is None


def test_a_header_that_announces_terabytes():
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream, dealer(worker.endpoint) as client:
        before = worker.resident_kib()
        for shape in ([1 << 26] * 8, [1 << 20, 1 << 20], [1, 1 << 26]):
            client.send_multipart(request(shape=shape))
            assert client.poll(1000 * PATIENCE_S)
            header, _ = unpack(client.recv_multipart())
            assert header.refusal == "message"
        stream.feed_until(stream.answered())
        assert worker.resident_kib() - before < 8 << 10
        stream.end()


def test_a_frame_that_announces_terabytes():
    """ZMTP's own length: a worker in the clear closes the connection and allocates nothing."""
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream:
        before = worker.resident_kib()
        host, port = worker.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as s:
            s.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\0" + bytes(31))
            ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
            s.sendall(b"\x04" + bytes([len(ready)]) + ready)
            s.sendall(b"\x02" + struct.pack(">Q", 1 << 42))
            with contextlib.suppress(ConnectionError):
                while s.recv(1 << 16):
                    pass  # until it closes
        stream.feed_until(stream.answered())
        assert worker.resident_kib() - before < 8 << 10
        stream.end()


HAMMER = """
import json, os, socket, sys, threading, time
import zmq
endpoint, worker = sys.argv[1], sys.argv[2].encode()
host, port = endpoint.removeprefix("tcp://").split(":")
ended, counts = threading.Event(), dict.fromkeys(("unknown key", "garbage", "half open"), 0)

def unknown_key():
    with zmq.Context() as context:
        while not ended.is_set():
            with context.socket(zmq.DEALER) as stranger:
                stranger.linger = 0
                stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
                stranger.curve_serverkey = worker
                monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                stranger.connect(endpoint)
                counts["unknown key"] += bool(monitor.poll(2000))
                stranger.disable_monitor()

def garbage():
    while not ended.is_set():
        try:
            with socket.create_connection((host, int(port)), timeout=2) as s:
                s.sendall(os.urandom(4096))
                counts["garbage"] += 1
                s.recv(4096)
        except OSError:
            pass

def half_open():
    held = []
    while not ended.is_set():
        try:
            held.append(socket.create_connection((host, int(port)), timeout=2))
            held[-1].sendall(b"\\xff" + bytes(8))  # the beginning of a greeting, and no more
            counts["half open"] += 1
        except OSError:
            pass
        if len(held) > 50:
            held.pop(0).close()
        time.sleep(0.01)

threads = [threading.Thread(target=f, daemon=True) for f in (unknown_key, garbage, half_open)]
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.readline()
ended.set()
threads[0].join(10)
print(json.dumps(counts), flush=True)
"""


def round_trips(offloader, first, seconds):
    """Requests one after another for some seconds: their round trips in ms, and how many were not answered."""
    took, failed, end = [], 0, time.monotonic() + seconds
    while time.monotonic() < end or len(took) < 100:
        assert offloader.submit(first + len(took), 1, "pristine", np.zeros((1, 12), dtype=np.float32))
        (reply,) = offloader.poll(1000 * PATIENCE_S)
        took.append(reply.round_trip_ms)
        failed += bool(reply.failed)
    return np.array(took), failed


def test_who_is_known_is_answered_in_time_while_strangers_hammer():
    with TrivialWorker(guarded=True) as worker:
        known = ZmqOffloader(worker.endpoint, MODEL, deadline_ms=5000.0, keys=worker.keys)
        with contextlib.closing(known):
            known.connect(PATIENCE_S)
            alone, failed_alone = round_trips(known, 0, 1)
            command = [sys.executable, "-c", HAMMER, worker.endpoint, worker.keys.worker.decode()]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hammer:
                try:
                    assert hammer.stdout.readline() == "ready\n"
                    among, failed = round_trips(known, len(alone), 2)
                    strangers = json.loads(hammer.communicate("\n", timeout=PATIENCE_S)[0])
                finally:
                    hammer.kill()
            found = {name: np.quantile(took, (0.5, 0.99)) for name, took in (("alone", alone), ("among", among))}
            print(f"round trips, median and p99 in ms: {found}; strangers: {strangers}")
            assert min(strangers.values()) >= 5, strangers
            assert failed_alone == failed == 0
            assert known.report()["missed_deadlines"] == 0
            assert found["among"][0] < 1000, found  # a hundredth of it on an idle machine
            assert known.report()["replies"] == len(alone) + len(among)


def test_a_message_that_comes_twice_is_answered_twice_and_changes_nothing():
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream, dealer(worker.endpoint) as client:
        for _ in range(2):
            client.send_multipart(request())
        for _ in range(2):
            assert client.poll(1000 * PATIENCE_S)
            header, arrays = unpack(client.recv_multipart())
            assert (header.id, header.frames, arrays[1].tolist()) == (7, 2, [1, 1])
        stream.feed_until(stream.answered())
        stream.end()


def test_a_client_that_never_reads_its_replies():
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream:
        before = worker.resident_kib()
        with dealer(worker.endpoint, rcvhwm=1, rcvbuf=1024, sndhwm=4) as client:
            sent, end = 0, time.monotonic() + 2
            while time.monotonic() < end and sent < 20_000:
                with contextlib.suppress(zmq.Again):
                    client.send_multipart(request(sent), zmq.NOBLOCK)
                    sent += 1
                stream.feed()
            assert sent > 8
        stream.feed_until(stream.answered())
        assert worker.resident_kib() - before < 32 << 10
        stream.end()


def test_garbage_over_plain_tcp():
    limits = {"handshake_s": 1.0}
    with TrivialWorker(guarded=True, limits=limits) as worker, Stream(worker.endpoint, keys=worker.keys) as stream:
        host, port = worker.endpoint.removeprefix("tcp://").split(":")
        rng = np.random.default_rng(0)
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", rng.bytes(1 << 16), b"\xff" + bytes(9), b""):
            with (
                socket.create_connection((host, int(port)), timeout=PATIENCE_S) as s,
                contextlib.suppress(ConnectionError),
            ):
                s.sendall(garbage)
                while s.recv(1 << 16):
                    stream.feed()  # until the worker closes, within a second of handshake
        stream.feed_until(stream.answered())
        stream.end()


def test_more_clients_and_requests_than_the_worker_takes():
    with (
        TrivialWorker(limits={"clients": 2}, window=4, delay_s=0.2) as worker,
        Stream(worker.endpoint, deadline_ms=20_000) as stream,
    ):
        with dealer(worker.endpoint) as greedy:
            for id in range(12):
                greedy.send_multipart(request(id))
            headers = []
            for _ in range(12):
                assert greedy.poll(1000 * PATIENCE_S)
                headers.append(unpack(greedy.recv_multipart())[0])
            assert {h.refusal for h in headers} == {"", "busy"}
            assert sum(h.frames > 0 for h in headers) >= 4
            late = ZmqOffloader(worker.endpoint, MODEL)
            with pytest.raises(UnreachableError, match="the worker serves 2 clients already"):
                late.connect(1.0)
        stream.feed_until(stream.answered())
        assert stream.end()["refused"] == 0


def test_more_clients_and_requests_of_one_key_than_the_worker_takes():
    """One key gets no more by opening many connections; those that it had first are served."""
    limits = {"key_clients": 3, "key_requests": 5}
    with TrivialWorker(guarded=True, limits=limits, window=4, delay_s=0.5) as worker, contextlib.ExitStack() as stack:
        own = worker.keys
        options = {"curve_serverkey": own.worker, "curve_publickey": own.own.public, "curve_secretkey": own.own.secret}
        clients = [stack.enter_context(dealer(worker.endpoint, **options)) for _ in range(6)]
        welcomed = []
        for client in clients:
            client.send_multipart([bytes(frame) for frame in pack(Hello(1, MODEL))])
            assert client.poll(1000 * PATIENCE_S)
            header, *_ = unpack(client.recv_multipart())
            if isinstance(header, Welcome):
                welcomed.append(client)
            else:
                assert (header.refusal, header.id) == ("clients", 1)
                assert header.error == "the worker serves 3 clients with the key 'edge' already"
        assert welcomed == clients[:3]
        for id in range(4):
            for client in welcomed:
                client.send_multipart(request(10 + id))
        found = []
        for client in welcomed:
            for _ in range(4):
                assert client.poll(1000 * PATIENCE_S)
                found.append(unpack(client.recv_multipart())[0])
        assert {header.refusal for header in found} == {"", "busy"}
        assert any(header.error == "5 requests of the key 'edge' are under way already" for header in found)
        assert sum(header.frames > 0 for header in found) >= 5
        welcomed[0].send_multipart(request(99))
        assert welcomed[0].poll(1000 * PATIENCE_S)
        assert unpack(welcomed[0].recv_multipart())[0].frames == 2
