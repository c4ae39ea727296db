"""The streams of an engine: who learns from each, and what offloading its frames costs."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Context, Floats, Ints, Policy, State, Thresholds
from eex.policies.core.learners import Learners
from eex.policies.core.price import Meter, Price

FEWEST = 8
"""Streams that there is room for at first; the tables double when they are full."""


class Streams:
    """Streams that come and go; each has a number, which another one may get after it has left.

    Parameters
    ----------
    make
        Makes the policy for a number of runs.
    price
        Of offloading a frame, for streams that name no price of their own; a budget in it is shared by all of them.
    bytes
        Of an offloaded frame, as long as none was sent.
    shared
        Whether all streams have one learner; otherwise each has its own.

    Attributes
    ----------
    learners
        The learners.
    meter
        Of the streams without a price of their own.
    name, learner
        Name of each stream and the row of its learner, by the stream's number.
    frozen
        By number: the thresholds that a stream keeps, `exit_at` (exits,) and `skip_below` (edge exits,), whatever its
        learner chooses; None until its next frame, whose thresholds it keeps. Such frames teach nothing.
    """

    def __init__(self, make: Callable[[int], Policy], price: Price, bytes: float = 0.0, shared: bool = False) -> None:
        self.learners = Learners(make)
        self.shared, self._bytes = shared, bytes
        self._tables(Meter(price, bytes))
        if shared:
            self.learners.add(0)

    @classmethod
    def of(cls, policy: Policy, price: Price, bytes: float = 0.0, first: int = 0) -> "Streams":
        """One stream without a name, number 0, that a policy of one run plays from its frame number `first` on."""
        streams = cls.__new__(cls)
        streams.learners = Learners.of(policy, first)
        streams.shared, streams._bytes = True, bytes
        streams._tables(Meter(price, bytes))
        streams.add("")
        return streams

    def _tables(self, meter: Meter) -> None:
        self.meter = meter
        self._meters: list[Meter] = [meter]  # then those of the streams that have their own, by number + 1
        self._own = False  # whether any stream has
        self.name: NDArray[np.object_] = np.full(0, "", dtype=object)
        self.learner: Ints = np.zeros(0, dtype=np.int64)
        self._meter_of: Ints = np.zeros(0, dtype=np.int64)  # in `_meters`
        self._free: list[int] = []
        self.frozen: dict[int, tuple[Floats, Floats] | None] = {}

    # ---- who is there

    def add(self, name: str, price: Price | None = None, state: State | None = None, first: int = 0) -> int:
        """Add a stream and return its number; its learner goes on from a state before frame number `first`, if given.

        What its learner draws is keyed by the name, so its choices do not depend on what other streams there are.

        Raises
        ------
        ValueError
            If the state is that of another policy; nothing is added then.
        """
        learner = 0 if self.shared else self.learners.add(zlib.crc32(name.encode()), state, first)
        if not self._free:
            self._grow()
        number = self._free.pop()
        self.name[number], self.learner[number] = name, learner
        self.set_price(number, price)
        return number

    def remove(self, number: int) -> None:
        """Remove a stream that has no frames under way."""
        if not self.shared:
            self.learners.remove(int(self.learner[number]))
        self.name[number] = ""
        self.frozen.pop(number, None)
        self.set_price(number, None)
        self._free.append(number)

    def set_price(self, number: int, price: Price | None) -> None:
        """Give a stream a price of its own, with a budget of its own if it has one; None gives it that of all."""
        self._meter_of[number] = 0
        if price is not None:
            self._meters[number + 1] = Meter(price, self._bytes)
            self._meter_of[number] = number + 1
        self._own = bool(self._meter_of.any())

    def price_of(self, number: int) -> Price | None:
        """The price that a stream has of its own; None if it has that of all."""
        return self.meter_of(number).price if self._meter_of[number] else None

    def meter_of(self, number: int) -> Meter:
        """The meter of a stream."""
        return self._meters[int(self._meter_of[number])]

    # ---- what is played

    def choose(self, stream: Ints, now_s: float, *, link_ms: float, **seen: Any) -> dict[str, Any]:
        """What is played for frames of some streams that come in at a time, as columns of their rows.

        Parameters
        ----------
        stream
            Of each frame, (frames,).
        link_ms, seen
            Fields of `Context`; the price is the streams' own.
        """
        scarcity, overhead = self.arrive(stream, now_s, link_ms)
        run = self.learner[stream]
        context = Context(frames=len(stream), overhead=overhead, link_ms=link_ms, **seen)
        frame, chosen = self.learners.choose(run, context)
        if self.frozen:
            chosen = self.played(stream, chosen)
        columns = {
            "run": run,
            "frame": frame,
            "stream": self.name[stream],
            "source": stream,
            "exit_at": chosen.exit_at,
            "skip_below": chosen.skip_below,
            "arm": chosen.arm,
            "probability": chosen.probability,
            "audited": chosen.audited,
            "queue": context.queue,
            "link_estimate_ms": link_ms,
            "reachable": context.reachable,
            "overhead": overhead,
            "scarcity": scarcity,
        }
        if self.frozen:
            columns["frozen"] = np.isin(stream, list(self.frozen))
        return columns

    def played(self, stream: Ints, chosen: Thresholds) -> Thresholds:
        """What is played of what the learners chose for some frames: frozen streams keep their thresholds.

        Parameters
        ----------
        stream
            Of each frame, (frames,).
        chosen
            Without the axis of runs: (frames, …).
        """
        exit_at, skip_below = chosen.exit_at.copy(), chosen.skip_below.copy()
        probability, audited = chosen.probability.copy(), chosen.audited.copy()
        for number, kept in self.frozen.items():
            of = np.flatnonzero(stream == number)
            if not len(of):
                continue
            if kept is None:
                kept = self.frozen[number] = (exit_at[of[-1]].copy(), skip_below[of[-1]].copy())
            exit_at[of], skip_below[of] = kept
            probability[of], audited[of] = np.nan, False
        return Thresholds(exit_at, skip_below, chosen.arm, probability, audited)

    # ---- what frames cost

    def arrive(self, stream: Ints, now_s: float, link_ms: float) -> tuple[Floats | float, Floats | float]:
        """Frames of some streams come in at a time; the budget's part of the price of each, and its expected price.

        One number for all frames where their streams share a price, else (frames,).
        """
        if not self._own:
            self.meter.arrive(now_s, len(stream))
            return self.meter.scarcity, self.meter.expected(link_ms)
        scarcity, overhead = np.empty(len(stream)), np.empty(len(stream))
        for meter, of in self._metered(stream):
            meter.arrive(now_s, len(stream[of]))
            scarcity[of], overhead[of] = meter.scarcity, meter.expected(link_ms)
        return scarcity, overhead

    def admits(self, stream: Ints) -> Bools:
        """Which frames of some streams may be offloaded, (frames,): as many as the budgets allow, the first ones."""
        admitted = np.ones(len(stream), dtype=bool)
        for meter, of in self._metered(stream):
            its = np.arange(len(stream))[of]
            admitted[its[meter.admits(len(its)) :]] = False
        return admitted

    def released(self, stream: Ints) -> None:
        """Frames of some streams that the budgets admitted are not offloaded after all."""
        for meter, of in self._metered(stream):
            meter.released(len(stream[of]))

    def sent(self, stream: Ints, bytes_each: float) -> None:
        """Count offloaded frames of some streams against the budgets."""
        for meter, of in self._metered(stream):
            count = len(stream[of])
            meter.sent(count, bytes_each * count)

    def paid(
        self, stream: Ints, scarcity: Floats, round_trip_ms: float, bytes_each: float
    ) -> Iterator[tuple[Any, Floats]]:
        """What offloaded frames cost after all, where that depends on the reply: rows of the frames, and their prices.

        Parameters
        ----------
        scarcity
            The budget's part of each frame's price when it came in, (frames,).
        """
        for meter, of in self._metered(stream):
            if not meter.price.constant:
                yield of, meter.paid(scarcity[of], round_trip_ms, bytes_each)

    def _metered(self, stream: Ints) -> Iterator[tuple[Meter, Any]]:
        """The meters of some frames' streams, each with the rows of its frames."""
        if not self._own:
            yield self.meter, slice(None)
            return
        of = self._meter_of[stream]
        for k in np.unique(of).tolist():
            yield self._meters[k], np.flatnonzero(of == k)

    def _grow(self) -> None:
        before = len(self.name)
        more = max(FEWEST, before)
        self.name = np.concatenate([self.name, np.full(more, "", dtype=object)])
        self.learner = np.concatenate([self.learner, np.zeros(more, dtype=np.int64)])
        self._meter_of = np.concatenate([self._meter_of, np.zeros(more, dtype=np.int64)])
        self._meters += [self.meter] * more
        self._free += range(before + more - 1, before - 1, -1)
