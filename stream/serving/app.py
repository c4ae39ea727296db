"""The HTTP service of a session: its paths, what they take and what they give."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames.decoding import decode
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.images import as_taken
from eex.stream.live.labels import UnknownFrame, Unrecorded
from eex.stream.live.streams import NAME
from eex.stream.serving import openapi
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.learned import described
from eex.stream.serving.limits import Bodies, Guard, error_response, refused, too_large
from eex.stream.serving.metrics import exposition
from eex.stream.serving.pages import Pages, html
from eex.stream.serving.settings import Settings, changes, difference, shown
from eex.stream.serving.watch import Watch
from eex.stream.serving.websocket import FrameSocket

if TYPE_CHECKING:
    from eex.stream.live.session import Session

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what it says of bodies is said to who sent them

DEFAULT_STREAM = "default"
MOST_JSON = 65_536
"""Bytes of settings or a label, at most."""
MOST_PARTS = 64
"""Images in a multipart body, at most."""
SMALL_BODY, SMALL_PIXELS = 65_536, 65_536
"""Images up to this many bytes and pixels are decoded at once; larger ones by threads of their own."""
DECODERS = 2
IDLE_STREAM_S = 600.0
"""Seconds without a frame after which a stream is closed."""
SWEEP_S = 5.0
HANGS_S = 10.0
"""A session that has not answered a question for so long is not healthy."""
DRAIN_S = 30.0
"""Seconds that frames under way may take once the service is stopped."""

STATUS = {"stale": 409, "full": 429, "undecodable": 422, "closed": 503, "failed": 503}
"""HTTP status by why a frame was refused."""

SUMMARY = ("seconds", "frames", "answered", "refused", "accuracy", "exit_shares", "latency_ms", "link", "streams")
"""What `/v1/streams` shows of a session's summary."""
TOO_LARGE = "is too large"
"""What `decode` says of an image that has too many pixels."""

Said = TypeVar("Said")


class Label(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The true label of a frame.

    Attributes
    ----------
    stream, frame
        As in its answer.
    label
        Name of the class.
    """

    stream: str = DEFAULT_STREAM
    frame: int
    label: str


class Service:
    """A session over HTTP.

    Parameters
    ----------
    session
        Answers the frames; whoever opened it closes it, after `drain`.
    config
        The options.
    say
        Called with one line when a setting was changed.

    Attributes
    ----------
    app, routes
        The ASGI application, and the part of it that knows the paths.
    draining
        Whether no more frames are taken.
    bodies
        Limits of what clients have on its way.
    """

    def __init__(self, session: "Session", config: ServeConfig, say: Callable[[str], None] = lambda line: None) -> None:
        self.session, self.config, self._say = session, config, say
        self.taken = session.net.architecture
        self.draining = False
        self.watch = Watch(session, thumbnails=config.thumbnails)
        self.bodies = Bodies(config.most_body, config.body_s)
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="eex-decode")
        self.pages = Pages(self.watch)
        self._ask = self.pages.ask
        self._last: dict[str, float] = {}  # when a stream's latest frame came, by name
        self._swept = time.monotonic()
        self._under_way = 0
        session.take_labels()
        get = partial(Route, methods=["GET"])
        routes = [
            *self.pages.routes,
            Route("/v1/answer", self._answer, methods=["POST"]),  # for other methods: `_routed` takes this one
            WebSocketRoute("/v1/frames", self._frames),
            get("/v1/streams", self._streams),
            get("/v1/policy", self._policy),
            get("/v1/settings", self._settings),
            Route("/v1/settings", self._set, methods=["PUT"]),
            Route("/v1/labels", self._label, methods=["POST"]),
            get("/healthz", self._healthz),
            get("/readyz", self._readyz),
            get("/metrics", self._metrics),
            get("/openapi.json", self._openapi),
            get("/docs", self._docs),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, EexError: _mistaken, Exception: self._failed}
        self.routes = Starlette(routes=routes, exception_handlers=handlers)
        # a path with a slash too many is unknown, and nobody is sent elsewhere
        self.routes.router.redirect_slashes = False
        self.guard = Guard(self._routed, config)
        self.app = self.guard

    def drain(self) -> None:
        """Take no more frames, and wait until those that were taken have their answers."""
        self.draining = True
        self.pages.end()
        until = time.monotonic() + DRAIN_S
        while self._under_way and time.monotonic() < until:
            time.sleep(0.01)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown()
        self.pages.close()

    # ---- frames

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer images at once; all else goes through the routes, which take longer than a small image."""
        if scope["type"] != "http" or scope["path"] != "/v1/answer" or scope["method"] != "POST":
            await self.routes(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except HTTPException as error:
            response = _refused(request, error)
        except EexError as error:
            response = _mistaken(request, error)
        except Exception as error:
            response = self._failed(request, error)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        stream = self._stream_of(request.query_params.get("stream"))
        label = self._label_of(request.query_params.get("label"))
        self._check_open()
        with self.bodies.holding() as hold:
            body = await hold.read(request)
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
                name = request.query_params.get("name", "")[:200]
                given = await self._answered(body, stream, name, label)
                return _one(given)
            parts = await _parts(request, body)
            together = (self._answered(part, stream, name, label) for name, part in parts)
            given_all = await asyncio.gather(*together, return_exceptions=True)
        for problem in given_all:
            if isinstance(problem, BaseException) and not isinstance(problem, HTTPException):
                raise problem
        return _json({"answers": [{"error": g.detail} if isinstance(g, HTTPException) else g for g in given_all]})

    async def _answered(self, data: bytes, stream: str, name: str, label: int = -1) -> Answer | Refusal:
        self._under_way += 1
        try:
            if not data:
                raise refused(400, "the image is empty")
            try:
                image = await self._pixels(data)
            except ImageError as error:
                why = " ".join(str(error).split())
                if stream in self._last:
                    return await self._ask(partial(self.session.skip, stream, name, why))
                raise refused(413 if TOO_LARGE in why else STATUS["undecodable"], f"undecodable: {why}") from None
            self._open(stream)
            future = self.session.submit(image, stream, name=name, label=label, wait=False)
            given = await asyncio.wrap_future(future)
            self.watch.answered(given, image)
            return given
        finally:
            self._under_way -= 1

    async def _pixels(self, data: bytes) -> NDArray[np.uint8]:
        """An image as the network takes it; a large one does not hold up the others meanwhile."""
        if len(data) <= SMALL_BODY:
            with contextlib.suppress(ImageError):
                return self._taken(data, SMALL_PIXELS)

        def whole() -> NDArray[np.uint8]:
            return self._taken(data, self.config.most_pixels)

        return await asyncio.get_running_loop().run_in_executor(self._threads, whole)

    def _taken(self, data: bytes, pixels: int) -> NDArray[np.uint8]:
        shape, preprocessing = self.taken.input_shape, self.taken.preprocessing
        return as_taken(decode(data, pixels=pixels, least=preprocessing.least(*shape[1:])), shape, preprocessing)

    async def _frames(self, socket: WebSocket) -> None:
        """Frames in as binary messages, each an image; answers and refusals out as JSON, as they are known."""
        try:
            stream = self._stream_of(socket.query_params.get("stream"))
            self._check_open()
        except HTTPException as problem:
            await socket.send_denial_response(error_response(problem.status_code, problem.detail, problem.headers))
            return

        async def answer(data: bytes) -> Any:
            try:
                return await self._answered(data, stream, "")
            except HTTPException as problem:
                return {"error": problem.detail}

        await FrameSocket(socket, answer, self.bodies, self.guard.rates, lambda: self.draining).serve()

    def _stream_of(self, given: str | None) -> str:
        """The stream of a request, which it may open.

        Raises
        ------
        HTTPException
            If it is no name, or there are too many streams.
        """
        name = DEFAULT_STREAM if given is None else given
        if not NAME.fullmatch(name):
            raise refused(400, f"stream: '{name[:70]}' is no name; expected 1 to 64 letters, digits, '_', '-' and '.'")
        if name not in self._last:
            if len(self._last) >= self.config.most_streams:
                self._sweep(time.monotonic())
            if len(self._last) >= self.config.most_streams:
                raise refused(429, f"there are {self.config.most_streams} streams already (--most-streams)")
        return name

    def _open(self, name: str) -> None:
        """Note that a stream is used now.

        Raises
        ------
        HTTPException
            If there are too many streams.
        """
        now = time.monotonic()
        if name not in self._last:
            self._stream_of(name)  # others may have opened theirs meanwhile
        self._last[name] = now
        if now - self._swept > SWEEP_S:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Close the streams that nobody uses any more, nor feeds otherwise."""
        self._swept = now
        for name, last in list(self._last.items()):
            if min(now - last, self.session.idle_s(name)) > IDLE_STREAM_S:
                del self._last[name]
                self.session.close_stream(name)
                self.watch.forget(name)

    def _label_of(self, given: str | None) -> int:
        if given is None:
            return -1
        if given not in self.session.net.classes:
            raise refused(400, f"label: '{given[:60]}' is none of the model's classes")
        return list(self.session.net.classes).index(given)

    def _check_open(self) -> None:
        if self.draining or self.session.closed:
            raise refused(503, "the service is stopping")

    # ---- what is there

    async def _streams(self, request: Request) -> Response:
        summary = await self._ask(self.session.summary)
        return _json({name: _finite(summary[name]) for name in SUMMARY})

    async def _policy(self, request: Request) -> Response:
        name = request.query_params.get("stream", DEFAULT_STREAM)
        found = await self._ask(partial(self._described, name))
        return _json({"stream": name[:64], "policy": self.session.config.policy, **found})

    def _described(self, name: str) -> dict[str, Any]:
        try:
            learner = self.session.learner(name)
        except EexError as error:
            raise refused(404, str(error)) from None
        return described(learner)

    async def _settings(self, request: Request) -> Response:
        name = request.query_params.get("stream", DEFAULT_STREAM)
        if not NAME.fullmatch(name):
            raise refused(400, f"stream: '{name[:70]}' is no name")
        return _json({"stream": name, **shown(self.session.options_of(name))})

    async def _set(self, request: Request) -> Response:
        wanted = await self._decoded(request, Settings)
        name = self._stream_of(request.query_params.get("stream"))
        self._check_open()
        before = self.session.options_of(name)
        options = self.session.set_options(name, **changes(wanted, before, self.session.config.overhead))
        self._open(name)
        who = request.client.host if request.client else "?"
        self._say(f"stream '{name}': {difference(before, options) or 'nothing changed'} (set by {who})")
        try:
            await self._ask(self.session.save)
        except EexError as error:
            raise refused(500, f"set, but not saved: {error}") from None
        return _json({"stream": name, **shown(options)})

    async def _label(self, request: Request) -> Response:
        label = await self._decoded(request, Label)
        try:
            correct = await self._ask(partial(self.session.label, label.stream, label.frame, label.label))
        except EexError as error:
            status = 404 if isinstance(error, UnknownFrame) else 500 if isinstance(error, Unrecorded) else 400
            raise refused(status, str(error)) from None
        return _json({"correct": correct})

    async def _healthz(self, request: Request) -> Response:
        return await self._health(well=lambda status: status in ("ok", "draining"))

    async def _readyz(self, request: Request) -> Response:
        return await self._health(well=lambda status: status == "ok")

    async def _health(self, well: Callable[[str], bool]) -> Response:
        try:
            async with asyncio.timeout(HANGS_S):
                await self._ask(lambda: self.session.streams)
                await self._ask(self.session.look)
            status = "closed" if self.session.closed else "draining" if self.draining else "ok"
        except TimeoutError:
            status = "hanging"
        return _json({"status": status}, 200 if well(status) else 503)

    async def _metrics(self, request: Request) -> Response:
        body, kind = await self._ask(lambda: exposition(self.session.summary(), self.watch, self.guard.refusals))
        return Response(body, media_type=kind)

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi.document())

    async def _docs(self, request: Request) -> Response:
        return html(openapi.page().encode())

    # ---- how

    async def _decoded(self, request: Request, kind: type[Said]) -> Said:
        with self.bodies.holding() as hold:
            body = await hold.read(request)
        if len(body) > MOST_JSON:
            raise too_large(MOST_JSON)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise refused(400, f"the body is not what was expected: {error}") from None

    def _failed(self, request: Request, error: Exception) -> Response:
        self._say(f"a fault of eex: {type(error).__name__}: {error}")
        return error_response(500, f"a fault of eex: {type(error).__name__}")


async def _parts(request: Request, body: bytes) -> list[tuple[str, bytes]]:
    """The images of a multipart body, with their names.

    Raises
    ------
    HTTPException
        If it is none, or holds none or too many.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    class Parser(MultiPartParser):
        spool_max_size = len(body) + 1  # nothing is written to the disk

    # without the character set that the client may name: to decode in some takes the square of a part's length
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = b'; boundary="%s"' % options[b"boundary"] if b"boundary" in options else b""
    headers = Headers(raw=[(b"content-type", b"multipart/form-data" + boundary)])
    try:
        form = await Parser(headers, stream(), max_files=MOST_PARTS, max_fields=MOST_PARTS).parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        why = getattr(error, "message", None) or str(error) or type(error).__name__
        raise refused(400, f"not a multipart body: {why}") from None
    parts = []
    for key, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise refused(400, f"part '{key[:60]}' is no file; each part must be an image")
        parts.append(((value.filename or key)[:200], await value.read()))
    await form.close()
    if not parts:
        raise refused(400, "the multipart body holds no image")
    return parts


def _one(given: Answer | Refusal) -> Response:
    if isinstance(given, Answer):
        return _json(given)
    headers = {"Retry-After": "1"} if given.reason in ("full", "stale") else None
    large = given.reason == "undecodable" and TOO_LARGE in given.detail
    body = {"error": f"{given.reason}: {given.detail}", "refusal": given}
    return _json(body, 413 if large else STATUS[given.reason], headers)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail or "refused", error.headers)


def _mistaken(request: Request, error: Exception) -> Response:
    return error_response(400, str(error))


def _finite(value: Any) -> Any:
    """Plain values in which what is no number is null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
