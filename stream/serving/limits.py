"""Who may ask, how often and how much: checked before anything is read or made of a request."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eex.stream.serving.config import ServeConfig, is_loopback, same_token

OPEN_PATHS = frozenset({"/", "/docs", "/page.css", "/page.js", "/healthz", "/readyz"})
"""Paths that need no token: they show nothing of the streams."""
BURST_S = 1.0
"""Seconds' worth of requests that one client may make at once."""
ADDRESSES = 4096
"""Client addresses whose rate is known, at most: the latest."""
MOST_BUFFERED = 1 << 28
"""Bytes of bodies that are held at a time, at most, over all requests."""

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Rates:
    """A bucket of requests per client address.

    Parameters
    ----------
    rate
        Requests per second that fill it; it holds a second's worth.

    Examples
    --------
    >>> rates = Rates(2.0)
    >>> [rates.wait_s("10.0.0.7", now=5.0) for _ in range(3)]
    [0.0, 0.0, 0.5]
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.most = rate, max(1.0, rate * BURST_S)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when

    def wait_s(self, address: str, now: float | None = None) -> float:
        """Take a request of an address: 0 if it may be made now, else the seconds until it may."""
        now = time.monotonic() if now is None else now
        left, since = self._left.get(address, (self.most, now))
        left = min(self.most, left + (now - since) * self.rate)
        wait_s = 0.0 if left >= 1 else (1 - left) / self.rate
        self._left[address] = left - (wait_s == 0), now
        self._left.move_to_end(address)
        if len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return wait_s


class Bodies:
    """Reads bodies of requests, within limits of size and time.

    Parameters
    ----------
    most
        Bytes of one body, at most.
    seconds
        That it may take to arrive.

    Attributes
    ----------
    held
        Bytes of all bodies that are held now, messages on WebSockets included.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds, self.held = most, seconds, 0

    @property
    def full(self) -> bool:
        """Whether too much is held."""
        return self.held > max(MOST_BUFFERED, self.most)

    @contextmanager
    def holding(self) -> Iterator["Hold"]:
        """Account for what is held during the block."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.held -= hold.bytes


class Hold:
    """Bytes that one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.bytes = bodies, 0

    def take(self, size: int) -> None:
        """Account for some bytes more.

        Raises
        ------
        HTTPException
            If it is too much: 413 for this request, 503 for all together.
        """
        self.bytes += size
        self._bodies.held += size
        if self.bytes > self._bodies.most:
            raise too_large(self._bodies.most)
        if self._bodies.full:
            raise refused(503, "too many bodies are on their way; try again later", {"Retry-After": "1"})

    async def read(self, request: Request) -> bytes:
        """The body of a request.

        Raises
        ------
        HTTPException
            If it is empty, too large or too slow.
        """
        announced = request.headers.get("content-length")
        if announced is not None and announced.isdecimal() and int(announced) > self._bodies.most:
            raise too_large(self._bodies.most)
        chunks, more = [], True
        try:
            async with asyncio.timeout(self._bodies.seconds):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise refused(400, "the connection was closed before the body had arrived")
                    if chunk := message.get("body", b""):
                        self.take(len(chunk))
                        chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise refused(408, f"the body did not arrive within {self._bodies.seconds:g} s") from None
        if not self.bytes:
            raise refused(400, "the body is empty")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def refused(status: int, why: str, headers: Mapping[str, str] | None = None) -> HTTPException:
    """A refusal with one line; the connection is closed, as there may be more of the request to come."""
    return HTTPException(status, " ".join(why.split()), {"Connection": "close", **(headers or {})})


def too_large(most: int) -> HTTPException:
    """The refusal of a body that exceeds the limit."""
    return refused(413, f"the body is too large: at most {most:,} bytes are taken (--most-body-mb)")


class Guard:
    """The outermost layer: token, host and origin, rate, headers for browsers. All else is passed on.

    Without a token, only this machine is served; then a page from elsewhere that is open in a browser here must not
    use the service, by another name for this machine (`Host`) or from its own origin (`Origin`).

    Parameters
    ----------
    app
        What is guarded.
    config
        The options.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.rates = app, Rates(config.rate)
        self._token, self._on_loopback = config.token(), config.on_loopback
        self.refusals: dict[int, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self.app(scope, receive, send)
            return
        status, why, headers = problem
        self.refusals[status] = self.refusals.get(status, 0) + 1
        response = error_response(status, why, {"Connection": "close", **headers})
        if scope["type"] == "websocket":
            await receive()  # the request to connect
        await response(scope, receive, send)

    def _problem(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Why a request is refused: status, one line, headers; None if it is not."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        wait_s = self.rates.wait_s((scope.get("client") or ("",))[0])
        if wait_s:
            return 429, f"more than {self.rates.rate:g} requests per second", {"Retry-After": str(int(wait_s) + 1)}
        host = headers.get(b"host", "")
        if (
            self._token is None
            and self._on_loopback
            and not is_loopback(host.rpartition(":")[0] if _has_port(host) else host)
        ):
            return 421, "this address is not served under that name", {}
        origin = headers.get(b"origin")
        if origin is not None and _host_of(origin) != host.lower():
            return 403, "pages from elsewhere may not use this service", {}
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not same_token(given.strip(), self._token):
                return 401, "a token is needed: send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        return None


def _host_of(origin: str) -> str | None:
    """The host and port of an origin; None if it is none, as `http://[`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and (host.count(":") == 1 or "]" in host)


def error_response(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that says in one line what is wrong."""
    import msgspec

    line = " ".join(why.split())[:500]
    return Response(msgspec.json.encode({"error": line}) + b"\n", status, headers, "application/json")
