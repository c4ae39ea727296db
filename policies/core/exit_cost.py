"""What edge exits cost, as a user states it: one price, one per further exit, or in proportion to the stages' work."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eex.policies.core.base import ExitCost, Floats
from eex.policies.core.errors import EexError

AUTO = 0.02
"""Mean price of a further edge exit under `auto`, unless another is given."""


class ExitPrices(NamedTuple):
    """Prices of the further edge exits as they were stated.

    Attributes
    ----------
    each
        One number for all, or one per further exit.
    auto
        Whether the number is their mean, to be shared out in proportion to the work.

    Examples
    --------
    >>> parse_exit_cost("auto:0.03").of(3, [10.0, 20.0, 40.0])
    array([0.02, 0.04])
    """

    each: tuple[float, ...]
    auto: bool = False

    def of(self, exits: int, work: Sequence[float] | None = None) -> ExitCost:
        """The price of each further exit of a network with this many edge exits.

        Parameters
        ----------
        work
            Work from each edge exit's predecessor to the exit, (exits,), in any unit.

        Raises
        ------
        EexError
            If there are more or fewer prices than further edge exits, or the work is unknown for `auto`.
        """
        if self.auto and exits > 1:
            further = np.zeros(0) if work is None else np.asarray(work, dtype=float)[1:exits]
            if len(further) != exits - 1:
                raise EexError("exit cost 'auto' needs the times or multiply-adds of the stages, which are not known")
            mean = further.mean()
            prices: Floats = np.minimum(self.each[0] * (further / mean if mean > 0 else np.ones(exits - 1)), 1.0)
            return prices
        if len(self.each) == 1:
            return self.each[0]
        if len(self.each) != exits - 1:
            raise EexError(f"exit cost has {len(self.each)} prices; expected 1, or {exits - 1} for {exits} edge exits")
        return np.array(self.each)


def check_exit_cost(cost: ExitCost, exits: int) -> None:
    """Raise `EexError` unless these are prices of a network with so many edge exits: one, or one per further exit."""
    prices = np.asarray(cost, dtype=float)
    if prices.ndim and prices.shape != (exits - 1,):
        raise EexError(f"exit_cost must be one number, or {exits - 1}, got {cost}")
    if not ((prices >= 0) & (prices <= 1)).all():
        raise EexError(f"exit_cost must lie in [0, 1], got {cost}")


def written(cost: ExitCost) -> str:
    """An exit cost as `parse_exit_cost` reads it.

    >>> written(0.25), written(np.array([0.01, 0.03]))
    ('0.25', '0.01,0.03')
    """
    return ",".join(f"{price:.6g}" for price in np.atleast_1d(cost))


def parse_exit_cost(text: float | str) -> ExitPrices:
    """Read an exit cost: a number, comma-separated ones, `auto`, or `auto:` and the mean price.

    Raises
    ------
    EexError
        If it is none of these, or a price lies outside [0, 1].

    Examples
    --------
    >>> parse_exit_cost("0.01, 0.03")
    ExitPrices(each=(0.01, 0.03), auto=False)
    """
    word = str(text).strip()
    auto = word == "auto" or word.startswith("auto:")
    numbers = (word[5:] or (f"{AUTO}" if word == "auto" else "")) if auto else word
    try:
        each = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        each = ()
    if not each or (auto and len(each) > 1) or not all(0 <= price <= 1 for price in each):
        raise EexError(
            "exit cost must lie in [0, 1], units of confidence: a number, one per further exit (0.01,0.03), 'auto', or "
            f"'auto:' and the mean price; got '{text}'"
        )
    return ExitPrices(each, auto)
