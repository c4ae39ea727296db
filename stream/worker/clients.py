"""Whom a worker serves, how much of each, and the replies that wait until their client reads them. No sockets."""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from eex.stream.wire.protocol import Buffer, Refusal
from eex.stream.wire.security import HANDSHAKE_MS
from eex.stream.worker.stats import Stats

GONE_S = 3.0
"""A client that was silent for this long is gone; edges ping several times per second."""

IDLE_S = 3.0
"""A client that asked for nothing for this long makes room for others, even if it pings; it is served again when it
asks, if there is room."""

UNREAD_S = 1.0
"""A reply that its client has not read by then is dropped."""

Send = Callable[[bytes, list[Buffer]], bool]
"""Hands a message to a client, by id; False if its queue is full. Raises `ConnectionError` if the client is gone."""


@dataclass(frozen=True)
class Limits:
    """What a worker takes on.

    Attributes
    ----------
    clients
        Connections served at a time.
    queued_bytes
        Of the features of all requests under way.
    batch
        Frames in one call of a model.
    wait_ms
        How long a request waits for others to share a batch with; requests that arrive while the model runs are
        batched in any case.
    drain_s
        How long a stopped worker goes on with what it has accepted.
    key_clients, key_requests, key_bytes
        Connections of one key, and requests under way over all of them and the bytes of their features, where clients
        have keys: so that no key takes the room of all others.
    handshake_s
        A connection that has not finished its handshake by then is ended.
    """

    clients: int = 64
    queued_bytes: int = 256 << 20
    batch: int = 64
    wait_ms: float = 0.0
    drain_s: float = 5.0
    key_clients: int = 32
    key_requests: int = 256
    key_bytes: int = 128 << 20
    handshake_s: float = HANDSHAKE_MS / 1000


class RefusedError(Exception):
    """A message is refused: of which kind the refusal is, and why."""

    def __init__(self, kind: Refusal, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass
class Client:
    """One connection.

    Attributes
    ----------
    id
        Its name on the socket.
    seen
        When its last message came.
    key
        Its public half and its name (`eex.stream.wire.security.client_id`); empty in plain text.
    asked
        When its last hello, request or sums came.
    shared
        When its last sums came.
    waiting, waiting_bytes
        Requests accepted and not answered yet; bytes of the features of those that have not been run.
    outbox
        Replies that the connection has no room for yet, and since when.
    """

    id: bytes
    seen: float
    key: str = ""
    waiting: int = 0
    waiting_bytes: int = 0
    asked: float = -math.inf
    shared: float = -math.inf
    outbox: deque[tuple[float, list[Buffer]]] = field(default_factory=deque)


class Clients:
    """The clients of a worker, within its limits.

    Parameters
    ----------
    send
        Hands a message to a client.
    stats
        Counts the replies that clients do not read.
    """

    def __init__(self, limits: Limits, send: Send, stats: Stats) -> None:
        self._limits, self._send, self._stats = limits, send, stats
        self._clients: dict[bytes, Client] = {}

    def __len__(self) -> int:
        return len(self._clients)

    # ---- admission

    def get(self, id: bytes) -> Client | None:
        """A client that is served, by id."""
        return self._clients.get(id)

    def admit(self, id: bytes, now: float, key: str, *, asks: bool = True) -> Client:
        """The client that sent a message, new or not.

        Parameters
        ----------
        asks
            Whether it wants something. If not, and there is no room, the client returned is not kept.

        Raises
        ------
        RefusedError
            If there are too many already, and none of them is idle.
        """
        client = self._clients.get(id)
        if client is None or client.key != key:  # a client may choose an id that another key's had
            if (problem := self._problem(key)) and not (asks and self._make_room(now, key)):
                if asks:
                    raise RefusedError("clients", problem)
                return Client(id, now, key, asked=now)
            client = self._clients[id] = Client(id, now, key, asked=now)
        client.seen = now
        if asks:
            client.asked = now
        return client

    @property
    def served_keys(self) -> set[str]:
        """Keys of the clients that are served."""
        return {client.key for client in self._clients.values()}

    def revoke(self, key: str) -> None:
        """Serve the clients of a key no more."""
        for client in list(self._clients.values()):
            if client.key == key:
                client.waiting -= len(client.outbox)
                client.outbox.clear()
                del self._clients[client.id]

    def gone(self, id: bytes) -> None:
        """The connection of a client has ended; it is not served any more, once what is under way has come back."""
        if (client := self._clients.get(id)) is not None:
            client.waiting -= len(client.outbox)
            client.outbox.clear()
            client.seen = client.asked = -math.inf
            if not client.waiting:
                del self._clients[id]

    def present(self, now: float) -> int:
        """Clients that have sent something lately."""
        return sum(now - client.seen <= GONE_S for client in list(self._clients.values()))

    def check_room(self, client: Client, window: int, nbytes: int) -> None:
        """See that a client may have one more request, of so many bytes, under way.

        Raises
        ------
        RefusedError
            If it, or its key, has too many.
        """
        if client.waiting >= window:
            raise RefusedError("busy", f"{client.waiting} requests of this client are under way already")
        if client.key:
            its = [other for other in self._clients.values() if other.key == client.key]
            held, of_key = sum(other.waiting_bytes for other in its), f"of the key '{_name(client.key)}' are under way"
            if sum(other.waiting for other in its) >= self._limits.key_requests:
                raise RefusedError("busy", f"{self._limits.key_requests} requests {of_key} already")
            if held and held + nbytes > self._limits.key_bytes:
                raise RefusedError("busy", f"{held:,} bytes {of_key} already")

    def _problem(self, key: str) -> str:
        """Why there is no room for one more client of a key; empty if there is."""
        limits = self._limits
        if len(self._clients) >= limits.clients:
            return f"the worker serves {limits.clients} clients already"
        if key and sum(client.key == key for client in self._clients.values()) >= limits.key_clients:
            return f"the worker serves {limits.key_clients} clients with the key '{_name(key)}' already"
        return ""

    def _make_room(self, now: float, key: str) -> bool:
        """Drop a client that is idle or gone: one of the same key if that has too many, else of the one with most."""
        counts = Counter(client.key for client in self._clients.values())
        own = bool(key) and counts[key] >= self._limits.key_clients
        idle = [
            client
            for client in self._clients.values()
            if now - client.asked > IDLE_S
            and not client.waiting
            and not client.outbox
            and (client.key == key or not own)
        ]
        if not idle:
            return False
        least = min(idle, key=lambda client: (now - client.seen <= GONE_S, -counts[client.key], client.asked))
        del self._clients[least.id]
        return not self._problem(key)

    # ---- replies

    @property
    def owed(self) -> bool:
        """Whether replies wait for their clients to read."""
        return any(client.outbox for client in self._clients.values())

    def reply(self, client: Client, message: list[Buffer], now: float) -> None:
        """Send the answer to a request, or keep it until the client reads; until then it counts as under way."""
        if client.outbox or not self._try(client, message):
            client.outbox.append((now, message))
            client.waiting += 1

    def notify(self, client: Client, message: list[Buffer]) -> None:
        """Send what nobody depends on; it is dropped if the client does not read."""
        if client.outbox or not self._try(client, message):
            self._stats.unread += 1

    def flush(self, now: float) -> None:
        """Send the replies that there is room for now, and drop those that waited too long."""
        for client in list(self._clients.values()):
            while client.outbox:
                since, message = client.outbox[0]
                late = now - since > UNREAD_S
                self._stats.unread += late
                if not late and not self._try(client, message):
                    break
                if client.outbox:  # unless it is gone
                    client.outbox.popleft()
                    client.waiting -= 1

    def _try(self, client: Client, message: list[Buffer]) -> bool:
        """Whether a message was sent, or need not be."""
        try:
            return self._send(client.id, message)
        except ConnectionError:
            client.outbox.clear()
            self._clients.pop(client.id, None)
            return True


def _name(key: str) -> str:
    """Of a client's key, whose public half comes before it."""
    return key.partition(" ")[2] or key
