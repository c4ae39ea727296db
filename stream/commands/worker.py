"""`eex-worker`: serve the rest of the network to edges."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.guard import guarded, share_cores
from eex.stream.wire.keys import default_folder, edge_keys, worker_keys
from eex.stream.wire.offload import Tail
from eex.stream.wire.protocol import Welcome
from eex.stream.wire.security import check_plain, is_loopback
from eex.stream.worker.clients import Limits
from eex.stream.worker.embedded import EmbeddedWorker, read_keys
from eex.stream.worker.pool import LocalReplica, Replica
from eex.stream.worker.serve import listen, log, stop_on_signals, stop_with_parent
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import load_models, make_tail

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet


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
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.worker.tiers import middle_replicas

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
        from eex.stream.worker.replicas import ray_replicas

        actors, welcomes = ray_replicas(options.ray, *rest, options.batch_frames, options.ray_address)
        return list(actors), welcomes, {}
    if options.processes > 1:
        from eex.stream.worker.replicas import ProcessReplica

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
