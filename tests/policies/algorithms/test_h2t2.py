"""H2T2: explored frames tell what every pair would have earned, and the best pair is found."""

import numpy as np
import pytest

from eex.policies.algorithms.h2t2 import H2T2
from eex.policies.checks import MadeUpStream
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.world import step


@pytest.mark.parametrize("kind", ["adaee", "utility"])
@pytest.mark.parametrize(("exits", "cost"), [(1, 0.03), (2, 0.03), (3, 0.03), (3, np.array([0.01, 0.2]))])
def test_pairs_are_credited_with_what_they_would_have_earned(exits, cost, kind):
    stream, policy = MadeUpStream(exits), H2T2([0.4, 0.8], epsilon=1.0, exits=exits)
    policy.reward, policy.exit_cost = kind, cost
    outcomes = stream.outcomes(policy.choose(stream.context(0, 50)), 0)
    c, shape = stream.confidence[0, :50], (50, exits)
    paid = step(c, np.full(shape, np.inf), np.zeros(shape), 0.1, cost, kind=kind)
    outcomes.reward[:] = paid.reward  # as a stream with exit costs has it
    policy.learn(outcomes)
    for k, (low, high) in enumerate(policy.pairs):
        earned = step(c, np.full(shape, high), np.full(shape, low), 0.1, cost, kind=kind).reward
        assert policy.totals[0, k] == pytest.approx(earned.sum()), (low, high)


def test_only_explored_frames_teach():
    stream, policy = MadeUpStream(2), H2T2(exits=2, epsilon=0.2)
    chosen = policy.choose(stream.context(0, 200))
    assert 0.1 < chosen.audited.mean() < 0.3
    outcomes = stream.outcomes(chosen, 0)
    policy.learn(outcomes[~outcomes.audited])
    assert not policy.totals.any()
    policy.learn(outcomes)
    assert policy.totals.any()


def test_the_best_pair_is_drawn_in_the_end():
    policy = H2T2([0.2, 0.6], exits=2, epsilon=0.01)
    policy.totals[0, 3] = 1e4
    chosen = policy.choose(Context(500))
    mine = ~chosen.audited
    assert policy.pairs[3].tolist() == [0.2, 0.6]
    np.testing.assert_array_equal(chosen.exit_at[mine][:, 0], 0.6)
    np.testing.assert_array_equal(chosen.skip_below[mine][:, 0], 0.2)


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"eta": 0.0}, {"levels": [2.0]}])
def test_h2t2_that_cannot_be(wrong):
    with pytest.raises(EexError, match=r"^(grid|eta|epsilon) must"):
        H2T2(**wrong)
