"""Three nodes on one machine: a test node sends batches to an edge node, which leaves the hard frames to a cloud node.

    test node                    edge node                                      cloud node
    `Nodes`, in this process ─►  a process: the engine with one local exit  ─►  `eex-worker`, a process
                             ◄─  classes, as soon as they are known         ◄─

Both processes are `EmbeddedWorker`s, with keys drawn anew. Test and edge node exchange msgpack messages over a ZeroMQ
socket on the loopback, encrypted; nothing is pickled. Edge and cloud node are on the loopback too, or on the two sides
of an emulated link. A batch is sent when all frames of the previous one are answered.
"""

import contextlib
import gc
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Thresholds, check_threshold
from eex.policies.core.errors import EexError, OffloadError
from eex.stream.guard import guarded, share_cores
from eex.stream.wire.emulated_link import emulated
from eex.stream.wire.keys import EdgeKeys, Pair
from eex.stream.wire.protocol import one_line
from eex.stream.wire.security import secure_edge
from eex.stream.worker.embedded import READY, EmbeddedWorker, read_keys

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
    """Limits of an edge node, and its way to the cloud node."""

    name: str = "half of the cores"  # in tables and figures
    threads: int = 0  # each on a processor of its own; 0 = half of the machine's; the cloud node has the other half
    memory_mb: int = 0  # of private memory (RLIMIT_DATA); 0 = no limit
    share: float = 1.0  # of each 20 ms; it is stopped for the rest, as under a container's processor quota
    link: str = ""  # to the cloud node (`eex.policies.core.link`); "" = the loopback itself


@dataclass(frozen=True)
class Measured:
    """The answer to each image, in order, (N,) each; seconds and memory of all."""

    prediction: Ints  # classes; -1 where a frame was dropped
    where: Ints  # `EDGE`, `CLOUD`, `FALLBACK` or `DROPPED`
    latency_ms: Floats  # from the sending of a frame's batch to the arrival of its class
    seconds: float  # from the sending of the first batch to the arrival of the last class
    peak_mb: float  # peak memory of the edge node so far


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


class Begin(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The next batches are for this model (an index into the edge node's list) and these entropy thresholds.

    The edge node sends it back once it and the cloud node have the model. `keys` let it in there: its own public and
    secret half, and the cloud node's public half.
    """

    model: int
    threshold: float
    drop_above: float
    cloud: str
    keys: tuple[bytes, bytes, bytes]


class Images(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A batch: uint8 (N, C, H, W)."""

    shape: tuple[int, int, int, int]
    pixels: bytes

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or math.prod(self.shape) != len(self.pixels):
            raise ValueError(f"{len(self.pixels)} bytes are no images of shape {self.shape}")


class Classes(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Some frames of the batch: rows of a frame's place in it, its class, and who answered."""

    rows: list[tuple[int, int, int]]
    peak_mb: float


Message = Begin | Images | Classes
pack = msgspec.msgpack.Encoder().encode
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def unpack(packed: bytes) -> Message:
    """What `pack` has packed.

    Raises
    ------
    OffloadError
        If it is none of these messages.
    """
    try:
        return _DECODER.decode(packed)
    except (ValueError, RecursionError) as error:
        raise OffloadError(f"not a message between nodes: {one_line(str(error))}") from None


# ---- the test node


class Nodes:
    """The edge node and the cloud node, which end with the `with` block; this process is the test node.

    Parameters
    ----------
    models
        Folders of models with one local exit, which end on the cloud node.
    resources
        Limits of the edge node, and its link to the cloud node.
    cloud_threads
        Threads of the cloud node's model; 0 = one for each of its processors.

    Raises
    ------
    EexError
        From `__enter__` and `measure`: if a node cannot start, ends, or does not answer in time.
    """

    def __init__(self, models: Sequence[Path], resources: Resources | None = None, cloud_threads: int = 0) -> None:
        self.resources = resources or Resources()
        threads = cloud_threads or len(their_half("cloud"))
        self.cloud = EmbeddedWorker(models, threads=threads, command=CLOUD_COMMAND)
        given = json.dumps([asdict(self.resources), [str(m) for m in models]])
        self.edge = EmbeddedWorker(command=(*COMMAND, given))

    def __enter__(self) -> "Nodes":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cloud)
            stack.enter_context(self.edge)
            try:
                endpoint = self.edge.endpoint(START_S)
            except OffloadError as error:
                raise EexError(f"the edge node did not start{self._limited}: {error}") from None
            self._cloud = self.cloud.endpoint(START_S)
            if self.resources.link:
                [self._cloud] = stack.enter_context(emulated(self.resources.link, [self._cloud]))
            context = stack.enter_context(zmq.Context())
            self._socket: zmq.Socket[bytes] = stack.enter_context(context.socket(zmq.DEALER))
            self._socket.linger = 0
            secure_edge(self._socket, self.edge.keys)
            self._socket.connect(endpoint)
            if self.resources.share < 1:
                stack.enter_context(_stop_and_go(self.edge, self.resources.share))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _limited(self) -> str:
        return f" (its memory is limited to {self.resources.memory_mb} MB)" if self.resources.memory_mb else ""

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
        keys = self.cloud.keys
        handed = (keys.own.public, keys.own.secret, keys.worker)
        begin = Begin(model, threshold, drop_above, self._cloud, handed)
        self._socket.send(pack(begin))
        if (received := self._receive(START_S)) != begin:
            raise EexError(f"expected the edge node to be ready, got {type(received).__name__}")
        for k in range(WARM_BATCHES):
            self._play(images[k * batch : (k + 1) * batch] if len(images) > k * batch else images[:batch], batch)
        return self._play(images, batch)

    def _play(self, images: NDArray[np.uint8], batch: int) -> Measured:
        prediction, where = np.full(len(images), -1), np.full(len(images), -1)
        latency_ms, peak_mb = np.full(len(images), np.nan), 0.0
        started = time.perf_counter()
        for first in range(0, len(images), batch):
            pixels = images[first : first + batch]
            sent = time.perf_counter()
            count, channels, height, width = pixels.shape
            self._socket.send(pack(Images((count, channels, height, width), pixels.tobytes())))
            while count:
                received = self._receive(ANSWER_S)
                now = time.perf_counter()
                if not isinstance(received, Classes) or len(received.rows) > count:
                    raise EexError(f"expected the edge node's answers to a batch, got {type(received).__name__}")
                for row, answer, who in received.rows:
                    prediction[first + row], where[first + row] = answer, who
                    latency_ms[first + row] = 1000 * (now - sent)
                peak_mb = received.peak_mb
                count -= len(received.rows)
        return Measured(prediction, where, latency_ms, time.perf_counter() - started, peak_mb)

    def _receive(self, within_s: float) -> Message:
        end = time.monotonic() + within_s
        while not self._socket.poll(100):
            if not self.edge.running:
                raise EexError(f"the edge node ended{self._limited} {self.edge.ending()}")
            if time.monotonic() > end:
                raise EexError(f"the edge node did not answer within {within_s:g} s")
        return unpack(self._socket.recv())


@contextlib.contextmanager
def _stop_and_go(worker: EmbeddedWorker, share: float) -> Iterator[None]:
    """Let a process run for a share of the time, by stopping and continuing it with signals."""
    stop = threading.Event()

    def drive() -> None:
        while not stop.is_set() and worker.running:
            time.sleep(share * PERIOD_S)
            worker.signal(signal.SIGSTOP)
            time.sleep((1 - share) * PERIOD_S)
            worker.signal(signal.SIGCONT)

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
        keys = read_keys()
        stop_with_parent(stop)
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.setsockopt(zmq.CURVE_SERVER, 1)  # only who was handed our public key can connect
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            print(f"{READY}tcp://127.0.0.1:{port}", flush=True)
            EdgeNode(socket, [Path(m) for m in models]).serve(stop)
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

    def __init__(self, socket: zmq.Socket[bytes], models: Sequence[Path]) -> None:
        self.socket, self.models = socket, models
        self._offloader: ZmqOffloader | None = None
        self._engine: Driver | None = None
        self._first = 0  # number of the batch's first frame
        self._peak_mb = math.nan

    def serve(self, stop: threading.Event) -> None:
        """Serve the test node until `stop` is set."""
        try:
            while not stop.is_set():
                if not self.socket.poll(100):
                    continue
                received = unpack(self.socket.recv())
                if isinstance(received, Begin):
                    self._begin(received)
                    self.socket.send(pack(received))
                elif isinstance(received, Images):
                    self._answer(received)
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
        self._offloader = self._engine = None
        gc.collect()  # models hold themselves in circles, and memory may be limited
        register()
        net = load(self.models[begin.model])
        public, secret, worker = begin.keys
        keys = EdgeKeys(Pair(public, secret), worker)
        self._offloader = ZmqOffloader(begin.cloud, net.fingerprint, DEADLINE_MS, keys=keys)
        self._offloader.connect(START_S / 2)
        policy = LocalExit(begin.threshold, self._send, exits=net.edge_exits)
        self._engine = Driver(optimised(net), policy, self._offloader, drop_below=1 - begin.drop_above)

    def _answer(self, batch: Images) -> None:
        """Run a batch; the policy passes on what finishes meanwhile."""
        import torch

        from eex.stream.frames.batch import Batch

        engine = self._engine
        if engine is None:
            raise EexError("the edge node got a batch before a model")
        self._first = engine.engine.ring.next
        images = torch.frombuffer(bytearray(batch.pixels), dtype=torch.uint8).view(batch.shape).float() / 255
        engine.feed(Batch(images, [""] * len(images), np.full(len(images), -1)))
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
        found = zip(rows.tolist(), classes.tolist(), where.tolist(), strict=True)
        self.socket.send(pack(Classes(list(found), self._peak_mb)))


if __name__ == "__main__":
    main()
