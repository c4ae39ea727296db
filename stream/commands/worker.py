"""`eex-worker`: run the rest of the network for edges."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.options import check_threads
from eex.stream.guard import guarded, keep_memory_flat, share_cores
from eex.stream.wire.connection import check_deadline
from eex.stream.wire.keys import default_folder, edge_keys, worker_keys
from eex.stream.wire.security import check_plain, is_loopback
from eex.stream.worker.clients import Limits
from eex.stream.worker.embedded import read_keys
from eex.stream.worker.pool import Replica
from eex.stream.worker.serve import listen, log, stop_on_signals, stop_with_parent
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import Models, Served


@dataclass(frozen=True)
class Worker:
    """Answer offloaded frames: run the rest of the network, up to the final exit.

    Edges authenticate with keys made by eex-keys. On SIGTERM, the worker finishes the requests that it has accepted and
    stops. With --upstream, it runs only some of the remaining stages and offloads the frames that its own exits are not
    confident about to another worker.
    """

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of the models to serve. By default, the shipped model."""
    network: str = ""
    """Your own network, as module:function, or one of a library, such as timm:name."""
    answer_with: Path | None = None
    """Folder of another model of the same classes, of any size. It answers frames that edges send as images
    (--send input); frames sent as features are answered by the rest of the edge's own network."""
    answer_network: str = ""
    """With --answer-with: your own network, as module:function."""
    bind: str = "tcp://127.0.0.1:5555"
    """Address to listen on; port * picks a free one."""
    keys: Path | None = None
    """Folder with worker.key and the .pub files of the clients. By default, the folder where eex-keys writes them."""
    plain: bool = False
    """Accept unencrypted connections from anyone on this machine, instead of using keys."""
    plain_beyond_loopback: bool = False
    """With --plain: accept other machines too. Anyone who can reach the worker can then read and send frames."""
    upstream: str = ""
    """Workers that answer the frames not answered here, as tcp://host:port; comma-separated if there are several."""
    partition: int = 0
    """With --upstream: number of stages, counted from the first of the network, after which the upstream worker takes
    over."""
    p_tar: float = 0.8
    """With --upstream: confidence at which an exit here answers a frame. The exits that may answer are those from the
    edge's partition point up to --partition; for frames sent as images, all from the first exit on."""
    upstream_keys: Path | None = None
    """With --upstream: folder with edge.key, this worker's key as a client, and the worker.pub of the upstream worker.
    Without it, the connection is not encrypted, which needs --plain."""
    deadline_ms: float = 500.0
    """With --upstream: time in milliseconds after which the most confident exit here answers a frame. Choose less than
    the deadline of the edge."""
    require_upstream: bool = False
    """With --upstream: exit if no upstream worker answers at the start, instead of answering all frames here until one
    does."""
    threads: int = 0
    """Number of CPU threads per model; 0 = torch's default."""
    device: str = "cpu"
    """Where models run: auto, cpu or cuda."""
    processes: int = 1
    """Number of processes that run the models; edges see a single address."""
    ray: int = 0
    """Run the models in this many actors of a Ray cluster instead, with one GPU each if there are enough. Needs
    eex[ray]."""
    ray_address: str = ""
    """Address of the Ray cluster. By default, one is started on this machine."""
    batch_frames: int = 64
    """Maximum number of frames, from all edges together, in one call of a model."""
    batch_wait_ms: float = 0.0
    """Time in milliseconds that a request waits for others to join its batch. Requests that arrive while the model runs
    are batched in any case."""
    clients: int = 64
    """Maximum number of connections."""
    key_clients: int = 32
    """Maximum number of connections with the same key."""
    fleet: Path | None = None
    """File that keeps what edges with --share have learned, so that it outlasts this worker; one worker has it at a
    time. By default, it is kept in memory."""
    metrics_port: int | None = None
    """Serve /health, /ready, /alive and /metrics (Prometheus) over HTTP on this port; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Address for --metrics-port to listen on."""
    with_parent: bool = False
    """Read keys from standard input, and stop when it closes. Used by eex-stream for the workers that it starts."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range or options do not go together."""
        check_threads(self.threads)
        least = {"processes": 1, "ray": 0, "batch_frames": 1, "clients": 1, "key_clients": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise EexError(f"--batch-wait-ms must lie in [0, 1000], got {self.batch_wait_ms:g}")
        if self.ray and self.processes > 1:
            raise EexError("--ray and --processes exclude each other: only one of the two can run the models")
        if self.ray and self.device != Worker.device:
            raise EexError("--device does not go with --ray: actors take GPUs where there are enough for all")
        for name, other, there in (
            ("plain_beyond_loopback", "plain", self.plain),
            ("ray_address", "ray", self.ray),
            ("metrics_host", "metrics_port", self.metrics_port is not None),
        ):
            if getattr(self, name) != getattr(Worker, name) and not there:
                raise EexError(f"--{name.replace('_', '-')} goes with --{other.replace('_', '-')}")
        if self.answer_network and self.answer_with is None:
            raise EexError("--answer-network goes with --answer-with")
        if self.answer_with is not None and self.upstream:
            raise EexError("--answer-with and --upstream exclude each other: only one of the two can answer images")
        self._check_upstream()
        if self.plain:
            for endpoint in (self.bind, *(self.endpoints if self.upstream_keys is None else ())):
                check_plain(endpoint, self.plain_beyond_loopback)

    def _check_upstream(self) -> None:
        if not self.upstream:
            for name in ("partition", "p_tar", "upstream_keys", "deadline_ms", "require_upstream"):
                if getattr(self, name) != getattr(Worker, name):
                    raise EexError(f"--{name.replace('_', '-')} goes with --upstream")
            return
        for endpoint in self.endpoints:
            if not endpoint.startswith("tcp://"):
                raise EexError(f"--upstream {self.upstream}: expected tcp://host:port, or several, comma-separated")
        if self.partition < 1:
            raise EexError(
                "--upstream needs --partition, the number of stages after which the upstream worker takes over"
            )
        if not 0 <= self.p_tar <= 1:
            raise EexError(f"--p-tar must lie in [0, 1], got {self.p_tar:g}")
        check_deadline(self.deadline_ms)
        if self.upstream_keys is None and not self.plain:
            raise EexError("--upstream needs --upstream-keys, a folder with edge.key and worker.pub, or --plain")
        if len(self.models) > 1:
            raise EexError(
                f"--upstream serves a single model, because --partition applies to it; got {len(self.models)}"
            )
        if self.ray or self.processes > 1:
            raise EexError("--upstream runs its model in one process; omit --processes and --ray")

    @property
    def endpoints(self) -> list[str]:
        """Addresses of the upstream workers."""
        return [part.strip() for part in self.upstream.split(",")] if self.upstream else []


def main() -> None:
    """Entry point of `eex-worker`."""
    sys.exit(guarded(_main))


def _main() -> int:
    stop = stop_on_signals()
    share_cores()
    keep_memory_flat()
    options = tyro.cli(Worker, prog="eex-worker", config=(tyro.conf.FlagCreatePairsOff,))
    options.check()
    keys = None
    if options.with_parent:
        keys = read_keys()
        stop_with_parent(stop)
    elif not options.plain:
        keys = worker_keys(options.keys or default_folder(), log)
    elif not is_loopback(options.bind):
        log(f"plain text on {options.bind}: anyone who can reach it can read and send frames")
    stats = Stats()
    served = _served(options, stats)
    if not options.with_parent:
        stop_on_signals(stop)  # again: Ray installs its own SIGTERM handler
    replicas: list[Replica] = served.replicas
    try:
        listen(
            served.welcomes,
            replicas,
            options.bind,
            stop,
            keys=keys,
            shapes=served.shapes,
            limits=Limits(
                options.clients,
                batch=options.batch_frames,
                wait_ms=options.batch_wait_ms,
                # the parent's key is the only one, so no connections need to be reserved for others
                key_clients=options.clients if options.with_parent else options.key_clients,
            ),
            stats=stats,
            metrics=None if options.metrics_port is None else (options.metrics_host, options.metrics_port),
            fleet=options.fleet,
            anywhere=options.plain_beyond_loopback,
        )
    finally:
        for replica in replicas:  # a second time if `listen` ran; it may have failed before
            replica.close()
    return 0


def _served(options: Worker, stats: Stats) -> Served:
    """Load the models: in this process, in others, or on Ray."""
    models = Models(
        options.models,
        options.network,
        options.threads,
        options.device,
        options.batch_frames,
        options.answer_with,
        options.answer_network,
    )
    if options.upstream:
        from eex.stream.worker.tiers import serve_middle

        keys = None if options.upstream_keys is None else edge_keys(options.upstream_keys)
        way = options.endpoints, options.partition, options.p_tar, options.deadline_ms
        return serve_middle(
            models,
            *way,
            keys=keys,
            anywhere=options.plain_beyond_loopback,
            stats=stats,
            required=options.require_upstream,
            log=log,
        )
    from eex.stream.worker import replicas

    if options.ray:
        return replicas.serve_on_ray(models, options.ray, options.ray_address)
    if options.processes > 1:
        return replicas.serve_in_processes(models, options.processes)
    return replicas.serve_here(models)


if __name__ == "__main__":
    main()
