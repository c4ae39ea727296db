"""Messages in and out of ZeroMQ sockets, quickly: small parts are copied, large ones are not."""

from collections.abc import Sequence

import zmq

from eex.stream.wire.protocol import Buffer

COPIED = 1 << 14
"""Bytes up to which copying a part is cheaper than keeping it until ZeroMQ has sent it."""

_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_IN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)


def lives(silent_ms: int) -> dict[int, int]:
    """Socket options by which the kernel ends a connection whose other end says nothing for so long.

    libzmq's own heartbeats (HEARTBEAT_IVL) are not used: where a connection ends while its messages are not being read,
    the next one aborts the process (`Assertion failed: !_io_error`).
    """
    seconds = max(1, silent_ms // 3000)
    kept: dict[int, int] = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: seconds, zmq.TCP_KEEPALIVE_INTVL: seconds}
    return kept | {zmq.TCP_KEEPALIVE_CNT: 2, zmq.TCP_MAXRT: silent_ms}


def send(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> None:
    """Hand over a message without waiting; its large parts must not be written to any more.

    Raises
    ------
    zmq.Again
        If there is no room for it; then nothing was sent.
    """
    last = len(parts) - 1
    for k, part in enumerate(parts):
        socket.send(part, _MORE if k < last else _LAST, copy=len(part) <= COPIED)


def receive(socket: zmq.Socket[bytes], most: int) -> list[zmq.Frame] | None:
    """The next message, without waiting; None if there is none. Frames after the first `most` are dropped."""
    if not int(socket.getsockopt(_EVENTS)) & _IN:  # cheaper than an exception
        return None
    parts: list[zmq.Frame] = []
    while True:
        part = socket.recv(_LAST, copy=False)
        if len(parts) < most:
            parts.append(part)
        if not part.more:
            return parts
