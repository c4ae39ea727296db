"""Routing: the vectorised rule against a frame-by-frame reference, and which exit's class is the answer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from routes import route

from eex.policies.core.base import Thresholds
from eex.policies.core.routing import answer, leave

LEVELS = st.sampled_from([0.0, 0.3, math.nextafter(0.5, 0), 0.5, math.nextafter(0.5, 1), 0.8, 1.0])  # so that ties come
CONFIDENCES = LEVELS | st.sampled_from([math.nan, math.inf])


@st.composite
def traces(draw):
    """Confidences (frames, exits + 1), exit_at (2, frames, exits + 1) and skip_below (2, frames, exits)."""
    frames, exits = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return (
        draw(arrays(float, (frames, exits + 1), elements=CONFIDENCES)),
        draw(arrays(float, (2, frames, exits + 1), elements=LEVELS | st.just(math.inf))),
        draw(arrays(float, (2, frames, exits), elements=LEVELS)),
    )


def slow_route(confidence, exit_at, skip_below):
    """One frame, exit by exit: (exit, offloaded, visited)."""
    for i in range(len(skip_below)):
        if confidence[i] >= exit_at[i]:
            return i, False, i + 1
        if confidence[i] < skip_below[i]:
            return len(skip_below), True, i + 1
    return len(skip_below), True, len(skip_below)


@given(traces())
@settings(max_examples=200)
def test_route_against_a_slow_reference(trace):
    confidence, exit_at, skip_below = trace
    nothing = np.zeros(exit_at.shape[:2])
    thresholds = Thresholds(exit_at, skip_below, nothing.astype(int), nothing, nothing.astype(bool))
    for run in (0, 1):
        expected = [slow_route(*row) for row in zip(confidence, exit_at[run], skip_below[run], strict=True)]
        assert list(zip(*(column.tolist() for column in route(confidence, thresholds, run)), strict=True)) == expected


@given(traces())
@settings(max_examples=100)
def test_numpy_and_torch_leave_alike(trace):
    columns = trace[0][:, 0], trace[1][0, :, 0], trace[2][0, :, 0]
    here = leave(*columns)
    there = leave(*(torch.from_numpy(c.copy()) for c in columns))
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_leave_at_the_threshold():
    answered, skipped = leave(
        np.array([0.8, 0.79, 0.5, 0.49, 0.9, math.nan]),
        np.array([0.8, 0.8, math.inf, math.inf, 0.8, 0.0]),
        np.array([0.5, 0.5, 0.5, 0.5, 0.95, 1.0]),
    )
    assert answered.tolist() == [True, False, False, False, True, False]
    assert skipped.tolist() == [False, False, False, True, False, False]  # who is sure enough is answered here


@pytest.mark.parametrize(
    ("confidence", "exit", "final_exit_at", "expected"),
    [
        ([0.9, math.nan, math.nan], 0, 0.8, 1),
        ([0.3, 0.2, math.nan], 1, 0.8, 2),  # where it left answers, sure or not
        ([0.6, 0.5, 0.8], 2, 0.8, 3),  # the cloud is sure, just so
        ([0.6, 0.5, 0.7], 2, 0.8, 3),  # not sure, but the most confident
        ([0.6, 0.75, 0.7], 2, 0.8, 2),
        ([0.75, 0.6, 0.7], 2, 0.8, 1),
        ([0.75, 0.6, 0.7], 2, 0.0, 3),  # the cloud has the last word
        ([0.4, 0.6, math.nan], 2, 0.0, 2),  # no reply
        ([0.4, math.nan, math.nan], 2, 0.0, 1),  # skipped at exit 1, no reply
        ([0.4, math.nan, 0.1], 2, 0.8, 1),  # skipped at exit 1, cloud unsure
    ],
)
def test_answer(confidence, exit, final_exit_at, expected):
    seen = np.array([confidence])
    prediction = np.where(np.isnan(seen), -1, np.array([1, 2, 3]))
    assert answer(seen, prediction, np.array([exit]), np.array([final_exit_at])).tolist() == [expected]


def test_answers_of_many_frames():
    confidence = np.array([[0.9, np.nan], [0.4, 0.9], [0.4, 0.3]])
    prediction = np.array([[5, -1], [6, 7], [8, 9]])
    assert answer(confidence, prediction, np.array([0, 1, 1]), np.full(3, 0.8)).tolist() == [5, 7, 8]
