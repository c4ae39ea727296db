"""The embedded worker: `eex-worker` in a process of its own on this machine, with keys that nobody else has."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import zmq

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.wire.keys import EdgeKeys, Pair, WorkerKeys, is_key, new_pair, only
from eex.stream.wire.protocol import one_line

READY = "eex-worker: listening on "
COMMAND = (sys.executable, "-P", "-m", "eex.stream.commands.worker")
"""Starts a worker; -P keeps modules of the current folder from taking the place of others."""
GRACE_S = 5.0  # how long a process may take to stop
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""How long to wait before a worker that died is started again: twice as long each time, until it has been ready."""


class EmbeddedWorker:
    """A worker in a process of its own on this machine, which ends with the `with` block, or with this process.

    Its keys are drawn anew each time, reach it through a pipe and are in no file.

    Parameters
    ----------
    models, network, threads, device, processes, batch_frames, answer_with, answer_network
        As in `eex.stream.commands.worker.Worker`.
    command
        Starts the process; by default `eex-worker`, else a program that is called like it.
    restart
        Whether to start it again, at the same endpoint and with the same keys, if it dies after it was ready.
    warn
        Called with one line, from another thread, when the process has died and when it is ready again.

    Attributes
    ----------
    keys
        What an edge needs to be let in.
    deaths
        How often the process ended though nobody had asked it to, after it was ready.

    Examples
    --------
    ::

        with EmbeddedWorker() as worker:  # starts it and does not wait
            ...
            offloader = ZmqOffloader(worker.endpoint(), net.tail_fingerprint, keys=worker.keys)
    """

    def __init__(
        self,
        models: Sequence[Path] = (),
        network: str = "",
        threads: int = 0,
        device: str = "cpu",
        processes: int = 1,
        batch_frames: int = 64,
        answer_with: Path | None = None,
        answer_network: str = "",
        command: Sequence[str] = (),
        restart: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._command, self._restart, self._warn = command, restart, warn
        self._arguments: Sequence[str] = (
            *map(str, models),
            *(("--network", network) if network else ()),
            *(("--answer-with", str(answer_with)) if answer_with is not None else ()),
            *(("--answer-network", answer_network) if answer_network else ()),
            *("--threads", str(threads), "--device", device),
            *("--processes", str(processes), "--batch-frames", str(batch_frames), "--with-parent"),
        )
        self._own, edge = new_pair(), new_pair()
        self.keys = EdgeKeys(edge, self._own.public)
        self.deaths = 0
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # held while the process is replaced
        self._closing = threading.Event()
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
        process = self._process
        return process is not None and process.poll() is None

    def start(self) -> None:
        """Start the process and return at once; after `close` it can be started again.

        Raises
        ------
        EexError
            If torch is not installed.
        """
        if self._process is not None:
            raise RuntimeError("the embedded worker is started already")
        if not self._command and importlib.util.find_spec("torch") is None:
            raise EexError(
                "an embedded worker needs torch: pip install 'eex[torch]'; expected --worker tcp://host:port of a "
                "worker elsewhere, or none"
            )
        self._closing.clear()
        self._settled.clear()
        self._endpoint = ""
        self._process = self._started("tcp://127.0.0.1:*")
        self._keeper = threading.Thread(target=self._keep, name="eex-embedded-worker", daemon=True)
        self._keeper.start()

    def endpoint(self, timeout_s: float = 60.0) -> str:
        """Where it listens; waits until it does.

        Raises
        ------
        OffloadError
            If it could not start, with the last line of its errors, or is not ready in time.
        """
        process = self._process
        if process is None:
            raise RuntimeError("the embedded worker is not started")
        if not self._settled.wait(timeout_s):
            raise OffloadError(f"the embedded worker was not ready within {timeout_s:g} s")
        if not self._endpoint:
            raise OffloadError(f"the embedded worker could not start {self.ending()}")
        return self._endpoint

    def ending(self) -> str:
        """How the process has ended, in words: its exit status, and the last line of its errors; waits until it has."""
        if self._process is None:
            raise RuntimeError("the embedded worker is not started")
        code = self._process.wait()
        if not self._restart:
            self._keeper.join(GRACE_S)  # reads the errors
        return f"(exit status {code}): {self._last_error()}"

    def signal(self, number: int) -> None:
        """Send the process a signal, if it is running."""
        if (process := self._process) is not None:
            process.send_signal(number)

    def close(self) -> None:
        """Terminate the process; kill it if it does not end in time."""
        self._closing.set()
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
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
        self._keeper.join()  # its pipe has ended

    def _started(self, bind: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*(self._command or COMMAND), *self._arguments, "--bind", bind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's to handle
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; `endpoint` raises the reason
            process.stdin.write(f"{self._own.secret.decode()} {self.keys.own.public.decode()}\n")
            process.stdin.flush()
        self._errors: deque[str] = deque(maxlen=20)
        return process

    def _keep(self) -> None:
        """Follow the process, and start it again when it dies after it was once ready."""
        process, wait_s = self._process, FIRST_WAIT_S
        while process is not None:
            ready = self._follow(process)
            self._settled.set()
            if self._closing.is_set() or not self._endpoint or not self._restart:
                return
            if ready:
                self.deaths += 1
                wait_s = FIRST_WAIT_S
                self._warn(f"the embedded worker died ({_ending(process.wait())}) and is started again")
            if self._closing.wait(wait_s):
                return
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            with self._lock:
                if self._closing.is_set():
                    return
                if process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.close()
                process = self._process = self._started(self._endpoint)

    def _follow(self, process: "subprocess.Popen[str]") -> bool:
        """Read the output of a process until it ends; whether it was ready."""
        assert process.stdout is not None
        assert process.stderr is not None
        errors = threading.Thread(target=_collect, args=(process.stderr, self._errors), daemon=True)
        errors.start()
        ready = False
        with process.stdout as lines:
            for line in lines:
                if line.startswith(READY):
                    ready, again = True, bool(self._endpoint)
                    self._endpoint = line.removeprefix(READY).strip()
                    self._settled.set()
                    if again:
                        self._warn("the embedded worker is ready again")
        process.wait()
        errors.join(GRACE_S)
        return ready

    def _last_error(self) -> str:
        lines = [line for line in self._errors if line.strip()]
        return one_line(lines[-1].removeprefix("error: ")) if lines else "it printed no error"


def _collect(stream: IO[str], lines: deque[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


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
    if len(words) != 2 or not all(map(is_key, words)):
        raise EexError("--with-parent: expected keys on standard input; it is for workers that eex-stream starts")
    return only(Pair(zmq.curve_public(words[0]), words[0]), words[1])
