"""LinUCB against the algorithm as printed, and what its features are worth."""

import numpy as np
import pytest

from eex.policies.algorithms.linucb import LinUCB
from eex.policies.algorithms.ucb import UCB
from eex.policies.checks import MadeUpStream
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy

GRID = [0.2, 0.5, 0.8]


def test_inverses_and_vectors_are_those_of_the_frames_heard_of():
    world, policy = MadeUpStream(2, runs=2), LinUCB(GRID, ridge=0.5, exits=2, runs=2)
    a = np.tile(0.5 * np.eye(13), (2, 3, 1, 1))
    b = np.zeros((2, 3, 13))
    rng = np.random.default_rng(0)
    for first in range(0, 300, 10):
        x = np.concatenate([np.ones((2, 10, 1)), policy.features.vector(world.context(first, 10))], axis=2)
        told = world.outcomes(policy.choose(world.context(first, 10)), first)
        told = told[rng.permutation(len(told))]
        policy.learn(told)
        for run, frame, arm, reward in zip(told.run, told.frame, told.arm, told.reward, strict=True):
            a[run, arm] += np.outer(x[run, frame - first], x[run, frame - first])
            b[run, arm] += reward * x[run, frame - first]
    np.testing.assert_allclose(policy.inverse, np.linalg.inv(a), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(policy.vector, b)
    assert not policy.pending.any()


def test_without_delay_the_highest_index_is_played():
    world, policy = MadeUpStream(1), LinUCB(GRID, alpha=0.3)
    for frame in range(200):
        x = np.append(1, policy.features.vector(world.context(frame, 1))[0, 0])
        index = [
            x @ policy.inverse[0, k] @ policy.vector[0, k] + 0.3 * np.sqrt(x @ policy.inverse[0, k] @ x)
            for k in range(3)
        ]
        chosen = policy.choose(world.context(frame, 1))
        assert index[chosen.arm[0, 0]] >= max(index) - 1e-12
        policy.learn(world.outcomes(chosen, frame))


def test_no_arm_is_stuck_to_while_replies_are_late():
    world, policy = MadeUpStream(1), LinUCB(GRID)
    arms = np.concatenate([policy.choose(world.context(k, 1)).arm[0] for k in range(60)])
    assert np.bincount(arms).tolist() == [20, 20, 20]


def test_more_in_flight_than_the_ring_held_at_first():
    world, policy = MadeUpStream(1), make_policy("linucb")
    told = world.outcomes(policy.choose(world.context(0, 500)), 0)
    assert policy.awaited.slots == 512
    policy.learn(told)
    assert policy.counts.sum() == 500
    assert policy.awaited.slots == 64


def test_the_distortion_is_worth_knowing():
    rng = np.random.default_rng(1)
    blurred = rng.random(4000) < 0.5
    edge = np.where(blurred, 0.65, 0.6)  # offloading gains where it is blurred, and only there
    cloud = np.where(blurred, 0.95, 0.6)
    trace = Trace(
        np.column_stack([edge, cloud]),
        np.zeros((4000, 2), dtype=int),
        np.full(4000, -1),
        ("a",),
        probabilities=np.column_stack([~blurred, blurred]).astype(float),
        experts=("pristine", "blur"),
    )
    earned = [replay(policy, trace, 0.2, rounds=2000).reward.mean() for policy in (LinUCB(GRID), UCB(GRID, c=0.5))]
    assert earned[0] > earned[1] + 0.02  # of 0.05 at most


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"ridge": 0}, {"experts": 0}, {"grid": [1.5]}])
def test_linucb_that_cannot_be(wrong):
    with pytest.raises(EexError, match=next(iter(wrong))):
        LinUCB(**wrong)
