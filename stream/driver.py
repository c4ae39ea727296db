"""The driver of an engine: it owns the offloader and does the waiting. The source sets the pace of the stream."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from eex.models.network import EarlyExitNet
from eex.policies.core.base import Ints, Policy
from eex.policies.core.columns import Rows
from eex.stream.engine import Engine, Request
from eex.stream.frames.batch import Batch
from eex.stream.wire.encoding import Encoding, encode
from eex.stream.wire.offload import Offloader

_IDS = itertools.count(1)  # of all drivers: several may use one offloader, one after the other

TAKE_FROM = 1024
"""Frames to feed before finished ones are summed up and recorded together, which is faster than row by row."""
PATIENCE_MS = 50.0
"""Longest single wait for replies."""


class Driver:
    """Feeds micro-batches to an engine, sends its requests, and waits for replies when there is nothing else to do.

    Parameters
    ----------
    net, policy
        As in `Engine`.
    offloader
        Sends the requests. If it is None, or the partition point is after the last stage, all stages run here.
    send
        How frames are sent; by default, as unencoded features.
    clock
        Returns the time in seconds.
    options
        Further arguments of `Engine`.
    """

    def __init__(
        self,
        net: EarlyExitNet,
        policy: Policy,
        offloader: Offloader | None = None,
        *,
        send: Encoding | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        as_pixels = send is not None and send.kind == "input"
        self.engine = Engine(net, policy, whole=offloader is None, as_pixels=as_pixels, clock=clock, **options)
        self.offloader = None if self.engine.whole else offloader
        self.send = send
        self._awaited: dict[int, Ints] = {}  # slots by request id
        self._aside: list[Rows] = []  # finished while `feed` waited for room

    def feed(self, batch: Batch) -> None:
        """Feed a micro-batch: run its edge stages, send the frames that do not leave, and process pending replies.

        If there is no room for the batch, wait for the oldest frames.

        Raises
        ------
        ValueError
            If the batch is larger than half of the engine's capacity, or finished frames should be taken first.
        """
        engine, ring = self.engine, self.engine.ring
        if len(batch) > ring.capacity // 2:
            raise ValueError(f"a micro-batch may hold {ring.capacity // 2} frames at most, got {len(batch)}")
        if not ring.has_room(len(batch)) and (self._aside or ring.ready):
            raise ValueError(f"{ring.capacity} frames are under way: take the finished ones before feeding more")
        while not ring.has_room(len(batch)):
            self._run(force=True)
            self.poll(PATIENCE_MS)
            self._aside += engine.take()
        if self.offloader is None:
            engine.feed(batch)
        else:
            engine.feed(batch, self.offloader.link_ms, self.offloader.reachable)
        self._run()
        self.poll()

    def poll(self, timeout_ms: float = 0.0) -> None:
        """Process the replies that have arrived, waiting up to `timeout_ms` for the first, and let the policy learn."""
        if self.offloader is not None:
            self._take_replies(self.offloader, timeout_ms)
        self.engine.learn()

    def drain(self) -> None:
        """Finish all frames under way; afterwards, each has its answer."""
        self._run(force=True)
        while self._awaited:
            self.poll(PATIENCE_MS)
        self.engine.learn()

    def take(self) -> Iterator[Rows]:
        """Yield the finished frames that are next in order, in a few pieces; each frame is returned once."""
        while self._aside:
            yield self._aside.pop(0)
        yield from self.engine.take()

    @property
    def under_way(self) -> int:
        """Frames fed and not yet taken."""
        return self.engine.ring.next - self.engine.ring.head + sum(map(len, self._aside))

    @property
    def worth_taking(self) -> bool:
        """Whether enough frames were fed since the last `take` to make another worthwhile."""
        return self.engine.ring.next - self.engine.ring.head >= TAKE_FROM

    def _run(self, force: bool = False) -> None:
        while self.engine.step(force):
            if self.engine.requests:
                self._send_requests()

    def _send_requests(self) -> None:
        requests, self.engine.requests = self.engine.requests, []
        offloader = self.offloader
        assert offloader is not None
        for request in requests:
            most = max(1, offloader.max_bytes // (4 * request.features[0].size))  # frames per message, as float32
            for first in range(0, len(request.slots), most):
                part = slice(first, first + most)
                self._submit(offloader, request, part)

    def _submit(self, offloader: Offloader, request: Request, part: slice) -> None:
        """Send some frames of a request, waiting while the window is full; refuse them if they cannot be sent."""
        features, slots, id = request.features[part], request.slots[part], next(_IDS)
        before = offloader.bytes_sent
        if 4 * features.size <= offloader.max_bytes:
            payload = features if self.send is None else encode(features, self.send)
            while not offloader.submit(id, request.stage, request.expert, payload):
                if not (offloader.outstanding and offloader.reachable):  # a full window empties by itself
                    break
                self._take_replies(offloader, 10)
            else:
                self.engine.sent(slots, offloader.bytes_sent - before)
                self._awaited[id] = slots
                return
        self.engine.refused(slots)

    def _take_replies(self, offloader: Offloader, timeout_ms: float) -> None:
        for reply in offloader.poll(timeout_ms):
            slots = self._awaited.pop(reply.id, None)
            if slots is not None:
                self.engine.reply(slots, reply)
