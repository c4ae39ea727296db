"""A played stream as the live page shows it: a stream per policy, the distortion schedule, and regret as it grows."""

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.core.base import ExitCost, Floats, Policy, Reward
from eex.policies.core.columns import Rows
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_reward
from eex.stream.frames.frames import Timetable
from eex.stream.live.config import StreamOptions
from eex.stream.live.learning import Learner
from eex.stream.run.play import GRID, Stage

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.config import StreamConfig

POINTS = 300
"""Points of a curve of regret, at most; then every other one is dropped."""
PIECES = 200
"""Pieces of the schedule that are shown, at most; of more, as many places are looked at."""
COPY_S = 1.0
"""Seconds between two copies of the policy."""


class Regret:
    """Regret against the best fixed threshold so far, estimated from frames of which every exit was run.

    Parameters
    ----------
    exit_cost, drop_below, kind
        As the policy is paid.
    grid
        Fixed thresholds to compare, (arms,).

    Attributes
    ----------
    frames, sampled
        That the policy has finished; those of them that the estimate rests on.
    points
        Frames, then the regret less a standard error, the regret, and the regret more a standard error.

    Examples
    --------
    >>> regret = Regret(grid=np.array([0.0, 1.0]))
    >>> regret.sample(0, np.array([[0.5, 0.9], [0.5, 0.9]]), overhead=0.1)
    >>> regret.finished(np.array([0, 1, 2, 3]), np.zeros(4))
    >>> regret.mark()
    >>> [round(value, 6) for value in regret.points[0]]  # always offloading would have earned 0.3 on each frame
    [4, 1.2, 1.2, 1.2]
    """

    def __init__(
        self, exit_cost: ExitCost = 0.0, drop_below: float = 0.0, kind: Reward = "adaee", grid: Floats = GRID
    ) -> None:
        self._paid, self.grid = (exit_cost, drop_below, kind), grid
        self.frames = self.sampled = 0
        self.points: list[list[float]] = []
        self._awaited: dict[int, Floats] = {}  # what the thresholds would earn, (arms,), by frame
        self._sums = np.zeros((2, len(grid)))  # of what they would have earned beyond the policy, and of its squares

    def sample(self, first: int, confidence: Floats, overhead: float) -> None:
        """Take in the confidences of every exit, (n, exits), of the frames from `first` on."""
        earned = np.column_stack([fixed_reward(confidence, overhead, t, *self._paid) for t in self.grid])
        self._awaited |= {first + k: row for k, row in enumerate(earned)}

    def finished(self, frame: Any, reward: Floats) -> None:
        """Take in what the policy earned on frames, both (n,)."""
        self.frames += len(frame)
        if not self._awaited:
            return
        for number, own in zip(frame.tolist(), np.nan_to_num(reward).tolist(), strict=True):
            if (earned := self._awaited.pop(number, None)) is not None:
                self._sums += earned - own, (earned - own) ** 2
                self.sampled += 1

    def mark(self) -> None:
        """Add a point to the curve."""
        if not self.sampled or (self.points and self.points[-1][0] == self.frames):
            return
        mean, square = self._sums / self.sampled
        best = int(mean.argmax())
        error = float(np.sqrt(max(0.0, square[best] - mean[best] ** 2) / self.sampled))
        values = (mean[best] - error, mean[best], mean[best] + error)
        self.points.append([self.frames, *(round(float(self.frames * value), 4) for value in values)])
        if len(self.points) > POINTS:
            del self.points[-2::-2]


class Playback:
    """What a page shows of a run, one policy after another; the methods of `Viewer` are for the thread that plays.

    Parameters
    ----------
    config
        The run's options.
    net
        Its network.
    schedule
        What distortion each frame has.
    total
        Frames of the run; 0 if nobody knows.
    overhead
        Price of offloading if it is constant; None if it is not.
    exit_cost
        Price of each further edge exit.
    estimate
        Whether to estimate regret, for which every exit of some frames is run.
    """

    def __init__(
        self,
        config: "StreamConfig",
        net: "Network",
        schedule: Timetable,
        total: int,
        overhead: float | None,
        exit_cost: ExitCost,
        estimate: bool,
    ) -> None:
        self.config, self.net, self.closed = config, net, False
        self._schedule, self._total, self._overhead, self._exit_cost = schedule, total, overhead, exit_cost
        self._estimate = estimate
        self._began = time.monotonic()
        self._watchers: list[Callable[[str, Rows], None]] = []
        self._stages: dict[str, Stage] = {}
        self._regrets: dict[str, Regret] = {}
        self._learners: dict[str, Learner] = {}
        self._link: dict[str, Any] = {}
        self._now = ""
        self._copied = self._sampled = 0.0

    # ---- for the thread that plays

    def begin(self, stage: Stage) -> None:
        """Another policy is played from now on."""
        self._regrets[stage.label] = Regret(self._exit_cost, self.config.drop_below, self.config.reward)
        self._stages[stage.label], self._now = stage, stage.label

    def finished(self, rows: Rows) -> None:
        """Frames have finished."""
        self._regrets[self._now].finished(rows.frame, rows.reward)
        for watcher in self._watchers:
            watcher(self._now, rows)

    def wants_sample(self) -> bool:
        """Whether every exit of a batch shall be run now: not while replies are awaited, but once a second anyway."""
        return self._estimate and (
            not self._stages[self._now].driver.awaits or time.monotonic() - self._sampled > COPY_S
        )

    def sample(self, first: int, confidence: Floats) -> None:
        """Confidences of every exit, (n, exits), of the frames from `first` on, which were just fed."""
        self._sampled = time.monotonic()
        overhead = self._stages[self._now].tally.mean_overhead if self._overhead is None else self._overhead
        self._regrets[self._now].sample(first, confidence, overhead)

    def refresh(self) -> None:
        """Copy what the policy has learned, now and then: it must not change while a page reads it."""
        stage, now = self._stages[self._now], time.monotonic()
        self._regrets[self._now].mark()
        if now - self._copied > COPY_S:
            engine = stage.driver.engine
            overhead = float(engine.streams.meter.expected(stage.offloader.link_ms))
            self._link = stage.offloader.report()
            policy = copy.deepcopy(stage.policy)
            self._learners[self._now] = Learner(policy, engine.ring.next, overhead, None, self._exit_cost)
            self._copied = time.monotonic()

    # ---- for the page

    def watch(self, watcher: Callable[[str, Rows], None]) -> None:
        """Call a function with the finished frames of each policy."""
        self._watchers.append(watcher)

    def look(self, visit: Callable[[str, Policy, int], None]) -> None:
        """Visit the policy that is played now."""
        if self._now:
            visit(self._now, self._stages[self._now].policy, 0)

    def options_of(self, name: str) -> StreamOptions:
        """The options of a stream: those of the run."""
        return StreamOptions()

    def learner(self, name: str) -> Learner:
        """A copy of what a policy had learned a moment ago.

        Raises
        ------
        EexError
            If nothing is known yet.
        """
        if name not in self._learners:
            raise EexError(f"there is no policy '{name}' yet")
        return copy.deepcopy(self._learners[name])

    def summary(self) -> dict[str, Any]:
        """What a page shows of all policies."""
        stages = list(self._stages.items())
        rows = [
            {
                "stream": label,
                "frames": stage.tally.frames,
                "answered": stage.tally.frames - stage.tally.dropped,
                "refused": {"dropped": stage.tally.dropped} if stage.tally.dropped else {},
                "accuracy": stage.tally.accuracy,
                "waiting": 0,
            }
            for label, stage in stages
        ]
        last = stages[-1][1] if stages else None
        return {
            "seconds": time.monotonic() - self._began,
            "frames": sum(row["frames"] for row in rows),
            "answered": sum(row["answered"] for row in rows),
            "refused": {},
            "accuracy": None if last is None else last.tally.accuracy,
            "link": self._link,
            "streams": rows,
            "played": self._played(),
        }

    def _played(self) -> dict[str, Any]:
        stages = self._stages
        frame = stages[self._now].driver.engine.ring.next if self._now else 0
        total = self._total or frame
        return {
            "now": self._now,
            "frame": frame,
            "total": total,
            "pieces": self._pieces(total),
            "regret": {label: list(regret.points) for label, regret in list(self._regrets.items())},
            "sampled": {label: regret.sampled for label, regret in list(self._regrets.items())},
        }

    def _pieces(self, total: int) -> list[list[Any]]:
        """First frame, end and text of each piece of the schedule."""
        if not total:
            return []
        pieces = self._schedule.pieces(total)
        if len(pieces) <= PIECES:
            return [[piece.start, piece.stop, piece.text] for piece in pieces]
        at = np.unique(np.linspace(0, total - 1, PIECES).astype(np.int64))
        found: list[list[Any]] = []
        for start, stop, name in zip(at.tolist(), [*at[1:].tolist(), total], self._schedule.names(at), strict=True):
            if found and found[-1][2] == name:
                found[-1][1] = stop
            else:
                found.append([start, stop, str(name)])
        return found
