"""`eex-keys` makes what `eex-worker` and an edge need, and a worker with them lets that edge in."""

import contextlib
import subprocess
import sys
import time

import pytest
from commands import call, refused

from eex.models.card import load
from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import edge_keys
from eex.stream.worker.embedded import READY

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 120.0


def test_keys_open_the_worker(tmp_path):
    folder = tmp_path / "keys"
    made = call("keys", folder)
    assert made.returncode == 0, made.stderr
    keys = edge_keys(folder)
    assert keys.own.public.decode() in made.stdout
    assert keys.own.secret.decode() not in made.stdout
    refused(call("keys", folder), "exists already")
    command = [sys.executable, "-m", "eex.stream.commands.worker", "--keys", str(folder), "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True) as worker:
        try:
            line = worker.stdout.readline()
            assert line.startswith(READY)
            endpoint = line.removeprefix(READY).strip()
            with contextlib.closing(ZmqOffloader(endpoint, load(None).fingerprint, keys=keys)) as offloader:
                assert offloader.connect(PATIENCE_S).model == offloader.fingerprint
                (folder / "edge.pub").unlink()  # a key that is deleted ends its connections
                until = time.monotonic() + PATIENCE_S
                while offloader.reachable:
                    assert time.monotonic() < until
                    offloader.poll(100)
                with pytest.raises(OffloadError, match="key"):
                    ZmqOffloader(endpoint, offloader.fingerprint, keys=keys).connect(10)
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0
        finally:
            worker.kill()


def test_a_worker_without_keys_does_not_start():
    refused(call("worker", "--keys", "nowhere"), "nowhere/worker.key: there is no such key; make keys with: eex-keys")
