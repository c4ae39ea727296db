"""Features: named, bounded, without gaps, and of the past only."""

from dataclasses import replace

import numpy as np
import pytest

from eex.policies.algorithms.features import Features
from eex.policies.checks import MadeUpStream
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy

NAMES = (
    *("distortion_1", "distortion_2", "distortion_3", "distortion_4"),
    *("confidence_1", "confidence_2", "left_1", "left_2", "gain", "round_trip", "queue", "overhead"),
)


def column(features, x, name):
    return x[..., features.names.index(name)]


def test_before_anything_is_known():
    features = Features(exits=2, runs=3)
    assert features.names == NAMES
    x = features.vector(Context(frames=5, overhead=0.3))
    assert x.shape == (3, 5, len(NAMES))
    np.testing.assert_allclose(x, np.broadcast_to([0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0.5, 0, 0.3], x.shape))


@pytest.mark.parametrize(
    ("given", "shown"), [(1, [1, 0, 0]), (2, [0.5, 0.5, 0]), (3, [1 / 3] * 3), (5, [0.2, 0.2, 0.6])]
)
def test_any_number_of_experts(given, shown):
    features = Features(experts=3)
    x = features.vector(Context(frames=2, distortion=np.full((1, 2, given), 1 / given)))
    np.testing.assert_allclose(x[0, :, :3], [shown] * 2)


def test_link_queue_and_overhead_of_each_run():
    features = Features(runs=2)
    context = Context(
        frames=2, overhead=np.array([0.1, 0.4]), queue=np.array([32, 0]), link_ms=np.array([300.0, np.nan])
    )
    x = features.vector(context)
    np.testing.assert_allclose(column(features, x, "overhead"), [[0.1, 0.1], [0.4, 0.4]])
    np.testing.assert_allclose(column(features, x, "queue"), [[0.5, 0.5], [0, 0]])
    np.testing.assert_allclose(column(features, x, "round_trip"), [[0.75, 0.75], [0.5, 0.5]])
    assert column(features, features.vector(Context(link_ms=np.inf)), "round_trip").max() == 1


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_recent_values_by_hand(exits):
    world, policy = MadeUpStream(exits, runs=2), make_policy("ucb", exits=exits, runs=2)
    told = world.outcomes(policy.choose(world.context(0, 100)), 0)
    features = Features(exits=exits, runs=2, rate=0.1)
    features.update(told)
    for run in (0, 1):
        recent = [0.5] * exits + [0.0] * (exits + 1)
        for k in np.flatnonzero(told.run == run):
            edge = told.confidence[k, :-1]
            for i in range(exits):
                if not np.isnan(edge[i]):
                    recent[i] += 0.1 * (edge[i] - recent[i])
                recent[exits + i] += 0.1 * ((told.exit[k] == i) - recent[exits + i])
            if told.offloaded[k]:
                recent[-1] += 0.1 * (max(0.0, told.confidence[k, -1] - edge[-1]) - recent[-1])
        np.testing.assert_allclose(features.recent[run], recent)
    x = features.vector(world.context(100, 3))
    assert np.isfinite(x).all()
    assert ((x >= 0) & (x <= 1)).all()


def test_how_many_are_told_at_once_makes_no_difference():
    world, policy = MadeUpStream(2, runs=2), make_policy("ucb", exits=2, runs=2)
    told = world.outcomes(policy.choose(world.context(0, 60)), 0)
    at_once, singly = Features(2, 2), Features(2, 2)
    at_once.update(told)
    for k in range(len(told)):
        singly.update(told[k : k + 1])
    np.testing.assert_array_equal(at_once.recent, singly.recent)


def test_frames_without_reward_change_nothing():
    world, policy = MadeUpStream(1), make_policy("ucb")
    told = world.outcomes(policy.choose(world.context(0, 50)), 0)
    features = Features()
    features.update(replace(told, reward=np.full(50, np.nan)))
    np.testing.assert_array_equal(features.recent, Features().recent)


def test_saved_and_loaded():
    features, other = Features(runs=2), Features(runs=2)
    features.recent[:] = 0.25
    other.load_state_dict(features.state_dict())
    np.testing.assert_array_equal(other.recent, features.recent)
    with pytest.raises(ValueError, match="must be"):
        Features().load_state_dict(features.state_dict())


@pytest.mark.parametrize("wrong", [{"experts": 0}, {"rate": 0}, {"rate": 1.5}])
def test_features_that_cannot_be(wrong):
    with pytest.raises(EexError, match=next(iter(wrong))):
        Features(**wrong)
