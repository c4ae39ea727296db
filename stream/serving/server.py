"""An ASGI application on a port, in a thread of its own: connections are bounded, and the end is clean."""

import asyncio
import contextlib
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from eex.policies.core.errors import EexError
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.limits import Bodies

IDLE_S = 75.0
"""Seconds after which a connection without a request is closed."""
HEADERS_S = 10.0
"""Seconds that the headers of a request may take."""
READ_S = 20.0
"""Seconds that a client may leave what it was sent unread."""
MOST_HEAD = 65_536
"""Bytes of a request's headers, at most."""
MOST_PIECES = 4096
"""Pieces of a message on a WebSocket, at most."""
SWITCH_S = 0.0005
"""Seconds that a thread may keep the interpreter while another one waits for it; Python's own 5 ms are long beside a
request: the thread of the requests and that of the session hand each frame over and back."""
END_S = 10.0
"""Seconds that responses under way may take once the service is stopped."""


FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 51\r\n\r\n{"error": "too many connections; try again later"}\n'
)


class ReadInTime(asyncio.Protocol):
    """A connection that ends if its client leaves what it was sent unread."""

    loop: asyncio.AbstractEventLoop
    transport: Any
    _stuck: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """The client does not read: give it some time."""
        super().pause_writing()
        self._stuck = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.resume_writing()
        super().connection_lost(exc)


class Bounded(ReadInTime, HttpToolsProtocol):
    """HTTP/1.1 with an end for connections that bring no request, no end of its headers, or take no response.

    While there are as many connections as there may be, a new one makes the one end that has been idle longest.
    """

    def connection_made(self, transport: Any) -> None:
        """Take a connection in, or turn it away."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False  # headers of a request
        self._head = self._unparsed = (
            0  # bytes of the headers so far; bytes since the parser last made something of any
        )
        self._in_head = False
        self._idle: dict[Bounded, None] = self.server_state.__dict__.setdefault("idle", {})
        most = self.config.limit_concurrency
        if most is not None and len(self.connections) >= most:
            if not self._idle:
                transport.write(FULL)
                transport.close()
                return
            longest = next(iter(self._idle))
            longest.connection_lost(None)
            longest.transport.abort()
        self._idle[self] = None
        self._end_after(IDLE_S)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; those of headers must soon be complete."""
        if self.parser is None or self.transport.is_closing():
            return
        if self._waits and not self._reading:
            self._reading = True
            self._end_after(HEADERS_S)
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MOST_HEAD and not self.transport.is_closing():  # a header, trailer or address without end
            self.send_400_response("The headers are too large.")
        elif not self._waits:
            self._begun()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._head, self._unparsed, self._in_head = 0, 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the address in."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header in; those that follow the body are left out."""
        self._grow(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the response."""
        self._unparsed, self._in_head = 0, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body in."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unparsed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        self._idle[self] = None
        super().on_response_complete()
        if not self._waits:
            self._begun()

    def send_400_response(self, msg: str) -> None:
        """Say that the request is none, unless a response is under way."""
        if self._waits:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the WebSocket."""
        self._begun()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._begun()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _grow(self, size: int) -> None:
        """Count bytes of the headers.

        Raises
        ------
        ValueError
            If they are too many; the parser makes a refusal of it.
        """
        self._unparsed, self._head = 0, self._head + size
        if self._head > MOST_HEAD:
            raise ValueError("the headers are too large")

    def _begun(self) -> None:
        """A request is under way, or the connection is none any more."""
        self._reading = False
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)


class BoundedWebSocket(ReadInTime, WebSocketsSansIOProtocol):
    """A WebSocket whose messages come in so many pieces at most, and soon; their bytes count as those of bodies do.

    Parameters
    ----------
    bodies
        Limits that all clients share.
    """

    def __init__(self, *args: Any, bodies: Bodies, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bodies = bodies
        self._whole = self._held = 0  # bytes of whole messages that nobody has taken yet; of all that is counted
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes in."""
        super().data_received(data)
        self._count()

    def handle_cont(self, event: Any) -> None:
        """Take a further piece of a message in, of which there may be so many."""
        if len(self.frames) >= MOST_PIECES:
            self._end(1009, "the message has too many pieces")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Take the last piece of a message in."""
        if not self.close_sent:  # else it is thrown away
            self._whole += sum(map(len, self.frames))
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        """The next message, which whoever takes it counts from now on."""
        message = await super().receive()
        if message["type"] == "websocket.receive":
            self._whole -= len(message.get("bytes") or (message.get("text") or "").encode())
        self._count()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop_timer()
        self._bodies.held, self._held = self._bodies.held - self._held, 0

    def _count(self) -> None:
        """Account for what is held; a message of which a part is there must soon be whole."""
        if self.disconnected:
            return
        part = len(self.conn.reader.buffer) + sum(map(len, self.frames))
        before, self._held = self._held, part + self._whole
        self._bodies.held += self._held - before
        if part and self._held > before and self._bodies.full:
            self._end(1013, "too many bodies are on their way; try again later")
        if not part or self.read_paused:  # while it is not read, it is not late
            self._stop_timer()
        elif self._timer is None:
            late = f"the message did not arrive within {self._bodies.seconds:g} s"
            self._timer = self.loop.call_later(self._bodies.seconds, self._end, 1008, late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, code: int, why: str) -> None:
        if not self.close_sent:
            self.conn.fail(code, why)
            self.handle_parser_exception()


class _Server(uvicorn.Server):
    """Runs in a thread; `ready` is set when it listens, or has failed to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.problem: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn does but for the time that a TLS handshake may take, which it leaves at a minute."""
        config, loop = self.config, asyncio.get_running_loop()
        await self.lifespan.startup()
        protocol = partial(Bounded, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        in_time = HEADERS_S if config.ssl else None
        self.servers = [
            await loop.create_server(
                protocol, sock=sock, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=in_time
            )
            for sock in sockets or ()
        ]
        self.started = True
        self.ready.set()

    def run_in_thread(self, listening: socket.socket) -> None:
        try:
            self.run([listening])
        except BaseException as error:
            self.problem = error
        finally:
            self.ready.set()


@contextlib.contextmanager
def listening(app: ASGIApp, config: ServeConfig, bodies: Bodies | None = None) -> Iterator[str]:
    """Serve an application during the `with` block; yields its URL.

    When the block ends no connection is accepted any more, and responses under way are finished.

    Parameters
    ----------
    bodies
        Limits that messages on WebSockets share with the bodies of requests; by default they have their own.

    Raises
    ------
    EexError
        If the address cannot be listened on, or the certificate cannot be used.
    """
    web_socket: Any = partial(BoundedWebSocket, bodies=bodies or Bodies(config.most_body, config.body_s))
    raise_descriptors(config.most_connections)
    bound = _bound(config)
    switch_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(SWITCH_S)
        server = _Server(
            uvicorn.Config(
                app,
                http=Bounded,
                ws=web_socket,
                loop="auto",  # uvloop, where there is one
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.most_connections + 1,
                backlog=1024,
                timeout_keep_alive=int(IDLE_S),
                timeout_graceful_shutdown=int(END_S),
                ws_max_size=config.most_body,
                ws_per_message_deflate=False,
                ws_ping_interval=20.0,
                ws_ping_timeout=20.0,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
            )
        )
        try:
            server.config.load()
        except (OSError, ValueError) as error:  # of ssl
            raise EexError(f"--tls-cert {config.tls_cert}, --tls-key {config.tls_key}: {error}") from None
        thread = threading.Thread(target=server.run_in_thread, args=(bound,), name="eex-http", daemon=True)
        thread.start()
        server.ready.wait()
        if server.problem is not None:
            raise EexError(f"the HTTP service failed to start: {server.problem}")
        scheme = "http" if config.tls_cert is None else "https"
        host = config.host.strip("[]")
        try:
            yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
    finally:
        sys.setswitchinterval(switch_s)
        bound.close()


def _bound(config: ServeConfig) -> socket.socket:
    host = config.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise EexError(f"--host {config.host}: {getattr(error, 'strerror', None) or error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise EexError(f"--host {config.host} --port {config.port}: cannot listen there: {error.strerror}") from None
    return bound


def raise_descriptors(connections: int) -> None:
    """Let the process have enough descriptors for so many connections, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
