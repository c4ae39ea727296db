"""Running totals of a stream in constant memory: what the summary, the progress line and the pictures are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eex.policies.core.base import ExitCost, Floats, Ints, Reward
from eex.policies.core.columns import Rows
from eex.policies.core.references import fixed_reward, oracle
from eex.policies.core.reward import last_seen, way_cost
from eex.stream.run.agreement import SUMS, compared

WINDOWS = 600
"""Points that curves over time keep at most; a longer stream has longer windows."""


@dataclass
class Windows:
    """Sums over equal windows of consecutive frames; when there are too many, neighbours are joined.

    Examples
    --------
    >>> windows = Windows(columns=1, length=2, most=2)
    >>> windows.add(np.array([0, 1, 2, 3, 4]), np.array([[1.0], [1.0], [1.0], [1.0], [1.0]]))
    >>> windows.length, windows.sums[: windows.used].ravel()
    (4, array([4., 1.]))
    """

    columns: int
    length: int = 32
    most: int = WINDOWS
    used: int = 0
    sums: Floats = field(init=False)
    frames: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.most, self.columns))
        self.frames = np.zeros(self.most)

    def add(self, frame: Ints, values: Floats) -> None:
        """Add the values (rows, columns) of frames (rows,); NaN counts as 0."""
        while frame[-1] // self.length >= self.most:
            self._halve()
        at = frame // self.length
        np.add.at(self.sums, at, np.nan_to_num(values))
        np.add.at(self.frames, at, 1)
        self.used = max(self.used, int(at[-1]) + 1)

    def _halve(self) -> None:
        pairs = np.arange(0, self.most, 2)
        for sums in (self.sums, self.frames):
            sums[: len(pairs)] = np.add.reduceat(sums, pairs)
            sums[len(pairs) :] = 0
        self.length *= 2
        self.used = (self.used + 1) // 2


class Tally:
    """Totals of the finished frames of one policy.

    Parameters
    ----------
    exits
        Exits of the network, the final one included.
    classes
        Classes of the network, to count right answers by class.
    experts
        Experts of the network, and one more for unknown distortions, to count frames by what they were taken for.
    curves
        Whether to keep sums over windows of frames, which `curves` gives; without them, `frame` need not count up.
    """

    WINDOW = ("reward", "correct", "labelled", "offloaded", "fallback", "threshold")
    # latency histogram: 5 % wide bins from 10 µs on, so that a percentile needs no row kept
    BOUNDS = 0.01 * 1.05 ** np.arange(400)

    def __init__(self, exits: int, classes: int = 0, experts: int = 0, *, curves: bool = True) -> None:
        self.exits, self._curves = exits, curves
        self.frames = self.labelled = self.correct = self.offloaded = self.sent = self.fallbacks = self.rewarded = 0
        self.dropped = 0
        self.reward = self.bytes = self.threshold = self.overhead = self.offloading = 0.0
        self.deepest = np.zeros(max(1, exits - 1), dtype=np.int64)  # frames by the last edge exit that they visited
        self.by_exit = np.zeros(exits, dtype=np.int64)
        self.by_class = np.zeros((classes, 2), dtype=np.int64)  # labelled frames, and those answered right
        self.by_expert = np.zeros(experts, dtype=np.int64)
        self.latency = np.zeros(len(self.BOUNDS) + 1, dtype=np.int64)
        self.split_ms = np.zeros(3)
        self.agreement = np.zeros(len(SUMS))  # of the edge with the cloud's replies
        self.windows = Windows(len(self.WINDOW) + exits, most=WINDOWS if curves else 0)

    def add(self, rows: Rows) -> None:
        """Take in finished frames."""
        if not len(rows):
            return
        known = (rows.label >= 0) & ~rows.dropped
        correct = known & (rows.answer == rows.label)
        taught = ~np.isnan(rows.reward)
        offloaded, answered = rows.offloaded & ~rows.dropped, rows.latency_ms[~rows.dropped]
        self.frames += len(rows)
        self.labelled += int(known.sum())
        self.correct += int(correct.sum())
        self.offloaded += int(offloaded.sum())
        self.dropped += int(rows.dropped.sum())
        self.sent += int(rows.sent.sum())
        self.fallbacks += int(rows.fallback.sum())
        self.rewarded += int(taught.sum())
        self.reward += float(rows.reward[taught].sum())
        self.bytes += float(rows.bytes.sum())
        self.overhead += float(rows.overhead.sum())
        self.offloading += float(rows.overhead[offloaded].sum())
        self.deepest += np.bincount(last_seen(rows.confidence[:, :-1])[1], minlength=len(self.deepest))
        if len(self.by_class):
            for column, counted in enumerate((known, correct)):
                self.by_class[:, column] += np.bincount(rows.label[counted], minlength=len(self.by_class))
        if len(self.by_expert):
            self.by_expert += np.bincount(rows.expert, minlength=len(self.by_expert))
        threshold = _typical_threshold(rows.exit_at)
        self.threshold = float(threshold[-1])
        self.by_exit += np.bincount(rows.exit[rows.exit >= 0], minlength=self.exits)  # a dropped frame left nowhere
        self.latency += np.bincount(np.searchsorted(self.BOUNDS, answered), minlength=len(self.latency))
        self.split_ms += (rows.edge_ms.sum(), rows.link_ms.sum(), rows.cloud_ms.sum())
        self.agreement += compared(rows)
        if self._curves:
            flags = np.column_stack([rows.reward, correct, known, offloaded, rows.fallback, threshold])
            left = (rows.exit[:, None] == np.arange(self.exits)).astype(float)
            self.windows.add(rows.frame, np.hstack([flags, left]))

    def relabel(self, before: int, label: int, answer: int) -> None:
        """Count a frame's true label that came later, in the place of the one before, -1 for none; classes from 0.

        Curves over time do not have it.
        """
        if answer < 0:  # dropped
            return
        for known, sign in ((before, -1), (label, 1)):
            if known >= 0:
                self.labelled += sign
                self.correct += sign * (known == answer)
                if len(self.by_class):
                    self.by_class[known] += sign, sign * (known == answer)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all totals, as arrays."""
        own = {name: np.array(value) for name, value in vars(self).items() if name not in ("windows", "_curves")}
        return own | {f"windows.{name}": np.array(value) for name, value in vars(self.windows).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from totals of as many exits; what those of an older eex do not count starts at 0.

        Raises
        ------
        ValueError
            If an array is missing, unknown or of another shape.
        """
        mine = self.state_dict()
        later: dict[str, Any] = {
            name: getattr(self, name) * 0 for name in ("by_class", "by_expert", "agreement", "deepest")
        }
        later |= {"dropped": np.array(0), "offloading": np.array(0.0)}
        state = later | dict(state)
        if {k: v.shape for k, v in mine.items()} != {k: np.shape(v) for k, v in state.items()}:
            raise ValueError("the totals are of another network")
        for name, value in state.items():
            if np.asarray(value).dtype.kind not in "iufb" or not np.isfinite(value).all():
                raise ValueError(f"the totals' {name} must be finite numbers")
            if name not in ("reward", "windows.sums") and np.any(np.asarray(value) < 0):
                raise ValueError(f"the totals' {name} must be at least 0, got {np.min(value)}")
        same = ("exits", "windows.columns", "windows.most")
        if any(mine[name] != state[name] for name in same) or not (
            state["windows.length"] >= 1 and state["windows.used"] <= mine["windows.most"]
        ):
            raise ValueError("the totals are of another network, or their windows are")
        for name, value in state.items():
            target = self.windows if name.startswith("windows.") else self
            own = name.removeprefix("windows.")
            kind = type(getattr(target, own))
            setattr(target, own, np.array(value) if kind is np.ndarray else kind(value.item()))

    @property
    def accuracy(self) -> float | None:
        """Share of labelled frames answered right, of those that were answered; None without any."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def mean_reward(self) -> float | None:
        """Mean reward of the frames that teach something."""
        return self.reward / self.rewarded if self.rewarded else None

    @property
    def mean_overhead(self) -> float:
        """Mean price of offloading, over all frames: paid by those that were sent, expected for the others."""
        return self.overhead / self.frames if self.frames else 0.0

    def mean_cost(self, exit_cost: ExitCost) -> float:
        """Mean price of a frame's way: of the further edge exits that it visited, and of offloading if it was."""
        way = float(way_cost(exit_cost, np.arange(len(self.deepest))) @ self.deepest)
        return (way + self.offloading) / self.frames if self.frames else 0.0

    @property
    def bytes_per_frame(self) -> float | None:
        """Bytes sent for each frame that was sent; None without any."""
        return self.bytes / self.sent if self.sent else None

    def latency_ms(self, quantile: float) -> float:
        """Latency that this share of the answered frames stays below, to 5 %; NaN without any."""
        if not self.latency.any():
            return float("nan")
        k = int(np.searchsorted(np.cumsum(self.latency), quantile * self.latency.sum()))
        return float(self.BOUNDS[min(k, len(self.BOUNDS) - 1)])

    def curves(self) -> dict[str, Floats]:
        """Per window: first frame, frames, and the sums of rewards, answers, exits and so on."""
        w = self.windows
        used = slice(0, w.used)
        names = [*self.WINDOW, *(f"exit_{e + 1}" for e in range(self.exits))]
        columns: dict[str, Floats] = {"start": np.arange(w.used, dtype=float) * w.length, "frames": w.frames[used]}
        return columns | {name: w.sums[used, k] for k, name in enumerate(names)}


def _typical_threshold(exit_at: Floats) -> Floats:
    """One threshold per frame, for curves: the last edge exit's that is finite and not 0, else 0; (rows,)."""
    edge = exit_at[:, :-1]
    real = np.isfinite(edge) & (edge > 0)
    last = edge.shape[1] - 1 - real[:, ::-1].argmax(axis=1)
    return np.where(real.any(axis=1), edge[np.arange(len(edge)), last], 0.0)


class Reference:
    """What only hindsight knows, from every exit of every frame: the best fixed threshold, the oracle, each exit alone.

    Parameters
    ----------
    exits
        Exits of the network, the final one included.
    overhead, exit_cost
        As the policy paid.
    grid
        Fixed thresholds to compare, (arms,).
    drop_below
        As the policy played: the references drop by the same rule, and what is dropped earns 0 for all of them, so
        that sums are over the same frames.
    kind
        What frames earn.
    """

    def __init__(
        self,
        exits: int,
        overhead: float,
        grid: Floats,
        exit_cost: ExitCost = 0.0,
        drop_below: float = 0.0,
        kind: Reward = "adaee",
    ) -> None:
        self.exits, self.overhead, self.grid, self.exit_cost = exits, overhead, grid, exit_cost
        self.drop_below, self.kind = drop_below, kind
        self.windows = Windows(len(grid) + 1)
        self.by_distortion: dict[str, Floats] = {}  # frames, labelled ones; per exit: right answers, sum of confidences

    def add(self, frame: Ints, names: list[str], labels: Ints, confidence: Floats, prediction: Ints) -> None:
        """Add the answers of every exit to some frames, each with the name of its distortion."""
        rest = self.exit_cost, self.drop_below, self.kind
        earned = [fixed_reward(confidence, self.overhead, t, *rest) for t in self.grid]
        self.windows.add(frame, np.column_stack([*earned, oracle(confidence, self.overhead, *rest)]))
        known = labels >= 0
        right = known[:, None] & (prediction == labels[:, None])
        for name in set(names):
            rows = np.array([n == name for n in names])
            sums = np.concatenate(
                [[rows.sum(), known[rows].sum()], right[rows].sum(axis=0), confidence[rows].sum(axis=0)]
            )
            self.by_distortion[name] = self.by_distortion.get(name, 0.0) + sums

    @property
    def best(self) -> float:
        """The fixed threshold that earns most over the whole stream."""
        return float(self.grid[self.windows.sums[:, :-1].sum(axis=0).argmax()])

    def curves(self) -> dict[str, Floats]:
        """Rewards by window, of the best fixed threshold and of the oracle."""
        sums = self.windows.sums[: self.windows.used]
        fixed = sums[:, :-1]
        best = fixed[:, fixed.sum(axis=0).argmax()]
        return {
            "start": np.arange(len(sums), dtype=float) * self.windows.length,
            "best_fixed": best,
            "oracle": sums[:, -1],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Accuracy (None without labels) and mean confidence of each exit alone, by distortion; exits from 1."""
        return [
            {
                "distortion": name,
                "exit": e + 1,
                "frames": int(sums[0]),
                "accuracy": float(sums[2 + e] / sums[1]) if sums[1] else None,
                "confidence": float(sums[2 + self.exits + e] / sums[0]),
            }
            for name, sums in self.by_distortion.items()
            for e in range(self.exits)
        ]
