"""Episodes: what is known when, windows, seeds, and options that do not fit."""

import numpy as np
import pytest

from eex.envs.threshold import ThresholdEnv
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_reward

pytestmark = pytest.mark.timeout(120)


def test_reply_is_not_known_before_it_came(make_trace):
    env = ThresholdEnv(make_trace(1), link="95:1000", overhead=0.1)  # ten frames
    observation, _ = env.reset(seed=0)
    column = env.names.index
    for step in range(12):
        known = step >= 10
        assert (observation[column("gain")] > 0) == known
        assert (observation[column("confidence_1")] != 0.5) == known
        assert (observation[column("previous")] == 1) == known
        assert observation[column("queue")] == pytest.approx(1 - 32 / (min(step, 10) - (step > 10) * 0 + 32), abs=0.02)
        observation, *_ = env.step(10)  # threshold 1: all are offloaded


def test_a_window_is_its_frames(make_trace):
    one, four = (ThresholdEnv(make_trace(), window=w, link="45:1000") for w in (1, 4))
    one.reset(seed=0)
    four.reset(seed=0)
    for arm in (0, 5, 10, 7, 9):
        each = [one.step(arm) for _ in range(4)]
        whole = four.step(arm)
        np.testing.assert_array_equal(whole[0], each[-1][0])
        assert whole[1] == pytest.approx(sum(step[1] for step in each))


def test_last_window_ends_with_the_episode(make_trace):
    trace = make_trace(frames=10)
    env = ThresholdEnv(trace, window=4, overhead=0.1)
    env.reset(seed=0)
    steps = [env.step(8) for _ in range(3)]
    assert [step[3] for step in steps] == [False, False, True]
    assert sum(step[1] for step in steps) == pytest.approx(fixed_reward(trace.confidence, 0.1, 0.8).sum())


def test_same_seed_same_episodes_and_other_ones_afterwards(make_trace):
    env = ThresholdEnv(make_trace(), order="switching", rounds=50, switch=(5, 9), overhead=(0.0, 0.5))

    def two_episodes():
        return [[env.reset(seed=s)[0], *(env.step(5)[0] for _ in range(50))] for s in (4, None)]

    one, other = two_episodes(), two_episodes()
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 301}, "a trace too short for the episode: expected 301 frames or more, found 300"),
        ({"rounds": -1}, "an episode must have at least 1 round"),
        ({"order": "random"}, "order must be in-order, resampled, segments or switching, got 'random'"),
        ({"switch": (9, 5)}, "switch must be the fewest and most frames of a piece, got 9 and 5"),
        ({"action": "table"}, "action must be grid or box, got 'table'"),
        ({"reward": "fame"}, "reward must be adaee, utility or accuracy, got 'fame'"),
        ({"grid": ()}, "grid must hold thresholds"),
        ({"grid": (0.5, 1.5)}, "grid must hold thresholds"),
        ({"window": 0}, "envs and window must be at least 1, got 1 and 0"),
        ({"overhead": 1.5}, "overhead must be a number in"),
        ({"overhead": (0.5, 0.1)}, "overhead must be a number in"),
        ({"exit_cost": -0.1}, "exit_cost must lie in"),
        ({"link": "fast"}, "link 'fast'"),
        ({"experts": 0}, "experts must be at least 1"),
    ],
)
def test_options_that_do_not_fit(make_trace, options, message):
    with pytest.raises(EexError, match=message):
        ThresholdEnv(make_trace(), **options)


def test_accuracy_needs_labels(make_trace):
    with pytest.raises(EexError, match="needs a trace with labels: 300 of 300 frames have none"):
        ThresholdEnv(make_trace(labels=False), reward="accuracy")
