"""Calibration errors, outages and missed deadlines worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eex.policies.core.errors import EexError
from eex.policies.core.metrics import (
    device_probability,
    expected_calibration_error,
    inference_outage,
    missed_deadline,
    reliability,
)

# ---- confidence and accuracy


def test_calibration_error_by_hand():
    confidence = [0.95, 0.85, 0.55, 0.5, 0.1]
    correct = [True, False, True, False, False]
    # bins of 0.5: (0, 0.5] holds 0.5 and 0.1: mean 0.3, accuracy 0; (0.5, 1]: mean 2.35 / 3, accuracy 2 / 3
    expected = 2 / 5 * 0.3 + 3 / 5 * abs(2.35 / 3 - 2 / 3)
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(abs(2.95 / 5 - 2 / 5))
    assert expected_calibration_error(np.ones(3), np.ones(3)) == 0
    assert expected_calibration_error(np.ones(3), np.zeros(3)) == 1


def test_reliability_bins():
    found = reliability([0.0, 0.25, 0.3, 1.0], [1, 0, 1, 1], bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.counts.tolist() == [2, 1, 0, 1]
    assert found.confidence[[0, 1, 3]].tolist() == pytest.approx([0.125, 0.3, 1])
    assert found.accuracy[[0, 1, 3]].tolist() == [0.5, 1, 1]
    assert np.isnan(found.accuracy[2])
    assert np.isnan(found.confidence[2])


def test_a_float32_softmax_may_end_above_1():
    assert reliability(np.float32([1.0000001]), [1]).counts[-1] == 1


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([0.5, 1.5], [1, 1], 15, r"\[0, 1\]"),
        ([0.5, np.nan], [1, 1], 15, r"\[0, 1\]"),
        ([0.5], [1, 1], 15, "expected a confidence"),
        ([], [], 15, "expected a confidence"),
        ([0.5], [1], 0, "bins must be at least 1"),
    ],
)
def test_reliability_errors(confidence, correct, bins, message):
    with pytest.raises(EexError, match=message):
        reliability(confidence, correct, bins)


frames = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(frames, st.integers(1, 20))
def test_the_error_lies_between_that_of_one_bin_and_the_worst_frame(rows, bins):
    confidence, correct = (np.array(column) for column in zip(*rows, strict=True))
    found = expected_calibration_error(confidence, correct, bins)
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= found <= np.abs(confidence - correct).max() + 1e-9
    assert reliability(confidence, correct, bins).counts.sum() == len(rows)


# ---- outage

# three batches of four frames: the device answers 2 right of 3; none; 1 right of 1; and a frame that fills no batch
HERE = [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
RIGHT = [1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("p_tar", "outage"), [(0.0, 0), (0.6, 0), (2 / 3, 0), (0.67, 1 / 3), (1.0, 1 / 3)])
def test_outage_by_hand(p_tar, outage):
    assert inference_outage(HERE, RIGHT, p_tar, batch=4) == pytest.approx(outage)


def test_no_answer_on_the_device_is_no_outage():
    assert inference_outage(np.zeros(8), np.zeros(8), 1.0, batch=4) == 0
    assert inference_outage(np.ones(8), np.zeros(8), 1.0, batch=4) == 1


def test_a_target_that_is_just_reached_is_reached():
    right = [True] * 7 + [False] * 3
    assert inference_outage(np.ones(10), right, [0.7, 0.1 + 0.2 + 0.4, 0.71], batch=10).tolist() == [0, 0, 1]


def test_batches_are_of_512_frames():
    right = np.repeat([True, False], 512)
    assert inference_outage(np.ones(1024), right, 0.5) == 0.5
    with pytest.raises(EexError, match="one batch takes 512 frames, there are 511"):
        inference_outage(np.ones(511), np.ones(511), 0.5)


def test_device_probability():
    assert device_probability(HERE) == pytest.approx(5 / 13)
    with pytest.raises(EexError, match="at least one frame"):
        device_probability([])


# ---- deadlines

# batches of two: 2 ms and both right; 6 ms and one right; 4 ms and none right
TIMES = [1, 3, 6, 6, 4, 4, 100]
ANSWERS = [1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("p_tar", "t_tar", "missed"),
    [(0.0, 1.9, 1), (0.0, 2, 2 / 3), (0.0, 4, 1 / 3), (0.0, 6, 0), (0.5, 6, 1 / 3), (0.6, 6, 2 / 3), (0.5, 3, 2 / 3)],
)
def test_missed_deadlines_by_hand(p_tar, t_tar, missed):
    assert missed_deadline(TIMES, ANSWERS, p_tar, t_tar, batch=2) == pytest.approx(missed)


def test_targets_broadcast():
    found = missed_deadline(TIMES, ANSWERS, np.array([[0.0], [0.5]]), np.array([4.0, 6.0]), batch=2)
    assert found.tolist() == pytest.approx(np.array([[1 / 3, 0], [2 / 3, 1 / 3]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [1], 0.5, 1, 1), "as many answers as times"),
        (([1, 1], [1, 1], 1.5, 1, 1), r"p_tar must lie in \[0, 1\]"),
        (([1, 1], [1, 1], 0.5, np.nan, 1), "t_tar must be at least 0 ms"),
        (([1, 1], [1, 1], 0.5, 1, 0), "at least 1 frame"),
        (([1, 1], [1, 1], 0.5, 1, 3), "one batch takes 3 frames, there are 2"),
        (([[1, 1]], [1, 1], 0.5, 1, 1), "one value per frame"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(EexError, match=message):
        missed_deadline(*arguments)


rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 10)), min_size=3, max_size=40)


@given(rows, st.integers(1, 3), st.floats(0, 1))
def test_what_holds_whatever_the_frames(rows, batch, p_tar):
    here, right, times = (np.array(column) for column in zip(*rows, strict=True))
    outage = inference_outage(here, right, p_tar, batch)
    assert 0 <= outage <= inference_outage(here, right, 1.0, batch) <= 1  # a higher target is missed more often
    assert inference_outage(here, right, 0.0, batch) == 0
    by_accuracy = missed_deadline(times, right, p_tar, np.inf, batch)
    assert by_accuracy == inference_outage(np.ones(len(right)), right, p_tar, batch)
    assert missed_deadline(times, right, p_tar, 5.0, batch) >= by_accuracy


@pytest.mark.parametrize(
    "measure",
    [
        lambda: expected_calibration_error([0.5, 0.6], [math.nan, 1]),
        lambda: inference_outage([1] * 8, [math.nan] * 8, 0.5, batch=4),
        lambda: missed_deadline([math.nan] * 8, [1] * 8, 0.5, 5, batch=4),
    ],
)
def test_what_is_missing_is_no_good_answer(measure):
    with pytest.raises(EexError, match=r"a value is missing \(NaN\), that of frame 0"):
        measure()


def test_shapes_are_compared_before_what_is_left_out():
    with pytest.raises(EexError, match=r"got \(9,\) and \(8,\)"):
        inference_outage([1] * 8, [1] * 9, 0.5, batch=4)
    with pytest.raises(EexError, match=r"got \(11,\) and \(8,\)"):
        missed_deadline([1.0] * 8, [1] * 11, 0.5, 5, batch=4)
