"""A paper's claims as rows of data: what it says and publishes, our figures, and the limit that these must keep."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from eex.policies.core.base import Floats

OWN = "not in the paper"
"""Published about a sentence of ours: future work that a paper names, or a check."""
NONE = "—"
"""Published about a sentence without a figure."""
FEW = 5
"""Values that a mean is taken to be of where many margins are judged at once, unless it is one over fewer seeds."""
SUBLINEAR = 0.5
"""Regret of the second half of the rounds, as a share of the first half's, that counts as well below it."""

Tables = Mapping[str, pd.DataFrame]
"""The kept tables of a run, by name."""
Facts = SimpleNamespace
"""Named quantities that claims are about, computed from the kept tables."""
Verdict = Literal["holds", "does not hold", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class Margin(NamedTuple):
    """By how far a limit is kept: negative where it is missed, and half the 95 % interval of that.

    Numbers or arrays of the same shape; of an array every element has to keep the limit, and NaN, where there was
    nothing to measure, is left out.
    """

    value: Any
    half: Any = 0.0


Finding = bool | np.bool_ | Margin
"""Whether a limit is kept: a fact that has no spread, or a margin."""


def verdict(findings: "Finding | Sequence[Finding]", seeds: int = 1) -> Verdict:
    """What findings, which may be means over several seeds, come to; a claim needs all of them.

    It holds if every margin is above its spread or as large, does not hold if one is below it, and is undecided
    otherwise, also where nothing was measured. Of many margins one falls below its spread by chance alone, so that it
    has to be the further below the more there are (Bonferroni's correction, `of_many`).

    Examples
    --------
    >>> verdict(Margin(0.3, 0.2)), verdict([True, Margin(0.1, 0.2)]), verdict([Margin(0.1, 0.2), Margin(-0.3, 0.2)])
    ('holds', 'undecided', 'does not hold')
    >>> verdict(Margin([-0.3], 0.2)), verdict(Margin([-0.3] + 99 * [0.1], 0.2))
    ('does not hold', 'undecided')
    """
    margins = [_as_margin(f) for f in _several(findings)]
    wider = of_many(sum(len(value) for value, _ in margins), seeds)
    if any((value < -wider * half).any() for value, half in margins):
        return "does not hold"
    return "holds" if all(len(value) and (value >= half).all() for value, half in margins) else "undecided"


def of_many(margins: int, seeds: int = 1) -> float:
    """By how much a 95 % interval widens that is to hold for so many values at once.

    As for means of five values, or of the seeds if they are fewer: most are of more, which widen less, so that a claim
    is rather left undecided.
    """
    values = min(FEW, seeds) if seeds > 1 else FEW
    return student(values, 0.025 / max(margins, 1)) / student(values)


def _several(findings: "Finding | Sequence[Finding]") -> "Sequence[Finding]":
    return [findings] if isinstance(findings, bool | np.bool_ | Margin) else findings


def _margin(finding: Finding) -> tuple[np.ndarray, np.ndarray]:
    """Values and their half-widths as flat arrays; an unknown half-width counts as none."""
    if not isinstance(finding, Margin):
        finding = Margin(1.0 if finding else -1.0)
    value, half = np.broadcast_arrays(*(np.atleast_1d(np.asarray(part, dtype=float)) for part in finding))
    return value, np.nan_to_num(half, posinf=np.inf)


def _as_margin(finding: Finding) -> tuple[np.ndarray, np.ndarray]:
    """The known values of a finding and their half-widths, as flat arrays."""
    value, half = _margin(finding)
    return value[~np.isnan(value)], half[~np.isnan(value)]


def closest(findings: "Finding | Sequence[Finding]", of_seeds: "Sequence[Finding | Sequence[Finding]]" = ()) -> str:
    """Of what leaves a claim undecided, the margin that misses most, in words; and how many seeds keep the limit.

    Examples
    --------
    >>> closest(Margin(0.1, 0.3), [Margin(0.3, 0.1), Margin(-0.1, 0.1)])
    'the limit is kept by 0.1 ± 0.3 (1 of 2 seeds keep it)'
    """
    margins = [(v, h) for f in _several(findings) for v, h in zip(*_as_margin(f), strict=True)]
    wider = of_many(len(margins), len(of_seeds))
    undecided = [(v, h * wider if v < 0 else h) for v, h in margins if v < h]
    if not undecided:
        return "nothing was measured that could decide it"
    value, half = min(undecided, key=lambda margin: margin[0] - margin[1])
    if np.isinf(half):
        return "only one seed could be measured"
    keeping = sum(all((v >= 0).all() for v, _ in map(_as_margin, _several(of_seed))) for of_seed in of_seeds)
    seeds = f" ({keeping} of {len(of_seeds)} seeds keep it)" if len(of_seeds) > 1 else ""
    by, spread = (f"{float(f'{part:.2g}'):g}" for part in (abs(value), half))  # 140, not 1.4e+02
    return f"the limit is {'kept' if value >= 0 else 'missed'} by {by} ± {spread}{seeds}"


def by_seed(tables: Tables) -> list[Tables]:
    """The tables that each seed has, without the column `seed`; where not every table has it, all are of one seed."""
    if not all("seed" in rows for rows in tables.values()):
        return [tables]
    parts: dict[int, dict[str, pd.DataFrame]] = {}
    for name, every in tables.items():
        for seed, rows in every.groupby("seed"):
            parts.setdefault(seed, {})[name] = rows.drop(columns="seed").reset_index(drop=True)
    return [parts[seed] for seed in sorted(parts)]


def pooled(parts: Sequence[pd.DataFrame], spread: str | None = None) -> pd.DataFrame:
    """The rows of several seeds as one: numbers that differ are averaged; texts, and their order, tell rows apart.

    The column `half` is added for the column `spread`: half its 95 % interval over the seeds, beside the spread that
    each of them has.

    Examples
    --------
    >>> pooled([pd.DataFrame({"exit": [1, 2], "right": [0.5, right]}) for right in (0.7, 0.9)])
       exit  right
    0     1    0.5
    1     2    0.8
    """
    texts = [c for c in parts[0] if parts[0][c].dtype.kind not in "iuf"]
    placed = [p.assign(place=p.groupby(texts, dropna=False).cumcount() if texts else range(len(p))) for p in parts]
    rows = pd.concat(placed).groupby([*texts, "place"], sort=False, dropna=False)
    low, high, mean = rows.min(), rows.max(), rows.mean()
    # values that are equal stay as they are, to the last bit
    columns = {c: low[c] if low[c].equals(high[c]) else mean[c].where(low[c] != high[c], low[c]) for c in mean}
    found = pd.DataFrame(columns, index=low.index)
    if spread is not None:
        halves = rows[spread].agg(lambda v: np.nan_to_num(seeds_interval(v.dropna())[1]) if len(v.dropna()) else 0.0)
        found["half"] = np.hypot(halves, found["half"].fillna(0.0) if "half" in found else 0.0)
    return found.reset_index()[list(dict.fromkeys([*parts[0], *found]))]


def over_seeds(findings: "Sequence[Finding | Sequence[Finding]]") -> "Finding | Sequence[Finding]":
    """What the findings of several seeds come to: their means, which spread as the seeds do and as each of them does.

    The two spreads add up (their squares), since all seeds are measured on the same images. What only one of them
    could measure decides nothing: its spread over the seeds is infinite. Of findings that are not alike from seed to
    seed, the one that misses most stands for all of them.

    Examples
    --------
    >>> margin = over_seeds([Margin(0.3, 0.1), Margin(0.2, 0.1), Margin(0.1, 0.1)])[0]
    >>> round(float(margin.value[0]), 3), round(float(margin.half[0]), 3)
    (0.2, 0.268)
    """
    if len(findings) == 1:
        return findings[0]
    margins = [[_margin(f) for f in _several(of_seed)] for of_seed in findings]
    if len({tuple(value.shape for value, _ in of_seed) for of_seed in margins}) > 1:
        most = max(sum(len(value) for value, _ in of_seed) for of_seed in margins)
        margins = [[_worst(of_seed, most)] for of_seed in margins]
    found = []
    for alike in zip(*margins, strict=True):
        values, halves = (np.stack(part) for part in zip(*alike, strict=True))
        spreads = [seeds_interval(value[~np.isnan(value)]) for value in values.T]
        each = pd.DataFrame(np.where(np.isnan(values), np.nan, halves)).mean().fillna(0.0).to_numpy()
        over = np.nan_to_num([s[1] for s in spreads], nan=np.inf)
        found.append(Margin(np.array([s[0] for s in spreads]), np.hypot(over, each)))
    return found


def _worst(margins: Sequence[tuple[np.ndarray, np.ndarray]], times: int) -> tuple[np.ndarray, np.ndarray]:
    """The margin that misses most of all, so many times; unknown where none is known."""
    value, half = (np.concatenate(part) for part in zip(*margins, strict=True))
    k = 0 if np.isnan(value).all() else int(np.nanargmin(value - half))
    return np.repeat(value[k], times), np.repeat(half[k], times)


def seeds_interval(values: Any) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t); the latter is NaN for one value, both without any."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return float(found.mean()) if len(found) else float("nan"), float("nan")
    return float(found.mean()), float(student(len(found)) * found.std(ddof=1) / len(found) ** 0.5)


def student(values: int, beyond: float = 0.025) -> float:
    """How many standard errors a mean of so many values exceeds with this probability; NaN for one value."""
    from scipy.special import stdtrit

    return float(stdtrit(values - 1, 1 - beyond)) if values > 1 else float("nan")


def slowing(regret: Floats) -> tuple[float, float]:
    """Regret of the second half of the rounds as a share of that of the first half, and half its 95 % interval.

    From cumulative regret, (runs, rounds); the share is that of the sums over all runs. NaN if nothing is lost in the
    first half.

    Examples
    --------
    >>> slowing(np.array([[2.0, 4.0, 4.5, 5.0], [1.0, 2.0, 2.5, 3.0]]))[0]
    0.3333333333333333
    """
    first = regret[:, regret.shape[1] // 2 - 1]
    second = regret[:, -1] - first
    if not first.sum():
        return float("nan"), float("nan")
    share = float(second.sum() / first.sum())
    return share, seeds_interval((second - share * first) / first.mean())[1]


def less_in_median(slowing: pd.Series, half: pd.Series) -> Margin:
    """The median is below `SUBLINEAR`; it may be off by as much as the value that it is taken from."""
    known = pd.DataFrame({"value": slowing, "half": half}).dropna(subset=["value"]).sort_values("value")
    middle = known.iloc[(len(known) - 1) // 2 : len(known) // 2 + 1]
    return Margin(float(SUBLINEAR - middle["value"].mean()), float(middle["half"].max()))


def share_half(share: Any, images: Any) -> Any:
    """Half the 95 % interval of a share of so many images (Agresti and Coull, 1998), of few that are all right too.

    >>> round(float(share_half(0.5, 1000)), 3), round(float(share_half(1.0, 3)), 3)
    (0.031, 0.335)
    """
    n = np.maximum(np.asarray(images, dtype=float), 1)
    p = (np.asarray(share) + 2 / n) / (1 + 4 / n)
    return 1.96 * np.sqrt(p * (1 - p) / (n + 4))


def above(a: Any, b: Any, images: Any, by: float = 0.0) -> Margin:
    """A share of so many images is larger than another, by so much; `images` may be a pair, one number for each.

    The two count as independent, which overestimates the spread where they come from the same images.

    Examples
    --------
    >>> verdict(above(0.8, 0.7, 1000)), verdict(above(0.72, 0.7, 1000)), verdict(above(0.7, 0.7, 1000, by=0.1))
    ('holds', 'undecided', 'does not hold')
    """
    of_a, of_b = images if isinstance(images, tuple) else (images, images)
    return Margin(np.asarray(a) - np.asarray(b) - by, np.hypot(share_half(a, of_a), share_half(b, of_b)))


def at_least(share: Any, limit: Any, images: Any) -> Margin:
    """A share of so many images reaches a limit."""
    return Margin(np.asarray(share) - limit, share_half(share, images))


def larger(a: tuple[Any, Any], b: tuple[Any, Any], by: Any = 0.0) -> Margin:
    """A value is larger than another, by so much; each is a pair of the value and half its interval."""
    return Margin(np.asarray(a[0]) - np.asarray(b[0]) - by, np.hypot(np.nan_to_num(a[1]), np.nan_to_num(b[1])))


def covariance(spread: Any, values: Floats) -> Floats:
    """Covariance (n, n) of some values, from that itself or from half their 95 % intervals, (n,) or one for all."""
    known: Floats = np.nan_to_num(np.asarray(spread, dtype=float))
    return known if known.ndim == 2 else np.diag((np.broadcast_to(known, values.shape) / 1.96) ** 2)


def least_among(values: Any, spread: Any, places: Iterable[int]) -> Margin:
    """The least of some values is at one of these places: by how much each value elsewhere is larger.

    Parameters
    ----------
    spread
        As for `covariance`.

    Examples
    --------
    >>> least_among([3.0, 1.0, 2.0], [0.1, 0.1, 0.1], [1]).value
    array([2., 1.])
    """
    values = np.asarray(values, dtype=float)
    here = np.isin(np.arange(len(values)), list(places))
    if any(np.isnan(values[part]).all() for part in (here, ~here)):
        return Margin(np.nan)
    k, others = int(np.nanargmin(np.where(here, values, np.nan))), np.flatnonzero(~here)
    variance = (of := covariance(spread, values))[k, k] + of[others, others] - of[k, others] - of[others, k]
    return Margin(values[others] - values[k], 1.96 * np.sqrt(np.maximum(variance, 0.0)))


def images_tested(tables: Tables) -> int:
    """Number of test images of a run."""
    return int(tables["images"].set_index("split").loc["test", "images"])


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
    limit
        Whether the facts bear the sentence out, and by how much: one finding, or several that it needs.
    why
        What qualifies our figure, or the limit in words; a function where it depends on the facts.
    otherwise
        Why the claim does not hold; left out where it does.
    """

    text: str
    published: str
    ours: str
    limit: "Callable[[Any], Finding | Sequence[Finding]]"
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
    once
        Whether they are about what the first seed alone has.
    """

    facts: Callable[[Tables, Any], Iterable[Facts]]
    claims: Sequence[Claim]
    once: bool = False


def evaluate(groups: Iterable[Group], tables: Tables, recipe: Any) -> pd.DataFrame:
    """Claims beside our figures: one row per claim, with claim, published, ours, verdict and why.

    With several seeds the figures are their means, and a claim is judged by what its limit comes to with each.
    """
    parts = by_seed(tables)
    mean = {name: pooled([part[name] for part in parts if name in part]) for name in tables} if len(parts) > 1 else None
    rows = []
    for group in groups:
        of_seeds = [list(group.facts(part, recipe)) for part in (parts[:1] if group.once else parts)]
        shown = of_seeds[0] if mean is None or group.once else group.facts(mean, recipe)
        for facts, *each in zip(shown, *of_seeds, strict=True):
            rows += [_judged(claim, facts, [claim.limit(f) for f in each], len(parts)) for claim in group.claims]
    return pd.DataFrame(rows)


def _judged(
    claim: Claim, facts: Facts, of_seeds: "Sequence[Finding | Sequence[Finding]]", seeds: int
) -> dict[str, str]:
    findings = over_seeds(of_seeds)
    found = verdict(findings, len(of_seeds))
    reasons = [claim.why if isinstance(claim.why, str) else claim.why(facts)]
    if found != "holds":
        reasons.append(claim.otherwise)
    texts = [words(reason, facts) for reason in reasons]
    if found == "undecided":
        texts.append(closest(findings, of_seeds))
    if len(of_seeds) < seeds:
        texts.append("one seed")
    return {
        "claim": words(claim.text, facts),
        "published": words(claim.published, facts),
        "ours": words(claim.ours, facts),
        "verdict": found,
        "why": "; ".join(text for text in texts if text),
    }


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
            return self.format_field(100 * np.asarray(value), "z.1f") + " %"
        if spec == "points":
            shares = tuple(100 * v for v in value) if isinstance(value, tuple) else 100 * value
            return self.format_field(shares, "+z.1f") + " points"
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
