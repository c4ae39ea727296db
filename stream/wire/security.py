"""Who may talk to whom: CURVE on the sockets, ZAP to decide, and what a failed handshake means.

Plain text is for loopback, and only on request; beyond loopback it takes a second, more explicit request.
"""

import ipaddress
import struct
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils import z85

from eex.policies.core.errors import OffloadError
from eex.stream.wire.keys import EdgeKeys, Known, WorkerKeys

ZAP = "inproc://zeromq.zap.01"
DOMAIN = "eex"
HANDSHAKE_MS = 1000
"""A peer that has not finished the handshake by then is dropped."""

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


def answer_zap(socket: zmq.Socket[bytes], known: Known) -> str:
    """Answer one question of libzmq's (ZeroMQ RFC 27); the reason if the client was rejected, else empty."""
    frames = socket.recv_multipart()
    cut = frames.index(b"") + 1  # after the envelope
    version, request, _, address, _, mechanism, *credentials = frames[cut:]
    name = known(z85.encode(credentials[0])) if mechanism == b"CURVE" and credentials else ""
    status, text = (b"200", b"OK") if name else (b"400", b"unknown client")
    socket.send_multipart([*frames[:cut], version, request, status, text, name.encode(), b""])
    if name:
        return ""
    key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else "none"
    return f"rejected a client from {address.decode(errors='replace')} whose key is not known: {key}"


def why_handshake_failed(event: int, value: int, keys: EdgeKeys | None) -> str:
    """What an event of the edge's socket monitor means for the user; `keys` are the edge's."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        own = "" if keys is None else f" {keys.own.public.decode()}"
        return f"the worker does not know this edge's key{own}; copy its .pub file into the worker's folder of keys"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
        if keys is None:
            return "the worker accepts clients with keys only; leave --plain out"
        return "the worker speaks plain text; start it without --plain"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == 11:  # EAGAIN: HANDSHAKE_MS went by
        return "what listens there does not speak ZeroMQ, or hangs"
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
