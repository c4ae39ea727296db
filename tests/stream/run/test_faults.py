"""Whatever happens to worker or network, each frame gets one answer, and the cloud is used while it is there.

Real processes, sockets and time, one test of each kind of fault; `tests/stream/wire/test_requests.py` has more and
longer ones, by a clock that is moved by hand. Times are asserted generously here; `make bench-offload` prints them.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults import PATIENCE_S, Link, Stream

from eex.experiments.bench.offload import growth, hanging_growth
from eex.experiments.bench.trivial_worker import MODEL, TrivialWorker, free_port
from eex.policies.core.errors import EexError
from eex.policies.core.price import Meter, parse_price
from eex.policies.registry import make_policy
from eex.stream.guard import UNRECORDED
from eex.stream.run import state
from eex.stream.run.records import read_records
from eex.stream.run.tally import Tally

pytestmark = [pytest.mark.timeout(240), pytest.mark.process]


def gone(stream):
    return lambda: not stream.offloader.reachable


def test_a_worker_is_killed_under_load_and_returns():
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream:
        stream.feed_until(stream.answered())
        worker.kill()
        stream.feed_until(gone(stream))
        before = len(stream.fallback)
        for _ in range(50):
            stream.feed()
        assert all(stream.fallback[before:])
        worker.start()
        stream.feed_until(stream.answered())
        report = stream.end()
        assert report["workers"][0]["connections_lost"] >= 1
        assert report["workers"][0]["state"] == "up"
        assert report["missed_deadlines"] == 0
        assert worker.end() == 0


def test_a_worker_is_stopped_and_continued():
    with TrivialWorker() as worker, Stream(worker.endpoint, deadline_ms=2000) as stream:
        stream.feed_until(stream.answered())
        worker.process.send_signal(signal.SIGSTOP)
        stream.feed_until(gone(stream))
        assert not stream.offloader.reachable
        worker.process.send_signal(signal.SIGCONT)
        stream.feed_until(stream.answered())
        assert stream.end()["workers"][0]["silences"] >= 1


def test_a_model_that_hangs(tmp_path):
    hang = tmp_path / "hang"
    with TrivialWorker(hang=str(hang)) as worker, Stream(worker.endpoint, deadline_ms=300) as stream:
        stream.feed_until(stream.answered())
        hang.touch()
        stream.feed_until(gone(stream))
        stuck = len(stream.latency_ms)
        for _ in range(100):
            stream.feed()
        assert np.quantile(stream.latency_ms[stuck:], 0.99) < 1000 * PATIENCE_S / 10
        hang.unlink()
        stream.feed_until(stream.answered())
        assert stream.end()["missed_deadlines"] > 0


def test_a_worker_that_takes_a_model_version_of_its_own():
    with TrivialWorker() as worker, Stream(worker.endpoint) as stream:
        stream.feed_until(stream.answered())
        worker.kill()
        worker.start(model="model-b")
        peer = stream.offloader._peers[0]
        stream.feed_until(lambda: "the worker has model model-b, the edge model-a" in peer.state)
        before = stream.from_cloud()
        for _ in range(20):
            stream.feed()
        assert stream.from_cloud() == before
        worker.kill()
        worker.start(model=MODEL)
        stream.feed_until(stream.answered())
        stream.end()


CHAOS = """
import sys, time, zmq
from eex.stream.wire.protocol import ReplyHeader, unpack
context = zmq.Context()
front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
front.bind(sys.argv[1]); back.connect(sys.argv[2])
print("ready", flush=True)
poller = zmq.Poller(); poller.register(front, zmq.POLLIN); poller.register(back, zmq.POLLIN)
client, held, late = None, [], []
while True:
    ready = dict(poller.poll(10))
    if front in ready:
        client, *message = front.recv_multipart()
        back.send_multipart(message)
    if back in ready:
        message = back.recv_multipart()
        header, _ = unpack(message)
        what = header.id % 10 if isinstance(header, ReplyHeader) else 9
        if what == 1:
            front.send_multipart([client, *message])
        if what == 2:
            held.append(message)
        elif what == 3:
            late.append((time.monotonic() + 1.0, message))
        elif what != 0:
            for m in [message, *held]:
                front.send_multipart([client, *m])
            held.clear()
    while late and late[0][0] < time.monotonic():
        front.send_multipart([client, *late.pop(0)[1]])
"""


def test_replies_are_lost_doubled_reordered_and_late():
    at = f"tcp://127.0.0.1:{free_port()}"
    with TrivialWorker() as worker:
        command = [sys.executable, "-c", CHAOS, at, worker.endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as chaos:
            try:
                assert chaos.stdout.readline() == "ready\n"
                with Stream(at, deadline_ms=700) as stream:
                    for _ in range(50):
                        stream.feed_until(stream.answered(1))
                    report = stream.end()
            finally:
                chaos.kill()
    assert report["missed_deadlines"] > 0
    assert report["dropped"] > 0
    assert stream.from_cloud() >= 50


def test_the_link_is_down_for_two_seconds():
    with TrivialWorker() as worker, Link(worker.endpoint) as link, Stream(link.endpoint) as stream:
        stream.feed_until(stream.answered())
        link.up.clear()
        stream.feed_until(gone(stream))
        end = time.monotonic() + 2
        stream.feed_until(lambda: time.monotonic() > end)
        assert not stream.offloader.reachable
        link.up.set()
        stream.feed_until(stream.answered())
        stream.end()


def test_one_of_two_workers_dies():
    with (
        TrivialWorker() as first,
        TrivialWorker() as second,
        Stream(first.endpoint, second.endpoint, deadline_ms=1000 * PATIENCE_S) as stream,
    ):
        stream.feed_until(lambda: all(peer.counts["replies"] for peer in stream.offloader._peers))
        first.kill()
        stream.feed_until(stream.answered(400))
        first.start()
        back = stream.offloader._peers[0]
        before = back.counts["replies"]
        stream.feed_until(lambda: back.counts["replies"] > before)
        report = stream.end()
        assert not any(stream.fallback)
        assert [w["state"] for w in report["workers"]] == ["up", "up"]


def test_a_slow_worker_is_helped_by_another():
    with (
        TrivialWorker(delay_s=0.5) as slow,
        TrivialWorker() as quick,
        Stream(slow.endpoint, quick.endpoint, deadline_ms=1000 * PATIENCE_S) as stream,
    ):
        stream.feed_until(lambda: stream.offloader.report()["hedged"] > 0)
        report = stream.end()
        assert not any(stream.fallback)
        assert report["hedged"] <= 2 + 0.1 * report["requests"] + 1


def test_a_worker_is_drained_and_another_takes_over():
    with (
        TrivialWorker(delay_s=0.01) as first,
        TrivialWorker() as second,
        Stream(first.endpoint, second.endpoint, deadline_ms=1000 * PATIENCE_S) as stream,
    ):
        stream.feed_until(lambda: all(peer.counts["replies"] for peer in stream.offloader._peers))
        first.process.send_signal(signal.SIGTERM)
        stream.feed_until(lambda: first.process.poll() is not None)
        assert first.process.returncode == 0
        stream.feed_until(stream.answered())
        stream.end()
        assert not any(stream.fallback)


# ---- memory


@pytest.mark.soak
def test_memory_does_not_grow_and_a_leak_would_be_seen():
    assert growth(10_000) < 1.0
    assert growth(10_000, leak=1024) > 5.0


def test_a_peer_that_hangs_costs_the_edge_little_memory(tmp_path):
    assert hanging_growth(str(tmp_path), seconds=2.0) < 32


# ---- the disk

FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (550_000, 550_000))  # files end there, as on a full disk
from eex.stream.commands.stream import main
main()
"""


def test_the_disk_is_full(tmp_path):
    options = [
        "--worker",
        "none",
        "--frames",
        "8000",
        "--threads",
        "1",
        "--no-regret",
        "--json",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *options], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    assert done.returncode == UNRECORDED, done.stderr
    assert done.stderr.startswith("warning: ")
    summary = json.loads(done.stdout)
    assert summary["frames"] == summary["answered"] == 8000
    assert "cannot write records" in summary["unrecorded"]
    assert 0 < read_records(Path(summary["folder"]) / "records").num_rows < 8000


# ---- the edge


@pytest.mark.soak
def test_the_edge_is_killed_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "eex.stream.commands.stream"]
    options = ["--worker", "none", "--threads", "1", "--no-regret", "--json"]
    more = ["--policy", "ucb", "--frames", "3000", "--commit", "500", "--out", str(tmp_path)]
    with subprocess.Popen([*command, *options, *more], stdout=subprocess.DEVNULL) as edge:
        end = time.monotonic() + 3 * PATIENCE_S
        while not (states := list(tmp_path.glob("*/state.npz"))) and edge.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        edge.kill()
    folder = states[0].parent
    done_before = int(state.read(folder)["frames"])
    assert done_before >= 500
    resumed = subprocess.run(
        [*command, "--json", "--resume", str(folder)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    records = read_records(folder / "records")
    assert records["frame"].to_pylist() == list(range(3000))
    assert summary["frames"] == summary["answered"] == 3000
    assert summary["offloaded_share"] == pytest.approx(np.mean(records["offloaded"].to_pylist()))
    taught = sum(reward is not None for reward in records["reward"].to_pylist())
    saved = state.read(folder)
    assert saved["frames"] == 3000
    assert saved["policy.counts"].sum() == taught


def test_a_state_that_is_none(tmp_path):
    (tmp_path / "state.npz").write_bytes(b"PK\x05\x06 nothing")
    with pytest.raises(EexError, match="not the state of a stream"):
        state.read(tmp_path)
    assert state.read(tmp_path / "elsewhere") is None


def test_a_budget_goes_on_as_full_as_it_was(tmp_path):
    price, policy, tally = parse_price("budget=10/s:40"), make_policy("ucb", exits=1), Tally(2)
    meter = Meter(price)
    meter.sent(30, 3e6)
    state.write(tmp_path, policy, meter, tally, 1000, 1, 5.0)
    again = Meter(price)
    saved = state.read(tmp_path)
    assert state.restore(saved, make_policy("ucb", exits=1), again, Tally(2)) == 5.0
    assert again.bucket.level == 10.0
    older = {name: value for name, value in saved.items() if not name.startswith("meter.")}
    fresh = Meter(price)
    state.restore(older, make_policy("ucb", exits=1), fresh, Tally(2))
    assert fresh.bucket.level == 40.0
    constant = {name: value for name, value in saved.items() if name != "meter.level"}
    with pytest.raises(EexError, match=r"^state\.npz does not belong to this run"):
        state.restore(constant, make_policy("ucb", exits=1), Meter(price), Tally(2))
