"""A session and its HTTP service, until somebody stops them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from eex.policies.core.base import ExitCost
from eex.policies.core.errors import EexError
from eex.stream.live.config import LiveConfig
from eex.stream.live.run import Stop
from eex.stream.live.session import Session
from eex.stream.serving.config import ServeConfig

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.config import StreamConfig
    from eex.stream.frames.frames import Playable
    from eex.stream.run.play import Viewer
    from eex.stream.run.runner import View
    from eex.stream.serving.app import Service

LOOK_S = 0.2
"""Seconds between two looks at whether to stop."""


@contextlib.contextmanager
def extra() -> Iterator[None]:
    """Name what is to be installed if an import within the block fails for want of it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (
            "starlette",
            "uvicorn",
            "httptools",
            "websockets",
            "python_multipart",
        ):
            raise
        raise EexError(f"the HTTP service needs {error.name}: pip install 'eex[serve]'") from None


@contextlib.contextmanager
def served(
    session: Session, config: ServeConfig, say: Callable[[str], None] = lambda line: None
) -> "Iterator[tuple[str, Service]]":
    """Serve a session over HTTP during the `with` block; yields the URL and the service.

    When the block ends no frames are taken any more, and those that were taken get their answers.

    Raises
    ------
    EexError
        If an option is wrong, or the address cannot be listened on.
    """
    config.check()
    with extra():
        from eex.stream.serving.app import Service
        from eex.stream.serving.server import listening
    service = Service(session, config, say)
    try:
        with listening(service.app, config, service.bodies) as url:
            try:
                yield url, service
            finally:
                service.drain()
    finally:
        service.watch.end()
        service.close()


def beside(
    config: ServeConfig, say: Callable[[str], None] = lambda line: None
) -> Callable[[Session], contextlib.AbstractContextManager[str]]:
    """What serves a session beside whatever else uses it; yields the URL."""

    @contextlib.contextmanager
    def page(session: Session) -> Iterator[str]:
        with served(session, config, say) as (url, _):
            say(f"the live page is {url}/")
            yield url

    return page


def page_of_run(config: ServeConfig, say: Callable[[str], None] = lambda line: None) -> "View":
    """What serves the live page of a run that is played, for `eex.stream.run.runner.run`."""

    @contextlib.contextmanager
    def view(options: "StreamConfig", net: "Network", frames: "Playable", exit_cost: ExitCost) -> Iterator["Viewer"]:
        with extra():
            from eex.stream.serving.limits import Guard
            from eex.stream.serving.pages import Pages, page_alone
            from eex.stream.serving.playback import Playback
            from eex.stream.serving.server import listening
            from eex.stream.serving.watch import Watch
        price = options.price()
        overhead = price.of() if price.constant else None
        estimate = options.regret and not frames.live
        playback = Playback(options, net, frames.schedule, frames.total, overhead, exit_cost, estimate)
        pages = Pages(Watch(playback))
        try:
            with listening(Guard(page_alone(pages), config), config) as url:
                say(f"the live page is {url}/")
                try:
                    yield playback
                finally:
                    pages.end()
        finally:
            pages.end()
            pages.close()

    return view


def serve(
    live: LiveConfig,
    config: ServeConfig,
    *,
    say: Callable[[str], None] = lambda line: None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Serve a session of its own until it is stopped; the session's summary.

    Parameters
    ----------
    say
        Called with one line: where it listens, what was set.
    stop
        Stops it.

    Raises
    ------
    EexError
        If an option is wrong, or the session fails.
    """
    stop = stop or Stop()
    config.check()
    config.token()
    live.check()
    with Session(live) as session:
        with served(session, config, say) as (url, _):
            say(
                f"serving on {url} (policy {live.policy}, worker {live.worker}); the page is {url}/, the API {url}/docs"
            )
            while not stop.wait(LOOK_S) and not session.closed:
                pass
        session.close()
        return session.summary()
