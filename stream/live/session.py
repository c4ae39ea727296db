"""A session: frames in from any thread, answers out as they are known; one thread runs the engine."""

import contextlib
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_with
from eex.stream.guard import keep_memory_flat
from eex.stream.live import learning
from eex.stream.live.answers import Answer, Refusal, Sink
from eex.stream.live.config import LiveConfig, StreamOptions
from eex.stream.live.images import Given
from eex.stream.live.intake import Intake
from eex.stream.live.labels import Labels
from eex.stream.live.outbox import Outbox
from eex.stream.live.playing import Playing, policy_for
from eex.stream.live.promises import Refused
from eex.stream.live.rounds import Rounds
from eex.stream.live.tasks import Tasks
from eex.stream.sharing import check_shares

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.policies.core.columns import Rows
    from eex.stream.wire.offload import Offloader

PATIENCE_S = 60.0
"""How long a session waits for its embedded worker to load the model."""
MOST_NOTES = 200
"""Latest notes that are kept."""

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
        that submit; they must not wait, nor ask the session for its `summary` or the like. One that raises is counted
        and named in the summary, and called again for the next frame.
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
        self.notes: list[str] = []
        self._outbox = Outbox(sinks)
        self._tasks = Tasks(threading.RLock())
        self._resources = contextlib.ExitStack()
        self._resources.callback(self._tasks.close)
        try:
            self._open(net, offloader)
        except BaseException:
            self._resources.close()
            raise
        self._started = time.perf_counter()
        self._rounds.start()

    def _open(self, net: "Network | None", offloader: "Offloader | None") -> None:
        from eex.stream.frames.decoding import check_channels
        from eex.stream.network import load_network
        from eex.stream.planning.sending import choose_sending
        from eex.stream.wire.connection import connected
        from eex.stream.worker.embedded import EmbeddedWorker

        config = self.config
        if config.state is not None:
            self._resources.enter_context(alone_with(config.state))
        connection = config.connection(config.usual_answerer if net is None else None)
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
        offloader.wake_on(self._tasks.fd)
        self._intake = Intake(config, net.architecture, self._outbox, self._tasks.lock, self._tasks.rouse)
        self._playing = Playing(config, net, offloader, encoding, self._intake.streams, self._outbox, self._note)
        self._intake.settings = settings = self._playing.kept.settings
        for name, options in list(settings.items()):  # of another network, or of longer deadlines
            try:
                options.check(name, config.deadline_ms, net.edge_exits)
            except EexError as error:
                del settings[name]
                self._note(f"{error}; what was set for it earlier is left out")
        self._rounds = Rounds(config, self._playing, self._intake, self._tasks, self._outbox)
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
            Whether to wait for room while the stream's queue is full; otherwise, and where a sink submits, the frame is
            refused as full. A stream that keeps the newest frame only is never full.

        Raises
        ------
        EexError
            If the stream or the name is not text, or the label is no class; an image that is none is refused instead.
        """
        waits = wait and not (self._tasks.here or self._outbox.in_sink)
        return self._intake.submit(image, stream, at, name, label, waits)

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
        return self._tasks.over

    def skip(self, stream: str, name: str, detail: str) -> Refusal:
        """Account for a frame of a source that could not be decoded: it gets a refusal, which is returned."""
        return self._intake.skip(stream, name, detail)

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
        its = self._intake.set_options(name, options)
        self._tasks.put(partial(self._playing.apply, its))

    def options_of(self, name: str) -> StreamOptions:
        """The options of a stream; of one that is not open, those that it will have when it opens."""
        return self._intake.options_of(name)

    def settings_of(self, name: str) -> StreamOptions:
        """The options that `set_options` gave a stream, perhaps before a restart; the usual ones if it gave none."""
        return self._intake.settings.get(name, StreamOptions())

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
        self._playing.kept.put_settings(name, _with(self.settings_of(name), given))
        return options

    def close_stream(self, name: str) -> None:
        """Answer what waits of a stream, and close it; what it learned is there for it when it comes back."""
        if (its := self._intake.close_stream(name)) is not None:
            self._rounds.let_go(its)

    def idle_s(self, name: str) -> float:
        """Seconds since a stream's latest frame came in; infinite if it is not open, or none has."""
        with self._intake.lock:
            its = self._intake.streams.get(name)
            return math.inf if its is None else time.perf_counter() - its.latest

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the open streams."""
        with self._intake.lock:
            return tuple(self._intake.streams)

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
        self._intake.refuse(self._intake.close(drain=drain), "closed", "the session was closed")
        self._tasks.rouse()
        if self._tasks.here or self._outbox.in_sink:
            return  # the thread, which waits for the sink, ends after this round
        self._rounds.thread.join()
        with self._intake.lock:
            resources = self._resources.pop_all()
        resources.close()
        if (why := self._intake.failure) is not None:
            raise EexError(f"the session failed: {why}") from why

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def summary(self) -> dict[str, Any]:
        """What happened so far, as plain JSON values: totals, and a row per stream, closed ones last."""
        from eex.stream.live.summary import summarise

        return self._tasks.ask(lambda: summarise(self))

    def watch(self, watcher: "Callable[[str, Rows], None]") -> None:
        """Call a function with the finished frames of each stream as they are summed up, in the session's thread."""
        self._tasks.ask(partial(self._playing.totals.watchers.append, watcher))

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
            with self._intake.lock:
                there = [(name, its.number) for name, its in self._intake.streams.items() if its.number >= 0]
            streams = self._playing.engine_streams
            for name, number in there:
                visit(name, *streams.learners.place_of(int(streams.learner[number])))

        self._tasks.ask(look)

    def learner(self, name: str) -> learning.Learner:
        """A copy of what a stream's policy has learned, and what it would choose by.

        Raises
        ------
        EexError
            If there is no such stream.
        """
        with self._intake.lock:
            its = self._intake.known(name)
        if its is None:
            raise EexError(f"there is no stream '{name}'")

        def copied() -> learning.Learner:
            self._playing.sum_up()  # learns what there is to learn
            policy, first = self._playing.learner_of(its)
            kept = self._playing.engine_streams.frozen.get(its.number)
            exit_cost = self._playing.driver.engine.exit_cost
            return learning.Learner(policy, first, self._playing.overhead_of(its), kept, exit_cost)

        return self._tasks.ask(copied)

    def take_labels(self) -> None:
        """Keep the numbers of the latest answers from now on, so that `label` can give their true labels."""

        def keep() -> None:
            if self._playing.labels is None:
                self._playing.labels = Labels(self.net.classes, self._playing.totals.labels)

        self._tasks.ask(keep)

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
        UnknownFrame, Unrecorded
            If the frame is not known, or the label cannot be recorded (`eex.stream.live.labels`).
        EexError
            If the model has no such class.
        """

        def give() -> bool:
            if self._playing.labels is None:
                raise EexError("true labels are not taken: call take_labels first")
            self._playing.sum_up()
            given = self._playing.labels.give(stream, frame, label)
            with self._intake.lock:
                its = self._intake.known(stream)
            self._playing.relabel(its, given)
            return given.answer == given.label

        return self._tasks.ask(give)

    def save(self) -> None:
        """Save what was learned now, besides at the usual times.

        Raises
        ------
        EexError
            If it cannot be written.
        """
        if self.config.state is not None:
            self._playing.kept.write(self._tasks.ask(self._rounds.snapshot))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        del self.notes[:-MOST_NOTES]
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
