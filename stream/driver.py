"""The driver of an engine: it owns the offloader and does the waiting, where its caller lets it wait."""

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import Network
from eex.policies.core.base import Ints, Policy
from eex.policies.core.columns import Rows
from eex.stream.engine import Engine, Request
from eex.stream.frames.batch import Batch
from eex.stream.streams import Streams
from eex.stream.wire.encoding import Encoded, Encoding, encode
from eex.stream.wire.offload import Offloader, Reply

Payload = NDArray[Any] | Encoded

_IDS = itertools.count(1)  # of all drivers: several may use one offloader, one after the other

TAKE_FROM = 1024
"""Frames to feed before finished ones are summed up and recorded together, which is faster than row by row."""
LEARN_FROM = 64
"""Frames that have left after which a driver that may not wait lets the policy learn in any case."""
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
    waits
        Whether `feed` may wait: for room in the engine, and for the worker's window while it is full. A stream that is
        played can wait for the cloud; frames that arrive on their own clock cannot. If it may not, requests that find
        the window full are kept and tried again at each `poll`, until their deadline. The policy then learns only when
        a learner is about to choose again, `LEARN_FROM` frames have left, or the driver is `idle` and frames of all
        learners have left: many streams' frames at once, which is much faster, and makes the same choices.
    deadlines_ms
        By number of the stream: milliseconds after which its offloaded frames are answered on the edge. Streams that
        are not in it have the offloader's own deadline, which none can exceed.
    left
        Called with the slots of frames as soon as their answer is known, before the policy learns from them.
    options
        Further arguments of `Engine`.
    """

    def __init__(
        self,
        net: Network,
        policy: Policy | Streams,
        offloader: Offloader | None = None,
        *,
        send: Encoding | None = None,
        clock: Callable[[], float] = time.perf_counter,
        waits: bool = True,
        deadlines_ms: dict[int, float] | None = None,
        left: Callable[[Ints], None] | None = None,
        **options: Any,
    ) -> None:
        as_input = send is not None and send.kind == "input"
        self.engine = Engine(net, policy, whole=offloader is None, as_input=as_input, clock=clock, **options)
        self.offloader = None if self.engine.whole else offloader
        self.send = send
        self.clock, self.waits, self.deadlines_ms = clock, waits, {} if deadlines_ms is None else deadlines_ms
        self._left = left
        self._awaited: dict[int, Ints] = {}  # slots by request id; -1 for a frame that was given up
        self._waiting: deque[tuple[float, Request, Payload]] = deque()  # for room in the window; since when
        self._owed: set[int] = set()  # learners of frames that have left and are not learned from
        self._owed_frames = 0
        self._due: list[tuple[float, int, int, float]] = []  # when, request, place in it, milliseconds; a heap
        self._aside: list[Rows] = []  # finished while `feed` waited for room

    def feed(self, batch: Batch) -> None:
        """Feed a micro-batch: run its edge stages, send the frames that do not leave, and process pending replies.

        If there is no room for the batch, wait for the oldest frames.

        Raises
        ------
        ValueError
            If the batch is larger than half of the engine's capacity, finished frames should be taken first, or there
            is no room and the driver may not wait.
        """
        engine, ring = self.engine, self.engine.ring
        if len(batch) > ring.capacity // 2:
            raise ValueError(f"a micro-batch may hold {ring.capacity // 2} frames at most, got {len(batch)}")
        if not ring.has_room(len(batch)) and (self._aside or ring.ready or not self.waits):
            raise ValueError(f"{ring.capacity} frames are under way: take the finished ones before feeding more")
        if not self.waits and not self._owed.isdisjoint(self._learners_of(batch)):
            self._learn()
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
            self._give_up()
            self._try_again(self.offloader)
        self._tell()
        if self.waits or self._owed_frames >= LEARN_FROM:
            self._learn()

    def idle(self) -> None:
        """There is nothing to feed: run the stages that frames wait for, however few they are (`gather`).

        The policy learns now if all learners have something to learn from: waiting would bring no more together, and
        the next frame would have to wait for it.
        """
        self._run(force=True)
        if self._owed and len(self._owed) == len(self.engine.streams.learners):
            self._learn()

    def drain(self) -> None:
        """Finish all frames under way; afterwards, each has its answer."""
        self._run(force=True)
        while self._awaited or self._waiting:
            self.poll(PATIENCE_MS)
        self._tell()
        self._learn()

    def take(self) -> Iterator[Rows]:
        """Yield the finished frames that are next in order, in a few pieces; each frame is returned once."""
        self._learn()
        while self._aside:
            yield self._aside.pop(0)
        yield from self.engine.take()

    @property
    def under_way(self) -> int:
        """Frames fed and not yet taken."""
        return self.engine.ring.next - self.engine.ring.head + sum(map(len, self._aside))

    @property
    def awaits(self) -> bool:
        """Whether frames are in the cloud, or wait for room to go there."""
        return bool(self._awaited or self._waiting)

    @property
    def due(self) -> float:
        """When the next frame is to be given up, in seconds on the driver's clock; inf if none is."""
        return self._due[0][0] if self._due else math.inf

    @property
    def worth_taking(self) -> bool:
        """Whether enough frames were fed since the last `take` to make another worthwhile."""
        return self.engine.ring.next - self.engine.ring.head >= TAKE_FROM

    def _run(self, force: bool = False) -> None:
        while self.engine.step(force):
            self._tell()
            if self.engine.requests:
                self._send_requests()

    def _learn(self) -> None:
        self._owed.clear()
        self._owed_frames = 0
        self.engine.learn()

    def _learners_of(self, batch: Batch) -> list[int]:
        """The learners of a batch's frames."""
        learners = self.engine.streams.learner
        found: list[int] = learners[:1].tolist() if batch.streams is None else learners[batch.streams].tolist()
        return found

    def _tell(self) -> None:
        """Report the frames whose answer is known."""
        if self.waits and self._left is None:
            return
        if len(slots := self.engine.left()):
            self._owed.update(self.engine.ring.rows.run[slots].tolist())
            self._owed_frames += len(slots)
            if self._left is not None:
                self._left(slots)

    def _send_requests(self) -> None:
        requests, self.engine.requests = self.engine.requests, []
        offloader = self.offloader
        assert offloader is not None
        for request in requests:
            most = max(1, offloader.max_bytes // (4 * request.features[0].size))  # frames per message, as float32
            for first in range(0, len(request.slots), most):
                part = slice(first, first + most)
                some = replace(request, features=request.features[part], slots=request.slots[part])
                payload = self._encoded(some)
                if self._waiting or not self._submit(offloader, some, payload):
                    self._waiting.append((self.clock(), some, payload))

    def _encoded(self, request: Request) -> Payload:
        return request.features if self.send is None else encode(request.features, self.send)

    def _submit(self, offloader: Offloader, request: Request, payload: Payload, since: float | None = None) -> bool:
        """Send a request, which may have waited for room since a time, or refuse it if it cannot be sent; whether
        either was done.

        If the window is full, wait if the driver may; else nothing is done.
        """
        slots, id = request.slots, next(_IDS)
        before = offloader.bytes_sent
        if 4 * request.features.size <= offloader.max_bytes:
            while not offloader.submit(id, request.stage, request.expert, payload):
                if not (offloader.outstanding and offloader.reachable):  # a full window empties by itself
                    break
                if not self.waits:
                    return False
                self._take_replies(offloader, 10)
                before = offloader.bytes_sent  # other requests may have been sent again
            else:
                self.engine.sent(slots, offloader.bytes_sent - before)
                self._awaited[id] = slots
                self._set_deadlines(id, slots, since)
                return True
        self.engine.refused(slots)
        return True

    def _try_again(self, offloader: Offloader) -> None:
        """Send the requests that waited for room, as far as there is any; refuse the frames that waited too long."""
        while self._waiting:
            since, request, payload = self._waiting.popleft()
            late = 1000 * (self.clock() - since) >= np.array(self._patience_ms(request.slots))
            late |= not offloader.reachable
            if late.any():
                self.engine.refused(request.slots[late])
                if late.all():
                    continue
                request = replace(request, features=request.features[~late], slots=request.slots[~late])
                payload = self._encoded(request)
            if not self._submit(offloader, request, payload, since):
                self._waiting.appendleft((since, request, payload))
                return

    def _patience_ms(self, slots: Ints) -> list[float]:
        """The deadline of each frame."""
        longest = float(getattr(self.offloader, "deadline_ms", math.inf))
        return [self.deadlines_ms.get(k, longest) for k in self.engine.ring.source[slots].tolist()]

    def _set_deadlines(self, id: int, slots: Ints, since: float | None) -> None:
        """Frames that waited have waited for a part of their deadline; the offloader counts its own from now on."""
        if since is None and not self.deadlines_ms:
            return
        begins = self.clock() if since is None else since
        for place, (stream, ms) in enumerate(
            zip(self.engine.ring.source[slots], self._patience_ms(slots), strict=True)
        ):
            if ms < math.inf and (since is not None or int(stream) in self.deadlines_ms):
                heapq.heappush(self._due, (begins + ms / 1000, id, place, ms))

    def _give_up(self) -> None:
        """Answer the frames on the edge whose stream's deadline has passed."""
        while self._due and self._due[0][0] <= self.clock():
            _, id, place, ms = heapq.heappop(self._due)
            slots = self._awaited.get(id)
            if slots is not None and slots[place] >= 0:
                late = slots[place : place + 1]
                self._awaited[id] = np.where(np.arange(len(slots)) == place, -1, slots)
                self.engine.reply(late, Reply(id, round_trip_ms=ms, failed=f"no reply within {ms:g} ms"))

    def _take_replies(self, offloader: Offloader, timeout_ms: float) -> None:
        for reply in offloader.poll(timeout_ms):
            slots = self._awaited.pop(reply.id, None)
            if slots is None:
                continue
            if (slots < 0).any():  # given up, by a deadline that its stream may have no more
                there = slots >= 0
                slots = slots[there]
                if not reply.failed:
                    reply = replace(reply, confidence=reply.confidence[there], prediction=reply.prediction[there])
            if len(slots):
                self.engine.reply(slots, reply)
