"""A session: frames in from any thread, answers out as they are known; one thread runs the engine."""

import contextlib
import gc
import logging
import math
import os
import select
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError, ImageError
from eex.stream.guard import keep_memory_flat
from eex.stream.live import learning
from eex.stream.live.answers import Answer, Reason, Refusal, Sink, iso
from eex.stream.live.arrivals import Arrivals, Waiting
from eex.stream.live.config import LiveConfig, StreamOptions
from eex.stream.live.images import Given, as_taken
from eex.stream.live.labels import Labels
from eex.stream.live.outbox import Outbox
from eex.stream.live.playing import Playing, Stream, policy_for
from eex.stream.live.promises import Promised, Refused
from eex.stream.sharing import check_shares

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.policies.core.columns import Rows
    from eex.stream.wire.offload import Offloader

PATIENCE_S = 60.0
"""How long a session waits for its embedded worker to load the model."""
IDLE_S = 0.05
"""Longest wait: by then the connection to the worker is looked after again."""
POLL_S = 0.001
"""Wait between two looks at an offloader whose `poll` does not wait."""
SUM_UP_S = 10.0
"""Seconds between two times that finished frames are summed up and recorded."""
SAVE_S = 60.0
"""Seconds between two times that what was learned is saved."""

Said = TypeVar("Said")

log = logging.getLogger("eex")


class Session:
    """Answers frames as they arrive, from any thread and of many streams, while a policy learns where each should stop.

    Each frame that is submitted gets one `Answer` or one `Refusal`, whatever the worker does, and gets it as soon as it
    is known: a frame waits neither for others to fill a batch nor for one that is in the cloud. Closing the session
    answers what waits and what is under way.

    Parameters
    ----------
    config
        The options; by default those of `LiveConfig`.
    sinks
        Called with every answer and refusal as it is known, one after another, by the session's thread and by threads
        that submit; they must not wait. One that raises is counted and named in the summary, and called again for the
        next frame.
    net, offloader
        A network and an offloader to use instead of those that the options name.
    options
        Fields of `LiveConfig`, in place of those of `config`.

    Raises
    ------
    EexError
        If an option, the model, the policy or the worker cannot be used.

    Examples
    --------
    ::

        with Session(worker="tcp://10.0.0.5:7777") as session:
            print(session.answer(image).label)
    """

    def __init__(
        self,
        config: LiveConfig | None = None,
        *,
        sinks: Iterable[Sink] = (),
        net: "Network | None" = None,
        offloader: "Offloader | None" = None,
        **options: Any,
    ) -> None:
        self.config = _with(config or LiveConfig(), options)
        self.config.check()
        keep_memory_flat()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._streams: dict[str, Stream] = {}
        self._left_streams: OrderedDict[str, Stream] = OrderedDict()
        self._arrivals = Arrivals(self.config.batch, self.config.batch_wait_ms / 1000)
        self._tasks: deque[Callable[[], None]] = deque()  # for the session's thread
        self._closing = self._asleep = self._done = False
        self._failure: BaseException | None = None
        self._outbox = Outbox(sinks)
        self._leaving: list[Stream] = []
        self._released = False
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        self._resources = contextlib.ExitStack()
        self._resources.callback(os.close, self._awake)
        self._resources.callback(os.close, self._wake)
        try:
            self._open(net, offloader)
        except BaseException:
            self._resources.close()
            raise
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="eex-session", daemon=True)
        self._thread.start()

    def _open(self, net: "Network | None", offloader: "Offloader | None") -> None:
        from eex.stream.frames.decoding import check_channels
        from eex.stream.network import load_network
        from eex.stream.planning.sending import choose_sending
        from eex.stream.wire.connection import connected
        from eex.stream.worker.embedded import EmbeddedWorker

        config = self.config
        connection = config.connection(config.usual_answerer if net is None else None)
        self.notes: list[str] = []
        worker, embedded = None, None
        if offloader is None and connection.processes:
            models = () if config.model is None else (config.model,)
            worker = self._resources.enter_context(
                EmbeddedWorker(
                    models,
                    config.network,
                    processes=connection.processes,
                    answer_with=connection.answer_with,
                    restart=True,
                    warn=self._note,
                )
            )
        self.net = net = load_network(config) if net is None else net
        check_channels(net.architecture.input_shape)
        policy = policy_for(config, net.edge_exits, 1)  # or fail before a worker is waited for
        if config.share:
            check_shares(policy, config.policy)
        encoding = None
        if offloader is None:
            if worker is not None:
                embedded = (worker.endpoint(PATIENCE_S), worker.keys)
            connect = partial(connected, connection, net.tail_fingerprint, config.seed, embedded)
            encoding = choose_sending(connection, net, None, connect).encoding
            offloader = self._resources.enter_context(connect())
        offloader.wake_on(self._awake)
        self._playing = Playing(config, net, offloader, encoding, self._streams, self._outbox, self._note)
        self._settings = self._playing.kept.settings
        gc.collect()
        gc.freeze()  # else a full collection walks torch and the network, and no frame is answered meanwhile
        self._resources.callback(gc.unfreeze)

    # ---- frames in

    def answer(
        self, image: Given, stream: str = "", *, at: float | None = None, name: str = "", timeout_s: float | None = None
    ) -> Answer:
        """Submit a frame and wait for its answer; arguments as for `submit`.

        Raises
        ------
        Refused
            If it gets none.
        TimeoutError
            If it takes longer than `timeout_s`.
        """
        given = self.submit(image, stream, at=at, name=name).result(timeout_s)
        if isinstance(given, Refusal):
            raise Refused(given)
        return given

    def submit(
        self,
        image: Given,
        stream: str = "",
        *,
        at: float | None = None,
        name: str = "",
        label: int = -1,
        wait: bool = True,
    ) -> "Future[Answer | Refusal]":
        """Take a frame in, and return at once with a future of its answer or refusal.

        Parameters
        ----------
        image
            (H, W, 3) of uint8, RGB, or the bytes of a JPEG or PNG file; other arrays as `as_taken` says. An image of
            another size than the network takes is scaled and cropped at the middle.
        stream
            Name of its stream, which is opened by its first frame.
        at
            When it was captured, in seconds since 1970; latency counts from then. By default, now.
        name
            Of the frame, for whoever reads the answer.
        label
            Number of its true class, for the summary's accuracy; -1 if unknown. No policy sees it.
        wait
            Whether to wait for room while the stream's queue is full; otherwise the frame is refused as full. A stream
            that keeps the newest frame only is never full.
        """
        now, wall = time.perf_counter(), time.time()
        known = at is not None and 0 <= at <= wall
        captured = float(at) if at is not None and known else wall
        future: Future[Answer | Refusal] = Promised()
        try:
            taken = self.net.architecture
            pixels, problem = as_taken(image, taken.input_shape, taken.preprocessing), ""
        except ImageError as error:
            pixels, problem = np.zeros((0, 0, 3), dtype=np.uint8), str(error)
        with self._lock:
            its = self._stream(stream)
            frame = Waiting(
                stream, its.queue.submitted, name, label, pixels, captured, now - (wall - captured), now, future
            )
            its.queue.submitted += 1
            refusal: tuple[Reason, str] | None = None
            if problem:
                refusal = "undecodable", problem
            elif its.queue.full and not self._closing:
                if wait and threading.current_thread() is not self._thread:
                    while its.queue.full and not self._closing and not its.queue.closing:
                        self._changed.wait()
                else:
                    refusal = "full", f"{its.queue.most} frames of the stream wait"
            if refusal is None and (self._closing or its.queue.closing):
                refusal = self._why_closed(its)
            stale = [] if refusal is not None else self._arrivals.put(its.queue, frame)
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._rouse()
        if refusal is not None:
            self._refuse([frame], *refusal)
        if stale:
            self._refuse(stale, "stale", "a newer frame of the stream replaced it")
        return future

    def answers(self) -> Iterator[Answer | Refusal]:
        """Yield answers and refusals as they come, until the session has been closed and all are out.

        Each goes to one reader. Those that nobody has taken yet are kept, the latest 8,192 of them; `summary` counts
        the others as `unread`. Sinks and futures miss none.
        """
        return self._outbox.answers()

    @property
    def unread(self) -> int:
        """How many answers and refusals wait for somebody to take them."""
        return len(self._outbox)

    def next_answer(self) -> Answer | Refusal | None:
        """The next of what `answers` yields; None if there is none now."""
        return self._outbox.next()

    @property
    def closed(self) -> bool:
        """Whether the session has been closed and all answers are out."""
        return self._done

    def skip(self, stream: str, name: str, detail: str) -> Refusal:
        """Account for a frame of a source that could not be decoded: it gets a refusal, which is returned."""
        now, wall = time.perf_counter(), time.time()
        with self._lock:
            its = self._stream(stream)
            nothing = np.zeros((0, 0, 3), dtype=np.uint8)
            frame = Waiting(stream, its.queue.submitted, name, -1, nothing, wall, now, now, Future())
            its.queue.submitted += 1
        self._refuse([frame], "undecodable", detail)
        refusal = frame.future.result()
        assert isinstance(refusal, Refusal)
        return refusal

    # ---- streams

    def open_stream(self, name: str, options: StreamOptions | None = None, **given: Any) -> None:
        """Open a stream with options of its own, or change those of one that is open.

        Parameters
        ----------
        given
            Fields of `StreamOptions`, in place of those of `options`.

        Raises
        ------
        EexError
            If an option is out of range, or the session is closed.
        """
        options = _with(options or StreamOptions(), given)
        options.check(name, self.config.deadline_ms, self.net.edge_exits)
        with self._lock:
            if self._closing:
                raise EexError(f"stream '{name}': the session is closed")
            its = self._stream(name)
            its.set(options, self.config)
            self._tasks.append(partial(self._playing.apply, its))
            self._changed.notify_all()
        self._rouse()

    def options_of(self, name: str) -> StreamOptions:
        """The options of a stream; of one that is not open, those that it will have when it opens."""
        with self._lock:
            its = self._streams.get(name) or self._left_streams.get(name)
            return self._settings.get(name, StreamOptions()) if its is None else its.options

    def set_options(self, name: str, **given: Any) -> StreamOptions:
        """Change some options of a stream from its next frame on, and keep them in the state file.

        Parameters
        ----------
        given
            Fields of `StreamOptions`; the others stay as they are.

        Returns
        -------
        options
            All of them.

        Raises
        ------
        EexError
            If an option is out of range, or the session is closed; nothing is changed then.
        """
        options: StreamOptions = _with(self.options_of(name), given)
        self.open_stream(name, options)
        self._playing.kept.put_settings(name, options)
        return options

    def close_stream(self, name: str) -> None:
        """Answer what waits of a stream, and close it; what it learned is there for it when it comes back."""
        with self._lock:
            if (its := self._streams.get(name)) is None:
                return
            its.queue.closing = True
            self._tasks.append(partial(self._leaving.append, its))
            self._changed.notify_all()
        self._rouse()

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the open streams."""
        with self._lock:
            return tuple(self._streams)

    # ---- the end

    def close(self, drain: bool = True) -> None:
        """Close the session: no frame is taken in any more, all that were are answered, and what was learned is saved.

        Frames in the cloud are waited for until their deadline. Without `drain`, frames that have not been run yet are
        refused instead.

        Raises
        ------
        EexError
            If the session had failed.
        """
        with self._lock:
            self._closing = True
            left = [] if drain else self._arrivals.clear()
            self._changed.notify_all()
        self._refuse(left, "closed", "the session was closed")
        self._rouse()
        if threading.current_thread() is self._thread:
            return  # a sink closes it: the thread ends after this frame's round
        self._thread.join()
        with self._lock:
            release, self._released = not self._released, True
        if release:
            self._resources.close()
        if self._failure is not None:
            raise EexError(f"the session failed: {self._failure}") from self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def summary(self) -> dict[str, Any]:
        """What happened so far, as plain JSON values: totals, and a row per stream, closed ones last."""
        from eex.stream.live.summary import summarise

        return self._ask(lambda: summarise(self))

    def watch(self, watcher: "Callable[[str, Rows], None]") -> None:
        """Call a function with the finished frames of each stream as they are summed up, in the session's thread."""
        self._ask(partial(self._playing.totals.watchers.append, watcher))

    def look(self, visit: Callable[[str, Policy, int], None] = lambda name, policy, run: None) -> None:
        """Sum up the frames that have finished now, besides at the usual times.

        Parameters
        ----------
        visit
            Called in the session's thread with the name of each stream, its policy and the run that it is there; it
            must change nothing.
        """

        def look() -> None:
            self._playing.sum_up()
            with self._lock:
                there = [(name, its.number) for name, its in self._streams.items() if its.number >= 0]
            streams = self._playing.engine_streams
            for name, number in there:
                visit(name, *streams.learners.place_of(int(streams.learner[number])))

        self._ask(look)

    def learner(self, name: str) -> learning.Learner:
        """A copy of what a stream's policy has learned, and what it would choose by.

        Raises
        ------
        EexError
            If there is no such stream.
        """
        with self._lock:
            its = self._streams.get(name) or self._left_streams.get(name)
        if its is None:
            raise EexError(f"there is no stream '{name}'")

        def copied() -> learning.Learner:
            self._playing.sum_up()  # learns what there is to learn
            policy, first = self._playing.learner_of(its)
            kept = self._playing.engine_streams.frozen.get(its.number)
            exit_cost = self._playing.driver.engine.exit_cost
            return learning.Learner(policy, first, self._playing.overhead_of(its), kept, exit_cost)

        return self._ask(copied)

    def take_labels(self) -> None:
        """Keep the numbers of the latest answers from now on, so that `label` can give their true labels."""

        def keep() -> None:
            if self._playing.labels is None:
                self._playing.labels = Labels(self.net.classes, self._playing.totals.labels)

        self._ask(keep)

    def label(self, stream: str, frame: int, label: str) -> bool:
        """Give the true label of an answered frame; it counts in the accuracy and stands in the records.

        No policy sees it. `take_labels` must have been called before the frame was answered.

        Parameters
        ----------
        stream, frame
            As in its answer.
        label
            Name of the class.

        Returns
        -------
        correct
            Whether it is what was answered.

        Raises
        ------
        EexError
            If the frame or the class is not known, or the records cannot be written.
        """

        def give() -> bool:
            if self._playing.labels is None:
                raise EexError("true labels are not taken: call take_labels first")
            self._playing.sum_up()
            given = self._playing.labels.give(stream, frame, label)
            self._playing.relabel(stream, given)
            return given.answer == given.label

        return self._ask(give)

    def save(self) -> None:
        """Save what was learned now, besides at the usual times.

        Raises
        ------
        EexError
            If it cannot be written.
        """
        if self.config.state is not None:
            kept = self._playing.kept
            learning.write(self.config.state, kept.made_for, self._ask(self._all_learned), kept.settings)

    # ---- the session's thread

    def _run(self) -> None:
        try:
            with self.net.inferring():
                self._loop()
                self._finish()
        except BaseException as error:  # whatever it is, every frame gets its refusal
            self._fail(error)
        with self._lock:
            self._done = True
            tasks = list(self._tasks)
            self._tasks.clear()
            self._changed.notify_all()
        for task in tasks:
            task()
        self._outbox.end()

    def _loop(self) -> None:
        summed_up = saved = time.perf_counter()
        while True:
            now = time.perf_counter()
            with self._lock:
                tasks = list(self._tasks)
                self._tasks.clear()
                room = self._playing.room
                due = self._arrivals.due()
                batch = self._arrivals.take(room) if due <= now or self._closing else []
                if batch:
                    self._changed.notify_all()  # there is room in a queue
                elif not tasks:
                    if self._closing and not self._arrivals.waiting:
                        return
                    self._asleep = True
            for task in tasks:
                task()
            if batch:
                self._playing.feed(batch)
            elif not tasks:
                until = now + IDLE_S if due == -math.inf else min(due, now + IDLE_S)  # -inf: there was no room
                self._wait(until)
            if self._leaving:
                self._let_go()
            if self._playing.sharing is not None:
                self._playing.sharing.tend()
            now = time.perf_counter()
            if self._playing.driver.worth_taking or now - summed_up > SUM_UP_S or not room:
                self._playing.sum_up()
                summed_up = now
            if self.config.state is not None and now - saved > SAVE_S:
                self._playing.kept.save_aside(self._all_learned)
                saved = now

    def _wait(self, until: float) -> None:
        """Wait for an arrival or a reply, until a time at most."""
        driver = self._playing.driver
        driver.idle()
        until = min(until, driver.due)
        wait_s = max(0.0, until - time.perf_counter())
        if driver.awaits:
            driver.poll(1000 * wait_s)
            wait_s = min(wait_s, POLL_S)
        if select.select([self._awake], [], [], wait_s)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._awake, 4096)
        self._asleep = False
        driver.poll()

    def _rouse(self) -> None:
        """Wake the session's thread."""
        with contextlib.suppress(BlockingIOError, OSError):  # the pipe is full, or the session is gone
            os.write(self._wake, b".")

    def _refuse(self, frames: Iterable[Waiting], reason: Reason, detail: str) -> None:
        """Give frames their refusals; from any thread."""
        given: list[tuple[Future[Answer | Refusal], Answer | Refusal]] = []
        with self._lock:
            for frame in frames:
                its = self._streams.get(frame.stream) or self._left_streams.get(frame.stream)
                if its is not None:
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

    def _stream(self, name: str) -> Stream:
        """A stream by name, opened if need be; with the lock held."""
        its = self._streams.get(name)
        if its is None:
            its = self._left_streams.pop(name, None)
            if its is None:
                its = Stream(name, self._settings.get(name, StreamOptions()), self.config)
            its.queue.closing = False
            self._streams[name] = its
            self._arrivals.streams = len(self._streams)
        return its

    def _why_closed(self, its: Stream) -> tuple[Reason, str]:
        if self._failure is not None:
            return "failed", f"the session failed: {self._failure}"
        return "closed", "the session is closed" if self._closing else "the stream is closed"

    def _let_go(self) -> None:
        """Let go of closing streams of which nothing is under way any more."""
        self._playing.sum_up()
        self._leaving = [its for its in self._leaving if not self._leave(its)]

    def _leave(self, its: Stream) -> bool:
        """Let a stream go, if nothing of it is under way; whether it has gone, or has been opened again."""
        with self._lock:
            if not its.queue.closing or self._streams.get(its.queue.name) is not its:
                return True
            if its.queue.frames or its.under_way or not self._playing.settled(its):
                return False
            self._playing.leave(its)  # before it is gone from `streams`: whoever sees that may rely on what was kept
            del self._streams[its.queue.name]
            self._arrivals.streams = len(self._streams)
            self._left_streams[its.queue.name] = its
            while len(self._left_streams) > learning.STREAMS_KEPT:
                self._left_streams.popitem(last=False)
        return True

    def _all_learned(self) -> dict[str, learning.Learned]:
        """What all streams have learned, the closed ones too."""
        with self._lock:
            there = list(self._streams.values())
        return self._playing.all_learned(there)

    def _finish(self) -> None:
        """Finish what is under way, and save what was learned."""
        self._playing.finish()
        if self.config.state is not None:
            self._playing.kept.join()
            self._playing.kept.save(self._all_learned())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure, self._closing = error, True
            left = self._arrivals.clear()
            under_way = self._playing.abandon()
            self._changed.notify_all()
        log.error("the session failed: %s", error, exc_info=error)
        self._refuse([*under_way, *left], "failed", f"the session failed: {error}")

    def _ask(self, question: Callable[[], Said]) -> Said:
        """The answer of the session's thread, between two batches."""
        if threading.current_thread() is self._thread:
            return question()
        reply: Future[Said] = Future()

        def task() -> None:
            try:
                reply.set_result(question())
            except BaseException as error:
                reply.set_exception(error)

        with self._lock:
            over = self._done
            if not over:
                self._tasks.append(task)
        if over:
            task()
        self._rouse()
        return reply.result()

    def _note(self, text: str) -> None:
        self.notes.append(text)
        log.warning("%s", text)


def _with(config: Any, options: dict[str, Any]) -> Any:
    """A configuration with some other fields.

    Raises
    ------
    EexError
        If it has no such field.
    """
    from dataclasses import fields, replace

    known = {f.name for f in fields(config)}
    for name in options:
        if name not in known:
            raise EexError(f"unknown option '{name}'; there are {', '.join(sorted(known))}")
    return replace(config, **options)
