"""A live run: sources feed a session, sinks get its answers, until all sources have ended or somebody stops it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eex.policies.core.errors import EexError
from eex.policies.wrappers.aim import sentences
from eex.stream.live.answers import Arrival, Sink
from eex.stream.live.config import LiveConfig
from eex.stream.live.feeds import Feed, start
from eex.stream.live.session import Session
from eex.stream.live.sinks import open_sink, unread
from eex.stream.live.streams import SourceOptions, parse_sources, read_streams, together
from eex.stream.run.agreement import warning

GONE_S = 1.0
"""How long a source that is stopped may take to give back what it holds, such as an address."""
LOOK_S = 0.2
"""Seconds between two looks at what the run waits for."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """Where the streams of a run are described.

    Attributes
    ----------
    specs
        NAME=SPEC, from the command line.
    file
        TOML, which may change during the run.
    defaults
        Options of the streams in `specs`.
    """

    specs: tuple[str, ...] = ()
    file: Path | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, SourceOptions]:
        """The streams by name.

        Raises
        ------
        EexError
            If they cannot be read, or there is none.
        """
        parts = [parse_sources(self.specs, self.defaults)]
        if self.file is not None:
            parts.append(read_streams(self.file))
        streams = together(*parts)
        if not streams:
            raise EexError("there is no source; name one with --source, or several in the file of --streams")
        return streams


class Live:
    """The feeds of a session; streams may be added, changed and removed while it runs.

    Parameters
    ----------
    session
        Takes the frames.
    say
        Called with one line when something happens that whoever runs it should know.
    """

    def __init__(self, session: Session, say: Say) -> None:
        self.session, self.say = session, say
        self.feeds: dict[str, Feed] = {}

    def make(self, name: str, options: SourceOptions) -> Feed:
        """A feed, not started, whose stream is open in the session.

        Raises
        ------
        EexError
            If an option is wrong.
        """

        def take(arrival: Arrival) -> None:
            label = -1 if arrival.label is None else arrival.label
            wait = not feed.clocked  # one that cannot be held back would only hand over ever older frames
            self.session.submit(arrival.image, name, at=arrival.captured, name=arrival.name, label=label, wait=wait)

        net = self.session.net
        feed = Feed(
            name,
            options,
            take,
            broken=lambda frame, reason: self.session.skip(name, frame, reason),
            size=(net.architecture.input_shape[1], net.architecture.input_shape[2]),
            preprocessing=net.architecture.preprocessing,
            classes=net.classes,
            say=self.say,
        )
        self._open(name, options, feed)
        return feed

    def change(self, wanted: dict[str, SourceOptions]) -> None:
        """Let the streams be those that are wanted, with their options; what cannot be done is said.

        A stream whose source failed for good is opened anew.
        """
        removed = {name: self.feeds.pop(name) for name in self.feeds.keys() - wanted.keys()}
        for name in removed:
            removed[name].stop()
        for name in removed:
            removed[name].join(GONE_S)
            self.session.close_stream(name)
            self.say(f"stream '{name}': removed")
        for name, options in wanted.items():
            feed = self.feeds.get(name)
            failed = feed is not None and feed.join(0) and bool(feed.report.problem)
            try:
                if feed is not None and options == feed.options and not failed:
                    continue
                if feed is not None and not failed and options.source == feed.options.source and feed.change(options):
                    self._open(name, options, feed)
                else:
                    new = self.make(name, options)  # or fail, and leave the one that is there
                    if feed is not None:
                        feed.stop()
                        feed.join(GONE_S)
                    self.feeds[name] = new
                    new.start()
                self.say(f"stream '{name}': {'added' if feed is None else 'opened anew' if failed else 'changed'}")
            except EexError as error:
                self.say(str(error))

    def stop(self) -> None:
        """Take no more frames."""
        for feed in self.feeds.values():
            feed.stop()

    @property
    def over(self) -> bool:
        """Whether no source will bring anything more."""
        return all(feed.join(0) for feed in self.feeds.values())

    def _open(self, name: str, options: SourceOptions, feed: Feed) -> None:
        keep = feed.keep
        if options.keep == "auto" and self.session.config.keep != "auto":
            keep = self.session.config.keep
        named = {key: getattr(options, key) for key in ("overhead", "deadline_ms", "queue")}
        given = {key: value for key, value in named.items() if value is not None}
        self.session.open_stream(name, self.session.settings_of(name), keep=keep, **given)


def live(
    config: LiveConfig,
    sources: Sources,
    answers: tuple[str, ...] = ("-",),
    *,
    require_all: bool = False,
    say: Say = lambda line: None,
    status_s: float = 0.0,
    sinks: tuple[Sink, ...] = (),
    stop: "Stop | None" = None,
    beside: Callable[[Session], contextlib.AbstractContextManager[object]] | None = None,
) -> dict[str, Any]:
    """Answer the frames of all sources until they end or the run is stopped; the session's summary.

    Parameters
    ----------
    answers
        Where answers go, as for `open_sink`.
    require_all
        Whether every source must open before the run begins.
    say
        Called with one line about what happened, and with a line of status every `status_s` seconds if that is not 0.
    sinks
        Functions that get the answers besides.
    stop
        Stops the run, or lets it read the file of streams again.
    beside
        What runs beside the session from its start to its end, such as its live page.

    Raises
    ------
    EexError
        If an option is wrong, or no source can be opened at all.
    """
    stop = stop or Stop()
    wanted = sources.read()
    config.check()
    with contextlib.ExitStack() as stack:
        opened = []
        for spec in answers:
            sink = open_sink(spec, say=say)
            stack.callback(sink.close)
            opened.append(sink)
        session = stack.enter_context(Session(config, sinks=[*opened, *sinks]))
        if beside is not None:
            stack.enter_context(beside(session))
        run = Live(session, say)
        stack.callback(run.stop)
        for name, options in wanted.items():
            run.feeds[name] = run.make(name, options)
        start(run.feeds.values(), require_all)
        shown = time.monotonic()
        while not (stop.wait(LOOK_S) or run.over or session.closed):
            if not sinks and unread([sink.row() for sink in opened]):
                break
            if stop.reread():
                try:
                    run.change(sources.read())
                except EexError as error:
                    say(f"{error}; the streams stay as they are")
            if status_s and time.monotonic() - shown >= status_s:
                shown = time.monotonic()
                say(status(session.summary()))
        run.stop()
        session.close()
        for sink in opened:
            sink.close()
        summary = session.summary()
        summary["sinks"] = [sink.row() for sink in opened] + summary["sinks"][len(opened) :]
        for row in summary["streams"]:
            if (feed := run.feeds.get(row["stream"])) is not None:
                row["source"] = vars(feed.report)
        if run.feeds and not summary["frames"] and all(f.report.state == "failed" for f in run.feeds.values()):
            feed = next(iter(run.feeds.values()))
            raise EexError(f"stream '{feed.stream}': {feed.report.source}: {feed.report.problem}")
        if doubt := warning(summary["agreement"]):
            say(doubt)
        for row in summary["streams"]:
            for line in sentences(row.get("aims", ())):
                say(f"stream '{row['stream']}': {line}")
        return summary


def status(summary: dict[str, Any]) -> str:
    """One line on what was done so far, for a log."""
    latency = summary["latency_ms"]
    stuck = sum(any(aim["problem"] for aim in row.get("aims", ())) for row in summary["streams"])
    refused = ", ".join(f"{n:,} {reason}" for reason, n in summary["refused"].items() if n)
    shares = " ".join(f"{name} {share:.0%}" for name, share in summary["exit_shares"].items())
    parts = [
        f"{summary['open_streams']} streams",
        f"{summary['answered']:,} of {summary['frames']:,} frames answered" + (f" ({refused})" if refused else ""),
        shares,
        f"{summary['fallbacks']:,} fallbacks" if summary["fallbacks"] else "",
        "" if latency["p50"] is None else f"latency p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms",
        "" if not stuck else f"{stuck} streams cannot keep a wish",
    ]
    return "; ".join(part for part in parts if part)


class Stop:
    """Asks a run to end, or to read its streams again; by signals, while the block runs."""

    def __init__(self) -> None:
        self._stop, self._reread = threading.Event(), threading.Event()

    def set(self) -> None:
        """Ask the run to end."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until the run is to end; whether it is."""
        return self._stop.wait(seconds)

    def ask_to_reread(self) -> None:
        """Ask the run to read its streams again."""
        self._reread.set()

    def reread(self) -> bool:
        """Whether the run was asked to since the last call."""
        asked = self._reread.is_set()
        self._reread.clear()
        return asked

    @contextlib.contextmanager
    def by_signals(self) -> Iterator["Stop"]:
        """End at SIGINT and SIGTERM, the second of which gets through at once; read the streams again at SIGHUP."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def end(number: int, frame: object) -> None:
            self.set()
            for number, handler in before.items():
                signal.signal(number, handler)

        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            before_hangup = signal.signal(hangup, lambda *_: self.ask_to_reread())
        for number in before:
            signal.signal(number, end)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if hangup is not None:
                signal.signal(hangup, before_hangup)
