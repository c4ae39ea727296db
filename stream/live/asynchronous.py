"""The session for asyncio: the same verbs, to be awaited."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self

from eex.stream.live.answers import Answer, Refusal, Sink
from eex.stream.live.config import LiveConfig
from eex.stream.live.images import Given
from eex.stream.live.promises import Refused
from eex.stream.live.session import Session

LOOK_S = 0.5
"""Seconds after which `AsyncSession.answers` looks whether the session has ended."""


class AsyncSession:
    """A `Session` whose calls are awaited; nothing in it blocks the event loop.

    Parameters
    ----------
    config, sinks, options
        As for `Session`, which is opened when the block is entered.

    Examples
    --------
    ::

        async with AsyncSession(worker="tcp://10.0.0.5:7777") as session:
            answers = await asyncio.gather(*(session.answer(image) for image in images))
    """

    def __init__(self, config: LiveConfig | None = None, *, sinks: Iterable[Sink] = (), **options: Any) -> None:
        self._open = partial(Session, config, sinks=[*sinks, self._tell], **options)
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The session; it may be used from other threads besides.

        Raises
        ------
        RuntimeError
            Outside the block.
        """
        if self._session is None:
            raise RuntimeError("the session is not open: use 'async with AsyncSession(…) as session'")
        return self._session

    async def answer(self, image: Given, stream: str = "", **given: Any) -> Answer:
        """Submit a frame and wait for its answer; arguments as for `Session.submit`.

        Raises
        ------
        Refused
            If it gets none.
        """
        answer = await (await self.submit(image, stream, **given))
        if isinstance(answer, Refusal):
            raise Refused(answer)
        return answer

    async def submit(self, image: Given, stream: str = "", **given: Any) -> "asyncio.Future[Answer | Refusal]":
        """Take a frame in, waiting for room in its queue if need be; arguments as for `Session.submit`."""
        taken = await asyncio.to_thread(partial(self.session.submit, image, stream, **given))
        return asyncio.wrap_future(taken)

    async def answers(self) -> AsyncIterator[Answer | Refusal]:
        """Yield answers and refusals as they come, as `Session.answers` does."""
        session = self.session
        while True:
            self._news.clear()
            while session.unread:
                given = session.next_answer()
                if given is not None:
                    yield given
            if session.closed:
                return
            with contextlib.suppress(TimeoutError):  # a session that fails ends without a last answer
                await asyncio.wait_for(self._news.wait(), LOOK_S)

    async def close(self) -> None:
        """Close the session, as `Session.close` does."""
        try:
            await asyncio.to_thread(self.session.close)
        finally:
            self._news.set()

    async def __aenter__(self) -> Self:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._session = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _tell(self, given: Answer | Refusal) -> None:
        """Wake whoever waits in `answers`; called by the session's threads."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)
