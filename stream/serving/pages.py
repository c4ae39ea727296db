"""The live page: its files, and the events that it is drawn from."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from eex.stream.serving.limits import SECURITY_HEADERS, error_response
from eex.stream.serving.watch import Watch

Said = TypeVar("Said")


class Pages:
    """The routes of the page.

    Parameters
    ----------
    watch
        What is shown.

    Attributes
    ----------
    routes
        For an application.
    ended
        Whether the pages that are open shall end.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch, self.ended = watch, False
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="eex-ask")
        self.routes = [
            Route("/", _static("index.html", "text/html"), methods=["GET"]),
            Route("/page.css", _static("page.css", "text/css"), methods=["GET"]),
            Route("/page.js", _static("page.js", "text/javascript"), methods=["GET"]),
            Route("/v1/live", self._live, methods=["GET"]),
        ]

    async def ask(self, question: Callable[[], Said]) -> Said:
        """The answer to a question that may take long, without holding up the others."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, question)

    def end(self) -> None:
        """End the pages that are open."""
        self.ended = True
        self.watch.end()

    def close(self) -> None:
        """Let the threads go."""
        self._asking.shutdown()

    async def _live(self, request: Request) -> Response:
        if self.watch.viewers >= self.watch.most_viewers:
            return error_response(503, "too many pages are open", {"Connection": "close"})
        name = request.query_params.get("stream", "")
        return StreamingResponse(
            self._events(name), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _events(self, name: str) -> AsyncIterator[bytes]:
        with self.watch.viewing():
            first = await self.ask(partial(self.watch.history, name))
            yield b"event: all\ndata: " + first + b"\n\n"
            seen = self.watch.ticks
            while not self.ended:
                seen = await self.watch.next_tick(seen)
                if self.ended:
                    break
                yield b"event: tick\ndata: " + await self.ask(partial(self.watch.latest, name)) + b"\n\n"


def page_alone(pages: Pages) -> Starlette:
    """An application that serves the page and nothing else."""
    app = Starlette(routes=pages.routes)
    app.router.redirect_slashes = False
    return app


def html(body: bytes, kind: str = "text/html") -> Response:
    """A file of a page, with the headers that keep a browser from loading anything from elsewhere."""
    response = Response(body, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})
    response.raw_headers += SECURITY_HEADERS
    return response


def _static(name: str, kind: str) -> Any:
    body = files("eex.stream.serving").joinpath("page", name).read_bytes()

    async def page(request: Request) -> Response:
        return html(body, kind)

    return page
