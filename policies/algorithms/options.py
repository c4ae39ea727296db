"""Checks of options that several policies take: each raises an `EexError` of one line if the value is out of range."""

from collections.abc import Sequence

import numpy as np

from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError


def thresholds(grid: Sequence[float]) -> Floats:
    """A grid of thresholds as an array, if there are any and all lie in [0, 1]."""
    array = np.asarray(grid, dtype=float)
    if not array.size or not np.all((array >= 0) & (array <= 1)):
        raise EexError(f"grid must hold thresholds in [0, 1], got {list(grid)}")
    return array


def share(name: str, value: float) -> None:
    """A number in (0, 1]."""
    if not 0 < value <= 1:
        raise EexError(f"{name} must lie in (0, 1], got {value:g}")


def positive(name: str, value: float) -> None:
    """A finite number above 0."""
    if not 0 < value < np.inf:
        raise EexError(f"{name} must be above 0, got {value}")


def not_negative(name: str, value: float) -> None:
    """A finite number of at least 0."""
    if not 0 <= value < np.inf:
        raise EexError(f"{name} must be 0 or more, got {value}")


def at_least(name: str, value: int, least: int) -> None:
    """A number of at least `least`."""
    if value < least:
        raise EexError(f"{name} must be at least {least}, got {value}")
