"""Rewards worked by hand, and the references that hindsight knows."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from routes import route

from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.references import (
    best_arm,
    best_arm_of_segments,
    best_fixed,
    best_per_exit,
    best_per_exit_of_segments,
    best_stopping,
    fixed_reward,
    fixed_rewards,
    oracle,
)
from eex.policies.core.reward import reward

NAN = math.nan
GRID = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
CONFIDENCE = np.array(
    [  # exit 1, exit 2, cloud
        [0.2, 0.4, 0.9],
        [0.6, 0.7, 0.8],
        [0.3, 0.5, 0.4],
        [0.9, 0.6, 1.0],
    ]
)


@pytest.mark.parametrize(
    ("confidence", "offloaded", "sent", "exit_cost", "expected"),
    [
        ([0.9, NAN, NAN], False, False, 0.0, 0.0),
        ([0.5, 0.9, NAN], False, False, 0.0, 0.0),
        ([0.5, 0.6, 0.9], True, True, 0.0, 0.3 - 0.1),  # over the last edge exit, not the best or the first
        ([0.7, 0.6, 0.9], True, True, 0.0, 0.3 - 0.1),
        ([0.5, NAN, 0.9], True, True, 0.0, 0.4 - 0.1),  # skipped at exit 1
        ([0.5, 0.8, 0.6], True, True, 0.0, -0.1),  # the cloud was less sure: a gain is never negative
        ([0.5, 0.8, NAN], True, True, 0.0, -0.1),  # no reply in time
        ([0.5, 0.8, NAN], True, False, 0.0, NAN),  # could not be sent
        ([0.5, NAN, NAN], True, False, 0.02, NAN),
        ([0.9, NAN, NAN], False, False, 0.02, 0.0),  # the first exit is free
        ([0.5, 0.9, NAN], False, False, 0.02, -0.02),
        ([0.5, 0.6, 0.9], True, True, 0.02, 0.3 - 0.1 - 0.02),
        ([0.5, NAN, 0.9], True, True, 0.02, 0.4 - 0.1),
    ],
)
def test_reward(confidence, offloaded, sent, exit_cost, expected):
    earned = reward(np.array([confidence]), np.array([offloaded]), np.array([sent]), np.array([0.1]), exit_cost)
    np.testing.assert_allclose(earned, [expected], atol=1e-12)


def test_each_frame_pays_its_own_overhead():
    confidence = np.array([[0.5, 0.9]] * 2)
    yes = np.array([True, True])
    np.testing.assert_allclose(reward(confidence, yes, yes, np.array([0.1, 0.3])), [0.3, 0.1])


def test_fixed_thresholds_by_hand():
    # at 0.5, frame 0 goes on (0.4, 0.2 < 0.5): 0.5 - 0.1; 0.5 is reached by the others
    np.testing.assert_allclose(fixed_reward(CONFIDENCE, 0.1, 0.5), [0.4, 0, 0, 0])
    # at 0.75, frame 3 leaves at exit 1; frame 1 gains 0.1, frame 2 nothing
    np.testing.assert_allclose(fixed_reward(CONFIDENCE, 0.1, 0.75), [0.4, 0.0, -0.1, 0.0], atol=1e-12)
    # at 1, all are sent: gains 0.5, 0.1, 0, 0.4
    np.testing.assert_allclose(fixed_reward(CONFIDENCE, 0.1, 1.0), [0.4, 0.0, -0.1, 0.3], atol=1e-12)


def test_what_is_dropped_earns_nothing():
    # frames 0 and 1, at 0.2 and 0.6 at the last edge exit, are dropped below 0.65 where they would be offloaded
    np.testing.assert_allclose(fixed_reward(CONFIDENCE, 0.1, 1.0), [0.4, 0.0, -0.1, 0.3], atol=1e-12)
    last = CONFIDENCE[:, -2]
    for below in (0.0, 0.3, 0.65, 1.0):
        for threshold in GRID:
            earned = fixed_reward(CONFIDENCE, 0.1, threshold, 0.01, below)
            away = (CONFIDENCE[:, :-1] < threshold).all(axis=1)
            expected = np.where(away & (last < below), 0.0, fixed_reward(CONFIDENCE, 0.1, threshold, 0.01))
            np.testing.assert_array_equal(earned, expected)
            assert (oracle(CONFIDENCE, 0.1, 0.01, below) >= earned - 1e-12).all()
    np.testing.assert_array_equal(oracle(CONFIDENCE, 0.0, 0.0, 1.1), 0)


def test_best_fixed_by_hand():
    threshold, earned = best_fixed(CONFIDENCE, 0.1, GRID)  # sums 0, 0, 0.4, 0.3, 0.6
    assert threshold == 1.0
    np.testing.assert_allclose(earned, [0.4, 0.0, -0.1, 0.3], atol=1e-12)
    assert best_fixed(CONFIDENCE, 0.35, GRID)[0] == 0.5  # sums 0, 0, 0.15, -0.45, -0.4


def test_oracle_by_hand():
    np.testing.assert_allclose(oracle(CONFIDENCE, 0.1), [0.4, 0.0, 0.0, 0.3], atol=1e-12)
    np.testing.assert_allclose(oracle(CONFIDENCE, 0.05), [0.45, 0.05, 0.0, 0.35])


FULL_TRACES = st.tuples(st.integers(1, 20), st.integers(2, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.floats(0, 1))
)


@given(FULL_TRACES, st.floats(0, 1))
@settings(max_examples=100)
def test_oracle_earns_most_and_then_the_best_threshold(trace, overhead):
    _, best = best_fixed(trace, overhead, GRID)
    assert (oracle(trace, overhead) - best >= -1e-12).all()
    for threshold in GRID:
        assert best.sum() >= fixed_reward(trace, overhead, threshold).sum() - 1e-12


@given(FULL_TRACES, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100)
def test_fixed_reward_is_what_the_fixed_policy_earns(trace, overhead, threshold):
    exit_cost = 0.02
    exits = trace.shape[1] - 1
    _, offloaded, visited = route(trace, Fixed(threshold, exits=exits).choose(Context(frames=len(trace))))
    seen = trace.copy()
    seen[:, :-1][np.arange(exits) >= visited[:, None]] = np.nan
    seen[~offloaded, -1] = np.nan
    earned = reward(seen, offloaded, offloaded, np.full(len(trace), overhead), exit_cost)
    np.testing.assert_allclose(earned, fixed_reward(trace, overhead, threshold, exit_cost), atol=1e-12)


def test_best_threshold_per_exit_by_hand():
    thresholds, earned = best_per_exit(CONFIDENCE, 0.35, GRID)
    # frame 0 alone is worth sending: past exit 1 below 0.3, say, and past exit 2 (0.4) below 0.5
    np.testing.assert_allclose(earned, [0.15, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(thresholds, [0.25, 0.5])
    # at 0.1, frames 0 and 3 (gains 0.5, 0.4) pay; frame 1 costs nothing, frame 2 is in the way
    thresholds, earned = best_per_exit(CONFIDENCE, 0.1, GRID)
    assert thresholds[0] == 1.0
    np.testing.assert_allclose(earned.sum(), 0.6)


def leave_frame_by_frame(trace, overhead, thresholds, exit_cost):
    """What thresholds, one an exit, earn on all frames together; slow and plain."""
    total = 0.0
    for *edge, cloud in trace.tolist():
        for e, (said, threshold) in enumerate(zip(edge, thresholds, strict=True)):
            if said >= threshold:
                total -= exit_cost * e
                break
        else:
            total += max(0.0, cloud - edge[-1]) - overhead - exit_cost * (len(edge) - 1)
    return total


@given(FULL_TRACES, st.floats(0, 1), st.sampled_from([0.0, 0.05]))
@settings(max_examples=100)
def test_best_threshold_per_exit_against_all_combinations(trace, overhead, exit_cost):
    combinations = itertools.product(GRID.tolist(), repeat=trace.shape[1] - 1)
    most = max(leave_frame_by_frame(trace, overhead, t, exit_cost) for t in combinations)
    thresholds, earned = best_per_exit(trace, overhead, GRID, exit_cost)
    assert earned.sum() == pytest.approx(most, abs=1e-9)
    assert leave_frame_by_frame(trace, overhead, thresholds, exit_cost) == pytest.approx(most, abs=1e-9)
    assert most >= best_fixed(trace, overhead, GRID, exit_cost)[1].sum() - 1e-9


def utility_frame_by_frame(trace, overhead, thresholds, exit_cost):
    """The utility of thresholds, one per exit, on all frames together; slow and plain."""
    total = 0.0
    for *edge, cloud in trace.tolist():
        for e, (c, threshold) in enumerate(zip(edge, thresholds, strict=True)):
            if c >= threshold:
                total += c - exit_cost * e
                break
        else:
            total += max(cloud, edge[-1]) - overhead - exit_cost * (len(edge) - 1)
    return total


@given(FULL_TRACES, st.floats(0, 1), st.sampled_from([0.0, 0.05]))
@settings(max_examples=50)
def test_utility_of_the_best_thresholds_per_exit_against_all_combinations(trace, overhead, exit_cost):
    combinations = list(itertools.product(GRID.tolist(), repeat=trace.shape[1] - 1))
    most = max(utility_frame_by_frame(trace, overhead, t, exit_cost) for t in combinations)
    thresholds, earned = best_per_exit(trace, overhead, GRID, exit_cost, "utility")
    assert earned.sum() == pytest.approx(most, abs=1e-9)
    assert utility_frame_by_frame(trace, overhead, thresholds, exit_cost) == pytest.approx(most, abs=1e-9)
    assert oracle(trace, overhead, exit_cost, kind="utility").sum() >= most - 1e-9


def test_utility_by_hand():
    rows = np.array([[0.5, 0.9, NAN], [0.5, 0.6, 0.9], [0.5, NAN, 0.9], [0.5, 0.8, 0.6], [0.5, 0.8, NAN]])
    offloaded = np.array([False, True, True, True, True])
    earned = reward(rows, offloaded, offloaded, np.full(5, 0.1), 0.02, "utility")
    np.testing.assert_allclose(earned, [0.9 - 0.02, 0.9 - 0.1 - 0.02, 0.9 - 0.1, 0.8 - 0.1 - 0.02, 0.8 - 0.1 - 0.02])


def test_with_one_exit_utilities_differ_as_rewards_do():
    trace = np.random.default_rng(0).random((50, 2))
    for threshold in GRID:
        utility = fixed_reward(trace, 0.1, threshold, kind="utility")
        np.testing.assert_allclose(utility - fixed_reward(trace, 0.1, threshold), trace[:, 0])


def markov(frames, exits, seed=0):
    """Confidences of which each depends on the one before alone, so that thresholds are the best that can be done."""
    rng = np.random.default_rng(seed)
    columns = [rng.random(frames)]
    for _ in range(exits):
        columns.append(np.clip(columns[-1] + rng.normal(0.08, 0.2, frames), 0, 1))
    return np.column_stack(columns)


@pytest.mark.parametrize("exit_cost", [0.0, 0.05])
def test_optimal_stopping_comes_close_to_the_best_thresholds(exit_cost):
    trace, grid = markov(4000, 3), np.linspace(0, 1, 26)
    _, best = best_per_exit(trace, 0.1, grid, exit_cost, "utility")
    thresholds, stopped = best_stopping(trace, 0.1, exit_cost, "utility")
    assert best.mean() - 0.001 < stopped.mean()
    np.testing.assert_allclose(stopped, fixed_reward(trace, 0.1, thresholds, exit_cost, kind="utility"))


def test_many_exits_are_searched_one_after_another():
    trace, grid = markov(500, 12), np.linspace(0, 1, 11)
    thresholds, earned = best_per_exit(trace, 0.1, grid, 0.01, "utility")
    _, common = best_fixed(trace, 0.1, grid, 0.01, "utility")
    assert earned.mean() > common.mean()
    for e, t in itertools.product(range(12), grid):  # no single threshold improves on it
        other = np.where(np.arange(12) == e, t, thresholds)
        assert fixed_reward(trace, 0.1, other, 0.01, kind="utility").mean() <= earned.mean() + 1e-12


def test_thresholds_per_exit_and_segment():
    trace = np.concatenate([markov(60, 2), 1 - markov(60, 2, 1)])
    segment = np.repeat([0, 1], 60)
    earned = best_per_exit_of_segments(trace, 0.1, GRID, segment, 0.02, "utility")
    for s in (0, 1):
        _, alone = best_per_exit(trace[segment == s], 0.1, GRID, 0.02, "utility")
        np.testing.assert_allclose(earned[segment == s], alone)
    assert earned.sum() >= best_per_exit(trace, 0.1, GRID, 0.02, "utility")[1].sum()


@given(FULL_TRACES, st.floats(0, 1), st.integers(1, 3), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=100)
def test_references_of_runs_against_one_run_at_a_time(trace, overhead, runs, rounds, seed):
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, len(trace), (runs, rounds))
    segment = np.sort(rng.integers(0, 3, len(trace)))
    segment = np.unique(segment, return_inverse=True)[1]
    earned = fixed_rewards(trace, overhead, GRID)
    arm, best = best_arm(earned, frame)
    dynamic = best_arm_of_segments(earned, frame, segment)
    for run, rows in enumerate(frame):
        np.testing.assert_allclose(best[run], fixed_reward(trace[rows], overhead, GRID[arm[run]]))
        assert best[run].sum() == pytest.approx(best_fixed(trace[rows], overhead, GRID)[1].sum(), abs=1e-9)
        for k in set(segment[rows]):
            here = segment[rows] == k
            most = max(fixed_reward(trace[rows[here]], overhead, t).sum() for t in GRID)
            assert dynamic[run][here].sum() == pytest.approx(most, abs=1e-9)


def test_dynamic_reference_by_hand():
    trace = np.array([[0.2, 0.9], [0.6, 0.9], [0.3, 0.3], [0.9, 0.9]])
    earned = fixed_rewards(trace, 0.1, np.array([0.0, 0.5, 1.0]))  # by frame: 0 .6 .6, 0 0 .2, 0 -.1 -.1, 0 0 -.1
    frame = np.array([[0, 1, 2, 3], [0, 1, 0, 1]])
    np.testing.assert_allclose(best_arm(earned, frame)[1], [[0.6, 0.2, -0.1, -0.1], [0.6, 0.2, 0.6, 0.2]])
    dynamic = best_arm_of_segments(earned, frame, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(dynamic, [[0.6, 0.2, 0, 0], [0.6, 0.2, 0.6, 0.2]], atol=1e-12)


@pytest.mark.parametrize("reference", [best_fixed, best_per_exit, fixed_rewards, oracle])
def test_hindsight_wants_whole_traces_and_prices_that_can_be(reference):
    grid = () if reference is oracle else (GRID,)
    partly = CONFIDENCE.copy()
    partly[1, -1] = np.nan
    with pytest.raises(EexError, match="frame 1 has no confidence at some exit: hindsight needs a full trace"):
        reference(partly, 0.1, *grid)
    with pytest.raises(EexError, match=r"the overhead must lie in \[0, 1\], units of confidence; got -5"):
        reference(CONFIDENCE, -5, *grid)
    with pytest.raises(EexError, match="exit_cost must be one number"):
        reference(CONFIDENCE, 0.1, *grid, exit_cost=np.zeros(7))
    with pytest.raises(EexError, match="kind must be adaee or utility, got 'utilty'"):
        reference(CONFIDENCE, 0.1, *grid, kind="utilty")


@pytest.mark.parametrize(("exits", "arms"), [(24, 2), (70, 1)])
def test_many_exits_with_few_arms_need_no_table_of_all_combinations(exits, arms):
    confidence = np.random.default_rng(0).random((20, exits + 1))
    thresholds, earned = best_per_exit(confidence, 0.1, np.linspace(0.5, 1, arms))
    assert thresholds.shape == (exits,)
    assert earned.mean() >= fixed_reward(confidence, 0.1, 0.5).mean()
