"""A worker process under what strangers, clients, logs and operators do to it; real sockets, pipes and keys."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import zmq
from commands import call
from faults import PATIENCE_S, Stream, unwritable

from eex.experiments.bench.trivial_worker import MODEL, TrivialWorker
from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import edge_keys, make_keys, new_pair
from eex.stream.wire.protocol import Hello, Welcome, pack, unpack
from eex.stream.worker.embedded import READY

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from eex.stream.wire.keys import worker_keys
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.pool import LocalReplica
from eex.stream.worker.serve import listen, log, stop_on_signals
stop = stop_on_signals()
keys = worker_keys(Path(sys.argv[1]), log)
replica = LocalReplica({"model-a": lambda stage, expert, x: (np.full(len(x), 0.9), np.full(len(x), 1))})
listen([Welcome("model-a", 2, ("pristine",), tuple("abcd"))], [replica], "tcp://127.0.0.1:*", stop, keys=keys)
"""


@contextlib.contextmanager
def worker(folder, stderr=subprocess.DEVNULL):
    """A worker with the keys of a folder; yields its process and where it listens."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(READY)
            yield process, line.removeprefix(READY).strip()
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path):
    """Keys, beside what is none and must neither hold the worker up nor end it."""
    make_keys(tmp_path, ("worker", "edge", "other"))
    os.mkfifo(tmp_path / "a.pub")
    (tmp_path / os.fsdecode(b"caf\xe9.pub")).write_bytes(new_pair().public)
    return tmp_path


@contextlib.contextmanager
def edge(endpoint, folder, name="edge"):
    offloader = ZmqOffloader(endpoint, MODEL, deadline_ms=1000 * PATIENCE_S, keys=edge_keys(folder, name))
    with contextlib.closing(offloader):
        offloader.connect(PATIENCE_S)
        yield offloader


def asked(offloader, id):
    """The reply to one request."""
    assert offloader.submit(id, 1, "pristine", np.zeros((1, 12), dtype=np.float32))
    (reply,) = offloader.poll(1000 * PATIENCE_S)
    return reply


def knock(endpoint, times):
    """Connect with keys that the worker does not know, which it logs."""
    host, port = endpoint.removeprefix("tcp://").split(":")
    for _ in range(times):
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = zmq.curve_keypair()[0]
            stranger.connect(endpoint)
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
                raw.sendall(os.urandom(64))
            stranger.poll(20)


def test_deleting_a_key_ends_its_live_connections_and_no_other(folder):
    with worker(folder) as (_, endpoint), edge(endpoint, folder) as revoked, edge(endpoint, folder, "other") as kept:
        assert not asked(revoked, 1).failed
        (folder / "edge.pub").unlink()
        since = time.monotonic()
        while revoked.reachable and time.monotonic() - since < PATIENCE_S:
            revoked.poll()
            time.sleep(0.01)
        took = time.monotonic() - since
        assert not revoked.reachable
        assert took < 2 * 5, took  # 2 s on an idle machine
        assert not asked(kept, 2).failed


def test_a_key_that_is_added_is_known_at_once(folder):
    with worker(folder) as (_, endpoint):
        make_keys(folder, ("late",))
        with edge(endpoint, folder, "late") as offloader:
            assert not asked(offloader, 1).failed


def turned_away(endpoint, folder, name="edge"):
    """Why an edge with these keys is not let in."""
    with pytest.raises(OffloadError) as caught:
        ZmqOffloader(endpoint, MODEL, keys=edge_keys(folder, name)).connect(PATIENCE_S)
    return str(caught.value)


def test_a_clients_key_is_replaced_while_the_worker_runs(folder, tmp_path_factory):
    """As docs/operation.md says: a pair under another name, added, used, and the old one deleted."""
    site = tmp_path_factory.mktemp("site")
    (folder / "edge.key").rename(site / "edge.key")
    shutil.copy(folder / "worker.pub", site)
    with worker(folder) as (_, endpoint):
        with edge(endpoint, site) as old:
            assert call("keys", site, "edge-2").returncode == 0
            assert "does not know" in turned_away(endpoint, site, "edge-2")
            shutil.copy(site / "edge-2.pub", folder)
            with edge(endpoint, site, "edge-2") as new:
                (folder / "edge.pub").unlink()
                since = time.monotonic()
                while old.reachable and time.monotonic() - since < PATIENCE_S:
                    old.poll()
                    assert not asked(new, int(1e6 * time.monotonic())).failed
                assert not old.reachable
        assert "does not know" in turned_away(endpoint, site)


def test_a_workers_key_is_replaced(folder, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    for name in ("edge.key", "worker.pub"):
        shutil.copy(folder / name, site)
    with worker(folder) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    for name in ("worker.key", "worker.pub"):
        (folder / name).unlink()
    assert call("keys", folder, "worker").returncode == 0
    with worker(folder) as (_, endpoint):
        assert "worker.pub" in turned_away(endpoint, site)
        shutil.copy(folder / "worker.pub", site)
        with edge(endpoint, site) as offloader:
            assert not asked(offloader, 1).failed


@pytest.mark.parametrize("to", ["a full device", "a pipe that nobody reads"])
def test_a_log_that_cannot_be_written_stops_nothing(folder, to):
    with unwritable(to) as stderr, worker(folder, stderr) as (process, endpoint), edge(endpoint, folder) as offloader:
        knock(endpoint, 5)
        (folder / "other.pub").write_text("no key")  # which is logged, too
        for id in range(20):
            assert not asked(offloader, id).failed
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_a_message_of_many_parts_is_given_up_before_they_are_kept():
    with TrivialWorker(guarded=True) as worker, Stream(worker.endpoint, keys=worker.keys) as stream:
        stream.feed_until(stream.answered())
        before = worker.resident_kib()
        own = worker.keys
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            client.sndtimeo = 2000
            client.curve_publickey, client.curve_secretkey, client.curve_serverkey = *_halves(own), own.worker
            client.connect(worker.endpoint)
            most, part = before, bytes(2 << 20)
            with contextlib.suppress(zmq.Again):
                for k in range(500):
                    client.send(part, zmq.SNDMORE if k < 499 else 0, copy=False)
                    most = max(most, worker.resident_kib())
            for _ in range(20):
                stream.feed()
                most = max(most, worker.resident_kib())
        stream.feed_until(stream.answered())
        assert most - before < 256 << 10, f"{(most - before) >> 10} MiB more"
        stream.end()


def _halves(keys):
    return keys.own.public, keys.own.secret


def test_idle_connections_of_a_key_make_room_for_one_that_asks():
    with TrivialWorker(guarded=True, limits={"key_clients": 3}) as worker, contextlib.ExitStack() as stack:
        own = worker.keys
        context = stack.enter_context(zmq.Context())

        def client():
            made = stack.enter_context(context.socket(zmq.DEALER))
            made.linger = 0
            made.curve_publickey, made.curve_secretkey, made.curve_serverkey = *_halves(own), own.worker
            made.connect(worker.endpoint)
            return made

        def greeted(made):
            made.send_multipart([bytes(frame) for frame in pack(Hello(1, MODEL))])
            assert made.poll(1000 * PATIENCE_S)
            return isinstance(unpack(made.recv_multipart())[0], Welcome)

        assert all(greeted(client()) for _ in range(3))
        late, since = client(), time.monotonic()
        while not greeted(late):
            assert time.monotonic() - since < PATIENCE_S
            time.sleep(0.1)
        assert time.monotonic() - since < 5 * 3  # 3 s idle on an idle machine


def test_a_worker_outlives_a_pause_in_which_edges_go(folder):
    """What they sent meanwhile fills the worker's queues; libzmq's heartbeats would abort it."""
    keys = edge_keys(folder)
    with worker(folder) as (process, endpoint), contextlib.ExitStack() as stack:
        edges = [
            stack.enter_context(contextlib.closing(ZmqOffloader(endpoint, "model-a", keys=keys))) for _ in range(3)
        ]
        for edge in edges:
            edge.connect(PATIENCE_S)
        process.send_signal(signal.SIGSTOP)
        until, id = time.monotonic() + 2.5, itertools.count()
        while time.monotonic() < until:
            for edge in edges:
                edge.submit(next(id), 1, "pristine", np.zeros((2, 4), dtype=np.float32))
                edge.poll(10)
        for edge in edges:
            edge.close()
        time.sleep(2.5)  # heartbeats were sent every 2 s
        process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3.0)
        with contextlib.closing(ZmqOffloader(endpoint, "model-a", keys=keys)) as edge:
            assert edge.connect(PATIENCE_S).model == "model-a"


EDGE_THAT_COMPUTES = """
import os, signal, sys, time
import numpy as np
from eex.stream.wire.client import ZmqOffloader
edge = ZmqOffloader(sys.argv[1], "model-a", 60_000)
edge.connect(30)
for k in range(16):
    edge.submit(k, 1, "pristine", np.zeros((2, 4), np.float32))
    time.sleep(0.02)
assert edge.outstanding > 8
time.sleep(1.0)  # the replies fill its queue
os.kill(int(sys.argv[2]), signal.SIGKILL)
time.sleep(3.5)  # it computes; heartbeats were sent every second
replies, end = 0, time.monotonic() + 20
while edge.reachable and time.monotonic() < end:
    replies += len(edge.poll(50))
    time.sleep(0.05)
print(replies, edge.reachable)
"""


def test_an_edge_that_computes_outlives_its_worker():
    with TrivialWorker() as trivial:
        command = [
            sys.executable,
            "-c",
            EDGE_THAT_COMPUTES.replace("model-a", MODEL),
            trivial.endpoint,
            str(trivial.process.pid),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S + 60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" False\n")
