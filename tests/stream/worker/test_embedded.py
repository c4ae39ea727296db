"""The embedded worker: a process of its own that ends with its parent, and says why it could not start."""

import contextlib
import os
import signal
import sys
import time

import numpy as np
import pytest
from worker_process import SCRIPT

from eex.models.card import fingerprint, read_card
from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.emulated_link import emulated
from eex.stream.worker import embedded
from eex.stream.worker.embedded import EmbeddedWorker

pytestmark = pytest.mark.timeout(60)

PATIENCE_S = 20.0


def test_an_embedded_worker_serves_and_goes(monkeypatch):
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", SCRIPT))
    with EmbeddedWorker() as ours:
        pid = ours._process.pid
        endpoint = ours.endpoint(PATIENCE_S)
        with contextlib.closing(ZmqOffloader(endpoint, "model-a", keys=ours.keys)) as offloader:
            assert offloader.connect(PATIENCE_S).model == "model-a"
            assert offloader.submit(1, 2, "blur", np.zeros((2, 2, 2), dtype=np.float32))
            np.testing.assert_array_equal(offloader.poll(1000 * PATIENCE_S)[0].prediction, [2, 2])
        assert ours.endpoint(0) == endpoint
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    ours.close()  # again
    with pytest.raises(RuntimeError, match="not started"):
        ours.endpoint(0)


def test_an_embedded_worker_that_cannot_start_says_why(monkeypatch):
    script = "import sys; print('noise'); print('error: no such model', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script))
    with (
        EmbeddedWorker() as ours,
        pytest.raises(OffloadError, match=r"could not start \(exit status 2\): no such model$"),
    ):
        ours.endpoint(PATIENCE_S)


def test_an_embedded_worker_that_hangs_is_killed(monkeypatch):
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script))
    start = time.monotonic()
    with EmbeddedWorker() as ours:
        pid = ours._process.pid
        with pytest.raises(OffloadError, match=r"not ready within 0.1 s"):
            ours.endpoint(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - start < PATIENCE_S
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script.replace("up", embedded.READY + "tcp://x")))
    monkeypatch.setattr(embedded, "GRACE_S", 0.1)
    with EmbeddedWorker() as ours:
        assert ours.endpoint(PATIENCE_S) == "tcp://x"


@pytest.mark.process
def test_signals_for_a_whole_unit_leave_the_worker_to_its_parent():
    """As systemd sends them, to parent and worker at once: the parent still has frames under way."""
    with EmbeddedWorker() as ours:
        endpoint = ours.endpoint(PATIENCE_S)
        for number in (signal.SIGTERM, signal.SIGINT):
            ours.signal(number)
        with contextlib.closing(ZmqOffloader(endpoint, fingerprint(read_card()), keys=ours.keys)) as offloader:
            offloader.connect(PATIENCE_S)
        process = ours._process
    assert process.wait(PATIENCE_S) == 0  # its parent has closed it


def test_an_embedded_worker_that_is_killed_comes_back_at_the_same_endpoint(monkeypatch):
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", SCRIPT))
    monkeypatch.setattr(embedded, "FIRST_WAIT_S", 0.05)
    said = []
    with EmbeddedWorker(restart=True, warn=said.append) as ours:
        endpoint = ours.endpoint(PATIENCE_S)
        with contextlib.closing(ZmqOffloader(endpoint, "model-a", keys=ours.keys)) as offloader:
            offloader.connect(PATIENCE_S)
            os.kill(ours._process.pid, signal.SIGKILL)
            end, id, answered = time.monotonic() + PATIENCE_S, 0, False
            while not (answered and ours.deaths) and time.monotonic() < end:
                id += offloader.submit(id, 2, "blur", np.zeros((2, 2, 2), dtype=np.float32))
                answered = any(not reply.failed for reply in offloader.poll(50)) and ours.deaths > 0
        assert answered
        assert (ours.deaths, ours.endpoint(0)) == (1, endpoint)
    assert said == [
        "the embedded worker died (killed by signal 9) and is started again",
        "the embedded worker is ready again",
    ]
    assert not ours.running


def test_modules_of_the_current_folder_do_not_take_the_place_of_others(tmp_path, monkeypatch):
    (tmp_path / "tyro.py").write_text("import pathlib; pathlib.Path('planted').touch(); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with EmbeddedWorker(threads=1) as ours:
        assert ours.endpoint(3 * PATIENCE_S).startswith("tcp://127.0.0.1:")
    with emulated("5@10", ["tcp://127.0.0.1:9"]) as endpoints:
        assert len(endpoints) == 1
    assert not (tmp_path / "planted").exists()
