"""The driver of an engine: owns the offloader and the waiting; a played stream's clock is its source."""

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
"""Frames that are fed before finished ones are summed up and recorded in one go: row by row that costs more."""
PATIENCE_MS = 50.0
"""How long one wait for replies lasts at most."""


class Driver:
    """Feeds micro-batches to an engine, sends its requests, and waits for replies where there is nothing else to do.

    Parameters
    ----------
    net, policy
        As `Engine` takes them.
    offloader
        Takes the requests. None runs all stages here, as does a partition point after the last stage.
    send
        How frames are sent; by default their features as they are.
    clock
        Gives seconds.
    options
        As `Engine` takes them.
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
        """Take in a micro-batch, run what can run, send what does not leave, and take in the replies that have come.

        Where there is no room for the batch, it waits for the oldest frames.

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
        """Take in replies that have come, waiting up to `timeout_ms` for the first, and let the policy learn."""
        if self.offloader is not None:
            self._take_replies(self.offloader, timeout_ms)
        self.engine.learn()

    def drain(self) -> None:
        """Run and await everything that is under way; afterwards each frame has its answer."""
        self._run(force=True)
        while self._awaited:
            self.poll(PATIENCE_MS)
        self.engine.learn()

    def take(self) -> Iterator[Rows]:
        """Finished frames that are next in order, in a few pieces; each frame is given once."""
        while self._aside:
            yield self._aside.pop(0)
        yield from self.engine.take()

    @property
    def under_way(self) -> int:
        """Frames fed and not yet taken."""
        return self.engine.ring.next - self.engine.ring.head + sum(map(len, self._aside))

    @property
    def worth_taking(self) -> bool:
        """Whether so many frames were fed since the last were taken that taking them in one go pays."""
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
        """Send some frames of a request, waiting while the window is full; they are refused if that cannot be."""
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
