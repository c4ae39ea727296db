"""Paper strategies: the quick command as a user types it, and what its figures are computed by."""

import numpy as np
import pandas as pd
import pytest

from eex.experiments.papers.strategies import (
    METHODS,
    STRUCTURES,
    Scored,
    _auc,
    accuracy_at,
    cheapest,
    cost_at,
    costs_alike,
    difference,
    leaves,
    middle,
    overthought,
    redrawn,
    trade,
    trades,
)


@pytest.fixture(scope="module")
def quick(paper):
    return paper("strategies")


def test_quick_run_writes_tables_and_figures(quick):
    for name in ("methods", "overthinking", "structures", "placements", "rules", "rules-gain"):
        assert (quick.out / f"{name}.png").stat().st_size > 10_000
    assert len(pd.read_csv(quick.out / "claims.csv")) == 23


def test_rows_are_sane(quick):
    methods = pd.read_csv(quick.out / "methods.csv")
    assert set(methods["method"]) == set(METHODS)
    assert methods[["accuracy", "train_accuracy", "as_final", "right_here_wrong_at_end"]].stack().between(0, 1).all()
    last = methods[methods["exit"] == methods["exit"].max()]
    assert (last["as_final"] == 1).all()
    assert (last["right_here_wrong_at_end"] == 0).all()
    over = pd.read_csv(quick.out / "overthinking.csv")
    assert np.allclose(over["final"] + over["overthought"], over["oracle"], atol=1e-5)
    assert np.allclose(over["early_accuracy"] - over["final"], over["rescued"] - over["harmed"], atol=1e-5)
    structures = pd.read_csv(quick.out / "structures.csv")
    assert set(structures["structure"]) == set(STRUCTURES)
    assert structures["backbone_accuracy"].nunique() == 1  # it is frozen
    gates = pd.read_csv(quick.out / "gates.csv")
    assert gates["kept"].sum() == 3
    assert gates["stopped"].sum() == pytest.approx(1, abs=1e-4)
    assert gates.loc[gates["kept"], "stopped"].min() >= gates.loc[~gates["kept"], "stopped"].iloc[:-1].max()
    energy = pd.read_csv(quick.out / "energy.csv")
    assert energy["meter"].notna().all()
    assert energy["macs"].min() > 0


def test_differences_on_the_same_images_are_those_of_the_curves(quick):
    placements, rules = (pd.read_csv(quick.out / f"{name}.csv") for name in ("placements", "rules"))
    _, costs = costs_alike(dict(iter(placements.groupby("placement"))))
    places = pd.read_csv(quick.out / "places.csv").set_index("placement")["after"]
    for row in pd.read_csv(quick.out / "placement_pairs.csv").itertuples():
        if places[row.placement] == places[row.less]:
            assert np.isnan(row.difference)
        else:
            assert row.difference == pytest.approx(costs[row.placement] - costs[row.less], rel=1e-3, abs=1)
            assert row.half > 0
    curves = dict(iter(rules.groupby(["condition", "rule"])))
    gains = pd.read_csv(quick.out / "rule_gains.csv")
    for row in gains[gains["condition"] != "all"].itertuples():
        at = [accuracy_at(curves[row.condition, rule], middle(rules)) for rule in (row.rule, "confidence")]
        assert row.gain == pytest.approx(at[0] - at[1], abs=1e-5)
        assert row.half > 0
    means = gains[gains["condition"] != "all"].groupby("rule")["gain"].mean()
    every = gains[gains["condition"] == "all"].set_index("rule")["gain"]
    np.testing.assert_allclose(every[means.index], means, atol=1e-6)


def test_two_stage_training_leaves_the_backbone_alone(quick):
    phases = pd.read_csv(quick.out / "phases.csv")
    two = phases[phases["method"] == "two-stage"].set_index("phase")["final_accuracy"]
    assert two["backbone"] == two["branches"]


def test_second_start_does_nothing_anew(quick):
    assert quick.again() == quick.times()


SCORE = np.array([[0.9, 0.1], [0.4, 0.8], [0.3, 0.2]])
RIGHT = np.array([[True, True, False], [False, True, True], [False, False, True]])
SCORED = Scored(SCORE, RIGHT, [1, 2, 4])


def test_leaves_by_hand():
    assert leaves(SCORE, 0.5).tolist() == [0, 1, 2]
    assert leaves(SCORE, 0.95).tolist() == [2, 2, 2]
    assert leaves(SCORE, 0.0).tolist() == [0, 0, 0]


def test_trade_by_hand():
    curve = trade(SCORED, points=2)  # thresholds: the least and the greatest score, and none
    assert curve["macs"].tolist() == pytest.approx([1, 3, 4])
    assert curve["accuracy"].tolist() == pytest.approx([1 / 3, 1, 2 / 3])
    assert curve["early"].tolist() == pytest.approx([1, 1 / 3, 0])
    assert cheapest(curve, lost=0) == pytest.approx(0.9)
    assert cheapest(curve, lost=0.5) == pytest.approx(0.1)


def test_trades_of_selections_of_the_images():
    first, twice = trades(SCORED, np.array([[1.0, 0, 0], [2, 2, 2]]), points=2)
    assert first["macs"].tolist() == [1, 1, 4]
    assert first["accuracy"].tolist() == [1, 1, 0]
    pd.testing.assert_frame_equal(twice, trade(SCORED, points=2))
    counts = redrawn(50, draws=3)
    assert (counts.sum(axis=1) == 50).all()
    assert (counts == redrawn(50, draws=3)).all()  # the same images for every network
    assert counts.max() > 1


def test_cost_and_accuracy_between_points():
    curve = pd.DataFrame({"macs": [1.0, 3.0, 2.0], "accuracy": [0.5, 0.9, 0.6]})
    assert cost_at(curve, 0.75) == pytest.approx(2.5)
    assert cost_at(curve, 0.4) == 1.0
    assert np.isnan(cost_at(curve, 0.95))
    assert accuracy_at(curve, 1.5) == pytest.approx(0.55)


def test_overthought_by_hand():
    assert overthought(RIGHT) == pytest.approx({"final": 2 / 3, "overthought": 1 / 3, "oracle": 1.0})


def test_difference_by_hand():
    a, b = np.array([1, 1, 1, 0], dtype=bool), np.array([1, 0, 0, 0], dtype=bool)
    mean, half = difference(a, b)
    assert mean == 0.5
    assert half == pytest.approx(1.96 * np.sqrt(1 / 3) / 2)


def test_auc_by_hand():
    assert _auc(np.array([[0.9], [0.8], [0.1]]), np.array([[True], [False], [True]])) == 0.5
    assert _auc(np.array([[0.9], [0.1]]), np.array([[True], [False]])) == 1.0
