"""Replicas of one front, as processes and as Ray actors: one dies, and edges notice nothing."""

import contextlib
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import zmq

from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.protocol import Welcome
from eex.stream.worker import embedded
from eex.stream.worker.embedded import EmbeddedWorker
from eex.stream.worker.front import Front
from eex.stream.worker.replicas import ProcessReplica, RayReplica, serve_here, serve_in_processes
from eex.stream.worker.tail import Models

pytestmark = [pytest.mark.timeout(180), pytest.mark.process]

PATIENCE_S = 60.0
WELCOMES = [Welcome(f"model-{m}", 4, ("blur",), tuple("abcd"), models=("model-a", "model-b")) for m in "ab"]

SCRIPT = """
import threading
import numpy as np
from eex.stream.worker.embedded import read_keys
from eex.stream.worker.pool import LocalReplica
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.serve import listen, stop_on_signals, stop_with_parent
stop, keys = stop_on_signals(), read_keys()
stop_with_parent(stop)
welcomes = [Welcome(f"model-{m}", 4, ("blur",), tuple("abcd"), models=("model-a", "model-b")) for m in "ab"]
tail = lambda stage, expert, x: (np.full(len(x), 0.5), np.full(len(x), stage))
listen(welcomes, [LocalReplica({"model-a": tail, "model-b": tail})], "tcp://127.0.0.1:*", stop, keys=keys)
"""


@contextlib.contextmanager
def fronted(replicas, welcomes=WELCOMES):
    """An edge of a front with these replicas, and the front."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind("tcp://127.0.0.1:*")
        front, stop = Front(socket, welcomes, replicas, log=lambda line: None), threading.Event()
        thread = threading.Thread(target=front.serve, args=(stop,), daemon=True)
        thread.start()
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        edge = ZmqOffloader(endpoint, "model-b", 1000 * PATIENCE_S)
        try:
            edge.connect(PATIENCE_S)
            yield edge, front
        finally:
            edge.close()
            stop.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def answered(edge, first, count):
    """Ask, and see that each is answered."""
    sent, replies, end = 0, [], time.monotonic() + PATIENCE_S
    while len(replies) < count and time.monotonic() < end:
        while sent < count and edge.submit(first + sent, 2, "blur", np.zeros((2, 3), dtype=np.float32)):
            sent += 1
        replies += edge.poll(100)
    assert sorted(r.id for r in replies) == list(range(first, first + count))
    assert not any(r.failed for r in replies)
    assert all(r.prediction.tolist() == [2, 2] for r in replies)


def test_a_worker_process_dies_and_comes_back(monkeypatch):
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", SCRIPT))
    replicas = [ProcessReplica(EmbeddedWorker()) for _ in range(2)]
    welcomes = [replica.connect() for replica in replicas]
    assert welcomes == [WELCOMES, WELCOMES]
    with fronted(replicas, welcomes[0]) as (edge, front):
        answered(edge, 0, 100)
        process = replicas[0]._worker._process
        os.kill(process.pid, signal.SIGKILL)
        answered(edge, 1000, 200)
        end = time.monotonic() + PATIENCE_S
        first = 2000
        while (front.pool.ready < 2 or not replicas[0]._worker.running) and time.monotonic() < end:
            answered(edge, first, 50)  # the dead one is noticed when it is asked
            first += 50
        assert replicas[0]._worker._process is not process
        answered(edge, first, 100)
    assert not any(replica._worker.running for replica in replicas)


def test_models_are_served_in_as_many_processes_as_asked_for(monkeypatch):
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", SCRIPT))
    served = serve_in_processes(Models(), 2)
    assert (len(served.replicas), served.welcomes, served.shapes) == (2, WELCOMES, {})
    confidence, prediction = served.replicas[1].run("model-b", 3, "blur", np.zeros((2, 5), dtype=np.float32))
    assert (confidence.tolist(), prediction.tolist()) == ([0.5, 0.5], [3, 3])
    served.replicas[1]._max_bytes["model-b"] = 2 * 5 * 4  # what a message may hold: two frames
    confidence, prediction = served.replicas[1].run("model-b", 3, "blur", np.zeros((5, 5), dtype=np.float32))
    assert (confidence.tolist(), prediction.tolist()) == ([0.5] * 5, [3] * 5)
    for replica in served.replicas:
        replica.close()


def test_processes_that_cannot_start_are_an_error(monkeypatch):
    script = "import sys; print('error: no such model', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script))
    with pytest.raises(OffloadError, match="no such model"):
        serve_in_processes(Models(), 2)


def test_the_shipped_model_is_served_here():
    served = serve_here(Models())
    (welcome,) = served.welcomes
    shapes = served.shapes[welcome.model]
    assert (len(shapes), welcome.models, len(welcome.classes)) == (welcome.stages, (welcome.model,), 10)
    images = np.zeros((2, *shapes[0]), dtype=np.float32)
    confidence, _ = served.replicas[0].run(welcome.model, 0, welcome.experts[0], images)
    assert ((confidence > 0.1) & (confidence <= 1)).all()


def make_actor():
    """An actor without torch; made here, so that Ray takes the class along."""

    class Trivial:
        def welcomes(self):
            return os.getpid()

        def run(self, model, stage, expert, features):
            return np.full(len(features), 0.5, dtype=np.float32), np.full(len(features), stage, dtype=np.int32)

    return Trivial


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
def test_a_ray_actor_dies_and_is_restarted():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        actors = [ray.remote(max_restarts=-1, num_cpus=1)(make_actor()).remote() for _ in range(2)]
        pids = ray.get([actor.welcomes.remote() for actor in actors], timeout=PATIENCE_S)
        with fronted([RayReplica(actor) for actor in actors]) as (edge, _):
            answered(edge, 0, 50)
            os.kill(pids[0], signal.SIGKILL)
            answered(edge, 1000, 100)
            assert ray.get(actors[0].welcomes.remote(), timeout=PATIENCE_S) != pids[0]
            answered(edge, 2000, 50)
    finally:
        ray.shutdown()
