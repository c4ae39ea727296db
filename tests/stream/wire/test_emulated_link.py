"""The emulated link: bytes pass unchanged, as late as it says; compared with a real stack where there is one."""

import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from eex.policies.core.errors import EexError
from eex.policies.core.link import FIRST_WINDOW, parse_link, transfer_ms
from eex.stream.wire.emulated_link import LEAST_TIMEOUT_S, Relay, emulated
from eex.stream.wire.reach import split

pytestmark = pytest.mark.timeout(60)

PATIENCE_S = 20.0
SLACK_S = 3.0  # for a busy machine: nothing is concluded from what takes longer than it must


def read(connection, count):
    got = b""
    while len(got) < count:
        piece = connection.recv(count - len(got))
        if not piece:
            break
        got += piece
    return got


def answer(connection):
    """Requests are (bytes that follow, bytes wanted), eight each; answered once all is there."""
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := read(connection, 16):
            size, wanted = (int.from_bytes(head[k : k + 8], "big") for k in (0, 8))
            body = read(connection, size)
            connection.sendall((body * (wanted // max(1, len(body)) + 1) if body else bytes(wanted))[:wanted])


def ask(connection, body, wanted):
    """Send bytes, receive bytes; those, and the seconds that it took."""
    start = time.monotonic()
    connection.sendall(len(body).to_bytes(8, "big") + wanted.to_bytes(8, "big") + body)
    got = read(connection, wanted)
    return got, time.monotonic() - start


@pytest.fixture
def server():
    """The port of a server that answers."""
    door = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(door.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield door.getsockname()[1]
    door.close()


@contextlib.contextmanager
def relayed(text, *ports):
    """A relay in a thread; yields its ports."""
    relay, stop = Relay(parse_link(text), [("127.0.0.1", port) for port in ports]), threading.Event()
    thread = threading.Thread(target=relay.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield relay.ports
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def test_bytes_pass_unchanged(server):
    body = np.random.default_rng(0).bytes(3_000_000)
    with relayed("1@2000, jitter=1", server) as (port,), connect(port) as connection:
        for size in (0, 1, 1000, len(body)):
            assert ask(connection, body[:size], size)[0] == body[:size]


def test_a_round_trip_takes_as_long_as_it_says(server):
    with relayed("120@50", server) as (port,):
        start = time.monotonic()
        with connect(port) as connection:
            ask(connection, b"", 1)
            assert 0.24 <= time.monotonic() - start <= 0.24 + SLACK_S  # one for TCP's own handshake
            took = [ask(connection, b"x", 1)[1] for _ in range(3)]
    assert 0.12 <= min(took) <= 0.12 + SLACK_S


def test_the_rate_is_shared_by_all_connections(server):
    with relayed("1@20", server, server) as ports, connect(ports[0]) as one, connect(ports[1]) as other:
        took = {}

        def send(name, connection):
            took[name] = ask(connection, bytes(500_000), 1)[1]

        threads = [threading.Thread(target=send, args=pair) for pair in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert 0.37 <= max(took.values()) <= 0.4 + SLACK_S  # a million bytes at 20 Mbit/s, less what threads start late
        assert ask(one, b"", 500_000)[1] >= 0.19  # the way back has a rate of its own


@pytest.mark.parametrize("size", [FIRST_WINDOW - 16, 60_000, 300_000])
def test_a_connection_starts_slowly(server, size):
    with relayed("100@80", server) as (port,), connect(port) as connection:
        expected = (transfer_ms(size + 16, 100, 80) + 50) / 1000
        ask(connection, b"", 1)
        _, took = ask(connection, bytes(size), 1)
        assert expected - 0.02 <= took <= expected + SLACK_S
        warm = (transfer_ms(size + 16, 100, 80, window=1e9) + 50) / 1000
        ask(connection, bytes(size), 1)
        assert warm - 0.001 <= ask(connection, bytes(size), 1)[1] <= took + SLACK_S


def test_a_connection_that_paused_starts_slowly_again(server):
    with relayed("60@80", server) as (port,), connect(port) as connection:
        ask(connection, bytes(400_000), 1)
        time.sleep(8 * (LEAST_TIMEOUT_S + 0.06))
        assert ask(connection, bytes(60_000), 1)[1] >= (transfer_ms(60_016, 60, 80) + 30) / 1000 - 0.02


def test_an_outage_holds_bytes_back_and_loses_none(server):
    with relayed("10@100:0.5s, down:0.5s, 10@100:1000s", server) as (port,):
        start = time.monotonic()
        with connect(port) as connection:
            answered = []
            for k in range(200):
                assert ask(connection, bytes([k]) * 9, 9)[0] == bytes([k]) * 9
                answered.append(time.monotonic() - start)
                if answered[-1] > 2.0:
                    break
                time.sleep(0.01)
    gap = max(b - a for a, b in itertools.pairwise(answered))
    assert gap >= 0.45
    back = answered[int(np.argmax(np.diff(answered))) + 1]
    assert 1.0 <= back <= 1.8 + SLACK_S  # TCP tries again 0.2, 0.6 and 1.4 s later, so not at once


@pytest.mark.parametrize("down", [5, 60, 600])
def test_a_connection_recovers_soon_after_its_link(down):
    """However long the outage: an edge makes a connection anew that has said nothing for three seconds."""
    relay = Relay(parse_link(f"10@100:1s, down:{down}s, 10@100:1000s"), [])
    for leaves in (1.1, 1.5, 3.0):
        arrives, lost = relay._flight(relay._began + leaves, 100)
        assert lost
        assert 0 < arrives - relay._began - 1 - down < 3.1


def test_bytes_that_no_up_time_is_long_enough_for_never_arrive():
    relay = Relay(parse_link("400@10:0.1s, down:1s"), [])
    assert relay._flight(relay._began, 100) == (float("inf"), True)
    with relayed("400@10:0.1s, down:1s", 9) as (port,):
        for _ in range(2):  # which does not end the relay
            with connect(port) as connection:
                connection.settimeout(0.3)
                connection.sendall(bytes(16))
                with pytest.raises(TimeoutError):
                    connection.recv(1)


def test_a_link_that_is_down_says_nothing(server):
    with relayed("down", server) as (port,), connect(port) as connection:
        connection.settimeout(0.3)
        connection.sendall(bytes(16))
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_either_end_may_close(server):
    with relayed("20", server) as (port,):
        with connect(port) as connection:
            connection.sendall(bytes(16))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(PATIENCE_S)
            assert connection.recv(1) == b""  # the server noticed, and closed
        with socket.create_server(("127.0.0.1", 0)) as door:
            free = door.getsockname()[1]
    with relayed("1", free) as (port,), connect(port) as connection:  # nobody listens there
        connection.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_jitter_keeps_the_order(server):
    body = np.random.default_rng(1).bytes(200_000)
    with relayed("40@100, jitter=40", server) as (port,), connect(port) as connection:
        took = []
        for _ in range(5):
            got, seconds = ask(connection, body, len(body))
            assert got == body
            took.append(seconds)
    assert min(took) >= 0.015


def test_a_relay_of_its_own_carries_curve(server):
    with zmq.Context() as context, context.socket(zmq.REP) as reply, context.socket(zmq.REQ) as request:
        for end in (reply, request):
            end.linger = 0
        public, secret = zmq.curve_keypair()
        reply.curve_server, reply.curve_secretkey = True, secret
        port = reply.bind_to_random_port("tcp://127.0.0.1")
        with emulated("50@100", [f"tcp://127.0.0.1:{port}"]) as (endpoint,):
            assert endpoint != f"tcp://127.0.0.1:{port}"
            request.curve_serverkey = public
            request.curve_publickey, request.curve_secretkey = zmq.curve_keypair()
            request.connect(endpoint)
            for k in range(3):
                start = time.monotonic()
                request.send(bytes([k]) * 100)
                assert reply.poll(1000 * PATIENCE_S)
                reply.send(reply.recv())
                assert request.poll(1000 * PATIENCE_S)
                assert request.recv() == bytes([k]) * 100
            assert time.monotonic() - start >= 0.05
        host, door = split(endpoint)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, door), 1.0)


def test_a_relay_that_dies_is_not_passed_over(monkeypatch):
    relays, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **options: relays.append(popen(*a, **options)) or relays[-1])
    link = contextlib.ExitStack()
    link.enter_context(emulated("12", ["tcp://127.0.0.1:9"]))
    relays[0].kill()
    relays[0].wait(PATIENCE_S)
    with pytest.warns(UserWarning, match=r"--link\) ended early, with exit status -9"):
        link.close()


@pytest.mark.parametrize(("link", "endpoint"), [("slow", "tcp://127.0.0.1:1"), ("12", "here"), ("12", "tcp://x:")])
def test_what_cannot_be_emulated(link, endpoint):
    with pytest.raises(EexError, match=r"link 'slow'|not a worker's endpoint"), emulated(link, [endpoint]):
        pass


def test_a_host_that_nobody_knows_yet_has_its_connections_ended():
    stop = threading.Event()
    relay = Relay(parse_link("12"), [("nowhere.invalid", 1)])
    thread = threading.Thread(target=relay.run, args=(stop,))
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", relay.ports[0]), PATIENCE_S) as near:
            assert near.recv(1) == b""
    finally:
        stop.set()
        thread.join(PATIENCE_S)


# ---- a real stack

PROBE = """
import json, socket, sys, time
def read(c, n):
    got = 0
    while got < n:
        got += len(c.recv(n - got))
def ask(c, size):
    start = time.monotonic()
    c.sendall(size.to_bytes(8, "big") + (1).to_bytes(8, "big") + bytes(size))
    read(c, 1)
    return time.monotonic() - start
host, port, sizes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
took = {}
for size in sizes:
    for _ in range(3):
        with socket.create_connection((host, port), 20) as c:
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # Linux's own choice; BBR paces
            ask(c, 0)
            took.setdefault(f"cold {size}", []).append(ask(c, size))
            ask(c, size)
            took.setdefault(f"warm {size}", []).append(ask(c, size))
print(json.dumps({k: min(v) for k, v in took.items()}))
"""

SERVER = """
import socket, sys, threading
door = socket.create_server((sys.argv[1], 5999))
print("ready", flush=True)
def read(c, n):
    got = 0
    while got < n:
        piece = c.recv(min(n - got, 1 << 16))
        if not piece:
            return False
        got += len(piece)
    return True
def answer(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := c.recv(16, socket.MSG_WAITALL):
        if not read(c, int.from_bytes(head[:8], "big")):
            break
        c.sendall(bytes(int.from_bytes(head[8:], "big")))
    c.close()
while True:
    threading.Thread(target=answer, args=(door.accept()[0],), daemon=True).start()
"""


def can_make_namespaces():
    if os.geteuid() or not os.path.exists("/dev/net/tun"):
        return False
    try:
        for verb in ("add", "del"):
            subprocess.run(["ip", "netns", verb, "eex-test-probe"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextlib.contextmanager
def real_link(round_trip_ms, mbit, loss=0.0):
    """Two namespaces with a link between them; yields what to prefix a command with to run it at one end."""
    name = f"eex{os.getpid()}"
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "support" / "tun.py"),
        name,
        *map(str, (round_trip_ms, mbit, loss)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as link:
        try:
            assert link.stdout.readline() == "ready\n"
            yield [["ip", "netns", "exec", f"{name}-{side}"] for side in "ab"]
        finally:
            link.stdin.close()
            link.wait(PATIENCE_S)


def probe(prefix, host, port, sizes):
    """Seconds of a request on a fresh connection and on one that has grown, by size."""
    command = [*prefix, sys.executable, "-c", PROBE, host, str(port), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return json.loads(done.stdout)


@pytest.mark.soak
@pytest.mark.process
@pytest.mark.skipif(
    not can_make_namespaces(), reason="a real link to compare with takes root, ip netns and /dev/net/tun"
)
@pytest.mark.parametrize(("round_trip_ms", "mbit"), [(12, 93), (50, 42)])
def test_the_emulation_against_a_real_stack(server, round_trip_ms, mbit):
    sizes = [1000, 65536, 262144]
    with real_link(round_trip_ms, mbit) as (edge, cloud):
        command = [*cloud, sys.executable, "-c", SERVER, "10.77.1.2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stdout.readline() == "ready\n"
                real = probe(edge, "10.77.1.2", 5999, sizes)
            finally:
                serving.kill()
    with emulated(f"{round_trip_ms}@{mbit}", [f"tcp://127.0.0.1:{server}"]) as (endpoint,):
        ours = probe([], *split(endpoint), sizes)
    print({k: (round(1000 * real[k], 1), round(1000 * ours[k], 1)) for k in real})
    for k in real:
        least = min(real[k], ours[k])
        assert abs(real[k] - ours[k]) <= 0.25 * least + 0.02 + round_trip_ms / 2000, (k, real[k], ours[k])
    assert statistics.median(ours[k] / real[k] for k in real) == pytest.approx(1, abs=0.4)


@pytest.mark.soak
@pytest.mark.process
@pytest.mark.skipif(not can_make_namespaces(), reason="a real link takes root, ip netns and /dev/net/tun")
def test_a_real_link_that_loses_packets_is_slower_and_loses_no_bytes():
    with real_link(12, 50, loss=0.05) as (edge, cloud):
        command = [*cloud, sys.executable, "-c", SERVER, "10.77.1.2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stdout.readline() == "ready\n"
                took = probe(edge, "10.77.1.2", 5999, [262144])
            finally:
                serving.kill()
    assert took["cold 262144"] >= 0.012 + 262144 / (125_000 * 50)
