"""The socket of the edge to one worker, with the monitor that watches its handshakes."""

import errno
import time
from collections.abc import Iterator
from typing import Any

import zmq

from eex.policies.core.errors import OffloadError
from eex.stream.wire.keys import EdgeKeys
from eex.stream.wire.protocol import MAX_FRAMES, Buffer
from eex.stream.wire.reach import Lookup, is_address, split
from eex.stream.wire.security import HANDSHAKE_EVENTS, HANDSHAKE_MS, read_event, secure_edge
from eex.stream.wire.sockets import lives, receive, send

QUEUE = 8
"""Most messages that wait in a socket, in each direction."""

LOOKUP_EVERY_S = 2.0
"""Time between two lookups of a name that has no address."""

MOST_PARTS = 8  # of a message; the protocol's have three


class Channel:
    """A connection that is made, and made again, in the background.

    Parameters
    ----------
    endpoint
        "tcp://host:port" of the worker.
    keys
        The edge's own, and the worker's; None for plain text.

    Raises
    ------
    OffloadError
        If the endpoint is none.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, keys: EdgeKeys | None) -> None:
        self.context, self.endpoint, self.keys = context, endpoint, keys
        host, _ = split(endpoint)
        self._ipv6 = "[" in endpoint
        self._host, self._lookup, self._asked = host, None if is_address(host) else Lookup(host), time.monotonic()
        self.open()

    @property
    def misses_ipv6(self) -> bool:
        """Whether the name turned out to have IPv6 addresses only, so that the connection must be made anew.

        A name that has no address is looked up again every now and then.
        """
        if self._lookup is not None and self._lookup.problem and time.monotonic() - self._asked > LOOKUP_EVERY_S:
            self._lookup, self._asked = Lookup(self._host), time.monotonic()
        return self._lookup is not None and self._lookup.ipv6_only and not self._ipv6

    def open(self) -> None:
        """Make the socket and connect it."""
        self._ipv6 |= self.misses_ipv6
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue for a live connection only: what waits for a dead one would come too late
            zmq.SNDHWM: QUEUE,
            zmq.RCVHWM: QUEUE,
            zmq.MAXMSGSIZE: 4 * MAX_FRAMES,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.CONNECT_TIMEOUT: 1000,
            **lives(3000),  # ms; notices a network that is cut without a word
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 400,
            zmq.IPV6: int(self._ipv6),
        }.items():
            self.socket.setsockopt(option, value)
        if self.keys is not None:
            secure_edge(self.socket, self.keys)
        self.monitor = self.socket.get_monitor_socket(HANDSHAKE_EVENTS)
        self.monitor.linger = 0
        try:
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise OffloadError(
                f"{self.endpoint}: not a worker's endpoint, expected tcp://host:port ({error})"
            ) from None

    def close(self) -> None:
        """Close the socket and its monitor."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close(linger=0)

    def send(self, parts: list[Buffer]) -> bool:
        """Hand a message to the socket; False if its queue is full or there is no connection."""
        try:
            send(self.socket, parts)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[Buffer] | None:
        """The next message; None if there is none."""
        message = receive(self.socket, MOST_PARTS)
        return None if message is None else [frame.bytes for frame in message]

    def events(self) -> Iterator[tuple[int, int]]:
        """What has happened to the connection since the last call: events of libzmq and their values."""
        while self.monitor.poll(0):
            yield read_event(self.monitor.recv_multipart())


def timed_out(event: int, value: int) -> bool:
    """Whether a handshake failed because the other end did not answer in time."""
    return event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EAGAIN
