"""DEEx's figures: where frames go, the crossing, and the quick run as a user types it."""

import numpy as np
import pandas as pd
import pytest

from eex.experiments.papers.deex import cross, rivals
from eex.experiments.papers.paper import routed
from eex.policies.algorithms.deex import DEEx

CONFIDENCE = np.array([[0.9, 0.6, 0.99], [0.4, 0.95, 0.8], [0.7, 0.7, 0.7], [0.2, 0.3, 0.4]])
PREDICTION = np.array([[0, 1, 2]] * 4)


@pytest.mark.parametrize(
    ("p_d", "exits"), [(0.0, [1, 1, 1, 1]), (0.5, [1, 2, 1, 2]), (0.8, [1, 2, 2, 2]), (1.0, [2, 2, 2, 2])]
)
def test_p_d_decides_at_the_first_exit(p_d, exits):
    exit, said, _ = routed(DEEx(p_d=p_d, exits=2), CONFIDENCE, PREDICTION)
    assert exit.tolist() == exits
    assert said.tolist() == exits  # each exit answers with its own number


def test_extended_sends_on_what_branch_two_is_unsure_of():
    exit, said, _ = routed(DEEx(p_d=0.3, p_tar=0.65, extended=True, exits=2), CONFIDENCE, PREDICTION)
    assert exit.tolist() == [2, 1, 1, 2]
    assert said.tolist() == [2, 1, 1, 2]


def test_the_crossing_is_where_branch_two_comes_to_be_the_better_one():
    rows = pd.DataFrame(
        {
            "p_d": [0.0, 0.25, 0.5, 0.75, 1.0],
            "accuracy_2": [0.7, 0.8, 0.8, 0.9, np.nan],
            "accuracy_3": [np.nan, 0.1, 0.85, 0.9, 0.91],
            "ratio_2": [1.0, 0.999, 0.5, 0.4, 0.0],
            "ratio_3": [0.0, 0.001, 0.5, 0.6, 1.0],
        }
    )
    assert cross(rows, 1000) == 0.75  # at 0.25 a single image went on
    assert cross(rows, 30_000) == 0.25
    assert np.isnan(cross(rows.assign(accuracy_2=0.05), 1000))


@pytest.fixture(scope="module")
def quick(paper):
    return paper("deex", stop_before="full")


def test_an_interrupted_run_goes_on_where_it_was(quick):
    assert set(quick.kept) == {"binary.safetensors"}
    assert quick.goes_on()


def test_quick_run_leaves_tables_and_figures(quick):
    for name in ("fig3-ratio", "fig4-time", "fig5-accuracy", "fig6-confusion-binary", "fig7-confusion-full", "learned"):
        assert (quick.out / f"{name}.png").stat().st_size > 5000
    answers = pd.read_csv(quick.out / "answers.csv")
    assert np.allclose(answers["ratio_2"] + answers["ratio_3"], 1)
    first, last = answers[answers["p_d"] == 0], answers[answers["p_d"] == 1]
    assert (first["ratio_2"] == 1).all()
    assert (last["ratio_3"] > 0.95).all()  # a confidence may round to 1
    times = pd.read_csv(quick.out / "times.csv")
    assert set(times["batch"]) == {1, 128}
    assert {0.75, 0.85} <= set(times["p_d"])  # the paper's crossings
    sent = pd.read_csv(quick.out / "partitioned.csv")
    assert (sent["fallback"] == 0).all()
    assert sent.groupby("p_d")["offloaded"].mean().is_monotonic_increasing
    best, rival = rivals(pd.read_csv(quick.out / "more_branches.csv"))
    pairs = pd.read_csv(quick.out / "more_pairs.csv").set_index("what")["difference"]
    assert pairs["macs"] == pytest.approx(best["macs"] - rival["macs"], rel=1e-3, abs=50)
    assert pairs["accuracy"] == pytest.approx(best["accuracy"] - rival["accuracy"], abs=1e-5)
    confusion = pd.read_csv(quick.out / "confusion.csv")
    assert set(confusion.groupby(["dataset", "case"])["count"].sum()) <= {120, 600}


def test_quick_run_prints_claims_and_makes_none(quick):
    assert "claim nothing" in quick.output
    assert "41.0 %" in quick.output
    assert "verdict" not in quick.output.split("published")[0]


def test_a_second_start_does_nothing_anew(quick):
    assert quick.again() == quick.times()
