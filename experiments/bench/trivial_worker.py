"""A worker with a trivial model in a process of its own, for tests and benchmarks of the offloading path."""

import json
import signal
import socket
import subprocess
import sys
from typing import Any

from eex.stream.wire.keys import EdgeKeys, new_pair
from eex.stream.worker.embedded import READY

MODEL = "model-a"
WAIT_S = 60.0

PROGRAM = """
import json, os, sys, time
import numpy as np
from eex.stream.worker.clients import Limits
from eex.stream.worker.pool import LocalReplica
from pathlib import Path
from eex.stream.wire.keys import Pair, only, worker_keys
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.serve import listen, log, stop_on_signals

o = json.loads(sys.argv[1])
kept = []

def tail(stage, expert, features):
    if o["delay_s"]:
        time.sleep(o["delay_s"])
    if o["leak"]:
        kept.append(bytearray(o["leak"] * len(features)))
    while o["hang"] and os.path.exists(o["hang"]):
        time.sleep(0.005)
    return np.full(len(features), 0.9), np.full(len(features), 1)

keys = only(Pair(*(k.encode() for k in o["pair"])), o["client"].encode()) if o["pair"] else None
keys = worker_keys(Path(o["folder"]), log) if o["folder"] else keys
welcome = Welcome(o["model"], 2, ("pristine",), tuple("abcd"), o["max_bytes"], o["window"], (o["model"],))
stop = stop_on_signals()
listen([welcome], [LocalReplica({o["model"]: tail})], o["bind"], stop, keys=keys, limits=Limits(**o["limits"]))
"""


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class TrivialWorker:
    """A worker that answers every frame in the same way; it can be killed, stopped and restarted at its endpoint.

    Parameters
    ----------
    guarded
        Accept only the client with `keys`; otherwise plain text.
    options
        model: its fingerprint; delay_s: how long a call takes; hang: a path, while which exists calls do not return;
        leak: bytes that it keeps of each frame; folder: of the keys that it knows; window and max_bytes: of its
        welcome; limits: a dict for `Limits`.
    """

    def __init__(self, guarded: bool = False, **options: Any) -> None:
        worker, client = new_pair(), new_pair()
        self.keys = EdgeKeys(client, worker.public) if guarded else None
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.options: dict[str, Any] = {
            "model": MODEL,
            "bind": self.endpoint,
            "pair": [worker.public.decode(), worker.secret.decode()] if guarded else None,
            "client": client.public.decode(),
            "delay_s": 0.0,
            "hang": "",
            "leak": 0,
            "folder": "",
            "window": 32,
            "limits": {},
            "max_bytes": 1 << 22,
        } | options
        self.start()

    def start(self, **options: Any) -> None:
        """Start the process, with some options changed, and wait until it listens."""
        self.options |= options
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(self.options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith(READY):
            raise RuntimeError(f"the worker did not start (exit status {self.process.wait()})")

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self.process.send_signal(signal.SIGKILL)
        self._gone()

    def end(self) -> int:
        """Let it stop (SIGTERM); its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self._gone()

    def resident_kib(self) -> int:
        """Its memory in KiB."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def __enter__(self) -> "TrivialWorker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        elif self.process.stdout is not None:
            self.process.stdout.close()

    def _gone(self) -> int:
        status = self.process.wait(WAIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status
