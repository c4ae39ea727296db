"""Verdicts by hand: beyond the spread, within it, and what claims compare."""

import numpy as np
import pandas as pd
import pytest

from eex.experiments.papers.claims import (
    Margin,
    above,
    at_least,
    closest,
    images_tested,
    larger,
    least_among,
    share_half,
    verdict,
)


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (True, "holds"),
        (np.False_, "does not hold"),
        (Margin(0.0), "holds"),  # a limit that is met exactly is kept
        (Margin([0.3, 0.1], [0.1, 0.2]), "undecided"),
        (Margin([0.3, -0.3], [0.1, 0.2]), "does not hold"),
        (Margin([0.3, np.nan], 0.1), "holds"),  # where there is nothing to compare
        (Margin([np.nan]), "undecided"),
        (Margin(-0.1, np.nan), "does not hold"),  # of one measurement the spread is unknown
        ([True, Margin(0.2, 0.1)], "holds"),
        ([False, Margin(0.1, 0.2)], "does not hold"),
    ],
)
def test_verdicts(findings, expected):
    assert verdict(findings) == expected


def test_what_is_undecided_is_undecided_by_the_margin_that_misses_most():
    assert closest([True, Margin([0.5, 0.1, -0.2], [0.1, 0.2, 0.3])]) == "the limit is missed by 0.2 ± 0.3"
    assert closest(Margin(np.nan)) == "nothing was measured that could decide it"


def test_shares_spread_with_the_number_of_images():
    assert share_half(0.5, 10_000) == pytest.approx(0.0098)
    assert verdict(above(0.72, 0.7, 1000)) == "undecided"
    assert verdict(above(0.72, 0.7, 100_000)) == "holds"
    assert above(0.8, 0.5, (np.inf, 100)).half == pytest.approx(0.098)
    series = pd.Series([0.9, 0.4], index=[7, 8])
    assert verdict(at_least(series, 0.3, pd.Series([10_000, 10_000], index=[7, 8]))) == "holds"


def test_measured_values_spread_with_their_repetitions():
    assert verdict(larger((3.0, 0.5), (2.0, 0.5))) == "holds"
    assert verdict(larger((3.0, 1.0), (2.0, 0.5))) == "undecided"
    assert verdict(larger((3.0, 0.1), (2.0, 0.1), by=2)) == "does not hold"


def test_where_the_least_is():
    assert least_among([3.0, 1.0, 2.0], 0.1, [0]) == Margin(-2.0, pytest.approx(0.1 * 2**0.5))
    assert verdict(least_among([np.nan, 1.0, 1.1], 0.5, [1])) == "undecided"
    assert verdict(least_among([np.nan, 1.0], 0.5, [0])) == "undecided"
    assert verdict(least_among([5.0, 1.0, 9.0], 0.5, [0, 1])) == "holds"


def test_images_tested():
    assert images_tested({"images": pd.DataFrame({"split": ["train", "test"], "images": [9, 4]})}) == 4
