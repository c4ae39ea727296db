"""The price of offloading a frame, in units of confidence: what it is made of, and a budget that makes its own.

price   = term {"+" term}
term    = NUMBER                    per frame
        | NUMBER "/s"               per second of measured round trip
        | NUMBER "/MB"              per megabyte sent
        | NUMBER "/J@" NUMBER "W"   per joule, at this power during the round trip
        | NUMBER "/J@" NUMBER "J/MB"   per joule, at this energy per megabyte sent
        | "budget=" NUMBER ("/s" | "MB/s" | "%") [":" NUMBER]   a limit: frames or megabytes per second, or a share
                                    of the frames; and how much of it may be saved up

A confidence that is calibrated is a chance to be right. A price of 0.05 per frame means: offload if the cloud is right
more often than the edge for at least 5 frames in 100. docs/choosing-the-overhead.md comes from milliseconds, money or
energy to such a price.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError

BURST_S = 10.0
"""Seconds' worth of a budget that may be saved up, by default."""
BURST_FRAMES = 200.0
"""Frames whose share may be saved up, by default."""
LEAST_BURST = 32.0
"""The fewest frames that may be saved up: with less than a micro-batch, the price would jump."""

_NUMBER = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
_TERMS = {
    "frame": re.compile(_NUMBER),
    "second": re.compile(_NUMBER + r"/s"),
    "megabyte": re.compile(_NUMBER + r"/MB"),
    "joule, watts": re.compile(_NUMBER + r"/J@" + _NUMBER + "W"),
    "joule, a megabyte": re.compile(_NUMBER + r"/J@" + _NUMBER + "J/MB"),
    "budget": re.compile("budget=" + _NUMBER + r"(/s|MB/s|%)" + f"(?::{_NUMBER})?"),
}
_EXPECTED = "NUMBER, NUMBER/s, NUMBER/MB, NUMBER/J@WATTSW, NUMBER/J@JOULESJ/MB or budget=NUMBER/s"


@dataclass(frozen=True)
class Budget:
    """How much may be offloaded in the long run, and how much of it may be saved up.

    Attributes
    ----------
    rate
        Frames or megabytes per second, or the share of frames that is offloaded.
    unit
        "/s", "MB/s" or "%".
    burst
        Most that is saved up: frames or megabytes.
    """

    rate: float
    unit: str
    burst: float


@dataclass(frozen=True)
class Price:
    """What offloading a frame costs, in units of confidence.

    Attributes
    ----------
    per_frame, per_s, per_mb
        For each frame, for each second of its round trip, for each megabyte sent.
    budget
        What may be spent, whose scarcity is a price of its own (`TokenBucket`); None without one.
    text
        In the form in which it can be parsed.

    Examples
    --------
    >>> price = parse_price("0.02+0.2/s")
    >>> price.of(round_trip_ms=100.0)
    0.04
    >>> price.of(round_trip_ms=9000.0)  # never above 1: no answer gains more
    1.0
    """

    per_frame: float = 0.0
    per_s: float = 0.0
    per_mb: float = 0.0
    budget: Budget | None = None
    text: str = "0"

    def __str__(self) -> str:
        return self.text

    @property
    def constant(self) -> bool:
        """Whether every frame has the same price, known in advance."""
        return not (self.per_s or self.per_mb or self.budget)

    def of(self, round_trip_ms: float = 0.0, bytes: float = 0.0) -> float:
        """Price of a frame by its round trip and bytes; what is not known yet (NaN) costs nothing.

        Before the first reply the price is thus as low as it can be: the first offloads soon correct it.
        """
        price = self.per_frame
        if self.per_s and not math.isnan(round_trip_ms):
            price += self.per_s * round_trip_ms / 1e3
        if self.per_mb and not math.isnan(bytes):
            price += self.per_mb * bytes / 1e6
        return min(1.0, round(float(price), 12))


class TokenBucket:
    r"""A budget that fills at a steady rate up to its burst; how empty it is, is the price of spending from it.

    With :math:`L` tokens of at most :math:`B`, the price is :math:`\lambda = 1 - L / B`: nothing while the bucket is
    full, 1 once it is empty, which no gain in confidence exceeds. The deficit :math:`B - L` is the virtual queue of
    drift-plus-penalty, so a policy that heeds the price spends the whole budget on those frames that gain most, to
    within :math:`O(1/B)`, whatever the stream is like; one that does not heed it is held to the budget all the same.

    Parameters
    ----------
    budget
        Rate, unit and burst. The bucket starts full.

    Examples
    --------
    >>> bucket = TokenBucket(Budget(rate=10, unit="/s", burst=50))
    >>> bucket.price
    0.0
    >>> bucket.spend(frames=40, megabytes=0.3)
    >>> bucket.price, bucket.admits(frames=32, megabytes_each=0.01)
    (0.8, 10)
    >>> bucket.fill(seconds=2.0, frames=64)
    >>> round(bucket.price, 6)
    0.4

    References
    ----------
    Neely (2010), Stochastic network optimization with application to communication and queueing systems, chapter 4.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.level = budget.burst

    @property
    def price(self) -> float:
        """Of spending now, in [0, 1]."""
        return self.price_after(0, 0.0)

    def price_after(self, frames: int, megabytes: float) -> float:
        """Of spending after so much more."""
        left = self.level - self._of(frames, megabytes)
        return float(np.clip(1 - left / self.budget.burst, 0.0, 1.0))

    def fill(self, seconds: float, frames: int) -> None:
        """Let time pass and frames come in."""
        came = frames if self.budget.unit == "%" else seconds
        self.level = min(self.budget.burst, self.level + self.budget.rate * came)

    def admits(self, frames: int, megabytes_each: float) -> int:
        """How many of some frames may be offloaded now: one from a full bucket, even if it holds less than a frame."""
        each = megabytes_each if self.budget.unit == "MB/s" else 1.0
        if each <= 0:
            return frames if self.level > 0 else 0
        full = self.level >= self.budget.burst
        return int(np.clip(np.floor(self.level / each + 1e-9), int(full), frames))

    def spend(self, frames: int, megabytes: float) -> None:
        """Take what was sent out of the bucket."""
        self.level -= self._of(frames, megabytes)

    def _of(self, frames: int, megabytes: float) -> float:
        return megabytes if self.budget.unit == "MB/s" else frames


class Meter:
    """A price applied to one stream: keeps its bucket, and estimates what a frame will cost.

    Parameters
    ----------
    price
        Price of offloading.
    bytes
        Assumed size of a frame until one has been sent.

    Examples
    --------
    >>> meter = Meter(parse_price("0.5/s"))
    >>> meter.expected(link_ms=100.0)
    0.05
    """

    def __init__(self, price: Price, bytes: float = 0.0) -> None:
        self.price, self.bytes = price, bytes
        self.bucket = None if price.budget is None else TokenBucket(price.budget)
        self.withheld = 0  # frames that the budget kept on the edge
        self._promised = 0  # frames that it admitted and that are not sent yet
        self._then: float | None = None

    def arrive(self, now_s: float, frames: int) -> None:
        """Count frames that arrive at a time, in seconds of any steady clock."""
        if self.bucket is not None:
            self.bucket.fill(0.0 if self._then is None else max(0.0, now_s - self._then), frames)
        self._then = now_s

    @property
    def scarcity(self) -> float:
        """The budget's part of the price now; 0 without one."""
        if self.bucket is None:
            return 0.0
        return self.bucket.price_after(self._promised, self._promised * self.bytes / 1e6)

    def expected(self, link_ms: float) -> float:
        """What offloading a frame is expected to cost, in [0, 1]: `Context.overhead`."""
        return min(1.0, self.price.of(link_ms, self.bytes) + self.scarcity)

    def paid(self, scarcity: Floats, round_trip_ms: float, bytes: float) -> Floats:
        """What frames did cost, (n,), in [0, 1]: `Outcomes.overhead`.

        Parameters
        ----------
        scarcity
            The budget's price when the policy chose for them, (n,).
        round_trip_ms, bytes
            Of each frame, as measured.
        """
        paid: Floats = np.minimum(1.0, self.price.of(round_trip_ms, bytes) + scarcity)
        return paid

    def admits(self, frames: int) -> int:
        """How many of some frames may be offloaded now; the others count as withheld.

        Those that may must be `sent`, or `released`.
        """
        if self.bucket is None:
            return frames
        admitted = max(0, self.bucket.admits(frames + self._promised, self.bytes / 1e6) - self._promised)
        self.withheld += frames - admitted
        self._promised += admitted
        return admitted

    def released(self, frames: int) -> None:
        """Frames that may be offloaded will not be."""
        self._promised = max(0, self._promised - frames)

    def sent(self, frames: int, bytes: float) -> None:
        """Count frames that were sent, and their bytes in total."""
        self.released(frames)
        self.bytes = bytes / frames
        if self.bucket is not None:
            self.bucket.spend(frames, bytes / 1e6)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """State from which a meter of the same price can resume; without a clock, so no budget fills between runs."""
        state = {"bytes": np.array(self.bytes), "withheld": np.array(self.withheld)}
        return state if self.bucket is None else state | {"level": np.array(self.bucket.level)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state_dict` gave; the next frames to arrive bring no time with them.

        Raises
        ------
        KeyError
            If it lacks something.
        ValueError
            If what it holds is not a number.
        """
        bytes, withheld = float(state["bytes"]), int(state["withheld"])
        if not (0 <= bytes < np.inf and withheld >= 0):
            raise ValueError(f"bytes and withheld frames must be at least 0, got {bytes:g} and {withheld}")
        if self.bucket is not None:
            level = float(state["level"])
            if not np.isfinite(level):
                raise ValueError(f"a bucket's level must be finite, got {level}")
            self.bucket.level = min(level, self.bucket.budget.burst)
        self.bytes, self.withheld, self._then = bytes, withheld, None


def parse_price(text: str | float) -> Price:
    """A price from text, or from a number, the price per frame.

    Raises
    ------
    EexError
        If the text is not a price, or the price of a frame lies outside [0, 1].

    Examples
    --------
    >>> parse_price("0.05+0.2/s+0.01/MB").per_s
    0.2
    >>> parse_price("0.05/J@1.3W+0.05/J@4J/MB").per_mb  # energy is watts for a time and joules for bytes
    0.2
    >>> parse_price("budget=20%").budget
    Budget(rate=0.2, unit='%', burst=40.0)
    """
    text = "".join(text.split()) if isinstance(text, str) else repr(float(text)).removesuffix(".0")
    try:
        if not 0 <= float(text) <= 1:
            raise EexError(f"overhead must lie in [0, 1], units of confidence; got {text}")
        return Price(per_frame=float(text), text=text)
    except EexError:
        raise
    except ValueError:
        price = Price()
    for term in re.split(r"(?<![eE])\+", text):
        found = [(name, m.groups()) for name, form in _TERMS.items() if (m := form.fullmatch(term))]
        if not found:
            raise EexError(f"overhead '{text}': '{term}' is no price; expected {_EXPECTED}, or several with + between")
        name, groups = found[0]
        if name == "budget":
            if price.budget is not None:
                raise EexError(f"overhead '{text}': there is more than one budget")
            price = replace(price, budget=_budget(text, *groups))
            continue
        numbers = [float(g) for g in groups]
        if name == "frame":
            price = replace(price, per_frame=price.per_frame + numbers[0])
        elif name in ("second", "joule, watts"):
            price = replace(price, per_s=price.per_s + float(np.prod(numbers)))
        else:
            price = replace(price, per_mb=price.per_mb + float(np.prod(numbers)))
    if not price.per_frame <= 1:
        raise EexError(f"overhead '{text}': a frame's price must lie in [0, 1], units of confidence")
    if not np.isfinite([price.per_s, price.per_mb]).all():
        raise EexError(f"overhead '{text}': a price must be finite")
    return replace(price, text=text)


def _budget(text: str, number: str, unit: str, burst: str | None) -> Budget:
    rate = float(number) / (100 if unit == "%" else 1)
    if not 0 < rate < np.inf or (unit == "%" and rate > 1):
        raise EexError(f"overhead '{text}': a budget must be more than 0, and at most 100 %")
    if burst is not None:
        saved = float(burst)
    else:
        saved = rate * (BURST_FRAMES if unit == "%" else BURST_S)
        if unit != "MB/s":
            saved = max(saved, LEAST_BURST)
    if not 0 < saved < np.inf:
        raise EexError(f"overhead '{text}': what a budget saves up must be more than 0")
    return Budget(rate, unit, saved)
