"""A WebSocket of the service: images in, answers out as they are known."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect

from eex.stream.serving.limits import Bodies, Hold, Rates

UNDER_WAY = 32
"""Frames of a WebSocket that await their answers, at most; then it is not read."""


class FrameSocket:
    """Takes binary messages, each an image, and sends answers and refusals as JSON.

    Parameters
    ----------
    answer
        Answers the bytes of an image with a JSON value.
    bodies, rates
        Limits that all clients share.
    draining
        Whether the service stops.
    """

    def __init__(
        self,
        socket: WebSocket,
        answer: Callable[[bytes], Awaitable[Any]],
        bodies: Bodies,
        rates: Rates,
        draining: Callable[[], bool],
    ) -> None:
        self._socket, self._answer, self._bodies, self._rates, self._draining = socket, answer, bodies, rates, draining
        self._room = asyncio.Semaphore(UNDER_WAY)

    async def serve(self) -> None:
        """Answer until the client goes or the service stops; what is under way gets its answers."""
        await self._socket.accept()
        pending = set[asyncio.Task[None]]()
        address = self._socket.client.host if self._socket.client else ""
        try:
            while not self._draining():
                await self._room.acquire()
                message = await self._message()
                if message is None:
                    break
                data = message.get("bytes")
                if data is None:
                    await self._socket.close(1003, "the message is text; expected the bytes of an image")
                    break
                hold, problem = Hold(self._bodies), ""
                try:
                    hold.take(len(data))  # before anything is waited for, as it is held meanwhile
                except HTTPException as error:
                    problem = error.detail
                while wait_s := self._rates.wait_s(address):
                    await asyncio.sleep(wait_s)
                if problem:
                    self._let_go(hold)
                    await self._send({"error": problem})
                    continue
                task = asyncio.ensure_future(self._one(data, hold))
                pending.add(task)
                task.add_done_callback(pending.discard)
        finally:
            if pending:
                await asyncio.wait(pending)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.close(1001, "the service is stopping")

    async def _one(self, data: bytes, hold: Hold) -> None:
        try:
            await self._send(await self._answer(data))
        finally:
            self._let_go(hold)

    def _let_go(self, hold: Hold) -> None:
        self._bodies.held -= hold.bytes
        self._room.release()

    async def _send(self, given: Any) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has gone
            await self._socket.send_text(msgspec.json.encode(given).decode())

    async def _message(self) -> dict[str, Any] | None:
        """The next message; None if the socket was closed, or the service stops."""
        reading = asyncio.ensure_future(self._socket.receive())
        while not self._draining():
            done, _ = await asyncio.wait([reading], timeout=0.2)
            if done:
                message = dict(reading.result())
                return message if message["type"] == "websocket.receive" else None
        reading.cancel()
        return None
