"""Messages in and out of ZeroMQ sockets, quickly: small frames are copied, large ones are not."""

from collections.abc import Sequence

import zmq

from eex.stream.wire.protocol import Buffer

COPIED = 1 << 14
"""Bytes up to which copying a frame is cheaper than keeping it until ZeroMQ has sent it."""

_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_IN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)


def send(socket: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
    """Hand over a message without waiting; its large frames must not be written to any more.

    Raises
    ------
    zmq.Again
        If there is no room for it; then nothing was sent.
    """
    last = len(frames) - 1
    for k, frame in enumerate(frames):
        socket.send(frame, _MORE if k < last else _LAST, copy=len(frame) <= COPIED)


def receive(socket: zmq.Socket[bytes], most: int) -> list[zmq.Frame] | None:
    """The next message, without waiting; None if there is none. Frames after the first `most` are dropped."""
    if not int(socket.getsockopt(_EVENTS)) & _IN:  # cheaper than an exception
        return None
    frames: list[zmq.Frame] = []
    while True:
        frame = socket.recv(_LAST, copy=False)
        if len(frames) < most:
            frames.append(frame)
        if not frame.more:
            return frames
