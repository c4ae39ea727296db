"""Where a worker's models run: in this process, in several on this machine, or in actors of a Ray cluster."""

import contextlib
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.wire.protocol import MAX_BYTES, MAX_FRAMES, Buffer, Hello, ReplyHeader, Request, Welcome, pack, unpack
from eex.stream.wire.security import HANDSHAKE_MS, secure_edge
from eex.stream.worker.embedded import EmbeddedWorker
from eex.stream.worker.pool import LocalReplica, ReplicaLostError
from eex.stream.worker.tail import Models, Served, load_models

CALL_S = 30.0
"""A replica whose call takes longer is lost."""

START_S = 120.0
NOTICE_MS = 20  # how late the end of a process is noticed


class ProcessReplica:
    """The models in a process of its own; it is started again when it dies or hangs."""

    def __init__(self, worker: EmbeddedWorker) -> None:
        self._worker = worker
        self._closed = False
        self._in_use = threading.Lock()  # the socket, by the thread that runs and recovers
        self._id = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        worker.start()

    @property
    def alive(self) -> bool:
        """Whether its process is running."""
        return self._worker.running

    def connect(self) -> list[Welcome]:
        """Wait until it listens; what its models are.

        Raises
        ------
        OffloadError
            If it cannot start.
        """
        endpoint = self._worker.endpoint(START_S)
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in {
            zmq.LINGER: 0,
            zmq.SNDHWM: 2,
            zmq.RCVHWM: 2,
            zmq.MAXMSGSIZE: 4 * MAX_FRAMES,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        }.items():
            self._socket.setsockopt(option, value)
        secure_edge(self._socket, self._worker.keys)
        self._socket.connect(endpoint)
        first = self._welcome("")
        welcomes = [first, *(self._welcome(model) for model in first.models if model != first.model)]
        self._max_bytes = {welcome.model: welcome.max_bytes for welcome in welcomes}
        return welcomes

    def _welcome(self, model: str) -> Welcome:
        header, _ = self._call(pack(Hello(0, model)), 0, START_S)
        if not isinstance(header, Welcome):
            raise OffloadError(f"a worker process answered a hello with {header}")
        return header

    def run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `eex.stream.worker.pool.Replica`; what one message cannot hold goes in several."""
        most = max(1, self._max_bytes.get(model, MAX_BYTES) // features[:1].nbytes)
        parts = [self._run(model, stage, expert, features[k : k + most]) for k in range(0, len(features), most)]
        confidence, prediction = (np.concatenate(part) for part in zip(*parts, strict=True))
        return confidence, prediction

    def _run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        self._id += 1
        request = Request(self._id, model, stage, expert, features.dtype.name, features.shape)  # type: ignore[arg-type]
        with self._in_use:
            header, arrays = self._call(pack(request, features), self._id, CALL_S)
        if header.refusal == "failed":
            raise RuntimeError(header.error)
        if header.refusal:
            raise OffloadError(header.error)
        return arrays[0], arrays[1]

    def _call(self, message: list[Buffer], id: int, limit_s: float) -> tuple[Any, list[NDArray[Any]]]:
        assert self._socket is not None
        end = time.monotonic() + limit_s
        self._socket.send_multipart(message, copy=False)
        while True:
            while not self._socket.poll(NOTICE_MS):
                if self._closed or not self._worker.running:
                    raise ReplicaLostError("a worker process has ended")
                if time.monotonic() > end:
                    raise ReplicaLostError(f"a worker process did not answer within {limit_s:g} s")
            header, arrays = unpack([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
            if isinstance(header, Welcome) or (isinstance(header, ReplyHeader) and header.id == id):
                return header, arrays

    def recover(self) -> None:
        """Start the process again."""
        with self._in_use:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._worker.close()
            if not self._closed:
                self._worker.start()
                self.connect()

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._worker.close()
        with self._in_use:
            self._context.destroy(linger=0)


class RayReplica:
    """The models in an actor of a Ray cluster, with a GPU of its own where there are enough; Ray restarts it.

    Ray moves features and answers between its own processes in its own way. Of what clients send, it gets checked
    arrays only.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `eex.stream.worker.pool.Replica`."""
        import ray

        try:
            answer: tuple[NDArray[Any], NDArray[Any]] = ray.get(
                self._actor.run.remote(model, stage, expert, features), timeout=CALL_S
            )
            return answer
        except ray.exceptions.GetTimeoutError:
            ray.kill(self._actor, no_restart=False)
            raise ReplicaLostError(f"a Ray actor did not answer within {CALL_S:g} s") from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ReplicaLostError(str(error).splitlines()[0]) from None

    def recover(self) -> None:
        """Wait until Ray has restarted the actor."""
        import ray

        ray.get(self._actor.welcomes.remote(), timeout=START_S)

    def close(self) -> None:
        """End the actor."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._actor)


def serve_here(models: Models) -> Served:
    """Load the models in this process.

    Raises
    ------
    EexError
        If they cannot be used.
    """
    loaded = load_models(models)
    return Served([LocalReplica(loaded.tails)], loaded.welcomes, loaded.shapes)


def serve_in_processes(models: Models, count: int) -> Served:
    """Start processes on this machine and wait until they have loaded the models.

    Raises
    ------
    OffloadError
        If one cannot start.
    """
    rest = models.folders, models.network, models.threads, models.device
    processes = [
        ProcessReplica(
            EmbeddedWorker(
                *rest,
                batch_frames=models.batch_frames,
                answer_with=models.answer_with,
                answer_network=models.answer_network,
            )
        )
        for _ in range(count)
    ]
    try:
        welcomes = [process.connect() for process in processes]  # all have started before the first is waited for
    except OffloadError:
        for process in processes:
            process.close()
        raise
    return Served([*processes], welcomes[0], {})


def serve_on_ray(models: Models, count: int, address: str = "") -> Served:
    """Start actors, on the Ray cluster at an address or on this machine, and wait until they have loaded the models.

    Raises
    ------
    EexError
        If Ray is not installed, cannot be reached, or the models cannot be used.
    """
    try:
        import ray
    except ImportError:
        raise EexError("--ray needs Ray: pip install 'eex[ray]'") from None

    if not ray.is_initialized():
        try:
            ray.init(address or None, log_to_driver=False, include_dashboard=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EexError(f"--ray-address {address}: {error}") from None
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
    gpus = 1 if resources.get("GPU", 0) >= count else 0
    options: dict[str, Any] = {
        "num_cpus": max(1, models.threads),
        "num_gpus": gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
    }
    folders = tuple(folder.absolute() for folder in models.folders)
    other = models.answer_with and models.answer_with.absolute()
    theirs = replace(models, folders=folders, answer_with=other, device="cuda" if gpus else "cpu")
    actor = ray.remote(**options)(_Actor)
    actors: list[Any] = [actor.remote(theirs) for _ in range(count)]
    try:
        welcomes = ray.get([a.welcomes.remote() for a in actors], timeout=START_S)[0]
    except ray.exceptions.RayError as error:
        for a in actors:
            ray.kill(a)
        cause = str(error).strip().splitlines()[-1]
        raise EexError(f"--ray: the models could not be loaded in the cluster: {cause}") from None
    return Served([RayReplica(a) for a in actors], [Welcome(**welcome) for welcome in welcomes], {})


class _Actor:
    """What runs in an actor."""

    def __init__(self, models: Models) -> None:
        import msgspec

        loaded = load_models(models)
        self._tails = loaded.tails
        self._welcomes = [
            msgspec.to_builtins(w) | {"experts": w.experts, "classes": w.classes} for w in loaded.welcomes
        ]
        for welcome in self._welcomes:
            del welcome["kind"]

    def welcomes(self) -> list[dict[str, Any]]:
        """What the models are."""
        return self._welcomes

    def run(
        self, model: str, stage: int, expert: str, features: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The rest of a model."""
        confidence, prediction = self._tails[model](stage, expert, features)
        return np.asarray(confidence, dtype=np.float32), np.asarray(prediction, dtype=np.int32)
