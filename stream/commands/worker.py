"""`eex-worker`: serve the rest of the network to edges."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded, share_cores
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
    """Answer the frames that edges offload: run the rest of the network, up to the final exit.

    Edges are let in by their keys, which eex-keys makes. On SIGTERM the worker finishes what it has accepted, then
    stops. With --upstream it runs only a part of the rest, and asks another worker about the frames that its own exits
    are not sure of.
    """

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of models; by default the shipped model."""
    network: str = ""
    """For a network of your own: module:function that returns it, cut into stages."""
    bind: str = "tcp://127.0.0.1:5555"
    """Where to listen; port * picks a free one."""
    keys: Path | None = None
    """Folder with worker.key and the .pub files of the clients; by default where eex-keys puts them."""
    plain: bool = False
    """Accept plain text from anyone on this machine, instead of using keys."""
    plain_beyond_loopback: bool = False
    """With --plain: accept it from other machines too. Anyone who can reach the worker can read and send frames."""
    upstream: str = ""
    """Worker to ask for what is not answered here: tcp://host:port, or several, comma-separated."""
    partition: int = 0
    """With --upstream: number of stages, counted from the first of the network, after which the upstream worker takes
    over."""
    p_tar: float = 0.8
    """With --upstream: confidence at which an exit answers a frame here. Every exit from the first stage that the edge
    asks for up to --partition may answer; for frames that are sent as images, these are all from the first exit on."""
    upstream_keys: Path | None = None
    """With --upstream: folder with edge.key, by which the upstream worker knows this one, and the upstream worker's
    worker.pub. Without it, the upstream worker is asked in plain text, which needs --plain."""
    deadline_ms: float = 500.0
    """With --upstream: milliseconds after which a frame is answered by its most confident exit here; choose less than
    the deadline of the edge."""
    threads: int = 0
    """Processor threads per model; 0 leaves it to torch."""
    device: str = "cpu"
    """Where models run: auto, cpu or cuda."""
    processes: int = 1
    """Number of processes that run the models; edges see a single address."""
    ray: int = 0
    """Run the models in this many actors of a Ray cluster instead, with a GPU each where there are enough; needs
    eex[ray]."""
    ray_address: str = ""
    """Address of the Ray cluster; by default one is started on this machine."""
    batch_frames: int = 64
    """Most frames, of all edges together, in one call of a model."""
    batch_wait_ms: float = 0.0
    """Milliseconds that a request waits for others to share a batch with. Requests that arrive while the model runs are
    batched in any case."""
    clients: int = 64
    """Most connections served at a time."""
    key_clients: int = 32
    """Most connections served at a time with the same key."""
    metrics_port: int | None = None
    """Answer /health and /metrics (Prometheus) over HTTP on this port; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Address that --metrics-port listens on."""
    with_parent: bool = False
    """Read keys from standard input, and stop when it ends; used by eex-stream for the workers that it starts."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range, or options that do not go together."""
        least = {"threads": 0, "processes": 1, "ray": 0, "batch_frames": 1, "clients": 1, "key_clients": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise EexError(f"--batch-wait-ms must lie in [0, 1000], got {self.batch_wait_ms:g}")
        if self.ray and self.processes > 1:
            raise EexError("--ray and --processes exclude each other: one of the two runs the models")
        if self.plain_beyond_loopback and not self.plain:
            raise EexError("--plain-beyond-loopback goes with --plain")
        self._check_upstream()
        if self.plain:
            for endpoint in (self.bind, *(self.endpoints if self.upstream_keys is None else ())):
                check_plain(endpoint, self.plain_beyond_loopback)

    def _check_upstream(self) -> None:
        if not self.upstream:
            for name in ("partition", "p_tar", "upstream_keys", "deadline_ms"):
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
        """Of the upstream workers."""
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
    elif not is_loopback(options.bind):
        log(f"plain text on {options.bind}: anyone who can reach it can read and send frames")
    stats = Stats()
    served = _served(options, stats)
    stop_on_signals(stop)  # again: Ray takes SIGTERM for itself
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
                # the parent's key is the only one: no room has to be kept for others
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


def _served(options: Worker, stats: Stats) -> Served:
    """Load the models where they are to run."""
    models = Models(options.models, options.network, options.threads, options.device, options.batch_frames)
    if options.upstream:
        from eex.stream.worker.tiers import serve_middle

        keys = None if options.upstream_keys is None else edge_keys(options.upstream_keys)
        way = options.endpoints, options.partition, options.p_tar, options.deadline_ms
        return serve_middle(models, *way, keys=keys, anywhere=options.plain_beyond_loopback, stats=stats, log=log)
    from eex.stream.worker import replicas

    if options.ray:
        return replicas.serve_on_ray(models, options.ray, options.ray_address)
    if options.processes > 1:
        return replicas.serve_in_processes(models, options.processes)
    return replicas.serve_here(models)


if __name__ == "__main__":
    main()
