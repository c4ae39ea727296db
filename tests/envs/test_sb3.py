"""The adapter for Stable-Baselines3 gives what its own wrapper of scalar environments gives."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.threshold import ThresholdEnv
from eex.policies.core.errors import EexError

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("action", ["grid", "box"])
def test_adapter_gives_what_dummy_vec_env_gives(make_trace, action):
    options = {"action": action, "order": "resampled", "rounds": 90, "link": "20:50, 150:50"}
    ours, usual = ThresholdVecEnv(make_trace(), 3, seed=5, **options), None
    usual = DummyVecEnv([lambda: ThresholdEnv(make_trace(), **options)] * 3)
    usual.seed(5)
    np.testing.assert_array_equal(ours.reset(), usual.reset())
    usual.action_space.seed(0)
    for _ in range(200):
        actions = np.array([usual.action_space.sample() for _ in range(3)])
        one, other = ours.step(2 * actions - 1 if action == "box" else actions), usual.step(actions)
        np.testing.assert_allclose(one[0], other[0], atol=1e-6)
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)
        np.testing.assert_array_equal(one[2], other[2])
        for mine, theirs in zip(one[3], other[3], strict=True):
            if "terminal_observation" in theirs:
                np.testing.assert_allclose(mine["terminal_observation"], theirs["terminal_observation"], atol=1e-6)
                assert mine["TimeLimit.truncated"]


def test_the_end_of_an_episode_is_stable_baselines_own(make_trace):
    with pytest.raises(EexError, match="autoreset_mode cannot be chosen"):
        ThresholdVecEnv(make_trace(), 2, autoreset_mode="NextStep")
