"""What users may say an edge exit costs, and that prices which differ are paid everywhere alike."""

import itertools
from dataclasses import fields

import numpy as np
import pytest

from eex.policies.algorithms.one_sided import spent
from eex.policies.core.base import Context, Outcomes
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import parse_exit_cost
from eex.policies.core.references import best_per_exit, best_stopping, fixed_reward, oracle
from eex.policies.core.replay import replay
from eex.policies.core.reward import reward
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy

COSTS = np.array([0.01, 0.07])


def made_up(frames=400, seed=0):
    rng = np.random.default_rng(seed)
    nothing = np.zeros((frames, 4), dtype=np.int64)
    return Trace(np.sort(rng.uniform(0.1, 1, (frames, 4)), axis=1), nothing, nothing[:, 0], ("a",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0.02, 0.02),
        ("0.02", 0.02),
        ("0.01,0.03", [0.01, 0.03]),
        (" 0.01, 0.03", [0.01, 0.03]),
        ("auto", [0.01, 0.03]),
        ("auto:0.04", [0.02, 0.06]),
    ],
)
def test_stated_prices(text, expected):
    np.testing.assert_allclose(parse_exit_cost(text).of(3, [9.0, 1.0, 3.0]), expected)


@pytest.mark.parametrize(
    "text", ["", "x", "0.1,", "1.1", "-0.1", "nan", "0.1,2", "auto:", "auto:x", "auto:0.1,0.2", "autos"]
)
def test_what_is_no_price(text):
    with pytest.raises(EexError, match=r"exit cost must lie in \[0, 1\]"):
        parse_exit_cost(text)


def test_as_many_prices_as_further_exits():
    with pytest.raises(EexError, match="has 2 prices; expected 1, or 3 for 4 edge exits"):
        parse_exit_cost("0.1,0.2").of(4)
    with pytest.raises(EexError, match="needs the times or multiply-adds"):
        parse_exit_cost("auto").of(3)
    assert parse_exit_cost("auto").of(1) == 0.02  # nobody pays it
    with pytest.raises(EexError, match="exit_cost must be one number, or 2, got"):
        replay(make_policy("ucb", exits=3), made_up(), 0.1, exit_cost=np.zeros(3))


def by_hand(row, thresholds, overhead, costs):
    for e, t in enumerate(thresholds):
        if row[e] >= t:
            return row[e] - sum(costs[:e])
    return max(row[-1], row[-2]) - overhead - sum(costs)


def test_references_pay_each_exit_its_price():
    trace, grid = made_up().confidence, np.linspace(0, 1, 5)
    most = max(
        sum(by_hand(row, t, 0.1, COSTS) for row in trace.tolist()) for t in itertools.product(grid.tolist(), repeat=3)
    )
    _, earned = best_per_exit(trace, 0.1, grid, COSTS, "utility")
    assert earned.sum() == pytest.approx(most)
    assert oracle(trace, 0.1, COSTS, kind="utility").sum() >= most
    thresholds, stopped = best_stopping(trace, 0.1, COSTS, "utility")
    assert stopped.sum() == pytest.approx(sum(by_hand(row, thresholds, 0.1, COSTS) for row in trace.tolist()))


@pytest.mark.parametrize("kind", ["adaee", "utility"])
def test_equal_prices_are_one_price(kind):
    trace = made_up()
    alike = [
        replay(make_policy(name, exits=3), trace, 0.1, order="in-order", exit_cost=cost, kind=kind).reward
        for name in ("stop-curve", "splitee-s")
        for cost in (0.03, np.full(2, 0.03))
    ]
    np.testing.assert_allclose(alike[0], alike[1])
    np.testing.assert_allclose(alike[2], alike[3])


def test_policies_know_from_rewards_what_lower_thresholds_would_have_spent():
    trace = made_up()
    policy = make_policy("drift@splitee-s", exits=3)
    replay(policy, trace, 0.1, order="in-order", rounds=5, exit_cost=COSTS, kind="utility")
    np.testing.assert_array_equal(policy.inner.exit_cost, COSTS)
    confidence = trace.confidence
    paid = reward(confidence, np.ones(400, dtype=bool), np.ones(400, dtype=bool), np.full(400, 0.1), COSTS, "utility")
    outcomes = _offloaded(confidence, paid)
    way = spent(outcomes, np.tile([0, 1, 2, 3], (400, 1)), "utility", COSTS)
    np.testing.assert_allclose(way, np.tile([0, 0.01, 0.08, 0.08], (400, 1)))


def _offloaded(confidence, paid):
    columns = {f.name: np.zeros(len(paid)) for f in fields(Outcomes)}
    columns |= {"confidence": confidence, "offloaded": np.ones(len(paid), dtype=bool), "reward": paid}
    return Outcomes(**columns | {"overhead": np.full(len(paid), 0.1)})


def test_stop_curve_does_not_go_where_it_is_dear():
    """Exit 3 adds little beside exit 2: at a high price of its own it is left out, at a low one it is not."""
    trace = made_up(3000)
    deep = [
        replay(make_policy("stop-curve", exits=3), trace, 0.9, order="in-order", exit_cost=cost, kind="utility")
        for cost in (np.array([0.02, 0.5]), np.array([0.02, 0.0]))
    ]
    third = [(played.exit[:, 1000:] == 2).mean() for played in deep]
    assert third[0] < 0.05 < 0.3 < third[1]
    for cost, played in zip(([0.02, 0.5], [0.02, 0.0]), deep, strict=True):
        _, best = best_per_exit(trace.confidence[1000:], 0.9, np.linspace(0, 1, 21), np.array(cost), "utility")
        assert played.reward[:, 1000:].mean() > best.mean() - 0.006


def test_prices_of_exits_may_differ_between_runs():
    policy = make_policy("stop-curve", exits=3, runs=2)
    chosen = policy.choose(Context(overhead=0.5, exit_cost=np.array([[0.3, 0.01], [0.01, 0.3]])))
    assert chosen.exit_at[0, 0, 0] < chosen.exit_at[1, 0, 0]
    assert chosen.exit_at[0, 0, 1] > chosen.exit_at[1, 0, 1]


def test_fixed_thresholds():
    trace = made_up().confidence
    earned = fixed_reward(trace, 0.1, np.array([0.5, 0.6, 0.7]), COSTS, kind="utility")
    np.testing.assert_allclose(earned, [by_hand(row, (0.5, 0.6, 0.7), 0.1, COSTS) for row in trace.tolist()])
