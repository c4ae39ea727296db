"""The cloud worker: `serve` answers offloaded features, `eex-worker` is its command."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
import zmq
from msgspec import structs
from numpy.typing import NDArray

from eex.policies.errors import EexError, OffloadError
from eex.stream.curve import HANDSHAKE_MS, check_plain, is_loopback, secure_worker, zap_socket
from eex.stream.embedded import GRACE_S, READY, EmbeddedWorker, read_keys
from eex.stream.front import Front, Limits, LocalReplica, Replica, Stats
from eex.stream.guard import guarded, share_cores
from eex.stream.keys import WorkerKeys, default_folder, edge_keys, worker_keys
from eex.stream.metrics import monitoring
from eex.stream.offload import Tail
from eex.stream.protocol import MAX_BYTES, MAX_HEADER_BYTES, MESSAGE_FRAMES, Welcome

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet

QUEUE = 8
"""Most messages that wait in the socket for or from one client."""


def log(line: str) -> None:
    """Print one line for the user on stderr."""
    print(f"eex-worker: {line}", file=sys.stderr, flush=True)


def serve(
    socket: zmq.Socket[bytes],
    tail: Tail,
    stop: threading.Event,
    welcome: Welcome,
    log: Callable[[str], None] = log,
    limits: Limits | None = None,
) -> None:
    """Answer requests for one model on a bound ROUTER `socket` until `stop` is set, then those that are there.

    A message that cannot be used is answered with the reason, or dropped if nobody can tell whose it is; it never ends
    the service. The caller closes the socket.

    Raises
    ------
    OffloadError
        If the welcome is beyond the protocol's limits.
    """
    Front(socket, [welcome], [LocalReplica({welcome.model: tail})], limits=limits, log=log).serve(stop)


def make_tail(net: "EarlyExitNet") -> Tail:
    """The rest of a network, from any stage on to the final exit, as `serve` wants it."""
    import torch

    net.eval()
    shapes = stage_shapes(net)

    @torch.inference_mode()
    def tail(stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        x = features_tensor(net, shapes[stage], stage, features)
        for i in range(stage, net.exits):
            x = net.stage(i, x)
        confidence, prediction = net.confident(net.branch(net.exits - 1, expert, x))
        return confidence.cpu().numpy(), prediction.cpu().numpy()

    return tail


def features_tensor(net: "EarlyExitNet", shape: tuple[int, ...], stage: int, features: NDArray[Any]) -> "Tensor":
    """Features (n, ...) off the wire as a stage takes them.

    Raises
    ------
    OffloadError
        If they are not of the stage's shape.
    """
    import torch

    if features.shape[1:] != shape:
        raise OffloadError(f"stage {stage} takes features (n, {', '.join(map(str, shape))}), got {features.shape}")
    # off the wire they are neither aligned nor ours to write to, which torch wants
    x = torch.from_numpy(np.require(features, np.float32, ["C", "A", "W"])).to(net.mean.device, net.mean.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def stage_shapes(net: "EarlyExitNet") -> list[tuple[int, ...]]:
    """What each stage takes, without the axis of frames."""
    import torch

    shapes = []
    with torch.inference_mode():
        x = torch.zeros(1, *net.architecture.input_shape, device=net.mean.device)
        for i in range(net.exits):
            shapes.append(tuple(x.shape[1:]))
            x = net.stage(i, x)
    return shapes


def load_models(
    models: Sequence[Path],
    network: str,
    threads: int,
    device: str,
    batch_frames: int,
    make: "Callable[[EarlyExitNet], Tail]" = make_tail,
) -> tuple[list[Welcome], dict[str, Tail], dict[str, list[tuple[int, ...]]]]:
    """Load models, the shipped one if there is none; their welcomes, and tails and stages' shapes by fingerprint.

    Parameters
    ----------
    make
        Makes the tail of each network, which it gets in the form that infers fast.

    Raises
    ------
    EexError
        If one cannot be used, or there is no such device.
    """
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.run import make_network, pick_device

    if threads:
        torch.set_num_threads(threads)
    nets = [load(m, pick_device(device), make_network(network)) for m in models or (None,)]
    welcomes: dict[str, Welcome] = {}
    tails: dict[str, Tail] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for net in nets:
        taken = shapes[net.fingerprint] = stage_shapes(net)
        largest = 4 * max(math.prod(shape) for shape in taken)  # bytes of a frame, float32
        most = min(MAX_BYTES, max(MESSAGE_FRAMES, batch_frames) * largest)
        welcomes[net.fingerprint] = Welcome(net.fingerprint, net.exits, net.experts, net.classes, most)
        tails[net.fingerprint] = make(optimised(net))
    return [structs.replace(w, models=tuple(welcomes)) for w in welcomes.values()], tails, shapes


def listen(
    welcomes: Sequence[Welcome],
    replicas: Sequence[Replica],
    bind: str,
    stop: threading.Event,
    *,
    keys: WorkerKeys | None,
    shapes: dict[str, list[tuple[int, ...]]] | None = None,
    limits: Limits | None = None,
    stats: Stats | None = None,
    metrics: tuple[str, int] | None = None,
    anywhere: bool = False,
) -> None:
    """Bind a socket, print the line that says so, and serve until `stop` is set.

    Parameters
    ----------
    keys
        Ours, and who is known; None takes plain text from whoever is on this machine, or `anywhere`.
    stats
        To count in, where the replicas count too.
    metrics
        Host and port for health and metrics; none without.

    Raises
    ------
    OffloadError
        If the endpoint cannot be bound, or plain text would leave the machine.
    """
    if keys is None:
        check_plain(bind, anywhere)
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        zap = None if keys is None else stack.enter_context(zap_socket(context))
        socket = stack.enter_context(context.socket(zmq.ROUTER))
        for option, value in {
            zmq.LINGER: 1000,  # ms for the last replies to leave
            zmq.SNDHWM: QUEUE,
            zmq.RCVHWM: QUEUE,
            zmq.MAXMSGSIZE: max(w.max_bytes for w in welcomes) + MAX_HEADER_BYTES,
            zmq.ROUTER_MANDATORY: 1,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.HEARTBEAT_IVL: 2000,  # ms; lets go of clients that went without a word
            zmq.HEARTBEAT_TIMEOUT: 6000,
            zmq.IPV6: int("[" in bind),
        }.items():
            socket.setsockopt(option, value)
        if keys is not None:
            secure_worker(socket, keys)
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            raise OffloadError(f"cannot listen on {bind}: {error}; expected tcp://address:port that is free") from None
        known = (lambda key: "") if keys is None else keys.known
        front = Front(
            socket, welcomes, replicas, shapes=shapes, limits=limits, stats=stats, zap=zap, known=known, log=log
        )
        if metrics is not None:
            url = stack.enter_context(monitoring(front, metrics[1], metrics[0]))
            print(f"eex-worker: {url}/metrics and {url}/health", flush=True)
        print(READY + socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), flush=True)
        front.serve(stop)


def stop_on_signals(stop: threading.Event | None = None) -> threading.Event:
    """The event, or a new one, that SIGTERM and SIGINT set from now on."""
    stop = stop or threading.Event()
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

    Edges are let in by their keys (eex-keys makes them). SIGTERM lets it finish what it has taken on. With --upstream
    it runs a part of the rest, and asks another worker about the frames that its own exits are not sure of.
    """

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of models; the shipped one by default."""
    network: str = ""
    """For a network of one's own: module:function that cuts it."""
    bind: str = "tcp://127.0.0.1:5555"
    """Where to listen; port * picks a free one."""
    keys: Path | None = None
    """Folder with worker.key and its clients' .pub; by default where eex-keys puts them."""
    plain: bool = False
    """Take plain text from whoever is on this machine, instead of keys."""
    plain_beyond_loopback: bool = False
    """With --plain: from whoever can reach this machine, too. Everyone there can read and send frames."""
    upstream: str = ""
    """A worker behind this one, tcp://host:port, or several, between commas: it gets what is not answered here."""
    partition: int = 0
    """With --upstream: stages up to which the network runs here, counted from the first, the edge's own included."""
    p_tar: float = 0.8
    """With --upstream: confidence from which on an exit answers, of those behind the stages that a request asks for, up
    to --partition; of a frame that is sent as its image, from the first exit on."""
    upstream_keys: Path | None = None
    """With --upstream: folder with edge.key, this worker's key as the upstream's client, and the upstream's worker.pub;
    with --plain it may be left out, and plain text is talked."""
    deadline_ms: float = 500.0
    """With --upstream: after this a frame is answered by its most confident exit here; take less than the edge's."""
    threads: int = 0
    """Threads of a model; 0 leaves it to torch."""
    device: str = "cpu"
    """Where models run: cpu, cuda, cuda:1, …"""
    processes: int = 1
    """Processes that run the models, behind this one socket."""
    ray: int = 0
    """Run the models in so many actors of a Ray cluster instead, a GPU each where there are any; needs eex[ray]."""
    ray_address: str = ""
    """Of the cluster; by default one is started on this machine."""
    batch_frames: int = 64
    """Frames that are run together at most, of all edges."""
    batch_wait_ms: float = 0.0
    """How long a request waits for company; what comes while the model runs is run together in any case."""
    clients: int = 64
    """Connections served at a time."""
    key_clients: int = 32
    """Connections of one key served at a time."""
    metrics_port: int | None = None
    """Answer /health and /metrics (Prometheus) over HTTP on this port; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Where that listens."""
    with_parent: bool = False
    """Get keys from standard input, and stop when it ends: for a worker that eex-stream starts."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range."""
        least = {"threads": 0, "processes": 1, "ray": 0, "batch_frames": 1, "clients": 1, "key_clients": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise EexError(f"--batch-wait-ms must lie in [0, 1000], got {self.batch_wait_ms:g}")
        if self.ray and self.processes > 1:
            raise EexError("--ray and --processes: one of the two runs the models")
        if self.plain_beyond_loopback and not self.plain:
            raise EexError("--plain-beyond-loopback goes with --plain")
        self._check_upstream()

    def _check_upstream(self) -> None:
        if not self.upstream:
            for name in ("partition", "p_tar", "upstream_keys", "deadline_ms"):
                if getattr(self, name) != getattr(Worker, name):
                    raise EexError(f"--{name.replace('_', '-')} goes with --upstream")
            return
        for endpoint in self.endpoints:
            if not endpoint.startswith("tcp://"):
                raise EexError(f"--upstream {self.upstream}: expected tcp://host:port, several between commas")
        if self.partition < 1:
            raise EexError("--upstream needs --partition, the stages up to which the network runs here")
        if not 0 <= self.p_tar <= 1:
            raise EexError(f"--p-tar must lie in [0, 1], got {self.p_tar:g}")
        if not self.deadline_ms > 0:
            raise EexError(f"--deadline-ms must be more than 0, got {self.deadline_ms:g}")
        if self.upstream_keys is None and not self.plain:
            raise EexError("--upstream needs --upstream-keys, a folder with edge.key and worker.pub, or --plain")
        if len(self.models) > 1:
            raise EexError(f"--upstream is for one model, whose --partition it is; got {len(self.models)}")
        if self.ray or self.processes > 1:
            raise EexError("--upstream runs its model in one process; leave --processes and --ray out")

    @property
    def endpoints(self) -> list[str]:
        """Of the workers upstream."""
        return [part.strip() for part in self.upstream.split(",")] if self.upstream else []


def main() -> None:
    """Entry point of `eex-worker`."""
    sys.exit(guarded(_main))


def _main() -> int:
    stop = stop_on_signals()
    share_cores()
    options = tyro.cli(Worker, prog="eex-worker", config=(tyro.conf.FlagCreatePairsOff,))
    options.check()
    keys = None
    if options.with_parent:
        keys = read_keys()
        stop_with_parent(stop)
    elif not options.plain:
        keys = worker_keys(options.keys or default_folder())
    if keys is None:
        check_plain(options.bind, options.plain_beyond_loopback)  # before torch, which takes seconds
        if not is_loopback(options.bind):
            log(f"plain text on {options.bind}: everyone who can reach it can read and send frames")
    stats = Stats()
    replicas, welcomes, shapes = _replicas(options, stats)
    stop_on_signals(stop)  # again: Ray takes SIGTERM for itself
    try:
        listen(
            welcomes,
            replicas,
            options.bind,
            stop,
            keys=keys,
            shapes=shapes,
            limits=Limits(
                options.clients,
                batch=options.batch_frames,
                wait_ms=options.batch_wait_ms,
                # the parent's is the only key: no other is to be kept room for
                key_clients=options.clients if options.with_parent else options.key_clients,
            ),
            stats=stats,
            metrics=None if options.metrics_port is None else (options.metrics_host, options.metrics_port),
            anywhere=options.plain_beyond_loopback,
        )
    finally:
        for replica in replicas:  # again, where it could not listen
            replica.close()
    return 0


def _middle(options: Worker, stats: Stats) -> tuple[list[Replica], list[Welcome], dict[str, list[tuple[int, ...]]]]:
    """As `_replicas`, with a worker upstream: connected to it, or there is an error."""
    from eex.stream.edge import ZmqOffloader
    from eex.stream.middle import middle_replicas

    keys = None if options.upstream_keys is None else edge_keys(options.upstream_keys)
    for endpoint in options.endpoints if keys is None else ():
        check_plain(endpoint, options.plain_beyond_loopback)  # before torch
    nets: list[EarlyExitNet] = []

    def keep(net: "EarlyExitNet") -> Tail:
        nets.append(net)
        return make_tail(net)

    rest = options.models, options.network, options.threads, options.device, options.batch_frames
    welcomes, tails, shapes = load_models(*rest, keep)
    (welcome,), (net,) = welcomes, nets
    if options.partition >= welcome.stages:
        raise EexError(
            f"--partition must lie in 1…{welcome.stages - 1}, the last exit is the upstream worker's; "
            f"got {options.partition}"
        )
    offloader = ZmqOffloader(
        options.endpoints, welcome.model, options.deadline_ms, keys=keys, anywhere=options.plain_beyond_loopback
    )
    offloader.connect()
    tail = tails[welcome.model]
    return [*middle_replicas(net, tail, options.partition, options.p_tar, offloader, stats, log)], welcomes, shapes


def _replicas(options: Worker, stats: Stats) -> tuple[list[Replica], list[Welcome], dict[str, list[tuple[int, ...]]]]:
    """Where the models run, what they are, and what their stages take, where that is known here."""
    if options.upstream:
        return _middle(options, stats)
    rest = options.models, options.network, options.threads
    if options.ray:
        from eex.stream.replicas import ray_replicas

        actors, welcomes = ray_replicas(options.ray, *rest, options.batch_frames, options.ray_address)
        return list(actors), welcomes, {}
    if options.processes > 1:
        from eex.stream.replicas import ProcessReplica

        workers = [
            EmbeddedWorker(*rest, options.device, batch_frames=options.batch_frames) for _ in range(options.processes)
        ]
        processes = [ProcessReplica(worker) for worker in workers]  # all start before the first is waited for
        try:
            return list(processes), [process.connect() for process in processes][0], {}  # noqa: RUF015 (all)
        except OffloadError:
            for process in processes:
                process.close()
            raise
    welcomes, tails, shapes = load_models(*rest, options.device, options.batch_frames)
    return [LocalReplica(tails)], welcomes, shapes


if __name__ == "__main__":
    main()
