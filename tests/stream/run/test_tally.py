"""Tallies: totals against pandas over the same frames, percentiles, windows that are joined, hindsight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.policies.core.references import best_fixed, oracle
from eex.stream.run.records import RecordWriter, read_records
from eex.stream.run.tally import Reference, Tally, Windows

pytestmark = pytest.mark.timeout(60)

CLASSES = ("cat", "dog", "ship", "truck")
GRID = np.round(np.arange(0, 1.01, 0.1), 2)


@given(
    st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**32)
)
@settings(max_examples=150)
def test_windows_lose_nothing(most, length, batches, seed):
    values = np.random.default_rng(seed).integers(-9, 9, (sum(batches), 2)).astype(float)
    windows = Windows(columns=2, length=length, most=most)
    at = 0
    for batch in batches:
        windows.add(np.arange(at, at + batch), values[at : at + batch])
        at += batch
        assert windows.used <= most
    assert windows.used == -(-at // windows.length)
    assert windows.length // length in {2**k for k in range(20)}
    starts = np.arange(0, at, windows.length)
    np.testing.assert_array_equal(windows.sums[: windows.used], np.add.reduceat(values, starts))
    np.testing.assert_array_equal(windows.frames[: windows.used], np.diff([*starts, at]))
    assert not windows.sums[windows.used :].any()
    assert not windows.frames[windows.used :].any()


def test_windows_take_missing_values_as_nothing():
    windows = Windows(columns=1, length=2, most=4)
    windows.add(np.arange(3), np.array([[1.0], [np.nan], [2.0]]))
    assert windows.sums[:2].ravel().tolist() == [1, 2]
    assert windows.frames[:2].tolist() == [2, 1]


def test_totals_against_the_records(tmp_path, make_rows):
    tally = Tally(3)
    with RecordWriter(tmp_path, CLASSES, ("pristine", "blur")) as writer:
        for first in range(0, 3000, 300):
            rows = make_rows(first, 300)
            tally.add(rows)
            writer.write(rows)
    tally.add(make_rows(3000, 0))
    frame = read_records(tmp_path).to_pandas()
    labelled = frame.dropna(subset="label")
    assert tally.frames == len(frame) == 3000
    assert tally.labelled == len(labelled) < 3000
    assert tally.correct == labelled["correct"].sum()
    assert tally.accuracy == pytest.approx((labelled["label"] == labelled["answer"]).mean())
    assert (tally.offloaded, tally.fallbacks) == tuple(frame[["offloaded", "fallback"]].sum())
    assert tally.rewarded == frame["reward"].count() < 3000
    assert tally.reward == pytest.approx(frame["reward"].sum())
    assert tally.mean_reward == pytest.approx(frame["reward"].mean())
    second = frame["confidence_2"].notna()
    paid = frame["overhead"].where(frame["offloaded"], 0) + 0.03 * second
    assert tally.mean_cost(0.03) == tally.mean_cost(np.array([0.03])) == pytest.approx(paid.mean(), rel=1e-6)
    assert tally.bytes == pytest.approx(frame["bytes"].sum(), rel=1e-5)
    assert tally.by_exit.tolist() == frame["exit"].value_counts().sort_index().tolist()
    np.testing.assert_allclose(tally.split_ms, frame[["edge_ms", "link_ms", "cloud_ms"]].sum(), rtol=1e-5)
    for quantile in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = frame["latency_ms"].quantile(quantile, interpolation="higher")
        assert exact * 0.99 <= tally.latency_ms(quantile) <= exact * 1.051
    curves = tally.curves()
    assert curves["start"].tolist() == list(range(0, 3000, 32))
    windows = frame.groupby(frame["frame"] // 32)
    np.testing.assert_array_equal(curves["frames"], windows.size())
    np.testing.assert_allclose(curves["reward"], windows["reward"].sum(), atol=1e-9)
    np.testing.assert_array_equal(curves["correct"], windows["correct"].sum().astype(float))
    np.testing.assert_array_equal(curves["labelled"], windows["label"].count())
    np.testing.assert_array_equal(curves["fallback"], windows["fallback"].sum())
    for e in (1, 2, 3):
        np.testing.assert_array_equal(curves[f"exit_{e}"], (frame["exit"] == e).groupby(frame["frame"] // 32).sum())


def test_totals_of_an_older_eex(make_rows):
    tally, other = Tally(3), Tally(3)
    tally.add(make_rows(0, 50))
    state = tally.state_dict()
    assert state.pop("dropped") == 0
    del state["offloading"], state["deepest"]
    other.load_state_dict(state)
    assert (other.frames, other.dropped, other.mean_cost(0.1)) == (50, 0, 0)
    with pytest.raises(ValueError, match="another network"):
        Tally(4).load_state_dict(state)


def test_nothing_yet():
    tally = Tally(3)
    assert tally.accuracy is None
    assert tally.mean_reward is None
    assert np.isnan(tally.latency_ms(0.5))
    assert len(tally.curves()["start"]) == 0


@pytest.mark.parametrize("scale", [0.05, 1.0, 300.0])
def test_latency_percentiles(make_rows, scale):
    tally, latencies = Tally(3), []
    for first in range(0, 2000, 500):
        rows = make_rows(first, 500)
        rows.latency_ms[:] = scale * np.random.default_rng(first).lognormal(0, 1, 500)
        latencies.append(rows.latency_ms)
        tally.add(rows)
    for quantile in (0.05, 0.5, 0.99):
        exact = np.quantile(np.concatenate(latencies), quantile, method="inverted_cdf")
        assert exact <= tally.latency_ms(quantile) <= 1.05 * exact


def test_threshold_for_curves(make_rows):
    rows = make_rows(0, 5)
    rows.exit_at[:] = [[0.7, 0.7, 0.7], [np.inf, 0.8, 0.8], [np.inf, 0.0, 0.0], [0.6, 0.0, 0.0], [0.0, 0.0, 0.9]]
    tally = Tally(3)
    tally.add(rows)
    assert tally.curves()["threshold"].tolist() == pytest.approx([0.7 + 0.8 + 0 + 0.6 + 0])
    assert tally.threshold == 0


def hindsight(trace, prediction, labels, names, overhead=0.1, batch=100):
    reference = Reference(trace.shape[1], overhead, GRID)
    for at in range(0, len(trace), batch):
        rows = slice(at, at + batch)
        frame = np.arange(len(trace))[rows]
        reference.add(frame, list(names[rows]), labels[rows], trace[rows], prediction[rows])
    return reference


@pytest.mark.parametrize("overhead", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_reference_against_the_full_trace(seed, overhead):
    rng = np.random.default_rng(seed)
    trace = np.sort(rng.random((1500, 3)), axis=1)  # deeper exits are surer
    prediction, labels = rng.integers(4, size=(1500, 3)), rng.integers(-1, 4, size=1500)
    names = np.where(rng.random(1500) < 0.3, "gaussian_blur", "pristine")
    reference = hindsight(trace, prediction, labels, names, overhead)
    threshold, earned = best_fixed(trace, overhead, GRID)
    assert reference.best == threshold
    curves = reference.curves()
    np.testing.assert_allclose(curves["best_fixed"].sum(), earned.sum())
    np.testing.assert_allclose(curves["best_fixed"], np.add.reduceat(earned, curves["start"].astype(int)))
    np.testing.assert_allclose(curves["oracle"].sum(), oracle(trace, overhead).sum())
    assert curves["oracle"].sum() >= curves["best_fixed"].sum()


def test_reference_by_distortion():
    trace = np.array([[0.2, 0.6], [0.4, 0.8], [0.5, 0.9]])
    prediction, labels = np.array([[1, 1], [0, 1], [2, 0]]), np.array([1, 1, 0])
    reference = hindsight(trace, prediction, labels, np.array(["pristine", "pristine", "blur"]), batch=2)
    rows = {(row["distortion"], row["exit"]): row for row in reference.rows()}
    assert len(rows) == 4
    row = rows["pristine", 1]
    assert (row["frames"], row["accuracy"], row["confidence"]) == (2, 0.5, pytest.approx(0.3))
    assert rows["pristine", 2]["accuracy"] == 1.0
    assert rows["blur", 1]["accuracy"] == 0.0
    assert rows["blur", 2]["confidence"] == pytest.approx(0.9)
