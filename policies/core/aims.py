"""Wishes: bounds that a user wants kept, as text and as limits on the mean of something that each frame costs.

wish    = "accuracy within" NUMBER ("point" | "points" | "%") ["of the whole network"]
        | "mean latency" AT_MOST TIME
        | "p" PERCENT ["latency"] AT_MOST TIME
        | "offload" AT_MOST SHARE
AT_MOST = "<=" | "≤" | "at most"
TIME    = NUMBER ("ms" | "s" | "us" | "µs")
SHARE   = NUMBER "%" | a number in (0, 1]

Several wishes are separated by commas, semicolons or "and". docs/wishes.md explains how they are kept.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eex.policies.core.base import Bools, Floats
from eex.policies.core.errors import EexError

Kind = Literal["accuracy", "latency", "quantile", "offload"]
TOLERANCE = 0.1
"""Share of its bound by which a wish may be missed and still count as kept."""

_NUMBER = r"(\d+\.?\d*|\.\d+)"
_AT_MOST = r"\s*(?:<=|=<|≤|at most)\s*"
_TIME = _NUMBER + r"\s*(ms|s|us|µs|μs)"
_FORMS: dict[Kind, re.Pattern[str]] = {
    "accuracy": re.compile(rf"accuracy\s+within\s+{_NUMBER}\s*(?:points?|%)(?:\s+of\s+the\s+whole\s+network)?"),
    "latency": re.compile(rf"mean\s+latency{_AT_MOST}{_TIME}"),
    "quantile": re.compile(rf"p{_NUMBER}(?:\s+latency)?{_AT_MOST}{_TIME}"),
    "offload": re.compile(rf"offload(?:ed)?{_AT_MOST}{_NUMBER}\s*(%?)"),
}
_MS = {"ms": 1.0, "s": 1000.0, "us": 0.001, "µs": 0.001, "μs": 0.001}
_EXAMPLES = (
    "'accuracy within 1 point of the whole network', 'mean latency <= 8 ms', 'p99 <= 40 ms' or 'offload <= 10 %'"
)


@dataclass(frozen=True)
class Aim:
    """A wish: the mean over the frames of what each costs (`cost`) is to be at most `limit`.

    Attributes
    ----------
    kind
        What a frame costs: 1 if its answer differs from the whole network's; its latency in ms; 1 if its latency
        exceeds `bound_ms`; or 1 if it is sent to the cloud.
    limit
        The bound of the mean: a share of the frames, or milliseconds.
    bound_ms
        For "quantile", the latency that a share `limit` of the frames may exceed.
    text
        In the form in which it is shown and can be parsed.

    Examples
    --------
    >>> aim = parse_aims("p99 ≤ 40ms")[0]
    >>> aim.text, aim.limit
    ('p99 <= 40 ms', 0.01)
    >>> aim.cost(np.array([False, False]), np.array([12.0, 55.0]), np.array([False, True]))
    array([0., 1.])
    """

    kind: Kind
    limit: float
    text: str
    bound_ms: float = 0.0

    def cost(self, differs: Any, latency_ms: Any, sent: Any) -> Floats:
        """What each frame costs, in the shape of the arrays.

        Parameters
        ----------
        differs
            Whether the answer differs from the whole network's, or how likely it does.
        latency_ms, sent
            From arrival to the answer; whether the frame was sent to the cloud.
        """
        of: dict[Kind, Any] = {"accuracy": differs, "latency": latency_ms, "offload": sent}
        found = np.asarray(latency_ms) > self.bound_ms if self.kind == "quantile" else of[self.kind]
        return np.asarray(found, dtype=float)

    def kept(self, mean: Any) -> Any:
        """Whether a mean cost keeps the wish, to within `TOLERANCE`."""
        return mean <= self.limit * (1 + TOLERANCE)

    def shown(self, mean: float) -> str:
        """A mean cost in words."""
        share = f"{100 * mean:.3g} %"
        if self.kind == "latency":
            return f"the mean latency is {mean:.3g} ms"
        if self.kind == "quantile":
            return f"{share} of the frames take longer than {self.bound_ms:g} ms"
        if self.kind == "offload":
            return f"{share} of the frames are sent to the cloud"
        return f"about {share} of the answers differ from the whole network's"


def parse_aims(texts: str | Iterable[str]) -> tuple[Aim, ...]:
    """Wishes from text; several may stand in one.

    Raises
    ------
    EexError
        If one is not a wish, its bound is out of range, or two bound the same thing.

    Examples
    --------
    >>> [aim.text for aim in parse_aims("Offload ≤ 10% and mean latency <= 8 ms")]
    ['offload <= 10 %', 'mean latency <= 8 ms']
    """
    whole = [texts] if isinstance(texts, str) else list(texts)
    pieces = [piece.strip() for text in whole for piece in re.split(r"[,;\n]|\band\b|&", text)]
    if whole and not any(pieces):
        raise EexError(f"a wish must say something, such as {_EXAMPLES}; got nothing")
    aims = tuple(_aim(piece) for piece in pieces if piece)
    subjects = [_subject(aim) for aim in aims]
    for k, subject in enumerate(subjects):
        if subject in subjects[:k]:
            other = aims[subjects.index(subject)]
            raise EexError(f"wishes '{other.text}' and '{aims[k].text}' are of the same thing: keep the one you mean")
    return aims


def _subject(aim: Aim) -> tuple[Kind, float]:
    """What a wish is about: quantiles differ from each other."""
    return aim.kind, aim.limit if aim.kind == "quantile" else 0.0


def _aim(text: str) -> Aim:
    found = [(kind, m.groups()) for kind, form in _FORMS.items() if (m := form.fullmatch(text.lower()))]
    if not found:
        raise EexError(f"'{text}' is no wish that eex knows; write {_EXAMPLES}")
    kind, groups = found[0]
    number = float(groups[0])
    if kind == "accuracy":
        if not 0 < number < 100:
            raise EexError(f"'{text}': accuracy can be kept within more than 0 and less than 100 points")
        points = "point" if number == 1 else "points"
        return Aim(kind, number / 100, f"accuracy within {number:g} {points} of the whole network")
    if kind == "offload":
        share = number / 100 if groups[1] else number
        if not 0 < share <= 1:
            hint = "" if groups[1] else f"; did you mean {number:g} %?"
            raise EexError(f"'{text}': the share to offload must be more than 0 and at most 100 %{hint}")
        return Aim(kind, share, f"offload <= {100 * share:.10g} %")
    ms = float(groups[-2]) * _MS[groups[-1]]
    if not 0 < ms < np.inf:
        raise EexError(f"'{text}': a latency must be more than 0 ms")
    if kind == "latency":
        return Aim(kind, ms, f"mean latency <= {ms:.10g} ms")
    if not 0 < (number := round(number, 8)) < 100:
        raise EexError(f"'{text}': a percentile lies between p0 and p100, as p50 and p99.9 do")
    return Aim(kind, round(1 - number / 100, 12), f"p{number:.10g} <= {ms:.10g} ms", ms)


def came_to(aims: Iterable[Aim], differs: Bools, latency_ms: Floats, sent: Bools) -> list[dict[str, Any]]:
    """How wishes fared over frames, (frames,), as plain values: wish, limit, mean cost, whether it was kept."""
    rows = []
    for aim in aims:
        mean = float(aim.cost(differs, latency_ms, sent).mean())
        rows.append({"wish": aim.text, "limit": aim.limit, "came_to": mean, "kept": bool(aim.kept(mean))})
    return rows
