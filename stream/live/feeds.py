"""A thread per source: it reads frames, hands over those that are wanted, and opens again what breaks off."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import EexError
from eex.stream.frames.video import VideoError
from eex.stream.live.answers import Arrival
from eex.stream.live.inputs import Broken, Input, Shot, open_input
from eex.stream.live.streams import SourceOptions, shown

RETRY_S = (0.5, 30.0)
"""Seconds before a source is opened again: the first time, and at most. They double from one failure to the next."""
SOON_S = 0.2
"""Seconds that a source may take to fail for good while it is started."""
CELLS = 16
"""The picture is compared in so many by so many parts."""
SAMPLES = 8
"""Pixels taken from each part, in each direction."""

State = Literal["opening", "open", "waiting", "ended", "failed"]


@dataclass
class Report:
    """What became of a source so far.

    Attributes
    ----------
    source
        Its specification, without a password.
    state
        "waiting" between two attempts to open it, "failed" when no more are made.
    problem
        Why it failed or broke off the last time; empty if it never did.
    frames
        Handed over.
    left_out, unchanged
        Frames left out to keep to `fps`, and because nothing changed.
    damaged
        Frames that could not be decoded.
    lost
        Times that an open source broke off.
    """

    source: str
    state: State = "opening"
    problem: str = ""
    frames: int = 0
    left_out: int = 0
    unchanged: int = 0
    damaged: int = 0
    lost: int = 0


class Feed:
    """Feeds one stream from its source, in a thread of its own.

    Parameters
    ----------
    stream
        Name of the stream.
    options
        Its options; `source` says where frames come from.
    take
        Called with each frame, in this feed's thread; it may wait, which holds the source back where that is possible.
    broken
        Called with the name of each frame that cannot be decoded and the reason.
    size
        (height, width) to which videos are scaled as they are decoded; single images may come larger.
    preprocessing
        How images are scaled.
    classes
        The model's class names, by which labelled images get their label.
    say
        Called with one line, which names the stream, whenever the source is lost, found again, or fails.

    Attributes
    ----------
    report
        What became of it so far.
    clocked
        Whether frames come on a clock of their own, so that waiting makes them late and does not hold them back.
    keep
        "newest" or "all"; "auto" is resolved.

    Raises
    ------
    EexError
        If the source's specification is wrong. What else goes wrong is in the report.
    """

    def __init__(
        self,
        stream: str,
        options: SourceOptions,
        take: Callable[[Arrival], None],
        *,
        broken: Callable[[str, str], object] = lambda name, reason: None,
        size: tuple[int, int] | None = None,
        preprocessing: Preprocessing = USUAL,
        classes: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        try:
            self._input: Input = open_input(options, size, classes, preprocessing)
        except EexError as error:
            raise EexError(f"stream '{stream}': {shown(str(error))}") from None
        self.stream, self.options = stream, options
        self.clocked = self._input.clocked
        self.keep = self._kept(options)
        self.report = Report(shown(options.source))
        self._limits = Limits(options.fps, options.changed)
        self._take, self._broken, self._say = take, broken, say
        self._speaking = threading.Lock()
        self._held: list[str] | None = None
        self._stop, self._opened, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"feed {stream}", daemon=True)

    def start(self, hold: bool = False) -> None:
        """Begin to read; with `hold`, what there is to say is kept until `speak`."""
        self._held = [] if hold else None
        self._thread.start()

    def speak(self) -> None:
        """Say what was held back, and hold back no more."""
        with self._speaking:
            held, self._held = self._held or [], None
            for line in held:
                self._say(line)

    def _tell(self, line: str) -> None:
        with self._speaking:
            if self._held is None:
                self._say(line)
            else:
                self._held.append(line)

    def change(self, options: SourceOptions) -> bool:
        """Take other options from now on; False if they differ in how the source is opened, which takes a new feed."""
        if any(getattr(options, key) != getattr(self.options, key) for key in ("source", *self._input.opened_with)):
            return False
        self.options, self._limits = options, Limits(options.fps, options.changed)
        self.keep = self._kept(options)
        return True

    def _kept(self, options: SourceOptions) -> Literal["newest", "all"]:
        if options.keep == "auto":
            return "newest" if self.clocked else "all"
        return options.keep

    def stop(self) -> None:
        """Take no more frames. A source that hangs is left to itself, in a thread that does not keep the process."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the source has ended, failed or was stopped; whether it did."""
        return self._ended.wait(seconds)

    def opened(self, seconds: float | None = None) -> bool:
        """Wait until the source has been opened or could not be; whether it was opened."""
        self._opened.wait(seconds)
        return self._opened.is_set() and not (self.report.problem or self.report.state in ("opening", "waiting"))

    def _run(self) -> None:
        try:
            self._keep_reading()
        except Exception as error:  # a bug of one source takes no other stream with it
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._opened.set()
            self._ended.set()

    def _keep_reading(self) -> None:
        wait = RETRY_S[0]
        while not self._stop.is_set():
            frames = self.report.frames
            try:
                over = self._read()
                if over or not self._input.endless or self._stop.is_set():
                    self.report.state = "ended"
                    return
                problem = "ended, which a live stream should not"
            except VideoError as error:
                if not self._input.endless:
                    self._fail(str(error))
                    return
                problem = str(error)
            except EexError as error:
                self._fail(str(error))
                return
            if self.report.state == "open":
                self.report.lost += 1
            if self.report.frames > frames:
                wait = RETRY_S[0]  # it worked
            self._say_once(shown(problem), f"; opened again in {wait:g} s, and until it comes back")
            self.report.state = "waiting"
            self._opened.set()
            self._stop.wait(wait)
            wait = min(2 * wait, RETRY_S[1])
        self.report.state = "ended"

    def _say_once(self, problem: str, more: str = "") -> None:
        if problem != self.report.problem or self.report.state == "open":
            self._tell(f"stream '{self.stream}': {self.report.source}: {problem}{more}")
        self.report.problem = problem

    def _fail(self, problem: str) -> None:
        self._say_once(shown(problem).removeprefix(f"{self.report.source}: "))
        self.report.state = "failed"

    def _read(self) -> bool:
        """Read until the source ends; whether no more is to come."""
        shots = self._input.read(self._stop)
        try:
            while not self._stop.is_set():
                try:
                    shot = next(shots)
                except StopIteration as end:
                    return bool(end.value)
                self._found()
                if isinstance(shot, Broken):
                    self.report.damaged += 1
                    self._broken(shot.name, shot.reason)
                elif shot is not None:
                    self._pass_on(shot, self._limits)
            return True
        finally:
            shots.close()

    def _found(self) -> None:
        if self.report.state != "open":
            if self.report.state == "waiting":
                self._tell(f"stream '{self.stream}': {self.report.source}: is back")
            self.report.state = "open"
            self._opened.set()

    def _pass_on(self, shot: Shot, limits: "Limits") -> None:
        arrived = time.perf_counter()
        clock = shot.seconds if shot.captured is None else shot.captured
        if math.isnan(clock):  # no clock: images are played at the rate
            if (early := limits.early(arrived)) > 0:
                self._stop.wait(early)
            arrived = time.perf_counter()
            limits.taken(arrived)
        elif limits.early(clock) > 0:
            self.report.left_out += 1
            return
        else:
            limits.taken(clock)
        if not limits.changed(shot.image):
            self.report.unchanged += 1
            return
        if self._stop.is_set():
            return
        captured = time.time() if shot.captured is None else shot.captured
        self._take(Arrival(self.stream, shot.image, captured, arrived, shot.name, shot.label))
        self.report.frames += 1


class Limits:
    """A maximum of frames per second, and frames only when the picture has changed.

    Parameters
    ----------
    fps
        Frames per second; 0 = no maximum.
    share
        Share of full scale by which some part of the picture must differ; 0 = every frame.
    """

    def __init__(self, fps: float, share: float) -> None:
        self._period = 1 / fps if fps else 0.0
        self._share = share
        self._due = -math.inf
        self._last: NDArray[np.float32] | None = None

    def early(self, now: float) -> float:
        """Seconds by which a frame of this time is too early; a tenth of the interval is allowed for uneven clocks."""
        if self._due - now > 2 * self._period:  # the clock was put back
            self._due = now
        return max(0.0, self._due - now - 0.1 * self._period)

    def taken(self, now: float) -> None:
        """A frame of this time is taken."""
        if self._period:
            self._due = (self._due if now - self._due < self._period else now) + self._period

    def changed(self, image: NDArray[np.uint8]) -> bool:
        """Whether the image differs from the last for which this was so."""
        if not self._share:
            return True
        small = parts(image)
        if self._last is not None and float(np.abs(small - self._last).max()) <= self._share * 255:
            return False
        self._last = small
        return True


def parts(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each part of an image and channel, (CELLS, CELLS, 3), from a few pixels of each; (H, W, 3) of any size.

    A difference in these is cheap, and small movements show in it, though noise does not.
    """
    side = CELLS * SAMPLES
    rows, columns = ((np.arange(side) + 0.5) * length / side for length in image.shape[:2])
    picked = image[rows.astype(int)[:, None], columns.astype(int)]
    means: NDArray[np.float32] = picked.reshape(CELLS, SAMPLES, CELLS, SAMPLES, 3).mean(axis=(1, 3), dtype=np.float32)
    return means


def start(feeds: Iterable[Feed], require_all: bool = False, patience_s: float = 30.0) -> None:
    """Start feeds. One that cannot be opened takes no other with it, unless `require_all`.

    Raises
    ------
    EexError
        With `require_all`, if a source cannot be opened within `patience_s`; else if none can, ever. All are stopped
        then.
    """
    feeds = list(feeds)
    for feed in feeds:
        feed.start(hold=True)  # what ends in an error is said once
    if require_all:
        until = time.monotonic() + patience_s
        for feed in feeds:
            if not feed.opened(max(0.0, until - time.monotonic())):
                _refuse(feeds, feed)
    elif feeds and all(feed.join(SOON_S) and feed.report.state == "failed" for feed in feeds):
        _refuse(feeds, feeds[0])
    for feed in feeds:
        feed.speak()


def _refuse(feeds: list[Feed], feed: Feed) -> None:
    for other in feeds:
        other.stop()
    reason = feed.report.problem or "was not opened in time"
    raise EexError(f"stream '{feed.stream}': {feed.report.source}: {reason}")
