"""Pictures and lines of what was played."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import eex.envs  # noqa: F401 (registers the environment)
from eex.envs import ID
from eex.envs.threshold import ThresholdEnv
from eex.envs.vector import ThresholdVectorEnv
from eex.policies.core.errors import EexError

pytestmark = pytest.mark.timeout(120)


def test_rendering_is_checked_too(make_trace):
    check_env(gymnasium.make(ID, trace=make_trace(), render_mode="ansi").unwrapped)
    check_env(gymnasium.make(ID, trace=make_trace(), render_mode="rgb_array").unwrapped)


def test_pictures_and_lines(make_trace):
    for mode in ("rgb_array", "ansi"):
        env = gymnasium.make(ID, trace=make_trace(), render_mode=mode)
        env.reset(seed=0)
        before = env.render()
        for _ in range(250):
            env.step(9)
        after = env.render()
        if mode == "ansi":
            assert before == "nothing played yet"
            assert after.startswith("frame 250: threshold 0.90, confidence ")
        else:
            assert before.shape == after.shape == (240, 480, 3)
            assert (before != after).any()


def test_pictures_of_each_environment(make_trace):
    options = {"trace": make_trace(), "rounds": 30}
    for mode in ("ansi", "rgb_array"):
        ours = gymnasium.make_vec("eex/Threshold-v0", num_envs=3, render_mode=mode, **options)
        usual = gymnasium.make_vec(
            "eex/Threshold-v0",
            num_envs=3,
            vectorization_mode="sync",
            render_mode=mode,
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            **options,
        )
        for envs in (ours, usual):
            envs.reset(seed=0)
        for _ in range(40):
            for envs in (ours, usual):
                envs.step(np.array([0, 8, 10]))
        assert len(ours.render()) == 3
        np.testing.assert_array_equal(ours.render(), usual.render())
    assert ThresholdVectorEnv(make_trace(), 2).render() is None
    for kind in (ThresholdVectorEnv, ThresholdEnv):
        with pytest.raises(EexError, match="render_mode must be one of rgb_array, ansi, or None; got 'human'"):
            kind(make_trace(), render_mode="human")
