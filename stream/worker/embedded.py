"""The embedded worker: `eex-worker` in a process of its own on this machine, with keys that nobody else has."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import zmq

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.wire.keys import EdgeKeys, Pair, WorkerKeys, new_pair, only
from eex.stream.wire.protocol import one_line

READY = "eex-worker: listening on "
COMMAND = (sys.executable, "-m", "eex.stream.commands.worker")
GRACE_S = 5.0  # how long a process may take to stop


class EmbeddedWorker:
    """A worker in a process of its own on this machine, which ends with the `with` block, or with this process.

    It gets its keys through a pipe: they are drawn anew each time and are in no file.

    Parameters
    ----------
    models, network, threads, device, processes, batch_frames
        As in `eex.stream.commands.worker.Worker`.
    command
        Starts the process; by default `eex-worker`, else a program that is called like it.

    Attributes
    ----------
    keys
        What an edge needs to be let in.

    Examples
    --------
    ::

        with EmbeddedWorker() as worker:  # starts it and does not wait
            ...
            offloader = ZmqOffloader(worker.endpoint(), net.fingerprint, keys=worker.keys)
    """

    def __init__(
        self,
        models: Sequence[Path] = (),
        network: str = "",
        threads: int = 0,
        device: str = "cpu",
        processes: int = 1,
        batch_frames: int = 64,
        command: Sequence[str] = (),
    ) -> None:
        self._command = command
        self._arguments: Sequence[str] = (
            *map(str, models),
            *(("--network", network) if network else ()),
            *("--bind", "tcp://127.0.0.1:*", "--threads", str(threads), "--device", device),
            *("--processes", str(processes), "--batch-frames", str(batch_frames), "--with-parent"),
        )
        self._own, edge = new_pair(), new_pair()
        self.keys = EdgeKeys(edge, self._own.public)
        self._process: subprocess.Popen[str] | None = None
        self._settled = threading.Event()  # the endpoint is known, or there will be none
        self._endpoint = ""

    def __enter__(self) -> "EmbeddedWorker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process and return at once; after `close` it can be started again."""
        if self._process is not None:
            raise RuntimeError("the embedded worker is started already")
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see close)
        self._process = subprocess.Popen(
            [*(self._command or COMMAND), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's to handle
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; `endpoint` says why
            self._process.stdin.write(f"{self._own.secret.decode()} {self.keys.own.public.decode()}\n")
            self._process.stdin.flush()
        self._settled.clear()
        self._endpoint = ""
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def endpoint(self, timeout_s: float = 60.0) -> str:
        """Where it listens; waits until it does.

        Raises
        ------
        OffloadError
            If it could not start, with the last line of its errors, or is not ready in time.
        """
        if self._process is None:
            raise RuntimeError("the embedded worker is not started")
        if not self._settled.wait(timeout_s):
            raise OffloadError(f"the embedded worker was not ready within {timeout_s:g} s")
        if not self._endpoint:
            code = self._process.wait()
            self._stderr.seek(0)
            lines = [line for line in self._stderr.read().splitlines() if line.strip()]
            reason = one_line(lines[-1].removeprefix("error: ")) if lines else "it printed no error"
            raise OffloadError(f"the embedded worker could not start (exit status {code}): {reason}")
        return self._endpoint

    def close(self) -> None:
        """Terminate the process; kill it if it does not end in time."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if self._settled.is_set():
            process.terminate()
        else:  # it has accepted nothing yet
            process.kill()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()  # its pipe has ended
        self._stderr.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.startswith(READY):
                    self._endpoint = line.removeprefix(READY).strip()
                    self._settled.set()
        self._settled.set()


def read_keys() -> WorkerKeys:
    """The keys that the parent process wrote to this one's standard input.

    Raises
    ------
    EexError
        If there are none.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < 200 and (byte := os.read(0, 1)):  # leaves the rest to others
        line += byte
    words = line.split()
    if len(words) != 2 or any(len(word) != 40 for word in words):
        raise EexError("--with-parent: expected keys on standard input; it is for workers that eex-stream starts")
    return only(Pair(zmq.curve_public(words[0]), words[0]), words[1])
