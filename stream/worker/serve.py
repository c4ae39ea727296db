"""The cloud worker: `serve` answers requests on a socket, `listen` binds one first; what stops a worker process."""

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from eex.policies.core.errors import OffloadError
from eex.policies.core.files import alone_with
from eex.stream.wire.keys import WorkerKeys
from eex.stream.wire.offload import Tail
from eex.stream.wire.protocol import MAX_HEADER_BYTES, Welcome
from eex.stream.wire.security import check_plain, secure_worker, zap_socket
from eex.stream.wire.sockets import lives
from eex.stream.worker.clients import Limits
from eex.stream.worker.connections import Connections
from eex.stream.worker.embedded import GRACE_S, READY
from eex.stream.worker.fleets import Fleets
from eex.stream.worker.front import Front
from eex.stream.worker.log import Log
from eex.stream.worker.pool import LocalReplica, Replica
from eex.stream.worker.prometheus import monitoring
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import Shapes

QUEUE = 8
"""Most messages that wait in the socket for or from one client."""


log = Log(2, "eex-worker: ")
"""Has one line for the user written on stderr."""

REFRESH_S = 1.0
"""Time between two looks at the files of keys."""

RESERVED = 64
"""Descriptors kept for what is not a client's connection."""

MOST_DESCRIPTORS = 1 << 16


def serve(
    socket: zmq.Socket[bytes],
    tail: Tail,
    stop: threading.Event,
    welcome: Welcome,
    log: Callable[[str], None] = log,
    limits: Limits | None = None,
) -> None:
    """Answer requests for one model on a bound ROUTER `socket` until `stop` is set, then those that have arrived.

    A message that cannot be used is answered with the reason, or dropped if it has no readable id; it never ends the
    service. The caller closes the socket.

    Raises
    ------
    OffloadError
        If the welcome is beyond the protocol's limits.
    """
    Front(socket, [welcome], [LocalReplica({welcome.model: tail})], limits=limits, log=log).serve(stop)


def listen(
    welcomes: Sequence[Welcome],
    replicas: Sequence[Replica],
    bind: str,
    stop: threading.Event,
    *,
    keys: WorkerKeys | None,
    shapes: Shapes | None = None,
    limits: Limits | None = None,
    stats: Stats | None = None,
    metrics: tuple[str, int] | None = None,
    fleet: Path | None = None,
    anywhere: bool = False,
) -> None:
    """Bind a socket, print where it listens, and serve until `stop` is set.

    Parameters
    ----------
    keys
        The worker's own, and who is known; None accepts plain text from this machine, or from `anywhere`.
    stats
        To count in, where the replicas count too.
    metrics
        Host and port of health and metrics; None for neither.
    fleet
        File that keeps what edges share; None for none.

    Raises
    ------
    OffloadError
        If the endpoint cannot be bound, or plain text would leave the machine.
    EexError
        If the file of what edges share cannot be used.
    """
    if keys is None:
        check_plain(bind, anywhere)
    message_bytes = max(w.max_bytes for w in welcomes) + MAX_HEADER_BYTES
    out = Log(1)
    with contextlib.ExitStack() as stack:
        if fleet is not None:
            stack.enter_context(alone_with(fleet))
        fleets = Fleets(fleet)
        context = stack.enter_context(zmq.Context())
        zap = None if keys is None else stack.enter_context(zap_socket(context))
        socket = stack.enter_context(context.socket(zmq.ROUTER))
        for option, value in {
            zmq.LINGER: 1000,  # ms for the last replies to leave
            zmq.SNDHWM: QUEUE,
            zmq.RCVHWM: QUEUE,
            zmq.MAXMSGSIZE: message_bytes,
            zmq.ROUTER_MANDATORY: 1,
            zmq.HANDSHAKE_IVL: round(1000 * (limits or Limits()).handshake_s),
            **lives(6000),  # ms; lets go of clients that vanished
            zmq.IPV6: int("[" in bind),
        }.items():
            socket.setsockopt(option, value)
        if keys is not None:
            secure_worker(socket, keys)
        connections = Connections(socket, context, most_connections(), message_bytes)
        stack.callback(connections.close)
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            raise OffloadError(f"cannot listen on {bind}: {error}; expected tcp://address:port that is free") from None
        known = (lambda key: "") if keys is None else keys.known
        front = Front(
            socket,
            welcomes,
            replicas,
            shapes=shapes,
            limits=limits,
            stats=stats,
            zap=zap,
            known=known,
            connections=connections,
            fleets=fleets,
            log=log,
        )
        if keys is not None:
            threading.Thread(target=_refresh, args=(keys, stop), daemon=True).start()
        if metrics is not None:
            url = stack.enter_context(monitoring(front, metrics[1], metrics[0]))
            out(f"eex-worker: {url}/metrics, {url}/health, {url}/ready and {url}/alive")
        out(READY + socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        front.serve(stop)
    for written in (out, log):
        written.flush()


def most_connections() -> int:
    """How many connections the process has descriptors for, after raising its soft limit as far as is sensible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    limit = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)
    return max(8, (limit - RESERVED) * 7 // 8)


def _refresh(keys: WorkerKeys, stop: threading.Event) -> None:
    while not stop.wait(REFRESH_S):
        keys.refresh()


def stop_on_signals(stop: threading.Event | None = None) -> threading.Event:
    """The event, or a new one, that SIGTERM and SIGINT set from now on."""
    stop = stop or threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` when stdin ends, as it does when the parent is gone; end the process if it does not stop by itself.

    No signal stops it from now on: a service manager sends them to parent and worker at once, and the parent still
    needs the worker for what it has taken on.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held at exit
            pass
        stop.set()
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
