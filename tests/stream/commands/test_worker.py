"""`eex-worker` refuses what makes no sense with one line, and starts no worker that would be open to anyone."""

import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from commands import PATIENCE_S, start

from eex.models.card import SHIPPED, WEIGHTS
from eex.policies.core.errors import EexError
from eex.stream.commands.worker import Worker, _main
from eex.stream.guard import guarded
from eex.stream.wire.client import ZmqOffloader
from eex.stream.worker.serve import READY

pytestmark = pytest.mark.timeout(120)

UPSTREAM = {"upstream": "tcp://127.0.0.1:5556", "partition": 2, "plain": True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threads": 100_000}, r"--threads must lie in \[0, 1024\], got 100000"),
        ({"processes": 0}, "--processes must be at least 1, got 0"),
        ({"batch_frames": 0}, "--batch-frames must be at least 1"),
        ({"batch_wait_ms": -1.0}, "--batch-wait-ms must lie in"),
        ({"ray": 2, "processes": 2}, "one of the two"),
        ({"plain_beyond_loopback": True}, "goes with --plain"),
        ({"ray_address": "auto"}, "--ray-address goes with --ray"),
        ({"metrics_host": "::1"}, "--metrics-host goes with --metrics-port"),
        ({"ray": 2, "device": "cuda"}, "--device does not go with --ray"),
        ({"partition": 2}, "--partition goes with --upstream"),
        ({"p_tar": 0.5}, "--p-tar goes with --upstream"),
        ({"answer_network": "mine:make"}, "--answer-network goes with --answer-with"),
        (UPSTREAM | {"answer_with": Path("a")}, "--answer-with and --upstream exclude each other"),
        (UPSTREAM | {"partition": 0}, "--upstream needs --partition"),
        (UPSTREAM | {"p_tar": 1.5}, "--p-tar must lie in"),
        (UPSTREAM | {"deadline_ms": 0.0}, "--deadline-ms must be more than 0"),
        (UPSTREAM | {"deadline_ms": 1e14}, r"--deadline-ms must be more than 0 and at most 8.64e\+07 \(a day\)"),
        (UPSTREAM | {"plain": False}, "--upstream needs --upstream-keys"),
        (UPSTREAM | {"upstream": "localhost:5555"}, "expected tcp://host:port"),
        (UPSTREAM | {"models": (Path("a"), Path("b"))}, "--upstream serves a single model"),
        (UPSTREAM | {"processes": 2}, "--upstream runs its model in one process"),
    ],
)
def test_options_that_make_no_sense(options, says):
    with pytest.raises(EexError, match=says):
        Worker(**options).check()


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Runs `eex-worker` in this process; the line with which it refuses to start."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # else it is set for good

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eex-worker", *map(str, arguments)])
        assert guarded(_main) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keys", "nowhere"], "there is no such key; make keys with: eex-keys nowhere"),
        (["--plain", "--bind", "tcp://0.0.0.0:5555"], "--plain-beyond-loopback"),
        (["--plain-beyond-loopback"], "goes with --plain"),
    ],
)
def test_a_worker_that_would_be_open_does_not_start(arguments, says, refusal):
    assert says in refusal(*arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--partition", 4), "--partition must lie in 1…3, the last exit is the upstream worker's; got 4"),
        (("--partition", 2, "--require-upstream"), "no eex-worker answered within 0.5 s"),
        (("--partition", 2, "--upstream", "tcp://192.0.2.1:5555"), "--plain sends frames unprotected"),
    ],
)
def test_a_way_upstream_that_is_none(options, says, refusal, monkeypatch):
    monkeypatch.setattr(ZmqOffloader.connect, "__defaults__", (0.5,))
    assert says in refusal("--plain", "--bind", "tcp://127.0.0.1:*", "--upstream", "tcp://127.0.0.1:9", *options)


@pytest.mark.process
def test_alive_and_ready_are_two_questions_when_all_processes_are_gone(tmp_path):
    """Two processes are killed while the weights are away, so that they cannot come back; then the weights return."""
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    options = ("--plain", "--bind", "tcp://127.0.0.1:*", "--processes", 2, "--threads", 1, "--metrics-port", 0)
    with start("worker", model, *options) as worker:
        try:
            url = re.search(r"http://\S+(?=/metrics)", worker.stdout.readline())[0]
            assert worker.stdout.readline().startswith(READY)
            assert (answer(f"{url}/ready"), answer(f"{url}/alive")) == ((200, "ok", 2), (200, "ok", 2))
            (model / WEIGHTS).rename(tmp_path / WEIGHTS)
            children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
            assert len(children) == 2
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            wait_for(f"{url}/ready", (503, "lost", 0))
            assert answer(f"{url}/health") == (503, "lost", 0)
            assert answer(f"{url}/alive") == (200, "lost", 0)
            (tmp_path / WEIGHTS).rename(model / WEIGHTS)
            wait_for(f"{url}/ready", (200, "ok", 2))
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0
        finally:
            worker.kill()


def answer(url):
    """Status, what it says, and how many replicas there are."""
    try:
        found = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE_S)
    except urllib.error.HTTPError as error:
        found = error
    with found:
        state = json.load(found)
        return found.status, state["status"], state["replicas"]


def wait_for(url, state):
    end = time.monotonic() + PATIENCE_S
    while answer(url) != state:
        assert time.monotonic() < end, answer(url)
        time.sleep(0.05)
