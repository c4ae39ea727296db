"""What comes into a session, from any thread: frames, which wait by stream, and streams, which open and close."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames.folders import printable
from eex.stream.live.answers import Answer, Reason, Refusal, iso
from eex.stream.live.arrivals import Arrivals, Waiting
from eex.stream.live.config import LiveConfig, StreamOptions
from eex.stream.live.images import Given, as_taken
from eex.stream.live.learning import STREAMS_KEPT
from eex.stream.live.outbox import Outbox
from eex.stream.live.playing import Stream
from eex.stream.live.promises import Promised

if TYPE_CHECKING:
    from eex.models.architecture import Architecture

NO_PIXELS: NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)


def check_stream(name: str) -> None:
    """Raise `EexError` if the name of a stream is not text that can be stored."""
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        raise EexError(f"stream: expected a name, as text in UTF-8, got {name!r}") from None


class Intake:
    """Takes frames in and refuses those that cannot be; knows the streams, the open ones and the latest closed ones.

    Parameters
    ----------
    taken
        What the network takes.
    outbox
        Gets the refusals.
    lock
        Held while any of this changes.
    rouse
        Called when there is something new to run.

    Attributes
    ----------
    streams, closed
        By name. The former are open; of the latter the latest are kept.
    past, past_refused
        Frames, and those that were answered, of the streams that are kept no more; and those refused, by reason.
    settings
        Options of streams that were set before, by name.
    arrivals
        The frames that wait.
    changed
        Notified, with the lock, when there may be room in a queue.
    closing
        Whether no frame is taken in any more.
    failure
        Why the session failed, if it has.
    """

    def __init__(
        self,
        config: LiveConfig,
        taken: "Architecture",
        outbox: Outbox,
        lock: threading.RLock,
        rouse: Callable[[], None],
    ) -> None:
        self.config, self.lock = config, lock
        self._taken, self._outbox, self._rouse = taken, outbox, rouse
        self.changed = threading.Condition(lock)
        self.streams: dict[str, Stream] = {}
        self.closed: OrderedDict[str, Stream] = OrderedDict()
        self.past, self.past_refused = Counter[str](), Counter[str]()
        self.settings: dict[str, StreamOptions] = {}
        self.arrivals = Arrivals(config.batch, config.batch_wait_ms / 1000)
        self.closing = False
        self.failure: BaseException | None = None

    # ---- frames

    def submit(
        self, image: Given, stream: str, at: float | None, name: str, label: int, wait: bool
    ) -> "Future[Answer | Refusal]":
        """Take a frame in, or refuse it; arguments as for `Session.submit`."""
        check_stream(stream)
        if not isinstance(name, str):
            raise EexError(f"name: expected text, got {name!r}")
        if not isinstance(label, int | np.integer) or not -1 <= label < len(self._taken.classes):
            raise EexError(
                f"label: expected the number of a class, below {len(self._taken.classes)}, or -1, got {label!r}"
            )
        name, label = printable(name), int(label)
        now, wall = time.perf_counter(), time.time()
        captured = float(at) if at is not None and 0 <= at <= wall else wall
        future: Future[Answer | Refusal] = Promised()
        try:
            pixels, problem = as_taken(image, self._taken.input_shape, self._taken.preprocessing), ""
        except ImageError as error:
            pixels, problem = NO_PIXELS, str(error)
        with self.lock:
            its = self.stream(stream)
            queue, its.latest = its.queue, now
            frame = Waiting(
                stream, queue.submitted, name, label, pixels, captured, now - (wall - captured), now, future
            )
            queue.submitted += 1
            refusal: tuple[Reason, str] | None = None
            if problem:
                refusal = "undecodable", problem
            elif queue.full and not self.closing:
                if not wait:
                    refusal = "full", f"{queue.most} frames of the stream wait"
                while wait and queue.full and not self.closing and not queue.closing:
                    self.changed.wait()
            if refusal is None and (self.closing or queue.closing):
                refusal = self._why_closed()
            stale = [] if refusal is not None else self.arrivals.put(queue, frame)
        self._rouse()
        if refusal is not None:
            self.refuse([frame], *refusal)
        if stale:
            self.refuse(stale, "stale", "a newer frame of the stream replaced it")
        return future

    def skip(self, stream: str, name: str, detail: str) -> Refusal:
        """Account for a frame that could not be decoded before it came here; its refusal."""
        now, wall = time.perf_counter(), time.time()
        with self.lock:
            its = self.stream(stream)
            frame = Waiting(stream, its.queue.submitted, name, -1, NO_PIXELS, wall, now, now, Future())
            its.queue.submitted += 1
        self.refuse([frame], "undecodable", detail)
        refusal = frame.future.result()
        assert isinstance(refusal, Refusal)
        return refusal

    def refuse(self, frames: Iterable[Waiting], reason: Reason, detail: str) -> None:
        """Give frames their refusals."""
        given: list[tuple[Future[Answer | Refusal], Answer | Refusal]] = []
        with self.lock:
            for frame in frames:
                if (its := self.known(frame.stream)) is not None:
                    its.refused[reason] += 1
                refusal = Refusal(
                    stream=frame.stream,
                    frame=frame.frame,
                    name=frame.name,
                    reason=reason,
                    detail=detail,
                    captured=iso(frame.captured),
                )
                given.append((frame.future, refusal))
        self._outbox.give(given)

    def take(self, room: int, now: float) -> tuple[list[Waiting], float]:
        """The frames to run now, and when the next are due (`Arrivals.due`); with the lock held."""
        due = self.arrivals.due()
        batch = self.arrivals.take(room) if self.closing or due <= now else []
        if batch:
            self.changed.notify_all()
        return batch, due

    def close(self, failure: BaseException | None = None, drain: bool = True) -> list[Waiting]:
        """Take in no more frames; those that wait, where they are not to be run, are returned and wait no more."""
        with self.lock:
            self.closing, self.failure = True, failure or self.failure
            left = [] if drain else self.arrivals.clear()
            self.changed.notify_all()
        return left

    def _why_closed(self) -> tuple[Reason, str]:
        if self.failure is not None:
            return "failed", f"the session failed: {self.failure}"
        return "closed", "the session is closed" if self.closing else "the stream is closed"

    # ---- streams

    def stream(self, name: str) -> Stream:
        """A stream by name, opened if need be; with the lock held."""
        its = self.streams.get(name)
        if its is None:
            its = self.closed.pop(name, None) or Stream(name, self.settings.get(name, StreamOptions()), self.config)
            its.queue.closing = False
            self.streams[name] = its
            self.arrivals.streams = len(self.streams)
        return its

    def known(self, name: str) -> Stream | None:
        """A stream by name, open or closed."""
        return self.streams.get(name) or self.closed.get(name)

    def options_of(self, name: str) -> StreamOptions:
        """The options of a stream, or those that it would have if it opened."""
        with self.lock:
            its = self.known(name)
            return self.settings.get(name, StreamOptions()) if its is None else its.options

    def set_options(self, name: str, options: StreamOptions) -> Stream:
        """Change the options of a stream, which opens if need be.

        Raises
        ------
        EexError
            If the session is closed, or the name is not text.
        """
        check_stream(name)
        with self.lock:
            if self.closing:
                raise EexError(f"stream '{name}': the session is closed")
            its = self.stream(name)
            its.queue.closing = False
            its.set(options, self.config)
            self.changed.notify_all()
        return its

    def close_stream(self, name: str) -> Stream | None:
        """Take in no more frames of a stream; it is returned if it was open."""
        with self.lock:
            if (its := self.streams.get(name)) is not None:
                its.queue.closing = True
                self.changed.notify_all()
        return its

    def leave(self, its: Stream, gone: Callable[[Stream], bool]) -> bool:
        """Let a closing stream go once nothing of it waits and `gone` lets it; whether it has, or has opened again."""
        with self.lock:
            name = its.queue.name
            if not its.queue.closing or self.streams.get(name) is not its:
                return True
            if its.queue.frames or not gone(its):  # before it leaves `streams`: whoever sees that may rely on it
                return False
            del self.streams[name]
            self.arrivals.streams = len(self.streams)
            self.closed[name] = its
            while len(self.closed) > STREAMS_KEPT:
                _, forgotten = self.closed.popitem(last=False)
                self.past.update(frames=forgotten.queue.submitted, answered=forgotten.answered)
                self.past_refused.update(forgotten.refused)
        return True
