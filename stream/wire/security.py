"""Who may talk to whom: CURVE on the sockets, ZAP to decide, and what a failed handshake means.

Plain text is for loopback, and only on request; beyond loopback it takes a second, more explicit request.
"""

import contextlib
import ipaddress
import math
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils import z85

from eex.policies.core.errors import OffloadError
from eex.stream.wire.keys import EdgeKeys, Known, WorkerKeys

ZAP = "inproc://zeromq.zap.01"
DOMAIN = "eex"
HANDSHAKE_MS = 10_000
"""A peer that has not finished the handshake by then is dropped.

A thousand edges that come back at once are let in side by side, and all wait for the last one. If they gave up sooner
than that takes, they would start again together, and none would ever get in.
"""

STRANGERS_PER_S = 50
STRANGERS_AT_ONCE = 25
"""Rejections per second, and how many may be made at once after a quiet time."""

MOST_STRANGERS = 1000  # that wait for their rejection
QUESTIONS_AT_ONCE = 256

_MECHANISM_MISMATCH = 0x11000002


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint.

    >>> [is_loopback(e) for e in ("tcp://127.0.0.1:5555", "tcp://[::1]:*", "ipc:///tmp/a", "tcp://*:5555")]
    [True, True, True, False]
    """
    protocol, _, address = endpoint.partition("://")
    if protocol in ("ipc", "inproc"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, an interface, *
        return False


def check_plain(endpoint: str, anywhere: bool) -> None:
    """Refuse plain text beyond loopback, unless `anywhere`.

    Raises
    ------
    OffloadError
        If the endpoint can be reached from elsewhere.
    """
    if endpoint.startswith("tcp://") and not anywhere and not is_loopback(endpoint):
        raise OffloadError(
            f"{endpoint}: --plain sends frames unprotected and accepts anyone, so it is for this machine only; "
            f"make keys with eex-keys, or add --plain-beyond-loopback"
        )


def secure_worker(socket: zmq.Socket[bytes], keys: WorkerKeys) -> None:
    """Let only known clients in; call this before `bind`, and `answer_zap` from then on."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_edge(socket: zmq.Socket[bytes], keys: EdgeKeys) -> None:
    """Authenticate with the edge's keys, and talk to the one worker only; call this before `connect`."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.worker)


def zap_socket(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """The socket on which libzmq asks about clients; bind it before the worker's own."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(ZAP)
    return socket


class Doorkeeper:
    """Answers libzmq's questions about clients (ZeroMQ RFC 27): the known at once, strangers a few per second.

    A stranger that is rejected comes back at once, and each handshake costs; one that waits for its answer does not.
    A stranger's question that has waited for longer than a handshake may take is dropped.

    Parameters
    ----------
    socket
        Of `zap_socket`.
    patience_s
        How long a handshake may take.
    """

    def __init__(self, socket: zmq.Socket[bytes], known: Known, patience_s: float = HANDSHAKE_MS / 1000) -> None:
        self.socket, self._known, self._patience_s = socket, known, patience_s
        self._strangers: deque[tuple[float, list[bytes], str]] = deque()  # since when, the reply, why
        self._next_at = -math.inf  # when the next stranger may be answered

    def answer(self, now: float) -> list[str]:
        """Answer what can be answered now; one line per stranger that was rejected."""
        for _ in range(QUESTIONS_AT_ONCE):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._question(frames, now)
        rejected = []
        self._next_at = max(self._next_at, now - STRANGERS_AT_ONCE / STRANGERS_PER_S)
        while self._strangers and (self._next_at <= now or self._stale(now)):
            stale = self._stale(now)
            _, reply, line = self._strangers.popleft()
            rejected.append(line)
            if not stale:
                self._next_at += 1 / STRANGERS_PER_S
                self._send(reply)
        return rejected

    def due_in_ms(self, now: float) -> float:
        """When the next stranger can be answered; infinite if none waits."""
        return max(0.0, 1000 * (self._next_at - now)) if self._strangers else math.inf

    def _stale(self, now: float) -> bool:
        return now - self._strangers[0][0] > self._patience_s

    def _question(self, frames: list[bytes], now: float) -> None:
        cut = frames.index(b"") + 1  # after the envelope
        version, request, _, address, _, mechanism, *credentials = frames[cut:]
        curve = mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32
        key = z85.encode(credentials[0]) if curve else b""
        head = [*frames[:cut], version, request]
        if name := self._known(key) if key else "":
            self._send([*head, b"200", b"OK", client_id(key, name).encode(), b""])
        elif len(self._strangers) < MOST_STRANGERS:  # others' handshakes time out
            line = (
                f"rejected a client from {address.decode(errors='replace')} whose key is not known: "
                f"{key.decode() or 'none'}"
            )
            self._strangers.append((now, [*head, b"400", b"unknown client", b"", b""], line))

    def _send(self, frames: list[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):  # libzmq does not wait for it any more
            self.socket.send_multipart(frames, zmq.NOBLOCK)


def client_id(key: bytes, name: str) -> str:
    """What libzmq attaches to each message of a client as its User-Id: its public half and its name."""
    return f"{key.decode()} {name}"


def still_known(known: Known, client: str) -> bool:
    """Whether a key, by `client_id`, is known under the name that it had when it connected."""
    key, _, name = client.partition(" ")
    return known(key.encode()) == name


def why_handshake_failed(event: int, value: int, keys: EdgeKeys | None, served: bool) -> str:
    """What an event of the edge's socket monitor means for the user.

    Parameters
    ----------
    keys
        The edge's.
    served
        Whether the worker has welcomed the edge before: its keys were right then.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        own = "" if keys is None else f" {keys.own.public.decode()}"
        return f"the worker does not know this edge's key{own}; copy its .pub file into the worker's folder of keys"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
        if keys is None:
            return "the worker accepts clients with keys only; leave --plain out"
        return "the worker speaks plain text; start it without --plain"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == 11:  # EAGAIN: HANDSHAKE_MS went by
        return "what listens there does not speak ZeroMQ, or hangs"
    if served:
        why = "" if keys is None else ": if its key was replaced, restart this edge with the new worker.pub"
        return f"it closed the connection in the handshake{why}"
    if keys is None:
        return "it closed the connection in the handshake: it may accept clients with keys only; then leave --plain out"
    return (
        "it closed the connection in the handshake: worker.pub may not be its key, it may speak plain text, or it may "
        "not know this edge's key"
    )


def fatal(event: int) -> bool:
    """Whether libzmq gives up after this failure, so that the socket must be made anew."""
    return event in (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)


HANDSHAKE_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


def read_event(frames: Sequence[bytes]) -> tuple[int, int]:
    """Event and value of a socket monitor's message."""
    event, value = struct.unpack("=HI", frames[0][:6])
    return int(event), int(value)
