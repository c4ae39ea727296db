"""Verdicts by hand: beyond the spread, within it, and what claims compare."""

import numpy as np
import pandas as pd
import pytest

from eex.experiments.papers.claims import (
    Claim,
    Facts,
    Group,
    Margin,
    above,
    at_least,
    by_seed,
    closest,
    evaluate,
    images_tested,
    larger,
    least_among,
    over_seeds,
    pooled,
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
    assert closest([True, Margin([0.5, 0.1, -0.2], [0.1, 0.2, 0.3])]) == "the limit is missed by 0.2 ± 0.47"
    assert closest(Margin(np.nan)) == "nothing was measured that could decide it"


def test_shares_spread_with_the_number_of_images():
    assert share_half(0.5, 10_000) == pytest.approx(0.0098, abs=1e-5)
    assert 0.3 < share_half(1.0, 3) < 0.4  # three right of three say little
    assert verdict(at_least(1.0, 0.8, 3)) == "undecided"
    assert verdict(above(0.72, 0.7, 1000)) == "undecided"
    assert verdict(above(0.72, 0.7, 100_000)) == "holds"
    assert above(0.8, 0.5, (np.inf, 100)).half == pytest.approx(0.0961, abs=1e-4)
    series = pd.Series([0.9, 0.4], index=[7, 8])
    assert verdict(at_least(series, 0.3, pd.Series([10_000, 10_000], index=[7, 8]))) == "holds"


def test_measured_values_spread_with_their_repetitions():
    assert verdict(larger((3.0, 0.5), (2.0, 0.5))) == "holds"
    assert verdict(larger((3.0, 1.0), (2.0, 0.5))) == "undecided"
    assert verdict(larger((3.0, 0.1), (2.0, 0.1), by=2)) == "does not hold"


def test_where_the_least_is():
    margin = least_among([3.0, 1.0, 2.0], 0.1, [0])
    assert margin.value.tolist() == [-2.0, -1.0]
    assert margin.half == pytest.approx([0.1 * 2**0.5] * 2)
    assert verdict(least_among([np.nan, 1.0, 1.1], 0.5, [1])) == "undecided"
    assert verdict(least_among([np.nan, 1.0], 0.5, [0])) == "undecided"
    assert verdict(least_among([5.0, 1.0, 9.0], 0.5, [0, 1])) == "holds"


def test_one_of_many_equal_values_is_not_the_least_by_chance_alone():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        wrong += verdict(least_among(rng.normal(size=8), 1.96, [0])) == "does not hold"
    assert wrong <= 0.025 * 400


def test_images_tested():
    assert images_tested({"images": pd.DataFrame({"split": ["train", "test"], "images": [9, 4]})}) == 4


def judged(*right: float) -> pd.Series:
    """A claim over a table of several seeds, that so many images are answered right."""

    def facts(tables, recipe):
        yield Facts(right=tables["found"]["right"].iloc[0])

    rows = pd.DataFrame({"exit": 1, "right": right, "seed": range(len(right))})
    claim = Claim("c", "60 %", "{right:%}", lambda f: at_least(f.right, 0.6, 1_000_000))
    return evaluate([Group(facts, [claim])], {"found": rows}, None).iloc[0]


def test_a_claim_within_the_spread_of_the_seeds_is_undecided():
    assert judged(0.7, 0.71, 0.69)["verdict"] == "holds"
    assert judged(0.5, 0.51, 0.49)["verdict"] == "does not hold"
    within = judged(0.7, 0.9, 0.5)
    assert within["verdict"] == "undecided"
    assert within["ours"] == "70.0 %"
    # Student's t of two degrees of freedom: 4.303 x 0.2 / 3^0.5
    assert within["why"] == "the limit is kept by 0.1 ± 0.5 (2 of 3 seeds keep it)"


def test_what_the_first_seed_alone_has_is_judged_by_it():
    def facts(tables, recipe):
        yield Facts(right=tables["dear"]["right"].iloc[0])

    tables = {name: pd.DataFrame({"right": 0.7, "seed": range(seeds)}) for name, seeds in (("dear", 1), ("found", 3))}
    claim = Claim("c", "60 %", "{right:%}", lambda f: at_least(f.right, 0.6, 1_000_000), "why")
    row = evaluate([Group(facts, [claim], once=True)], tables, None).iloc[0]
    assert (row["ours"], row["verdict"], row["why"]) == ("70.0 %", "holds", "why; one seed")


def test_one_of_many_margins_has_to_miss_by_more():
    many = Margin(np.array([-0.12, *[0.3] * 9]), 0.1)
    assert verdict(Margin(-0.12, 0.1)) == "does not hold"
    assert verdict(many) == "undecided"
    assert closest(many) == "the limit is missed by 0.12 ± 0.2"  # Student's t of four degrees: 99.75 % for 97.5 %
    assert verdict(Margin(np.array([-0.25, *[0.3] * 9]), 0.1)) == "does not hold"
    assert verdict(Margin(np.full(10, 0.11), 0.1)) == "holds"


def test_few_seeds_have_to_miss_by_more():
    many = Margin(np.array([-0.25, *[0.3] * 9]), 0.1)
    assert verdict(many, seeds=10) == verdict(many) == "does not hold"
    assert verdict(many, seeds=3) == "undecided"  # Student's t of two degrees: 14.1 for 4.3


def test_what_one_seed_alone_could_measure_decides_nothing():
    found = over_seeds([Margin(0.1, 0.05), Margin(np.nan), Margin(np.nan)])
    assert verdict(found, 3) == "undecided"
    assert closest(found, [True] * 3) == "only one seed could be measured"


def test_facts_that_differ_between_seeds_decide_nothing():
    assert verdict(over_seeds([True, True, True])) == "holds"
    assert verdict(over_seeds([True, False, True])) == "undecided"
    assert verdict(over_seeds([Margin([0.3, np.nan]), Margin([0.3, -0.3]), Margin([0.3, 0.1])])) == "undecided"


def test_findings_of_another_shape_are_judged_by_what_misses_most():
    findings = [[Margin(0.2, 0.1)], [Margin([0.9, 0.2, np.nan], 0.1), True]]
    assert verdict(over_seeds(findings)) == "holds"
    assert verdict(over_seeds([*findings, False])) == "undecided"
    many = [Margin([-0.3, *[0.1] * n], 0.2) for n in (98, 99)]
    assert verdict(over_seeds(many), 2) == "undecided"  # as it is of one seed


def test_the_measured_spread_stays_beside_the_seeds():
    assert verdict(over_seeds([Margin(0.1, 0.2), Margin(0.1, 0.2)])) == "undecided"


def test_rows_of_seeds_are_told_apart_by_texts_and_order():
    one = {"name": ["a", "a", "b"], "exit": [1, 2, 1], "p": [0.1, 0.1, np.nan], "kept": [True, False, True]}
    other = {"name": ["b", "a", "a"], "exit": [1, 1, 2], "p": [0.4, 0.2, 0.1], "kept": [True, True, False]}
    parts = [pd.DataFrame(one), pd.DataFrame(other)]
    found = pooled(parts, spread="p")
    assert found["name"].tolist() == ["a", "a", "b"]
    assert found["exit"].tolist() == [1, 2, 1]
    assert found["exit"].dtype.kind == "i"
    assert found["p"].tolist() == [pytest.approx(0.15), 0.1, 0.4]
    assert found["kept"].tolist() == [True, False, True]
    assert found["half"].tolist() == [pytest.approx(12.706 * 0.05, rel=1e-3), 0, 0]


def test_tables_without_seeds_are_of_one():
    tables = {"a": pd.DataFrame({"seed": [0, 1]}), "images": pd.DataFrame({"split": ["test"]})}
    assert by_seed(tables) == [tables]
