"""Calibration's figures: where images leave, what that takes, and the quick run as a user types it."""

import numpy as np
import pandas as pd
import pytest
import torch

from eex.experiments.papers.calibration import (
    BATCH,
    CALIBRATIONS,
    CLAIMS,
    RECIPES,
    Outputs,
    b_alexnet,
    batch_order,
    exit_ms,
    failing,
    own_target,
)
from eex.experiments.papers.claims import by_seed, evaluate
from eex.experiments.papers.page import RESULTS
from eex.experiments.papers.paper import of_seeds, read_kept
from eex.models.network import feature_shapes

# ---- by hand


@pytest.mark.parametrize(
    ("branches", "shapes"), [(1, [(32, 32, 32), (128,)]), (2, [(32, 32, 32), (64, 16, 16), (128,)])]
)
def test_branches_stand_right_behind_the_first_relus(branches, shapes):
    net = b_alexnet("abcd", branches).eval()
    assert feature_shapes(net.stages, (3, 32, 32)) == shapes
    assert all(isinstance(stage[-1], torch.nn.ReLU) for stage in list(net.stages)[:branches])
    assert (net.partition, net.edge_exits) == (branches, branches)
    assert [tuple(out.shape) for out in net(torch.rand(3, 3, 32, 32))] == [(3, 4)] * (branches + 1)
    costs = net.costs()
    whole = 32 * 32 * 32 * 75 + 16 * 16 * 64 * 800 + 64 * 9 * (64 * 96 + 96 * 96 + 96 * 64) + 1024 * 256 + 256 * 128
    assert sum(costs.stage_macs) == whole  # the backbone is the same
    assert costs.feature_bytes[branches - 1] == 4 * np.prod(shapes[branches - 1])
    assert costs.branch_macs[0] == 16 * 16 * 32 * 9 * (32 + 32) + 32 * 8 * 8 * 4


def test_what_a_frame_takes():
    times = pd.DataFrame({"stage_ms": [1.0, 2.0, 4.0], "exit_ms": [0.1, 0.2, 0.4], "bytes": [0, 18_800, 0]})
    # 18,800 bytes are 150,400 bits: 8 ms at 18.8 Mbit/s
    assert exit_ms(times).tolist() == pytest.approx([1.1, 3.3, 3.3 + 8 + 4.4])


OUTPUTS = Outputs(
    temperature=(2.0, 1.0),
    confidence={
        "conventional": np.array([[0.9, 0.5], [0.8, 0.5], [0.6, 0.5]]),
        "calibrated": np.array([[0.7, 0.5], [0.6, 0.5], [0.5, 0.5]]),
    },
    prediction=np.array([[0, 1], [1, 1], [1, 0]]),
    label=np.array([0, 0, 0]),
    validation_accuracy=(0.5, 0.5),
)


@pytest.mark.parametrize(
    ("calibration", "p_tar", "exits", "right"),
    [
        ("conventional", 0.7, [0, 0, 1], [True, False, True]),
        ("calibrated", 0.7, [0, 1, 1], [True, False, True]),
        ("conventional", 0.95, [1, 1, 1], [False, False, True]),
    ],
)
def test_where_images_leave(calibration, p_tar, exits, right):
    exit, correct = OUTPUTS.leave(calibration, p_tar)
    assert exit.tolist() == exits
    assert correct.tolist() == right


def test_batches_are_drawn_without_repetition():
    order = batch_order(1100, draws=3, seed=0)
    assert len(order) == 3 * 2 * BATCH
    assert all(len(set(part)) == 2 * BATCH for part in order.reshape(3, -1).tolist())


@pytest.mark.parametrize("p_tar", [0.78, 0.8, 0.82])
def test_how_well_the_probability_of_an_outage_is_known(p_tar):
    rng = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(300):  # other images: 2,000 of which 80 % are right
        right = rng.random(2000) < 0.8
        added = failing(np.where(right, 1 - p_tar, -p_tar), batch=100)
        found.append(added.mean())
        expected.append(added.std() / 2000**0.5)
    batches = rng.random((50_000, 100)) < 0.8
    assert np.mean(found) == pytest.approx((batches.mean(axis=1) < p_tar).mean(), abs=0.06)  # counts are whole numbers
    assert np.mean(expected) == pytest.approx(np.std(found), rel=0.15)  # to first order


def test_scores_that_are_all_alike_always_fail_or_never():
    assert failing(np.full(10, -0.1)).tolist() == [1.0] * 10
    assert failing(np.zeros(10)).tolist() == [0.0] * 10


def test_seeds_whose_own_targets_differ_are_judged_together():
    kept = by_seed(read_kept(RESULTS / "calibration")[1])[0]
    own, parts = own_target(kept), []
    for shift in (0.0, 0.0013, -0.004):
        part = {name: rows.copy() for name, rows in kept.items()}
        for name in ("deadlines", "differences"):
            part[name].loc[np.isclose(part[name]["p_tar"], own), "p_tar"] += shift
        part["exits"]["validation_accuracy"] += shift
        parts.append(part)
    claims = evaluate(CLAIMS, of_seeds(parts), RECIPES["standard"])
    assert len(claims) == len(evaluate(CLAIMS, kept, RECIPES["standard"]))
    assert claims["claim"].str.contains(f"p_tar {own - 0.0009:.3g}").any()  # the mean of theirs


# ---- the quick run


@pytest.fixture(scope="module")
def quick(paper):
    return paper("calibration", stop_at="two-branches: epoch 1/2")


def test_an_interrupted_run_goes_on_where_it_was(quick):
    assert set(quick.kept) == {"one-branch.safetensors"}
    assert quick.goes_on()


def test_quick_run_leaves_tables(quick):
    exits = pd.read_csv(quick.out / "exits.csv")
    assert len(exits) == 2 + 3
    cloud = exits.groupby("network").tail(1)
    assert (cloud["temperature"] == 1).all()
    assert (cloud["ece_conventional"] == cloud["ece_calibrated"]).all()
    diagrams = pd.read_csv(quick.out / "reliability.csv")
    assert (diagrams.groupby(["network", "exit", "calibration"])["images"].sum() == 600).all()
    targets = pd.read_csv(quick.out / "targets.csv")
    assert set(targets["calibration"]) == set(CALIBRATIONS)
    assert (targets["batches"] == 5 * 1).all()
    for _, rows in targets.groupby(["network", "calibration"]):
        assert rows.sort_values("p_tar")["device_probability"].is_monotonic_decreasing
    changes = pd.read_csv(quick.out / "differences.csv").set_index(["case", "quantity", "p_tar"])["difference"]
    at = targets[targets["network"] == "one branch"].set_index(["calibration", "p_tar"])["accuracy"]
    between = changes["one branch, calibrated less conventional", "accuracy", 0.8]
    assert between == pytest.approx(at["calibrated", 0.8] - at["conventional", 0.8], abs=1e-5)
    times = pd.read_csv(quick.out / "times.csv")
    assert times["bytes"].tolist() == [131_072, 0, 0, 65_536, 0]
    deadlines = pd.read_csv(quick.out / "deadlines.csv")
    for _, rows in deadlines.groupby(["network", "calibration", "p_tar"]):
        missed = rows.sort_values("t_tar_ms")["missed"]
        assert missed.is_monotonic_decreasing
        assert missed.iloc[0] == 1


@pytest.mark.parametrize(
    "name",
    [
        "reliability", "fig2-device-probability", "fig3a-accuracy-confidence", "fig3b-device-accuracy",
        "fig3c-accuracy", "fig4-7-outage", "fig5-missed-deadline", "fig6-missed-deadline",
    ],
)  # fmt: skip
def test_quick_run_leaves_figures(quick, name):
    assert (quick.out / f"{name}.png").stat().st_size > 5000


def test_quick_run_prints_claims_and_makes_none(quick):
    assert "claim nothing" in quick.output
    assert "0 calibrated, 0.4" in quick.output
    assert "verdict" not in quick.output.split("published")[0]


def test_a_second_start_does_nothing_anew(quick):
    assert quick.again() == quick.times()
