"""The policy gradient: one step by hand, and a long queue keeps frames on the edge."""

import dataclasses

import numpy as np
import pytest
from same import assert_same_state, learn_reward

from eex.policies.algorithms.policy_gradient import FLOOR, PolicyGradient
from eex.policies.checks import MadeUpStream
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError


def test_one_step_by_hand():
    policy = PolicyGradient([0.5, 0.9], alpha=0.5, kappa=0.0)
    arm = int(policy.choose(Context(queue=16)).arm[0, 0])
    learn_reward(policy, arm, 0, 0.4)
    step = 0.5 * 0.4 * 0.5  # alpha, reward less the mean so far, 1 - 1/2
    expected = np.array([[-step, -step / 2], [-step, -step / 2]])  # the queue's feature is 16 / (16 + 16)
    expected[arm] *= -1
    np.testing.assert_allclose(policy.parameters[0], expected)
    assert policy.average[0] == pytest.approx(0.4)


def test_frames_that_come_at_once_teach_as_singly():
    world = MadeUpStream(1, runs=3)
    one, other = (PolicyGradient([0.5, 0.9], runs=3) for _ in range(2))
    for first in range(0, 60, 20):
        chosen = one.choose(world.context(first, 20))
        other.choose(world.context(first, 20))
        told = world.outcomes(chosen, first)
        one.learn(told)
        for frame in range(first, first + 20):
            other.learn(told[told.frame == frame])
    assert one.average.all()
    assert_same_state(one, other, rtol=1e-12)


def test_the_better_arm_is_found():
    policy = PolicyGradient([0.1, 0.5, 0.9])
    for frame in range(1500):
        arm = int(policy.choose(Context(first=frame)).arm[0, 0])
        learn_reward(policy, arm, frame, (0.0, 0.3, 0.1)[arm])
    assert policy.probabilities(np.zeros(1))[0, 0, 1] > 0.8


def test_a_long_queue_keeps_frames_on_the_edge():
    stream = MadeUpStream(1, runs=8)
    stream.confidence[..., 0], stream.confidence[..., 1] = 0.6, 0.9  # offloading earns 0.2
    policy = PolicyGradient([0.5, 0.9], kappa=1.0, runs=8)
    for first in range(0, 256, 8):
        for queue in (0, 200):
            context = dataclasses.replace(stream.context(first, 8), queue=queue, first=first + 1000 * (queue > 0))
            outcomes = stream.outcomes(policy.choose(context), first)
            policy.learn(dataclasses.replace(outcomes, frame=outcomes.frame + 1000 * (queue > 0)))
    short, long = policy.probabilities(np.array([0, 200])).mean(axis=0)[:, 1]
    assert short > 0.6 > 0.3 > long > FLOOR / 4


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"kappa": -1.0}, {"scale": 0.0}, {"grid": []}])
def test_a_policy_gradient_that_cannot_be(wrong):
    with pytest.raises(EexError, match=r"^(grid|alpha|kappa|scale) must"):
        PolicyGradient(**wrong)
