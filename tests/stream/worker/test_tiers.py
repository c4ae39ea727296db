"""A worker between edge and cloud: whose exit answers what, and what happens when the upstream worker does not."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import unwritable

from eex.experiments.bench.trivial_worker import TrivialWorker
from eex.models.card import load
from eex.models.fast import optimised
from eex.models.network import make
from eex.stream.groups import every_exit
from eex.stream.run.records import read_records
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import make_keys
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader
from eex.stream.worker.serve import READY
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import make_tail
from eex.stream.worker.tiers import AT_ONCE, MiddleReplica, Upstream, make_head

pytestmark = pytest.mark.timeout(240)

PATIENCE_S = 100.0
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
DEADLINE_MS = 20_000.0


@pytest.fixture(scope="module")
def net():
    """Five exits, of which the first is the edge's and the last the upstream worker's."""
    torch.manual_seed(0)
    return optimised(make("resnet", tuple("abc"), uniform=4, width=8).eval())


@pytest.fixture(scope="module")
def seen(net):
    """Images, features after each stage, and what every exit says of them."""
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net.partition = net.exits - 1
    confidence, prediction, _ = every_exit(net, images)
    features, x = [images.numpy()], images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for i in range(net.exits):
            x = net.stage(i, x)
            features.append(x.contiguous().numpy())
    return features, confidence, prediction


@contextlib.contextmanager
def middle(net, partition, p_tar, offloader, deadline_ms=DEADLINE_MS):
    stats = Stats()
    upstream = Upstream(offloader, deadline_ms, lambda line: None)
    replica = MiddleReplica(
        make_head(net, partition, p_tar), make_tail(net), partition, upstream, stats, threading.Lock()
    )
    try:
        yield replica, stats.upstream
    finally:
        replica.close()
        replica.close()


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "lost"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_first_exit_that_is_sure_answers_and_upstream_the_rest(net, seen, stage, lost):
    features, confidence, prediction = seen
    here = confidence[:, stage:3]
    p_tar = float(np.quantile(here.max(axis=1), 0.5))
    sure = here >= p_tar
    exit = np.where(sure.any(axis=1), sure.argmax(axis=1), here.argmax(axis=1) if lost else 4 - stage) + stage
    cloud = NoOffloader() if lost else InMemoryOffloader(make_tail(net))
    with middle(net, 3, p_tar, cloud) as (replica, counts):
        confident, best = replica.run("m", stage, "pristine", features[stage])
    rows = np.arange(40)
    far = (np.abs(here - p_tar) > 1e-5).all(axis=1)
    assert far.sum() > 35
    np.testing.assert_allclose(confident[far], confidence[rows, exit][far], atol=1e-5)
    np.testing.assert_array_equal(best[far], prediction[rows, exit][far])
    away = 40 - counts["here"]
    assert 10 < away < 30
    assert counts == {"here": 40 - away, "forwarded": away, "fallback": away * lost}


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "lost"])
def test_what_comes_in_after_the_partition_point_is_passed_on(net, seen, lost):
    """As it is; without an answer the rest is run here."""
    features, confidence, prediction = seen
    with middle(net, 2, 0.0, NoOffloader() if lost else InMemoryOffloader(make_tail(net))) as (replica, counts):
        confident, best = replica.run("m", 3, "pristine", features[3])
    np.testing.assert_allclose(confident, confidence[:, -1], atol=1e-5)
    np.testing.assert_array_equal(best, prediction[:, -1])
    assert counts == {"here": 0, "forwarded": 40, "fallback": 40 * lost}


def test_large_batches_go_in_messages_that_upstream_takes(net, seen):
    features, confidence, _ = seen
    cloud = InMemoryOffloader(make_tail(net), lose=[2])
    cloud.max_bytes = 7 * features[3][0].nbytes
    with middle(net, 3, 1.1, cloud) as (replica, counts):
        confident, _ = replica.run("m", 1, "pristine", features[1])
    assert counts == {"here": 0, "forwarded": 40, "fallback": 7}
    expected = confidence[:, -1].copy()
    expected[7:14] = confidence[7:14, 1:3].max(axis=1)
    np.testing.assert_allclose(confident, expected, atol=1e-5)


class Slow(InMemoryOffloader):
    """Never answers the first question, and the others after a while: many may be under way."""

    most = 0

    def poll(self, timeout_ms=0):
        self.most = max(self.most, self.outstanding)
        time.sleep(timeout_ms / 1000)
        replies = super().poll()
        self._ready = [reply for reply in replies if reply.id == 1]
        return [reply for reply in replies if reply.id != 1]


def test_a_batch_that_waits_does_not_stall_the_others(net, seen):
    features, confidence, _ = seen
    cloud, done = Slow(make_tail(net)), []
    with middle(net, 2, 1.1, cloud, deadline_ms=3000.0) as (replica, counts):

        def ask(k):
            start = time.monotonic()
            confident, _ = replica.run("m", 1, "pristine", features[1][k : k + 1])
            done.append((k, float(confident[0]), time.monotonic() - start))

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(AT_ONCE)]
        for thread in threads:
            thread.start()
            time.sleep(0.02)  # so that the first is the one that waits
        for thread in threads:
            thread.join(PATIENCE_S)
    assert done[-1][0] == 0
    assert done[-1][2] >= 3.0  # its deadline
    assert done[-2][2] < 3.0
    assert done[-1][1] == pytest.approx(confidence[0, 1], abs=1e-5)
    for k, confident, _ in done[:-1]:
        assert confident == pytest.approx(confidence[k, -1], abs=1e-5)
    assert cloud.most > 1
    assert counts == {"here": 0, "forwarded": AT_ONCE, "fallback": 1}


# ---- three processes


def start(name, *arguments, err=subprocess.PIPE):
    pipe, command = subprocess.PIPE, [sys.executable, "-m", f"eex.stream.commands.{name}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=pipe, stderr=err, text=True, env=ENVIRONMENT, start_new_session=True)


@contextlib.contextmanager
def worker(*arguments, err=subprocess.PIPE):
    """A running `eex-worker`; yields its process, where it listens, and where its metrics are."""
    process = start("worker", "--bind", "tcp://127.0.0.1:*", "--threads", 1, *arguments, "--metrics-port", 0, err=err)
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1].startswith(READY), (
            lines,
            process.stderr and process.poll() is not None and process.stderr.read(),
        )
        yield process, lines[1].removeprefix(READY).strip(), re.search(r"http://\S+/metrics", lines[0])[0]
    finally:
        process.kill()
        process.communicate()


def frames_by_kind(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return {k: int(float(n)) for k, n in re.findall(r'eex_upstream_frames_total\{kind="(\w+)"\} (\S+)', text)}


def edge(out, endpoint, *arguments):
    options = ("--partition", 1, "--threads", 1, "--policy", "fixed:p_tar=0.9", "--no-regret", "--json", "--out", out)
    return start("stream", "--worker", endpoint, *options, *arguments)


def check_each_has_one_answer(process, frames):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    summary = json.loads(out)
    table = read_records(Path(summary["folder"]) / "records")
    assert table["frame"].to_pylist() == list(range(frames))
    assert table["answer"].null_count == 0
    return summary


@pytest.mark.process
@pytest.mark.soak
def test_three_tiers_with_keys(tmp_path):
    for name in ("top", "middle"):
        make_keys(tmp_path / name)
    way = ("--partition", 3, "--p-tar", 0.7, "--deadline-ms", 30_000, "--upstream-keys", tmp_path / "top")
    with worker("--keys", tmp_path / "top") as (_, top, _):
        with worker("--keys", tmp_path / "middle", "--upstream", top, *way) as (process, endpoint, metrics):
            options = ("--keys", tmp_path / "middle", "--frames", 400, "--deadline-ms", 60_000)
            summary = check_each_has_one_answer(edge(tmp_path / "runs", endpoint, *options), 400)
            counts = frames_by_kind(metrics)
            assert summary["fallbacks"] == counts["fallback"] == 0
            assert counts["here"] + counts["forwarded"] == summary["offloaded_share"] * 400
            assert counts["here"] > 20
            assert counts["forwarded"] > 20
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        # whom the upstream worker does not know stays outside
        stranger = start("worker", "--keys", tmp_path / "middle", "--upstream", top, *way[:-1], tmp_path / "middle")
        _, err = stranger.communicate(timeout=PATIENCE_S)
        assert stranger.returncode == 2
        assert err.startswith(f"error: {top}: ")
        assert err.count("\n") == 1


@pytest.mark.process
@pytest.mark.soak
def test_the_top_is_killed_in_mid_stream_and_comes_back(tmp_path):
    with contextlib.ExitStack() as stack:
        process, top, _ = stack.enter_context(worker("--plain"))
        way = ("--upstream", top, "--partition", 2, "--p-tar", 0.95, "--deadline-ms", 300)
        middle_process, endpoint, metrics = stack.enter_context(worker("--plain", *way))
        run = edge(tmp_path, endpoint, "--plain", "--frames", 6000, "--deadline-ms", 30_000)
        end = time.monotonic() + PATIENCE_S
        while frames_by_kind(metrics)["forwarded"] < 100 and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
        summary = check_each_has_one_answer(run, 6000)
        counts = frames_by_kind(metrics)
        assert summary["fallbacks"] == 0  # the edge notices nothing
        assert 0 < counts["fallback"] < counts["forwarded"]
        assert counts["here"] + counts["forwarded"] == summary["offloaded_share"] * 6000
        stack.enter_context(worker("--plain", "--bind", top))
        end = time.monotonic() + PATIENCE_S
        before = dict.fromkeys(counts, -1)
        while counts["forwarded"] == before["forwarded"] or counts["fallback"] > before["fallback"]:
            assert time.monotonic() < end
            before = counts
            again = edge(tmp_path, endpoint, "--plain", "--frames", 100, "--deadline-ms", 30_000)
            check_each_has_one_answer(again, 100)
            counts = frames_by_kind(metrics)
        middle_process.send_signal(signal.SIGTERM)
        _, err = middle_process.communicate(timeout=PATIENCE_S)
        assert err.splitlines()[0] == "eex-worker: the upstream worker does not answer"
        assert "eex-worker: the upstream worker is back" in err.splitlines()


@pytest.mark.process
@pytest.mark.parametrize("log", [pytest.param("a full device", marks=pytest.mark.soak), "a pipe that nobody reads"])
def test_a_log_that_cannot_be_written_does_not_cut_a_tier_off(log):
    """The upstream worker goes, which is logged, and comes back: it is asked again, and the tier answers throughout."""
    card = load(None)
    with (
        TrivialWorker(model=card.fingerprint) as top,
        unwritable(log) as stderr,
        worker(
            "--plain", "--upstream", top.endpoint, "--partition", 1, "--p-tar", 1, "--deadline-ms", 500, err=stderr
        ) as (process, endpoint, metrics),
        contextlib.closing(ZmqOffloader(endpoint, card.fingerprint, 1000 * PATIENCE_S)) as edge,
    ):
        edge.connect(PATIENCE_S)
        image = np.zeros((1, *card.architecture.input_shape), dtype=np.float32)
        ids = itertools.count()

        def from_upstream():
            assert edge.submit(next(ids), 0, "pristine", image)
            (reply,) = edge.poll(1000 * PATIENCE_S)
            assert not reply.failed
            return reply.confidence[0] == np.float32(0.9)  # what the trivial worker answers

        def until(what):
            end = time.monotonic() + PATIENCE_S
            while not what():
                assert time.monotonic() < end

        until(from_upstream)
        for _ in range(2):
            top.kill()
            until(lambda: not from_upstream())
            top.start()
            until(from_upstream)
        counts = frames_by_kind(metrics)
        assert counts["fallback"] > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.process
@pytest.mark.soak
def test_a_tier_starts_before_its_upstream_worker(tmp_path):
    """It answers by itself until the upstream worker comes, and passes frames on from then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        top = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        way = ("--upstream", top, "--partition", 2, "--p-tar", 0.95, "--deadline-ms", 300)
        middle, endpoint, metrics = stack.enter_context(worker("--plain", *way))
        options = ("--plain", "--frames", 100, "--deadline-ms", 30_000)
        assert check_each_has_one_answer(edge(tmp_path, endpoint, *options), 100)["fallbacks"] == 0
        counts = frames_by_kind(metrics)
        assert counts["here"] > 0
        assert counts["fallback"] == counts["forwarded"]  # what it would have passed on, it answered
        stack.enter_context(worker("--plain", "--bind", top))
        end = time.monotonic() + PATIENCE_S
        while True:
            before = counts
            check_each_has_one_answer(edge(tmp_path, endpoint, *options), 100)
            counts = frames_by_kind(metrics)
            if counts["forwarded"] > before["forwarded"] and counts["fallback"] == before["fallback"]:
                break
            assert time.monotonic() < end
        middle.send_signal(signal.SIGTERM)
        _, err = middle.communicate(timeout=PATIENCE_S)
        assert middle.returncode == 0
        assert "eex-worker: the upstream worker is back" in err.splitlines()
