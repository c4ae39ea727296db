"""Settings of a stream over HTTP: what can be changed, and how the service shows it."""

import contextlib
import re
from typing import Any, Literal

import msgspec

from eex.stream.live.config import StreamOptions


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be changed of a stream; what is left out stays as it is, null is what the session has.

    Attributes
    ----------
    overhead
        Price of offloading a frame, in units of confidence: a number in [0, 1], or text such as "0.02+0.2/s".
    budget
        How much may be offloaded, such as "10/s", "0.5MB/s" or "20%"; null is no budget.
    deadline_ms
        Milliseconds after which an offloaded frame is answered on the edge.
    thresholds
        "learning", "frozen", or the thresholds to play, one per edge exit.
    """

    overhead: float | str | msgspec.UnsetType | None = msgspec.UNSET
    budget: str | msgspec.UnsetType | None = msgspec.UNSET
    deadline_ms: float | msgspec.UnsetType | None = msgspec.UNSET
    thresholds: Literal["learning", "frozen"] | list[float] | msgspec.UnsetType = msgspec.UNSET


def changes(wanted: Settings, before: StreamOptions, usual: float | str) -> dict[str, Any]:
    """The fields of `StreamOptions` that change, for a session with a usual price of offloading."""
    now, given = shown(before), dict[str, Any]()
    if wanted.overhead is not msgspec.UNSET or wanted.budget is not msgspec.UNSET:
        overhead = now["overhead"] if wanted.overhead is msgspec.UNSET else wanted.overhead
        budget = now["budget"] if wanted.budget is msgspec.UNSET else wanted.budget
        given["overhead"] = _price(overhead, budget, usual)
    if wanted.deadline_ms is not msgspec.UNSET:
        given["deadline_ms"] = wanted.deadline_ms
    if wanted.thresholds is not msgspec.UNSET:
        kept = wanted.thresholds
        given["thresholds"] = tuple(kept) if isinstance(kept, list) else kept
    return given


def difference(before: StreamOptions, after: StreamOptions) -> str:
    """What has changed, in words; empty if nothing has."""
    old = shown(before)
    return ", ".join(f"{k} {_brief(old[k])} -> {_brief(v)}" for k, v in shown(after).items() if v != old[k])


def _price(overhead: float | str | None, budget: str | None, usual: float | str) -> str | None:
    """The price of a stream, as `StreamOptions` has it; None for what the session has."""
    if budget is None:
        return None if overhead is None else str(overhead)
    own = _split(str(usual))[0] if overhead is None else str(overhead)
    return f"{own}+budget={budget}" if own else f"budget={budget}"


def _split(price: str) -> tuple[str, str | None]:
    """A price without its budget, and the budget.

    >>> _split("0.02+0.2/s+budget=10/s:50"), _split("1e+0")
    (('0.02+0.2/s', '10/s:50'), ('1e+0', None))
    """
    terms = re.split(r"(?<![eE])\+", price)
    budgets = [term.removeprefix("budget=") for term in terms if term.startswith("budget=")]
    return "+".join(term for term in terms if not term.startswith("budget=")), budgets[0] if budgets else None


def shown(options: StreamOptions) -> dict[str, Any]:
    """The settings of a stream as plain JSON values."""
    overhead, budget = (None, None) if options.overhead is None else _split(str(options.overhead))
    with contextlib.suppress(TypeError, ValueError):
        overhead = float(overhead)  # type: ignore[arg-type,assignment]
    kept = options.thresholds
    return {
        "overhead": overhead,
        "budget": budget,
        "deadline_ms": options.deadline_ms,
        "thresholds": list(kept) if isinstance(kept, tuple) else kept,
    }


def _brief(value: Any) -> str:
    return "as usual" if value is None else msgspec.json.encode(value).decode()
