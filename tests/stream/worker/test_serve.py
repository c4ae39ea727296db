"""The worker: batches from all edges, several models, replicas, a drain on SIGTERM, health and metrics."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.commands.worker import Worker
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.clients import Limits
from eex.stream.worker.front import Front
from eex.stream.worker.pool import LocalReplica, ReplicaLostError
from eex.stream.worker.prometheus import monitoring

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 30.0
UPSTREAM = {"upstream": "tcp://127.0.0.1:5556", "partition": 2, "plain": True}
A = Welcome("model-a", 3, ("pristine", "blur"), ("cat", "dog"), models=("model-a", "model-b"))
B = Welcome("model-b", 2, ("pristine",), ("cat", "dog"), models=("model-a", "model-b"))


class Cloud:
    """A front with its socket, served in a thread."""

    def __init__(self, replicas, welcomes=(A, B), **options):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
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


def collect(offloader, count):
    replies, end = [], time.monotonic() + PATIENCE_S
    while len(replies) < count and time.monotonic() < end:
        replies += offloader.poll(100)
    assert len(replies) == count
    return {reply.id: reply for reply in replies}


def submit(offloader, *arguments):
    end = time.monotonic() + PATIENCE_S
    while not (sent := offloader.submit(*arguments)) and time.monotonic() < end:
        time.sleep(0.001)  # the socket's queue is short
    assert sent


class Gate:
    """A tail that waits until it may go on, and tells the batches that it saw."""

    def __init__(self):
        self.entered, self.open, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, stage, expert, features):
        self.batches.append((stage, expert, len(features)))
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return np.full(len(features), 0.5), features.reshape(len(features), -1)[:, 0].astype(int)


def features(n=1, value=0.0):
    return np.full((n, 4), value, dtype=np.float32)


def test_what_comes_while_the_model_runs_is_run_together():
    gate = Gate()
    with (
        Cloud([LocalReplica({"model-a": gate})], limits=Limits(batch=6)) as cloud,
        cloud.edge() as a,
        cloud.edge() as b,
    ):
        submit(a, 1, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        for id in range(2, 6):
            submit(a, id, 1, "blur", features(1, id % 2))
            submit(b, id, 1, "blur", features(1, id % 2))
        submit(b, 9, 1, "pristine", features(2))
        end = time.monotonic() + PATIENCE_S
        while cloud.front.service.queued < 10 and time.monotonic() < end:
            time.sleep(0.01)
        gate.open.set()
        replies = collect(a, 5)
        for id in range(2, 6):
            assert replies[id].prediction.tolist() == [id % 2]
        assert set(collect(b, 5)) == {2, 3, 4, 5, 9}
        assert gate.batches[:2] == [(1, "blur", 1), (1, "blur", 6)]
        assert sorted(gate.batches[2:]) == [(1, "blur", 2), (1, "pristine", 2)]
        assert cloud.front.stats.batch_frames.total == 11


def test_requests_may_wait_for_company():
    gate = Gate()
    gate.open.set()
    limits = Limits(batch=3, wait_ms=1000 * PATIENCE_S)
    with Cloud([LocalReplica({"model-a": gate})], limits=limits) as cloud, cloud.edge() as edge:
        for id in range(3):
            submit(edge, id, 1, "blur", features())
        assert set(collect(edge, 3)) == {0, 1, 2}
        assert gate.batches == [(1, "blur", 3)]


def test_one_bad_request_does_not_spoil_its_batch():
    gate = Gate()

    def picky(stage, expert, x):
        answer = gate(stage, expert, x)
        if x.max() > 1:
            raise RuntimeError("too large")
        return answer

    with Cloud([LocalReplica({"model-a": picky})]) as cloud, cloud.edge() as edge:
        submit(edge, 0, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        submit(edge, 1, 1, "blur", features(1, 2.0))
        submit(edge, 2, 1, "blur", features(1, 1.0))
        gate.open.set()
        replies = collect(edge, 3)
        assert [bool(replies[id].failed) for id in range(3)] == [False, True, False]
        assert cloud.front.stats.refusals == {"failed": 1}


def test_several_models_and_one_that_it_does_not_have():
    tails = {m: lambda stage, expert, x, m=m: (np.full(len(x), 0.5), np.full(len(x), m == "model-b")) for m in "ab"}
    replica = LocalReplica({f"model-{m}": tails[m] for m in "ab"})
    replica._tails["model-b"] = lambda stage, expert, x: (np.full(len(x), 0.5), np.ones(len(x)))
    with Cloud([replica]) as cloud, cloud.edge("model-a") as a, cloud.edge("model-b") as b:
        submit(a, 1, 1, "blur", features())
        submit(b, 1, 1, "pristine", features())
        submit(b, 2, 1, "blur", features())
        assert collect(a, 1)[1].prediction.tolist() == [0]
        replies = collect(b, 2)
        assert replies[1].prediction.tolist() == [1]
        assert replies[2].failed == "unknown expert 'blur', expected one of pristine"
        with pytest.raises(OffloadError, match="the worker has model model-a, model-b, the edge model-c"):
            cloud.edge("model-c")
        assert cloud.front.stats.refusals == {"expert": 1, "model": 1}


def test_shapes_and_sizes_are_checked_before_the_model_sees_them():
    small = Welcome("model-a", 2, ("pristine",), ("cat", "dog"), max_bytes=64)
    shapes = {"model-a": [(3, 2, 2), (4,)]}
    with Cloud([LocalReplica({"model-a": Gate()})], [small], shapes=shapes) as cloud, cloud.edge() as edge:
        assert edge.max_bytes == 64
        submit(edge, 1, 1, "pristine", features(1).reshape(1, 2, 2))
        submit(edge, 2, 1, "pristine", features(5))
        replies = collect(edge, 2)
        assert replies[1].failed == "stage 1 takes features (n, 4), got (1, 2, 2)"
        assert replies[2].failed == "80 bytes in one message, the worker takes 64"


def test_who_has_too_much_under_way_is_refused():
    gate = Gate()
    limits = Limits(queued_bytes=3 * 16)
    with Cloud([LocalReplica({"model-a": gate})], limits=limits) as cloud, cloud.edge() as edge:
        for id in range(4):
            submit(edge, id, 1, "blur", features())
        (refused,) = collect(edge, 1).values()
        assert (refused.id, refused.failed) == (3, "48 bytes wait already")
        gate.open.set()
        assert not any(r.failed for r in collect(edge, 3).values())


def test_a_request_that_nobody_waits_for_is_not_run():
    gate = Gate()
    with Cloud([LocalReplica({"model-a": gate})]) as cloud, cloud.edge() as edge:
        submit(edge, 1, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        edge._requests.deadline_ms = 1.0
        submit(edge, 2, 1, "blur", features())
        end = time.monotonic() + PATIENCE_S
        while cloud.front.service.queued < 2 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.01)
        gate.open.set()
        end = time.monotonic() + PATIENCE_S
        while cloud.front.service.queued and time.monotonic() < end:
            time.sleep(0.01)
        assert cloud.front.stats.expired == 1
        assert len(gate.batches) == 1


def test_it_finishes_what_it_has_taken_on_and_refuses_the_rest():
    gate = Gate()
    with Cloud([LocalReplica({"model-a": gate})], limits=Limits(drain_s=PATIENCE_S)) as cloud, cloud.edge() as edge:
        submit(edge, 1, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        cloud.stop.set()
        end = time.monotonic() + PATIENCE_S
        while not cloud.front.service.draining and time.monotonic() < end:
            time.sleep(0.01)
        submit(edge, 2, 1, "blur", features())
        assert collect(edge, 1)[2].failed == "the worker is about to stop"
        assert not edge.reachable
        gate.open.set()
        assert not collect(edge, 1)[1].failed


class Lossy:
    """A replica that goes away with its first batch."""

    def __init__(self):
        self.lost = self.recovered = False

    def run(self, model, stage, expert, x):
        if not self.lost:
            self.lost = True
            raise ReplicaLostError("gone")
        return np.full(len(x), 0.5), np.zeros(len(x))

    def recover(self):
        self.recovered = True

    def close(self):
        pass


def test_what_a_lost_replica_had_is_given_to_another():
    replicas = [Lossy(), Lossy()]
    replicas[1].lost = True
    with Cloud(replicas) as cloud, cloud.edge() as edge:
        for id in range(6):
            submit(edge, id, 1, "blur", features())
        assert not any(r.failed for r in collect(edge, 6).values())
        end = time.monotonic() + PATIENCE_S
        while not replicas[0].recovered and not replicas[0].lost and time.monotonic() < end:
            submit(edge, 100, 1, "blur", features())
            collect(edge, 1)
        assert len(cloud.front.service.clients) == 1


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def test_health_and_metrics():
    gate = Gate()
    gate.open.set()
    with Cloud([LocalReplica({"model-a": gate})]) as cloud, cloud.edge() as edge, monitoring(cloud.front, 0) as url:
        assert url.startswith("http://127.0.0.1:")
        for id in range(3):
            submit(edge, id, 1, "blur", features())
            collect(edge, 1)
        submit(edge, 9, 7, "blur", features())
        collect(edge, 1)
        assert json.loads(get(f"{url}/health"))["status"] == "ok"
        samples = {
            (s.name, *s.labels.values()): s.value
            for family in text_string_to_metric_families(get(f"{url}/metrics"))
            for s in family.samples
        }
        assert samples["eex_requests_total", "model-a"] == 3
        assert samples["eex_refusals_total", "stage"] == 1
        assert samples["eex_frames_total",] == 3
        assert samples["eex_queue",] == 0
        assert samples["eex_batch_frames_bucket", "1"] == samples["eex_batch_frames_count",] == 3
        assert samples["eex_latency_seconds_bucket", "+Inf"] == samples["eex_compute_seconds_count",] == 3
        assert 0 < samples["eex_latency_seconds_sum",] < PATIENCE_S
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/secrets")
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(EexError, match=f"--metrics-port {port}: cannot listen"), monitoring(cloud.front, port):
            pass
        cloud.front.service.draining = True
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(f"{url}/health")
        cloud.front.service.draining = False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"processes": 0}, "--processes must be at least 1, got 0"),
        ({"batch_frames": 0}, "--batch-frames must be at least 1"),
        ({"batch_wait_ms": -1.0}, "--batch-wait-ms must lie in"),
        ({"ray": 2, "processes": 2}, "one of the two"),
        ({"plain_beyond_loopback": True}, "goes with --plain"),
        ({"partition": 2}, "--partition goes with --upstream"),
        ({"p_tar": 0.5}, "--p-tar goes with --upstream"),
        (UPSTREAM | {"partition": 0}, "--upstream needs --partition"),
        (UPSTREAM | {"p_tar": 1.5}, "--p-tar must lie in"),
        (UPSTREAM | {"deadline_ms": 0.0}, "--deadline-ms must be more than 0"),
        (UPSTREAM | {"plain": False}, "--upstream needs --upstream-keys"),
        (UPSTREAM | {"upstream": "localhost:5555"}, "expected tcp://host:port"),
        (UPSTREAM | {"models": (Path("a"), Path("b"))}, "--upstream is for one model"),
        (UPSTREAM | {"processes": 2}, "--upstream runs its model in one process"),
    ],
)
def test_options_that_make_no_sense(options, says):
    with pytest.raises(EexError, match=says):
        Worker(**options).check()


def test_the_payload_is_not_copied_on_the_way_out(monkeypatch):
    with Cloud([LocalReplica({"model-a": Gate()})]) as cloud, cloud.edge() as edge:
        sent = []
        monkeypatch.setattr(edge._peers[0], "send", lambda frames: sent.append(frames) or True)
        x = np.random.default_rng(0).random((2, 4, 3, 3), dtype=np.float32)
        assert edge.submit(1, 1, "blur", x)
        assert np.shares_memory(np.frombuffer(sent[0][1], dtype=np.float32), x)
