"""EENet's scheduler: shares keep the budget, the search is as good as trying everything, and a plan never changes."""

import numpy as np
import pytest

from eex.experiments.bench.policies import synthetic_trace
from eex.policies.algorithms.eenet import EENet, scheduled, shares_within
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay

COSTS = np.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize("budget", [1.1, 2.0, 3.0, 3.9])
def test_shares_in_geometric_proportion_cost_the_budget(budget):
    shares = shares_within(COSTS, budget)
    assert shares.sum() == pytest.approx(1)
    assert shares @ COSTS == pytest.approx(budget, rel=1e-3)
    assert shares[1] / shares[0] == pytest.approx(shares[2] / shares[1])


@pytest.mark.parametrize("budget", [1.5, 2.5])
def test_the_schedule_keeps_the_budget_and_is_as_good_as_trying_all_thresholds(budget):
    rng = np.random.default_rng(1)
    confidence = np.sort(rng.beta(3, 1, (500, 3)), axis=1)

    def play(thresholds):
        left = (confidence[:, :-1] >= thresholds).argmax(axis=1)
        left = np.where((confidence[:, :-1] >= thresholds).any(axis=1), left, 2)
        return COSTS[left].mean(), confidence[np.arange(500), left].mean()

    cost, sure = play(scheduled(confidence, COSTS, budget))
    assert cost <= budget + 1e-9
    grid = np.linspace(0, 1.01, 41)
    best = max(mean for a in grid for b in grid for spent, mean in [play([a, b])] if spent <= budget)
    assert sure > best - 0.01


def test_a_plan_is_made_once():
    trace = synthetic_trace(3000)
    policy = EENet(budget=0.6, plan=200, runs=2)
    played = replay(policy, trace, 0.1)
    assert played.offloaded[:, :200].all()
    settled = policy.levels.copy()
    assert played.offloaded[:, 200:].mean() == pytest.approx(0.2, abs=0.06)  # 0.8 of half the cost, 0.2 of all of it
    replay(policy, trace, 0.1)
    np.testing.assert_array_equal(policy.levels, settled)


@pytest.mark.parametrize(
    "wrong", [{"budget": 0.0}, {"budget": 1.5}, {"plan": 1}, {"costs": [1.0]}, {"costs": [2.0, 1.0]}]
)
def test_an_eenet_that_cannot_be(wrong):
    with pytest.raises(EexError, match=r"^(budget|plan|costs) must"):
        EENet(**wrong)
