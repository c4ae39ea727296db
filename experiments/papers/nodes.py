"""Three nodes on one machine: a test node sends batches to an edge node, which leaves the hard frames to a cloud node.

    test node                    edge node                                      cloud node
    `Nodes`, in this process ─►  a process: the engine with one local exit  ─►  `eex-worker`, a process
                             ◄─  classes, as soon as they are known         ◄─

Test and edge node exchange messages over a ZeroMQ socket on the loopback, encrypted with fresh keys that are passed
through a pipe. A message is a header (msgpack) and one raw array; nothing is pickled. A batch is sent when all frames
of the previous one are answered.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Thresholds, check_threshold
from eex.policies.core.errors import EexError, OffloadError
from eex.stream.guard import guarded, share_cores
from eex.stream.wire.keys import EdgeKeys, Pair, new_pair
from eex.stream.wire.protocol import one_line
from eex.stream.worker.embedded import GRACE_S, EmbeddedWorker

if TYPE_CHECKING:
    from eex.stream.driver import Driver
    from eex.stream.wire.client import ZmqOffloader

COMMAND = (sys.executable, "-m", "eex.experiments.papers.nodes")
CLOUD_COMMAND = (sys.executable, "-m", "eex.experiments.papers.cnn")
START_S, ANSWER_S = 120.0, 60.0
"""Time limits for the edge node to be ready for a model, and to answer a batch."""
DEADLINE_MS = 20_000.0  # for the cloud's answers: a slow one must not turn into a fallback
WARM_BATCHES = 2
PERIOD_S = 0.02
"""Period in which an edge node that gets only a share of its processor runs and is stopped."""

EDGE, CLOUD, FALLBACK, DROPPED = range(4)
"""Who answered a frame: the local exit; the cloud; the local exit because the cloud did not; nobody."""


@dataclass(frozen=True)
class Resources:
    """Limits of an edge node.

    Parameters
    ----------
    name
        Name in tables and figures.
    threads
        Threads of its model, each on a processor of its own; 0 = half of the machine's processors. The cloud node has
        the other half.
    memory_mb
        Limit of its private memory (RLIMIT_DATA); 0 = none.
    share
        Share of each 20 ms that it may run: it is stopped for the rest, as under a container's processor quota.
    """

    name: str = "all cores"
    threads: int = 0
    memory_mb: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Measured:
    """The answer to each image, in order, (N,) each.

    Attributes
    ----------
    prediction
        Classes; -1 where a frame was dropped.
    where
        `EDGE`, `CLOUD`, `FALLBACK` or `DROPPED`.
    latency_ms
        From the sending of a frame's batch to the arrival of its class.
    seconds
        From the sending of the first batch to the arrival of the last class.
    peak_mb
        Peak memory of the edge node so far.
    """

    prediction: Ints
    where: Ints
    latency_ms: Floats
    seconds: float
    peak_mb: float


class LocalExit(Policy):
    r"""Leave at a local exit where the normalised entropy :math:`\varepsilon` is below a threshold :math:`T`.

    For networks whose confidence is :math:`1 - \varepsilon`. The cloud answers every frame that is sent there.

    Parameters
    ----------
    threshold
        T, in [0, 1].
    finished
        Called with the outcomes of frames that have finished.

    Examples
    --------
    >>> LocalExit(0.25).choose(Context(frames=1)).exit_at.round(6)
    array([[[0.75, 0.  ]]])

    References
    ----------
    Lee, Hong, Hong and Kim (2020), ETRI Journal 42(5), section 3.3.
    """

    def __init__(
        self,
        threshold: float,
        finished: Callable[[Outcomes], None] = lambda outcomes: None,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(exits, runs, seed)
        self.threshold, self.finished = check_threshold("threshold", threshold), finished

    def choose(self, context: Context) -> Thresholds:
        """The same thresholds for every frame."""
        shape = (self.runs, context.frames)
        least = np.nextafter(1 - self.threshold, 2)  # an entropy that equals T does not leave
        chosen = self.same_at_every_exit(np.full(shape, least), np.zeros(shape, dtype=np.int64))
        chosen.exit_at[:, :, -1] = 0
        return chosen

    def learn(self, outcomes: Outcomes) -> None:
        """Pass the outcomes on."""
        self.finished(outcomes)


# ---- messages


class Begin(msgspec.Struct, frozen=True, tag_field="kind", tag="begin", forbid_unknown_fields=True):
    """The next batches are for this model (an index into the edge node's list) and these entropy thresholds."""

    model: int
    threshold: float
    drop_above: float = 1.0


class Ready(msgspec.Struct, frozen=True, tag_field="kind", tag="ready", forbid_unknown_fields=True):
    """The edge node has the model, and the cloud node as well."""


class Batch(msgspec.Struct, frozen=True, tag_field="kind", tag="batch", forbid_unknown_fields=True):
    """Images: uint8 (N, C, H, W) follow."""

    shape: tuple[int, int, int, int]


class Classes(msgspec.Struct, frozen=True, tag_field="kind", tag="classes", forbid_unknown_fields=True):
    """Some frames of the batch: int32 (frames, 3) follow, each a row in the batch, a class, and who answered."""

    frames: int
    peak_mb: float


Message = Begin | Ready | Batch | Classes
_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)
MAX_ELEMENTS = 1 << 26


def pack(header: Message, array: NDArray[Any] | None = None) -> list[bytes]:
    """The frames of a message."""
    layout = _layout(header)
    if (None if array is None else (array.dtype, array.shape)) != layout:
        raise OffloadError(f"{header} is followed by {layout}")
    return [_ENCODER.encode(header), b"" if array is None else array.tobytes()]


def unpack(frames: Sequence[bytes]) -> tuple[Message, NDArray[Any]]:
    """The header of a message and its array, empty where it has none.

    Raises
    ------
    OffloadError
        If it is none of these messages.
    """
    try:
        header = _DECODER.decode(frames[0])
    except (ValueError, IndexError, RecursionError) as error:
        raise OffloadError(f"not a message between nodes: {one_line(str(error))}") from None
    dtype, shape = _layout(header) or (np.dtype("u1"), (0,))
    size = math.prod(shape)
    if min(shape) < 0 or size > MAX_ELEMENTS or len(frames) != 2 or len(frames[1]) != size * dtype.itemsize:
        raise OffloadError(f"not a message between nodes: {one_line(str(header))} in {len(frames)} frames")
    return header, np.frombuffer(frames[1], dtype).reshape(shape)


def _layout(header: Message) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    if isinstance(header, Batch):
        return np.dtype("u1"), header.shape
    return (np.dtype("<i4"), (header.frames, 3)) if isinstance(header, Classes) else None


# ---- the test node


class Nodes:
    """The edge node and the cloud node, which end with the `with` block; this process is the test node.

    Parameters
    ----------
    models
        Folders of models with one local exit, which end on the cloud node.
    resources
        Limits of the edge node.
    cloud_threads
        Threads of the cloud node's model; 0 = one for each of its processors.

    Raises
    ------
    EexError
        From `__enter__` and `measure`: if a node cannot start, ends, or does not answer in time.
    """

    def __init__(self, models: Sequence[Path], resources: Resources | None = None, cloud_threads: int = 0) -> None:
        self.models, self.resources, self.cloud_threads = list(models), resources or Resources(), cloud_threads

    def __enter__(self) -> "Nodes":
        with contextlib.ExitStack() as stack:
            cloud = stack.enter_context(
                EmbeddedWorker(
                    self.models, threads=self.cloud_threads or len(their_half("cloud")), command=CLOUD_COMMAND
                )
            )
            context = stack.enter_context(zmq.Context())
            self._socket: zmq.Socket[bytes] = stack.enter_context(context.socket(zmq.DEALER))
            own = new_pair()
            self._socket.linger = 0
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)  # only the holder of our public key can connect
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
            self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            self._stderr = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            self._process = self._start(stack)
            handed = {
                "cloud": cloud.endpoint(START_S),
                "cloud_keys": [k.decode() for k in (cloud.keys.own.public, cloud.keys.own.secret, cloud.keys.worker)],
                "test": f"tcp://127.0.0.1:{port}",
                "test_key": own.public.decode(),
            }
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already; `_receive` says why
                self._process.stdin.write(json.dumps(handed).encode() + b"\n")
                self._process.stdin.flush()
            self._expect_ready()
            if self.resources.share < 1:
                stack.enter_context(_stop_and_go(self._process, self.resources.share))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> "subprocess.Popen[bytes]":
        given = json.dumps([asdict(self.resources), [str(m) for m in self.models]])
        process = subprocess.Popen(
            [*COMMAND, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,  # a Ctrl-C in the terminal is for this process to handle
        )

        def end() -> None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        stack.callback(end)
        return process

    def measure(
        self, model: int, threshold: float, images: NDArray[np.uint8], *, batch: int = 32, drop_above: float = 1.0
    ) -> Measured:
        """Send all images, batch after batch, and wait for their classes; a few batches are sent before to warm up.

        Parameters
        ----------
        model
            An index into the list of models.
        threshold, drop_above
            A frame leaves at the local exit if its normalised entropy is below the first, and is dropped if it is above
            the second.
        images
            (N, C, H, W).
        """
        self._send(Begin(model, threshold, drop_above))
        self._expect_ready()
        for k in range(WARM_BATCHES):
            self._play(images[k * batch : (k + 1) * batch] if len(images) > k * batch else images[:batch], batch)
        return self._play(images, batch)

    def _play(self, images: NDArray[np.uint8], batch: int) -> Measured:
        prediction, where = np.full(len(images), -1), np.full(len(images), -1)
        latency_ms, peak_mb = np.full(len(images), np.nan), 0.0
        started = time.perf_counter()
        for first in range(0, len(images), batch):
            pixels = np.ascontiguousarray(images[first : first + batch])
            sent = time.perf_counter()
            count, channels, height, width = pixels.shape
            self._send(Batch((count, channels, height, width)), pixels)
            awaited = count
            while awaited:
                header, found = self._receive(ANSWER_S)
                now = time.perf_counter()
                if not isinstance(header, Classes) or header.frames > awaited:
                    raise EexError(f"expected the edge node's answers to a batch, got {one_line(str(header))}")
                rows = first + found[:, 0]
                prediction[rows], where[rows] = found[:, 1], found[:, 2]
                latency_ms[rows] = 1000 * (now - sent)
                peak_mb = header.peak_mb
                awaited -= header.frames
        return Measured(prediction, where, latency_ms, time.perf_counter() - started, peak_mb)

    def _send(self, header: Message, array: NDArray[Any] | None = None) -> None:
        self._socket.send_multipart(pack(header, array))

    def _expect_ready(self) -> None:
        header, _ = self._receive(START_S)
        if not isinstance(header, Ready):
            raise EexError(f"expected the edge node to be ready, got {one_line(str(header))}")

    def _receive(self, within_s: float) -> tuple[Message, NDArray[Any]]:
        end = time.monotonic() + within_s
        while not self._socket.poll(100):
            if self._process.poll() is not None:
                self._stderr.seek(0)
                written = [line for line in self._stderr.read().splitlines() if line.strip()]
                reason = one_line(written[-1].removeprefix("error: ")) if written else "no message"
                if self.resources.memory_mb:
                    reason += f" (its memory is limited to {self.resources.memory_mb} MB)"
                raise EexError(f"the edge node ended (exit status {self._process.returncode}): {reason}")
            if time.monotonic() > end:
                raise EexError(f"the edge node did not answer within {within_s:g} s")
        return unpack(self._socket.recv_multipart())


@contextlib.contextmanager
def _stop_and_go(process: "subprocess.Popen[bytes]", share: float) -> Any:
    """Let a process run for a share of the time, by stopping and continuing it with signals."""
    stop = threading.Event()

    def drive() -> None:
        while not stop.is_set() and process.poll() is None:
            time.sleep(share * PERIOD_S)
            process.send_signal(signal.SIGSTOP)
            time.sleep((1 - share) * PERIOD_S)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# ---- the edge node


def main() -> None:
    """Entry point of the edge node's process; `Nodes` starts it."""
    sys.exit(guarded(_main))


def _main() -> int:
    share_cores()
    given, models = json.loads(sys.argv[1])
    resources = Resources(**given)
    _restrict(resources)
    from eex.stream.worker.serve import stop_on_signals, stop_with_parent

    stop = stop_on_signals()
    try:
        import torch

        torch.set_num_threads(len(cores()))  # whatever the environment says
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(0, 1)):  # `stop_with_parent` reads the rest
            line += byte
        if not line:  # the parent has ended
            return 0
        handed = json.loads(line)
        stop_with_parent(stop)
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            own = new_pair()
            socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
            socket.setsockopt(zmq.CURVE_SERVERKEY, handed["test_key"].encode())
            socket.connect(handed["test"])
            public, secret, worker = (k.encode() for k in handed["cloud_keys"])
            keys = EdgeKeys(Pair(public, secret), worker)
            EdgeNode(socket, [Path(m) for m in models], handed["cloud"], keys).serve(stop)
    except (MemoryError, RuntimeError) as error:
        from eex.experiments.papers.paper import out_of_memory

        if not out_of_memory(error):
            raise
        raise EexError(f"the edge node's memory, {resources.memory_mb or 'all'} MB, ran out") from None
    return 0


def cores() -> list[int]:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def their_half(node: str) -> list[int]:
    """Processors of the "cloud" node (the first half of ours) or of the "edge" node (the other half), at least one."""
    own = cores()
    return own[len(own) // 2 :] if node == "edge" else own[: max(1, len(own) // 2)]


def stay_on(processors: Sequence[int]) -> None:
    """Keep this process to some processors, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)


def _restrict(resources: Resources) -> None:
    """Apply the limits to this process; to be called before torch is loaded."""
    if resources.memory_mb:
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (resources.memory_mb << 20,) * 2)
        except (ImportError, ValueError, OSError) as error:
            raise EexError(f"this system cannot limit memory: {error}") from None
    stay_on(their_half("edge")[-resources.threads :])
    if resources.share < 1 and sys.platform == "linux":  # a stopped process does not notice the end of its parent
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _peak_mb() -> float:
    """Peak resident memory of this process; NaN where the system does not report it.

    Not getrusage's figure, which is inherited from the process that started this one.
    """
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return math.nan


class EdgeNode:
    """Answers batches with one model at a time, at its local exit or by the cloud node."""

    def __init__(self, socket: zmq.Socket[bytes], models: Sequence[Path], cloud: str, keys: EdgeKeys) -> None:
        self.socket, self.models, self.cloud, self.keys = socket, models, cloud, keys
        self._offloader: ZmqOffloader | None = None
        self._engine: Driver | None = None
        self._first = 0  # number of the batch's first frame
        self._peak_mb = math.nan

    def serve(self, stop: threading.Event) -> None:
        """Report ready, then serve the test node until `stop` is set."""
        self.socket.send_multipart(pack(Ready()))
        try:
            while not stop.is_set():
                if not self.socket.poll(100):
                    continue
                header, pixels = unpack(self.socket.recv_multipart())
                if isinstance(header, Begin):
                    self._begin(header)
                    self.socket.send_multipart(pack(Ready()))
                elif isinstance(header, Batch):
                    self._answer(pixels)
        finally:
            if self._offloader is not None:
                self._offloader.close()

    def _begin(self, begin: Begin) -> None:
        from eex.experiments.papers.cnn import register
        from eex.models.card import load
        from eex.models.fast import optimised
        from eex.stream.driver import Driver
        from eex.stream.wire.client import ZmqOffloader

        if self._offloader is not None:
            self._offloader.close()
        register()
        net = load(self.models[begin.model])
        self._offloader = ZmqOffloader(self.cloud, net.fingerprint, DEADLINE_MS, keys=self.keys)
        self._offloader.connect(START_S / 2)
        policy = LocalExit(begin.threshold, self._send, exits=net.edge_exits)
        self._engine = Driver(optimised(net), policy, self._offloader, drop_below=1 - begin.drop_above)

    def _answer(self, pixels: NDArray[Any]) -> None:
        """Run a batch; the policy passes on what finishes meanwhile."""
        import torch

        from eex.stream.frames.batch import Batch as MicroBatch

        engine = self._engine
        if engine is None:
            raise EexError("the edge node got a batch before a model")
        self._first = engine.engine.ring.next
        images = torch.from_numpy(pixels.copy()).float() / 255
        engine.feed(MicroBatch(images, [""] * len(images), np.full(len(images), -1)))
        engine.drain()
        for _ in engine.take():
            pass
        self._peak_mb = _peak_mb()  # sent with the next batch, so that nobody waits for it

    def _send(self, outcomes: Outcomes) -> None:
        """Send the classes of finished frames to the test node: the local exit's while the cloud works on the rest."""
        rows, exit = outcomes.frame - self._first, outcomes.exit
        where = np.where(outcomes.fallback, FALLBACK, np.where(exit == outcomes.confidence.shape[1] - 1, CLOUD, EDGE))
        where = np.where(exit < 0, DROPPED, where)
        classes = np.where(exit < 0, -1, outcomes.prediction[np.arange(len(rows)), exit])
        found = np.column_stack([rows, classes, where]).astype("<i4")
        self.socket.send_multipart(pack(Classes(len(found), self._peak_mb), found))


if __name__ == "__main__":
    main()
