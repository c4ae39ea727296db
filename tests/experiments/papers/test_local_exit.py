"""Paper local-exit: the quick run as a user starts it, and what its figures are made of, by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from eex.experiments.papers.local_exit import (
    DROP_ABOVE,
    EXITS,
    NAMES,
    RECIPES,
    THRESHOLDS,
    WEIGHTINGS,
    Spread,
    at_threshold,
    entropies,
    least_at,
    network,
    one_exit,
    plan,
    rising,
    trend,
    with_dropping,
)
from eex.models.card import load, save


@pytest.fixture(scope="module")
def quick(paper):
    return paper("local-exit", stop_before="sem-2")


def test_an_interrupted_run_goes_on_where_it_was(quick):
    assert set(quick.kept) == {"sem-1.safetensors"}
    assert quick.goes_on()


def test_quick_says_what_it_did(quick):
    out = quick.out
    assert "SEM-3" in quick.output
    assert "claim nothing" in quick.output
    assert "verdict" not in quick.output
    assert sorted(p.name for p in out.glob("*.png")) == [
        "dropped.png",
        "fig10-final.png",
        "fig5-6-accuracy.png",
        "fig5-6-latency.png",
        "fig5-6-overall-latency.png",
        "fig7-8-latency.png",
        "fig7-thresholds-sem.png",
        "fig8-thresholds-mem.png",
        "fig9-epochs.png",
        "weights.png",
    ]
    claims = pd.read_csv(out / "claims.csv")
    assert len(claims) >= 20
    assert json.loads((out / "run.json").read_text())["paper"] == "local-exit"


def test_quick_accuracy_and_drops(quick):
    out, recipe = quick.out, RECIPES["quick"]
    accuracy = pd.read_csv(out / "accuracy.csv")
    assert len(accuracy) == (1 + len(recipe.weightings)) * EXITS * len(THRESHOLDS)
    mixed = accuracy["local"] * accuracy["edge_accuracy"].fillna(0) + (1 - accuracy["local"]) * accuracy[
        "cloud_accuracy"
    ].fillna(0)
    np.testing.assert_allclose(accuracy["accuracy"], mixed, atol=1e-4)
    by_exit = accuracy.sort_values("threshold").groupby(["model", "weighting", "exit"])["local"]
    assert by_exit.apply(lambda shares: shares.is_monotonic_increasing).all()
    dropped = pd.read_csv(out / "dropped.csv")
    assert sorted(set(dropped["drop_above"])) == list(DROP_ABOVE)
    none = dropped[dropped["drop_above"] == 1]
    assert (none["dropped"] == 0).all()
    at = accuracy[(accuracy["threshold"] == 0.3) & (accuracy["weighting"] == "equal")]
    np.testing.assert_allclose(none["accuracy_all"], at["accuracy"], atol=1e-5)


def test_quick_shares_of_the_same_images_vary_together(quick):
    images = pd.read_csv(quick.out / "images.csv").set_index("split").at["test", "images"]
    table = pd.read_csv(quick.out / "covariance.csv")
    covariance = table.set_index("share")
    assert list(covariance) == list(covariance.index)
    final = pd.read_csv(quick.out / "final.csv").set_index(["model", "weighting", "exit"])
    right = final.loc["SEM", "equal", 3]["edge"]
    assert covariance.at["SEM-3 edge", "SEM-3 edge"] == pytest.approx(right * (1 - right) / (images - 1), rel=0.01)
    spread = Spread({"covariance": table})
    margin = spread.above(0.5, 0.4, "SEM-3 edge", "SEM-3 edge", by=0.1)
    assert margin.value == pytest.approx(0.0)
    assert margin.half == pytest.approx([0.0])
    apart = spread.above(0.5, 0.4, "SEM-3 accuracy", "SEM-4 accuracy").half[0]
    alone = [1.96 * covariance.at[f"SEM-{k} accuracy", f"SEM-{k} accuracy"] ** 0.5 for k in (3, 4)]
    assert apart < np.hypot(*alone)  # both are right about the same images more often than not


def test_values_rise_beyond_what_they_may_vary_by():
    values = np.linspace(0.5, 0.6, 8)
    assert rising(values, np.zeros((8, 8))).half == 0.0
    loose, together = np.eye(8) * 0.05**2, np.full((8, 8), 0.05**2)
    assert rising(values, loose).half > 0.1
    assert rising(values, together).half == pytest.approx(0.0, abs=1e-6)  # all move up and down as one


def test_rounds_that_are_slow_throughout_decide_as_the_others_do():
    slow = np.array([[0.0], [5.0], [1.0]])  # a machine that is busy in one round
    measured = pd.DataFrame(np.linspace(2, 1, 8) + slow)
    margin = least_at(measured, [7])
    assert margin.value == pytest.approx(np.arange(7, 0, -1) / 7)
    assert margin.half == pytest.approx(np.zeros(7), abs=1e-6)
    noisy = measured.copy()
    noisy.loc[1, 7] += 1
    assert (least_at(noisy, [7]).half > 1 / 7).all()
    assert np.isnan(least_at(pd.DataFrame(np.full((3, 8), np.nan)), [0]).value)


def test_quick_latencies_of_three_processes(quick):
    out = quick.out
    recipe, latency = RECIPES["quick"], pd.read_csv(out / "latency.csv")
    settings = len(recipe.thresholds) + 1 + len(recipe.edges) - 1
    assert len(latency) == 2 * EXITS * settings * recipe.rounds
    assert (latency["agrees"] >= 0.95).all()
    assert (latency["fallback"] == 0).all()
    assert (latency["overall_ms"] > 0).all()
    both = latency.dropna(subset=["edge_ms", "cloud_ms"])
    assert len(both)
    # local answers do not wait for the cloud's; medians, since single rounds differ on a busy machine
    assert both["edge_ms"].median() < both["cloud_ms"].median()
    assert (latency.loc[latency["drop_above"] < 1, "dropped"] > 0).any()
    assert (latency["peak_mb"] > 50).all()
    linked = {edge.name for edge in recipe.edges if edge.link}
    over = latency[latency["edge"].isin(linked)]
    assert (over["cloud_ms"].dropna() >= 12).all()  # the link's round trip
    claims = pd.read_csv(out / "claims.csv")["claim"]
    assert claims.str.contains("over the emulated link sao-paulo").sum() == 4


def test_a_second_start_does_nothing_anew(quick):
    assert quick.again() == quick.times()


# ---- by hand


def test_entropy_of_equal_and_of_certain_probabilities():
    logits = torch.tensor([[[0.0, 0, 0, 0], [100, 0, 0, 0], [0, 0, 50, 50]]])  # (1 exit, 3 frames, 4 classes)
    entropy, prediction = entropies(logits)
    np.testing.assert_allclose(entropy[0], [1, 0, 0.5], atol=1e-12)  # ln 2 / ln 4
    assert prediction[0, 1] == 0


ENTROPY = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
LOCAL = np.array([True, True, False, False, False])
CLOUD = np.array([False, True, True, True, False])


def test_at_threshold():
    found = at_threshold(ENTROPY, LOCAL, CLOUD, 0.3)  # an entropy that equals T is sent
    assert found == {"local": 0.2, "edge_accuracy": 1.0, "cloud_accuracy": 0.75, "accuracy": 0.8}
    assert np.isnan(at_threshold(ENTROPY, LOCAL, CLOUD, 0.05)["edge_accuracy"])


def test_with_dropping():
    found = with_dropping(ENTROPY, LOCAL, CLOUD, 0.3, 0.6)
    assert found == {"dropped": 0.4, "cloud_saved": 0.5, "accuracy_answered": 1.0, "accuracy_all": 0.6, "lost": 0.5}
    untouched = with_dropping(ENTROPY, LOCAL, CLOUD, 0.3, 1.0)
    assert (untouched["dropped"], untouched["accuracy_all"]) == (0, 0.8)


def test_trend_leaves_out_what_is_not_there():
    assert trend([1, 3, 5]) == 1
    assert trend([5, float("nan"), 1]) == -1
    assert trend([2, 2, 2]) == 0
    assert trend([float("nan")]) == 0


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_have_mean_one(name):
    weights = WEIGHTINGS[name](EXITS + 1)
    assert len(weights) == EXITS + 1
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert min(weights) > 0


def test_plan_names_every_training_once():
    names = [name for name, *_ in plan(RECIPES["reduced"])]
    assert len(set(names)) == len(names) == EXITS + 3
    assert set(NAMES) == {"local", "edge_accuracy", "cloud_accuracy", "accuracy"}


@pytest.mark.parametrize("exit", [1, 4, 8])
def test_one_exit_of_several_says_what_it_said(exit, tmp_path):
    torch.manual_seed(0)
    net = network("abc", range(1, 9), width=4, stride=2)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
    net.eval()
    images = torch.rand(5, 3, 32, 32)
    alone = one_exit(net, exit)
    save(alone, tmp_path, half=False)
    loaded = load(tmp_path)
    assert loaded.fingerprint == alone.fingerprint
    assert loaded.architecture.confidence == "entropy"
    with torch.no_grad():
        whole, part = net(images), loaded(images)
    torch.testing.assert_close(part[0], whole[exit - 1])
    torch.testing.assert_close(part[1], whole[-1])
