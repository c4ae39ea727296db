"""A wrapper for streams that change: when a detector sees drift, the policy inside starts anew."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eex.policies.algorithms.options import not_negative
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Thresholds
from eex.policies.core.errors import EexError
from eex.policies.core.parts import Composite

NEVER = 2**62


def _adwin(level: float, seed: int) -> Any:
    from river import drift

    make: Any = drift.ADWIN  # untyped
    return make(delta=level)


def _page_hinkley(level: float, seed: int) -> Any:
    from river import drift

    return drift.PageHinkley(threshold=level)


def _kswin(level: float, seed: int) -> Any:
    from river import drift

    return drift.KSWIN(alpha=level, seed=seed)


# of each detector: how it is made, its usual level, and the latest values that it is rebuilt from
DETECTORS: dict[str, tuple[Callable[[float, int], Any], float, int]] = {
    "adwin": (_adwin, 0.002, 2048),
    "page-hinkley": (_page_hinkley, 50.0, 2048),
    "kswin": (_kswin, 0.0001, 256),
}


class Drift(Composite):
    """Reset the policy inside, or make it forget, when a drift detector sees the stream change.

    Each run has a detector of river's. It is fed the first exit's confidence of every frame with feedback: that is seen
    whatever the policy does, whereas rewards, and the confidences of later exits, also change when the policy changes
    its mind. A drift that leaves the first exit's confidences as they were goes unseen.

    A policy that is reset does not know the frames in flight: it gets no feedback on them, and awaits
    none. One that forgets (`keep` above 0) scales down its sums, and learns from those frames as usual.

    A detector's state is that of a new one fed with the latest values, which are kept: up to 2,048 of them, 256 for
    KSWIN, the older half of which is dropped when they are full.

    Parameters
    ----------
    inner
        The policy.
    detector
        adwin, page-hinkley or kswin.
    level
        ADWIN's delta or KSWIN's alpha, which is the significance; Page and Hinkley's threshold. 0 = 0.002, 0.0001
        (a test with every frame) and 50.
    keep
        Share of what was learned that is kept, in [0, 1): 0 resets. Above 0 only for policies that name their `sums`.
    seed
        As for every `Policy`; KSWIN draws which values it compares.

    Attributes
    ----------
    drifts
        Drifts detected so far, (runs,).

    Raises
    ------
    ValueError
        If there is no such detector, or an option is outside its range.

    Examples
    --------
    >>> from eex.policies.algorithms.fixed import Fixed
    >>> Drift(Fixed(p_tar=0.7)).choose(Context()).exit_at
    array([[[0.7, 0.7]]])

    References
    ----------
    Bifet and Gavaldà (2007), Learning from time-changing data with adaptive windowing. Page (1954), Continuous
    inspection schemes. Raab, Heusinger and Schleif (2020), Reactive soft prototype computing for concept drift streams.
    """

    state = ("history", "since", "drifts")
    parts = ("inner",)

    def __init__(
        self, inner: Policy, detector: str = "adwin", level: float = 0.0, keep: float = 0.0, seed: int = 0
    ) -> None:
        self.inner, self.priced = inner, inner.priced
        super().__init__(inner.exits, inner.runs, seed)
        if detector not in DETECTORS:
            raise EexError(f"detector must be one of {', '.join(DETECTORS)}, got '{detector}'")
        not_negative("level", level)
        if not 0 <= keep < 1:
            raise EexError(f"keep must lie in [0, 1), got {keep:g}")
        sums = getattr(inner, "sums", ())
        self.sums = () if callable(sums) else tuple(sums)  # a policy that shares has a method of this name
        if keep and not self.sums:
            raise EexError(f"{type(inner).__name__} cannot forget in part; keep=0 resets it")
        self.make, usual, self.memory = DETECTORS[detector]
        self.level, self.keep = level or usual, keep
        if hasattr(inner, "grid"):
            self.grid = inner.grid
        self.since: Ints = np.zeros(self.runs, dtype=np.int64)  # the policy inside does not learn from earlier frames
        self.drifts: Ints = np.zeros(self.runs, dtype=np.int64)
        self._fresh = inner.state_dict()
        self._values: list[list[float]] = [[] for _ in range(self.runs)]  # since the last drift, the latest
        self._detectors: list[Any] = [None] * self.runs

    @property
    def history(self) -> Floats:
        """The values that each run's detector stands for, (runs, most); -1 after the last."""
        table = np.full((self.runs, self.memory), -1.0)
        for run, values in enumerate(self._values):
            table[run, : len(values)] = values
        return table

    @history.setter
    def history(self, table: Floats) -> None:
        self._values = [row[row >= 0].tolist() for row in table]
        self._detectors = [None] * self.runs

    def choose(self, context: Context) -> Thresholds:
        """As the policy inside chooses."""
        self.since = np.minimum(self.since, context.first)
        return self.inner.choose(context)

    def learn(self, outcomes: Outcomes) -> None:
        """Let the policy inside learn, feed the detectors, and reset the runs that drifted."""
        known = outcomes.frame >= self.since[outcomes.run]
        self.inner.learn(outcomes if known.all() else outcomes[known])
        seen = ~np.isnan(outcomes.reward) & ~np.isnan(outcomes.confidence[:, 0])
        drifted = np.zeros(self.runs, dtype=bool)
        for run, value in zip(outcomes.run[seen].tolist(), outcomes.confidence[seen, 0].tolist(), strict=True):
            drifted[run] |= self._feed(run, value)
        if drifted.any():
            self.drifts += drifted
            self._forget(drifted)

    def _feed(self, run: int, value: float) -> bool:
        """Feed a run's detector; whether it sees drift."""
        values = self._values[run]
        if len(values) == self.memory:
            del values[: self.memory // 2]
            self._detectors[run] = None
        detector = self._detectors[run]
        if detector is None:
            detector = self._detectors[run] = self.make(self.level, self.seed * 2**20 + int(self.keys[run]))
            for old in values:
                detector.update(old)
        values.append(value)
        detector.update(value)
        if not detector.drift_detected:
            return False
        values.clear()
        self._detectors[run] = None
        return True

    def _forget(self, runs: Any) -> None:
        state = self.inner.state_dict()
        if self.keep:
            for name in self.sums:
                state[name][runs] *= self.keep
        else:
            self.since[runs] = NEVER  # until the next frame is chosen for
            for name, fresh in self._fresh.items():
                state[name][runs] = 0  # what has grown since, too
                state[name][(runs, *map(slice, fresh.shape[1:]))] = fresh[runs]
        self.inner.load_state_dict(state)
