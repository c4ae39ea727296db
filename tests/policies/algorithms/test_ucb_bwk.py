"""UCB-BwK: the mixture is the linear program's, and the budget is kept."""

import numpy as np
import pytest
from scipy.optimize import linprog

from eex.experiments.bench.policies import synthetic_trace
from eex.policies.algorithms.ucb_bwk import UCBBwK
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay


def test_the_mixture_solves_the_linear_program():
    rng = np.random.default_rng(0)
    policy = UCBBwK(np.linspace(0, 1, 6), budget=0.3, runs=40)
    policy.counts[:] = rng.integers(1, 200, policy.counts.shape)
    policy.totals[:] = policy.counts * rng.uniform(-0.1, 0.3, policy.counts.shape)
    policy.costs[:] = policy.counts * rng.uniform(0, 1, policy.counts.shape)
    width = 0.5 * np.sqrt(np.log(policy.counts.sum(axis=1, keepdims=True)) / policy.counts)
    most = policy.totals / policy.counts + width
    least = np.maximum(policy.costs / policy.counts - width, 0)
    mixture = policy.mixture()
    np.testing.assert_allclose(mixture.sum(axis=1), 1)
    for u, low, p in zip(most, least, mixture, strict=True):
        solved = linprog(-u, A_ub=low[None], b_ub=[0.3], A_eq=np.ones((1, 6)), b_eq=[1])
        if not solved.success:  # nothing is affordable
            assert p.argmax() == low.argmin()
            continue
        assert low @ p <= 0.3 + 1e-9
        assert u @ p == pytest.approx(-solved.fun)


def test_the_budget_is_kept_in_the_long_run():
    trace = synthetic_trace(4000)
    offloaded = {b: replay(UCBBwK(budget=b, runs=3), trace, 0.0).offloaded[:, 2000:].mean() for b in (0.1, 0.3, 1.0)}
    assert offloaded[0.1] < 0.2
    assert offloaded[0.1] < offloaded[0.3] < 0.4 < offloaded[1.0]


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": 1.1}, {"c": -1.0}, {"grid": []}])
def test_ucb_bwk_that_cannot_be(wrong):
    with pytest.raises(EexError, match=r"^(grid|c|budget) must"):
        UCBBwK(**wrong)
