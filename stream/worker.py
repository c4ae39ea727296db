"""The cloud worker: `serve` answers offloaded features, `eex-worker` is its command, `EmbeddedWorker` its process."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.errors import EexError, OffloadError
from eex.stream.guard import guarded, share_cores
from eex.stream.offload import Tail
from eex.stream.protocol import (
    MAX_BYTES,
    Buffer,
    Hello,
    ReplyHeader,
    Request,
    Welcome,
    one_line,
    pack,
    readable_id,
    unpack,
)

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet

READY = "eex-worker: listening on "
COMMAND = (sys.executable, "-m", "eex.stream.worker")
POLL_MS = 100  # how late a stop may be noticed
DRAIN_S = 2.0  # how long a stopped worker goes on with what has arrived already
GRACE_S = 5.0  # how long a stopped process may take
_NOTHING = (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int32))


def log(line: str) -> None:
    """Print one line for the user on stderr."""
    print(f"eex-worker: {line}", file=sys.stderr, flush=True)


def serve(
    socket: zmq.Socket[bytes],
    tail: Tail,
    stop: threading.Event,
    welcome: Welcome,
    log: Callable[[str], None] = log,
) -> None:
    """Answer requests on a bound ROUTER `socket` until `stop` is set, then those that are there; the caller closes it.

    A message that cannot be used is answered with the reason, or dropped if nobody can tell whose it is; it never ends
    the service.

    Raises
    ------
    OffloadError
        If the welcome is beyond the protocol's limits.
    """
    pack(welcome)

    def answer_one() -> None:
        client, *parts = socket.recv_multipart(copy=False)
        frames: list[Buffer] = [part.buffer for part in parts]
        answer = _answer(frames, tail, welcome, log)
        if answer:
            try:
                socket.send_multipart([client.bytes, *answer], zmq.NOBLOCK, copy=False)
            except zmq.ZMQError as error:  # the client is gone or does not read: its deadline tells it
                log(f"could not send a reply: {error}")

    while not stop.is_set():
        if socket.poll(POLL_MS):
            answer_one()
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end and socket.poll(0):
        answer_one()


def _answer(frames: list[Buffer], tail: Tail, welcome: Welcome, log: Callable[[str], None]) -> list[Buffer]:
    """The answer to a message; empty if there is none to give."""
    try:
        header, arrays = unpack(frames)
        if isinstance(header, Hello):
            return pack(welcome)
        if not isinstance(header, Request):
            raise OffloadError("a worker takes a hello or a request, got a worker's own message")
        if header.model != welcome.model:
            raise OffloadError(f"the edge has model {header.model}, the worker {welcome.model}")
        if header.stage >= welcome.stages:
            raise OffloadError(f"there is no stage {header.stage}, the model has {welcome.stages}")
        if header.expert not in welcome.experts:
            raise OffloadError(f"unknown expert '{header.expert}', expected one of {', '.join(welcome.experts)}")
        start = time.perf_counter()
        confidence, prediction = tail(header.stage, header.expert, arrays[0])
        compute_ms = 1000 * (time.perf_counter() - start)
        return pack(
            ReplyHeader(header.id, header.shape[0], compute_ms),
            np.asarray(confidence, dtype=np.float32),
            np.asarray(prediction, dtype=np.int32),
        )
    except Exception as error:  # whatever the model makes of a client's tensor, the others are served
        reason = one_line(str(error) if isinstance(error, OffloadError) else f"{type(error).__name__}: {error}")
        log(f"refused a message: {reason}")
        id = readable_id(frames)
        return [] if id is None else pack(ReplyHeader(id, error=reason), *_NOTHING)


def make_tail(net: "EarlyExitNet") -> Tail:
    """The rest of a network, from any stage on to the final exit, as `serve` wants it."""
    import torch

    device = net.mean.device
    net.eval()
    shapes = []  # what each stage takes
    with torch.inference_mode():
        x = torch.zeros(1, *net.architecture.input_shape, device=device)
        for i in range(net.exits):
            shapes.append(tuple(x.shape[1:]))
            x = net.stage(i, x)

    @torch.inference_mode()
    def tail(stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if features.shape[1:] != shapes[stage]:
            raise OffloadError(
                f"stage {stage} takes features (n, {', '.join(map(str, shapes[stage]))}), got {features.shape}"
            )
        # off the wire they are neither aligned nor ours to write to, which torch wants
        x = torch.from_numpy(np.require(features, np.float32, ["C", "A", "W"])).to(device, net.mean.dtype)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for i in range(stage, net.exits):
            x = net.stage(i, x)
        confidence, prediction = net.branch(net.exits - 1, expert, x).float().softmax(dim=1).max(dim=1)
        return confidence.cpu().numpy(), prediction.cpu().numpy()

    return tail


def listen(tail: Tail, welcome: Welcome, bind: str, stop: threading.Event) -> None:
    """Bind a socket, print the line that says so, and serve until `stop` is set.

    Raises
    ------
    OffloadError
        If the endpoint cannot be bound.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        for option, value in {
            zmq.LINGER: 1000,  # ms for the last replies to leave
            zmq.SNDHWM: 64,
            zmq.RCVHWM: 16,
            zmq.MAXMSGSIZE: MAX_BYTES,
        }.items():
            socket.setsockopt(option, value)
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            raise OffloadError(f"cannot listen on {bind}: {error}; expected tcp://address:port that is free") from None
        print(READY + socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), flush=True)
        serve(socket, tail, stop, welcome)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` once stdin ends, which it does when the parent is gone, and end the process if that does not help."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held at exit
            pass
        stop.set()
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Worker:
    """Answer the frames that edges offload: run the rest of the network, up to the final exit.

    Parameters
    ----------
    model
        Folder of a model; the shipped one by default.
    network
        For a network of one's own: module:function that cuts it.
    bind
        Where to listen; port * picks a free one.
    threads
        Threads of the model; 0 leaves it to torch.
    device
        Where the model runs: cpu, cuda, cuda:1, …
    with_parent
        Stop when stdin ends.
    """

    model: Path | None = None
    network: str = ""
    bind: str = "tcp://127.0.0.1:5555"
    threads: int = 0
    device: str = "cpu"
    with_parent: bool = False


def main() -> None:
    """Entry point of `eex-worker`."""
    sys.exit(guarded(_main))


def _main() -> int:
    stop = stop_on_signals()
    share_cores()
    import tyro

    options = tyro.cli(Worker, prog="eex-worker")
    if options.with_parent:
        stop_with_parent(stop)
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.run import make_network, pick_device

    if options.threads < 0:
        raise EexError(f"--threads must be at least 0, got {options.threads}")
    if options.threads:
        torch.set_num_threads(options.threads)
    net = load(options.model, pick_device(options.device), make_network(options.network))
    welcome = Welcome(net.fingerprint, net.exits, net.experts, net.classes)
    listen(make_tail(optimised(net)), welcome, options.bind, stop)
    return 0


class EmbeddedWorker:
    """A worker in a process of its own on this machine, which ends with the `with` block, or with this process.

    Parameters
    ----------
    model, network, threads, device
        As in `Worker`.

    Examples
    --------
    ::

        with EmbeddedWorker() as worker:  # starts it and does not wait
            ...
            offloader = ZmqOffloader(worker.endpoint(), net.fingerprint)
    """

    def __init__(self, model: Path | None = None, network: str = "", threads: int = 0, device: str = "cpu") -> None:
        self._arguments: Sequence[str] = (
            *(() if model is None else ("--model", str(model))),
            *(("--network", network) if network else ()),
            *("--bind", "tcp://127.0.0.1:*", "--threads", str(threads), "--device", device, "--with-parent"),
        )
        self._process: subprocess.Popen[str] | None = None
        self._settled = threading.Event()  # the endpoint is known, or there will be none
        self._endpoint = ""

    def __enter__(self) -> "EmbeddedWorker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process and return at once."""
        if self._process is not None:
            raise RuntimeError("the embedded worker is started already")
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see close)
        self._process = subprocess.Popen(
            [*COMMAND, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's to handle
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def endpoint(self, timeout_s: float = 60.0) -> str:
        """Where it listens, once it does.

        Raises
        ------
        OffloadError
            If it could not start, with the last line it said, or is not ready in time.
        """
        if self._process is None:
            raise RuntimeError("the embedded worker is not started")
        if not self._settled.wait(timeout_s):
            raise OffloadError(f"the embedded worker was not ready within {timeout_s:g} s")
        if not self._endpoint:
            code = self._process.wait()
            self._stderr.seek(0)
            said = [line for line in self._stderr.read().splitlines() if line.strip()]
            reason = one_line(said[-1].removeprefix("error: ")) if said else "it said nothing"
            raise OffloadError(f"the embedded worker could not start (exit status {code}): {reason}")
        return self._endpoint

    def close(self) -> None:
        """End the process: ask it to, then kill it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if self._settled.is_set():
            process.terminate()
        else:  # it has nothing to finish yet
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


if __name__ == "__main__":
    main()
