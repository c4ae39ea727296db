"""The TCP connections of a worker's socket: how many there may be, and which are ended.

ZeroMQ accepts whatever comes and keeps all parts of a message until the last one is there. Its monitor names each
connection's descriptor, which gives access to the kernel's count of bytes received and by which it can be ended.
"""

import contextlib
import socket as sockets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from eex.stream.wire.security import read_event

CHECK_S = 0.05
"""Time between two looks at how much connections have received."""

KERNEL_BYTES = 16 << 20
"""Allowance for what the kernel has buffered of a connection and ZeroMQ has not read."""

_TCP_INFO = getattr(sockets, "TCP_INFO", None)  # Linux only
_RECEIVED_AT = 128  # of tcpi_bytes_received, in struct tcp_info


@dataclass
class Connection:
    """One accepted connection.

    Attributes
    ----------
    used
        When it was accepted, or its last message came.
    ready
        Whether its handshake has succeeded.
    messages
        Read from it so far.
    checked, base
        The messages and the bytes received when it was last seen to have completed a message.
    key
        Of the client that sends on it, as `Front` has it; empty before its first message and in plain text.
    client
        Id of that client; empty before its first message.
    """

    socket: sockets.socket
    used: float
    ready: bool = False
    messages: int = 0
    checked: int = 0
    base: int = 0
    key: str = ""
    client: bytes = b""


class Connections:
    """Keeps count of a ROUTER's connections and ends those that are too many or send too much.

    Parameters
    ----------
    socket
        Not bound yet.
    most
        Connections at a time. Of more, those are ended first that have not finished their handshake, then those that
        have been silent for longest.
    message_bytes
        Of all parts of a message.
    """

    def __init__(self, socket: zmq.Socket[bytes], context: zmq.Context[Any], most: int, message_bytes: int) -> None:
        self.most, self.message_bytes = most, message_bytes
        self.ended = 0
        self._open: dict[int, Connection] = {}
        self._checked = 0.0
        endpoint = f"inproc://monitor-{id(socket)}"
        self._watched = socket
        socket.monitor(
            endpoint,
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED,
        )
        self.monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self.monitor.linger = 0
        self.monitor.rcvhwm = 0  # ZeroMQ's own thread would wait for room
        self.monitor.connect(endpoint)

    def __len__(self) -> int:
        return len(self._open)

    def update(self, now: float) -> list[bytes]:
        """Take in what happened, and end connections if there are too many; ids of the clients that have gone."""
        gone = []
        while self.monitor.poll(0):
            frames = self.monitor.recv_multipart()
            event, descriptor = read_event(frames)
            if event == zmq.EVENT_ACCEPTED:
                self._forget(descriptor)
                with contextlib.suppress(OSError):  # it is gone already
                    self._open[descriptor] = Connection(sockets.socket(fileno=descriptor), now)
            elif event == zmq.EVENT_DISCONNECTED:
                if (ended := self._open.get(descriptor)) is not None and ended.client:
                    gone.append(ended.client)
                self._forget(descriptor)
            elif connection := self._open.get(descriptor):
                connection.ready = True
        if (more := len(self._open) - self.most) > 0:
            order = sorted(self._open.values(), key=lambda connection: (connection.ready, connection.used))
            for connection in order[:more]:
                self._end(connection)
        return gone

    def took(self, frame: zmq.Frame, client: bytes, key: str, now: float) -> None:
        """A message of a client was read, of which `frame` is a part."""
        with contextlib.suppress(zmq.ZMQError, TypeError, ValueError):
            if connection := self._open.get(int(frame.get("__fd"))):
                connection.used, connection.ready, connection.key, connection.client = now, True, key, client
                connection.messages += 1

    def check(self, now: float, read: Callable[[], bool]) -> None:
        """End connections that have sent more since their last complete message than a message may have.

        Parameters
        ----------
        read
            Reads messages that are complete; whether it read all.
        """
        if _TCP_INFO is None or now - self._checked < CHECK_S:
            return
        self._checked = now
        suspects = []
        for connection in self._open.values():
            with contextlib.suppress(OSError, struct.error):
                info = connection.socket.getsockopt(sockets.IPPROTO_TCP, _TCP_INFO, _RECEIVED_AT + 8)
                received = struct.unpack_from("=Q", info, _RECEIVED_AT)[0]
                if connection.messages != connection.checked:
                    connection.checked, connection.base = connection.messages, received
                elif received - connection.base > self.message_bytes + KERNEL_BYTES:
                    suspects.append(connection)
        if suspects and read():
            for connection in suspects:
                if connection.messages == connection.checked:
                    self._end(connection)

    def end_strangers(self, known: Callable[[str], bool]) -> None:
        """End the connections of clients that are not known any more."""
        for connection in list(self._open.values()):
            if connection.key and not known(connection.key):
                self._end(connection)

    def close(self) -> None:
        """Forget all connections, which the socket's owner ends."""
        for descriptor in list(self._open):
            self._forget(descriptor)
        self._watched.disable_monitor()
        self.monitor.close(linger=0)

    def _end(self, connection: Connection) -> None:
        self.ended += 1
        connection.used = float("-inf")  # if it is not gone by the next time, it is ended again
        with contextlib.suppress(OSError):
            connection.socket.shutdown(sockets.SHUT_RDWR)

    def _forget(self, descriptor: int) -> None:
        if connection := self._open.pop(descriptor, None):
            connection.socket.detach()  # ZeroMQ owns and closes it
