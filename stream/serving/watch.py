"""What the live page and the metrics show: each stream's last minutes, second by second, in bounded memory."""

import asyncio
import base64
import contextlib
import io
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Policy
from eex.policies.core.columns import Rows
from eex.policies.core.errors import EexError
from eex.stream.live.answers import Answer, Refusal
from eex.stream.serving.learned import begun_anew, described, numbers
from eex.stream.worker.stats import LATENCY_BUCKETS_MS

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.live.config import StreamOptions
    from eex.stream.live.learning import Learner

TICK_S = 1.0
POINTS = 300
"""Seconds that curves over time go back."""
BINS = 20
"""Bins of the confidence."""
FADE = 0.99
"""What histograms of the confidence keep from one second with frames to the next."""
ALARMS, LAST = 50, 12
"""Drift alarms and answers that are kept, of each stream."""
SAMPLE = 10_000
"""Latencies of one second from which its percentiles are taken, at most."""
VIEWERS = 64
POLL_S = 0.1
LEARNED_EVERY = 2
"""Seconds between two looks at what is learned."""


class Watched(Protocol):
    """What can be watched: a `Session`, or a stream that is played (`Playback`)."""

    @property
    def net(self) -> "Network":
        """The network."""

    @property
    def config(self) -> Any:
        """Options, with `policy` and `worker`."""

    @property
    def closed(self) -> bool:
        """Whether it is over."""

    def watch(self, watcher: Callable[[str, Rows], None]) -> None:
        """Call a function with the finished frames of each stream."""

    def look(self, visit: Callable[[str, Policy, int], None]) -> None:
        """Call a function with the name of each stream, its policy and the run that it is there."""

    def summary(self) -> dict[str, Any]:
        """What happened so far."""

    def learner(self, name: str) -> "Learner":
        """A copy of what a stream's policy has learned; raises `EexError` if there is none."""

    def options_of(self, name: str) -> "StreamOptions":
        """The options of a stream."""


class Series:
    """What is known of one stream.

    Parameters
    ----------
    exits
        Exits of the network, the final one included.

    Attributes
    ----------
    points
        One list per second: time, frames, the threshold of each edge exit, the share of each exit, the shares
        offloaded and fallen back, latency (p50, p99), accuracy; null where there is none.
    alarms
        When the policy began anew because the stream had changed, in seconds since 1970.
    last
        The latest answers.
    one_by_one
        Whether each answer is noted as it is given, by `Watch.answered`; else `last` is made of the finished frames.
    """

    def __init__(self, exits: int) -> None:
        self.exits = exits
        self.points: deque[list[float | None]] = deque(maxlen=POINTS)
        self.alarms: deque[float] = deque(maxlen=ALARMS)
        self.last: deque[dict[str, Any]] = deque(maxlen=LAST)
        self.one_by_one = False
        self.confidence = np.zeros((exits, BINS))
        self.buckets = np.zeros(len(LATENCY_BUCKETS_MS) + 1, dtype=np.int64)
        self.by_exit = np.zeros(exits, dtype=np.int64)
        self.frames = self.offloaded = self.sent = self.fallbacks = self.dropped = 0
        self.kept = 0  # answered on the edge, and not meant for the cloud
        self.bytes = self.latency_ms = self.kept_ms = self.sent_ms = 0.0
        self.blocks = float("nan")  # as `begun_anew` gives it
        self._begin()

    def _begin(self) -> None:
        self._rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Take finished frames in."""
        self._rows.append(rows)
        answered = rows.latency_ms[~rows.dropped]
        self.frames += len(rows)
        self.by_exit += np.bincount(rows.exit[rows.exit >= 0], minlength=self.exits)
        self.offloaded += int((rows.offloaded & ~rows.dropped).sum())
        self.sent += int(rows.sent.sum())
        self.fallbacks += int(rows.fallback.sum())
        self.dropped += int(rows.dropped.sum())
        self.bytes += float(rows.bytes.sum())
        self.latency_ms += float(answered.sum())
        self.buckets += np.bincount(np.searchsorted(LATENCY_BUCKETS_MS, answered), minlength=len(self.buckets))
        stays = ~rows.offloaded & ~rows.dropped
        self.kept += int(stays.sum())
        self.kept_ms += float(rows.latency_ms[stays].sum())
        self.sent_ms += float(rows.latency_ms[rows.sent].sum())

    def tick(self, now: float) -> None:
        """End a second."""
        if not self._rows and not self.points:
            return
        rows, frames = self._rows, sum(map(len, self._rows))
        self._begin()
        edge = self.exits - 1
        if not frames:
            if self.points[-1][1] or now - (self.points[-1][0] or 0.0) > 5:  # a gap in the curves
                self.points.append([round(now, 2), 0, *[None] * (edge + self.exits + 5)])
            return
        confidence = np.concatenate([r.confidence for r in rows])
        self.confidence *= FADE
        for e in range(self.exits):
            seen = confidence[~np.isnan(confidence[:, e]), e]
            at = np.minimum((seen * BINS).astype(np.int64), BINS - 1)
            self.confidence[e] += np.bincount(np.maximum(at, 0), minlength=BINS)
        exit_at = np.concatenate([r.exit_at[:, :-1] for r in rows])
        finite = np.isfinite(exit_at)
        thresholds = np.where(finite, exit_at, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
        thresholds = np.where(finite.any(axis=0), thresholds, np.nan)
        exit = np.concatenate([r.exit for r in rows])
        shares = np.bincount(exit[exit >= 0], minlength=self.exits) / frames
        latency = np.concatenate([r.latency_ms[~r.dropped] for r in rows])[-SAMPLE:]
        p50, p99 = np.percentile(latency, (50, 99)) if len(latency) else (np.nan, np.nan)
        known = np.concatenate([(r.label >= 0) & ~r.dropped for r in rows])
        right = np.concatenate([r.answer == r.label for r in rows])
        accuracy = right[known].mean() if known.any() else np.nan
        offloaded = sum(int((r.offloaded & ~r.dropped).sum()) for r in rows) / frames
        fallen = sum(int(r.fallback.sum()) for r in rows) / frames
        values = np.array([*thresholds, *shares, offloaded, fallen, p50, p99, accuracy])
        self.points.append([round(now, 2), frames, *numbers(values, 4)])

    def saved(self) -> dict[str, float | None]:
        """What the frames that stayed on the edge saved against offloading them too, as those that were sent took:
        milliseconds of latency and bytes; null before any was sent."""
        if not self.sent:
            return {"ms": None, "bytes": None}
        kept_ms = self.kept_ms / self.kept if self.kept else 0.0
        return {
            "ms": round(self.kept * (self.sent_ms / self.sent - kept_ms), 1),
            "bytes": round(self.kept * self.bytes / self.sent),
        }


class Watch:
    """Watches a session's streams, in a thread of its own.

    Parameters
    ----------
    session
        What is watched: a session, or a stream that is played.
    thumbnails
        Whether the latest answers have small pictures.

    Attributes
    ----------
    series
        By name of the stream.
    ticks
        Seconds so far.
    viewers, most_viewers
        Pages that are open, and how many may be.
    """

    most_viewers = VIEWERS

    def __init__(self, session: Watched, *, thumbnails: bool = False) -> None:
        self._session, self._thumbnails = session, thumbnails
        self.exits = session.net.edge_exits + 1
        self.series: dict[str, Series] = {}
        self.ticks = self.viewers = 0
        self._summary: dict[str, Any] = {}
        self._lock, self._end = threading.Lock(), threading.Event()
        session.watch(self._add)
        self._thread = threading.Thread(target=self._run, name="eex-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._end.set()
        self._thread.join(5.0)
        self.ticks += 1  # pages see that it is over

    def forget(self, name: str) -> None:
        """Forget a stream that was closed."""
        with self._lock:
            self.series.pop(name, None)

    def answered(self, given: Answer | Refusal, image: NDArray[np.uint8] | None = None) -> None:
        """Note an answer among the latest of its stream.

        Parameters
        ----------
        image
            As the network takes it, (H, W, C).
        """
        series = self._of(given.stream)
        series.one_by_one = True
        shown: dict[str, Any] = {name: getattr(given, name) for name in ("frame", "name", "captured")}
        if isinstance(given, Answer):
            wanted = ("label", "confidence", "exit", "where", "fallback", "latency_ms")
            shown |= {name: getattr(given, name) for name in wanted}
        else:
            shown |= {"reason": given.reason, "detail": given.detail}
        if self._thumbnails and image is not None and self.viewers:
            shown["picture"] = _picture(image)
        series.last.append(shown)

    @contextlib.contextmanager
    def viewing(self) -> Iterator[None]:
        """Somebody looks at a page during the block."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def next_tick(self, seen: int) -> int:
        """Wait for a tick after number `seen`; its number. A reader that is slow misses some."""
        while self.ticks == seen:
            await asyncio.sleep(POLL_S)
        return self.ticks

    def history(self, name: str) -> bytes:
        """All that a page shows, with the curves of one stream so far, as JSON; "" is the first stream."""
        self._summary = self._session.summary()  # the last one is old where nobody has looked
        return self._shown(name, POINTS)

    def latest(self, name: str) -> bytes:
        """The same with the last point of the curves."""
        return self._shown(name, 1)

    def _shown(self, name: str, points: int) -> bytes:
        summary, session = self._summary, self._session
        rows = []
        with self._lock:
            for row in summary.get("streams", ()):
                series = self.series.get(row["stream"])
                if series is not None:
                    wanted = {k: row.get(k) for k in ("stream", "frames", "answered", "refused", "accuracy", "waiting")}
                    point = series.points[-1] if series.points else None
                    rows.append(wanted | {"now": point, "alarms": len(series.alarms)})
        if not name and rows:  # one that was asked for by name is shown or is not there
            name = rows[0]["stream"]
        shown: dict[str, Any] = {
            "time": time.time(),
            "policy": session.config.policy,
            "worker": session.config.worker,
            "edge_exits": self.exits - 1,
            "seconds": summary.get("seconds"),
            "frames": summary.get("frames"),
            "answered": summary.get("answered"),
            "refused": summary.get("refused"),
            "accuracy": summary.get("accuracy"),
            "link": summary.get("link"),
            "played": summary.get("played"),
            "streams": rows,
            "stream": self._stream(name, points),
        }
        return msgspec.json.encode(shown)

    def _stream(self, name: str, points: int) -> dict[str, Any] | None:
        series = self.series.get(name)
        if series is None:
            return None
        learned: dict[str, Any] | None = None
        if points > 1 or self.ticks % LEARNED_EVERY == 0:
            with contextlib.suppress(EexError):
                learned = described(self._session.learner(name))
        options = self._session.options_of(name)
        with self._lock:
            return {
                "name": name,
                "points": list(series.points)[-points:],
                "confidence": [numbers(row, 1) for row in series.confidence],
                "by_exit": series.by_exit.tolist(),
                "frames": series.frames,
                "offloaded": series.offloaded,
                "fallbacks": series.fallbacks,
                "bytes": series.bytes,
                "saved": series.saved(),
                "alarms": list(series.alarms),
                "last": list(series.last)[::-1],
                "learned": learned,
                "thresholds": options.thresholds,
                "deadline_ms": options.deadline_ms,
            }

    # ---- what is watched

    def _of(self, name: str) -> Series:
        with self._lock:
            return self.series.setdefault(name, Series(self.exits))

    def _add(self, name: str, rows: Rows) -> None:
        """Take finished frames in; called by the session's thread."""
        series = self._of(name)
        with self._lock:
            series.add(rows)
            if not series.one_by_one:
                series.last.extend(self._finished(rows[max(0, len(rows) - LAST) :]))

    def _finished(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """Some finished frames as answers."""
        classes = self._session.net.classes
        for k in range(len(rows)):
            exit, answer = int(rows.exit[k]), int(rows.answer[k])
            sure = float(rows.confidence[k, exit]) if exit >= 0 else math.nan
            yield {
                "frame": int(rows.frame[k]),
                "name": rows.name[k],
                "label": classes[answer] if answer >= 0 else "dropped",
                "confidence": sure if math.isfinite(sure) else None,
                "exit": exit + 1,
                "where": "cloud" if exit == self.exits - 1 else "edge",
                "fallback": bool(rows.fallback[k]),
                "latency_ms": round(float(rows.latency_ms[k]), 3),
            }

    def _run(self) -> None:
        while not self._end.wait(TICK_S):
            if self._session.closed:
                return
            self.tick()

    def tick(self) -> None:
        """End a second: sum up what has finished since the last one."""
        now = time.time()
        begun: dict[str, float] = {}

        def visit(name: str, policy: Policy, run: int) -> None:
            begun[name] = begun_anew(policy, run)

        self._session.look(visit)
        if self.viewers:
            self._summary = self._session.summary()
        with self._lock:
            for name, series in self.series.items():
                blocks = begun.get(name, math.nan)
                if blocks < series.blocks:
                    series.alarms.append(now)
                series.blocks = blocks
                series.tick(now)
        self.ticks += 1


def _picture(image: NDArray[np.uint8]) -> str:
    """A small picture as a data URL."""
    from PIL import Image

    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    picture = Image.fromarray(pixels)
    picture.thumbnail((64, 64))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
