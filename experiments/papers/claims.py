"""A paper's claims as rows of data: what it says and publishes, our figures, and the limit that these must keep."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

NOT_PUBLISHED = "not published"
NONE = "—"

Tables = Mapping[str, pd.DataFrame]
"""The kept tables of a run, by name."""
Facts = SimpleNamespace
"""Named quantities that claims are about, computed from the kept tables."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, its figure, and how ours is found and judged.

    All texts are templates over the facts (`Words`).

    Attributes
    ----------
    text, published
        What the paper says, and its figure.
    ours
        Our figure.
    holds
        The limit: whether the facts bear the sentence out.
    why
        What qualifies our figure, or the limit in words; a function where it depends on the facts.
    otherwise
        Why the claim does not hold; left out where it does.
    """

    text: str
    published: str
    ours: str
    holds: Callable[[Any], Any]
    why: "str | Callable[[Any], str]" = ""
    otherwise: str = ""


@dataclass(frozen=True)
class Group:
    """Claims about the same facts.

    Attributes
    ----------
    facts
        From the kept tables and the recipe of the run: the facts, once or several times; each claim is made of each.
    claims
        The rows.
    """

    facts: Callable[[Tables, Any], Iterable[Facts]]
    claims: Sequence[Claim]


def evaluate(groups: Iterable[Group], tables: Tables, recipe: Any) -> pd.DataFrame:
    """Claims beside our figures: one row per claim, with claim, published, ours, holds and why."""
    rows = [
        {
            "claim": words(claim.text, facts),
            "published": words(claim.published, facts),
            "ours": words(claim.ours, facts),
            "holds": (holds := bool(claim.holds(facts))),
            "why": words(claim.why if isinstance(claim.why, str) else claim.why(facts), facts)
            + ("" if holds else words(claim.otherwise, facts)),
        }
        for group in groups
        for facts in group.facts(tables, recipe)
        for claim in group.claims
    ]
    return pd.DataFrame(rows)


class Words(string.Formatter):
    """Format strings with percentages, points, lists of numbers, and intervals.

    `%` stands for percent with one decimal, `points` for percentage points with their sign. A pair (a tuple) is a value
    and the half-width of its interval. Lists and arrays are numbers side by side, with a dash for what is missing.

    Examples
    --------
    >>> words("{a:%}, {b:points}, {c:.1f}, {a}", Facts(a=0.512, b=(0.01, 0.002), c=[1, float("nan")]))
    '51.2 %, +1.0 ± 0.2 points, 1.0 / –, 0.512'
    """

    def format_field(self, value: Any, spec: str) -> str:
        """One value."""
        if not spec or isinstance(value, str):
            return format(value, spec)
        if spec == "%":
            return self.format_field(100 * np.asarray(value), ".1f") + " %"
        if spec == "points":
            shares = tuple(100 * v for v in value) if isinstance(value, tuple) else 100 * value
            return self.format_field(shares, "+.1f") + " points"
        if isinstance(value, tuple):
            return f"{value[0]:{spec}} ± {value[1]:{spec.lstrip('+')}}"
        if np.ndim(value):
            return " / ".join("–" if np.isnan(v) else format(v, spec) for v in value)
        return format(value.item() if isinstance(value, np.ndarray) else value, spec)


def words(template: str, facts: Any) -> str:
    """A template filled in with facts, or with a mapping of names to values."""
    return Words().vformat(template, (), facts if isinstance(facts, Mapping) else vars(facts))


def listed(template: str, rows: pd.DataFrame | Iterable[Mapping[Any, Any]], between: str = ", ") -> str:
    """A template filled in with each of some rows.

    Examples
    --------
    >>> listed("{exit} {accuracy:%}", [{"exit": 1, "accuracy": 0.5}, {"exit": 2, "accuracy": 0.75}])
    '1 50.0 %, 2 75.0 %'
    """
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    return between.join(words(template, row) for row in records)
