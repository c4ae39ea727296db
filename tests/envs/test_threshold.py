"""The environments: checked by their libraries, against replay, and one against the other step for step."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from eex.envs import ID, check_environment
from eex.envs.threshold import ThresholdEnv
from eex.envs.vector import ThresholdVectorEnv
from eex.policies.algorithms.agent import observation_names
from eex.policies.algorithms.features import Features
from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay

pytestmark = pytest.mark.timeout(120)

WORLDS = {
    "plain": {},
    "resampled": {"order": "resampled", "rounds": 500, "overhead": (0.0, 0.4)},
    "segments": {"order": "segments", "rounds": 200, "exit_cost": 0.01},
    "switching": {"order": "switching", "rounds": 400, "switch": (5, 30), "window": 7},
    "link": {"order": "switching", "link": "20:50, 150:50, jitter=30", "rounds": 250, "switch": (5, 30)},
    "lossy": {"link": "20:50, down:50, 90:10", "reward": "accuracy", "rounds": 300},
    "box": {"action": "box", "order": "switching", "rounds": 200, "link": "35:7, 0:3", "reward": "accuracy"},
    "fine": {"grid": tuple(np.linspace(0, 1, 51)), "experts": 2, "rate": 0.5, "rounds": 100},
}
every_world = pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)


@every_world
def test_libraries_find_no_fault(make_trace, options):
    env = gymnasium.make(ID, trace=make_trace(), **options)
    check_env(env.unwrapped, skip_render_check=True)
    check_environment(lambda: ThresholdEnv(make_trace(), **options))
    with warnings.catch_warnings():  # "box" holds thresholds, in [0, 1]; the VecEnv adapter has [-1, 1]
        warnings.filterwarnings("ignore", message="We recommend you to use a symmetric")
        check_env_sb3(env.unwrapped)


@every_world
@pytest.mark.parametrize("exits", [1, 3])
def test_vectorised_gives_the_scalar_ones_numbers(make_trace, options, exits):
    trace, envs = make_trace(exits), 4
    vector = ThresholdVectorEnv(trace, envs, **options)
    scalars = [ThresholdEnv(trace, **options) for _ in range(envs)]
    observations, _ = vector.reset(seed=11)
    np.testing.assert_array_equal(observations, [env.reset(seed=11 + k)[0] for k, env in enumerate(scalars)])
    vector.action_space.seed(0)
    ended = 0
    for _ in range(scalars[0].episodes.rounds + 40):  # an episode, and the beginning of the next
        actions = vector.action_space.sample()
        observations, rewards, terminated, truncated, info = vector.step(actions)
        assert not terminated.any()
        assert vector.observation_space.contains(observations)
        for k, env in enumerate(scalars):
            observation, reward, _, over, _ = env.step(actions[k])
            assert (reward, over) == (rewards[k], truncated[k])
            if over:
                ended += 1
                np.testing.assert_array_equal(info["final_obs"][k], observation)
                observation, _ = env.reset()
            np.testing.assert_array_equal(observations[k], observation)
    assert ended


class Follower(Policy):
    """Plays given arms, and keeps the features that a live policy has before each frame."""

    def __init__(self, arms, grid, exits):
        super().__init__(exits)
        self.arms, self.thresholds, self.features, self.seen = arms, np.asarray(grid), Features(exits), []

    def choose(self, context):
        self.seen.append(self.features.vector(context)[0, 0])
        arm = self.arms[context.first : context.first + 1][None]
        return self.same_at_every_exit(self.thresholds[arm], arm)

    def learn(self, outcomes):
        self.features.update(outcomes)


@pytest.mark.parametrize("link", [None, "25:40, 150:30, 0:10, down:5", "995:300"])
@pytest.mark.parametrize("exits", [1, 3])
def test_observes_and_earns_what_a_live_policy_does(make_trace, link, exits):
    """Replay, which hands a policy no more than a stream does, is the reference: nothing leaks."""
    trace = make_trace(exits)
    env = ThresholdEnv(trace, link=link, exit_cost=0.02, overhead=0.15)
    arms = np.random.default_rng(3).integers(len(env.episodes.grid), size=len(trace))
    follower = Follower(arms, env.episodes.grid, exits)
    told = replay(follower, trace, 0.15, order="in-order", exit_cost=0.02, link=env.episodes.link)
    observation, _ = env.reset(seed=0)
    for t, arm in enumerate(arms):
        np.testing.assert_allclose(observation[:-1], follower.seen[t], atol=1e-6, err_msg=f"frame {t}")
        observation, reward, *_, info = env.step(arm)
        assert reward == pytest.approx(told.reward[0, t])
        assert info["exit"] == exits if told.offloaded[0, t] else info["exit"] == told.exit[0, t]


def test_accuracy_is_that_of_replay(make_trace):
    trace = make_trace()
    env = ThresholdEnv(trace, reward="accuracy", overhead=0.2, link="20:50, down:20")
    arms = np.random.default_rng(3).integers(11, size=len(trace))
    told = replay(Follower(arms, env.episodes.grid, 3), trace, 0.2, order="in-order", link=env.episodes.link)
    right = told.answer[0] == trace.label
    env.reset(seed=0)
    for t, arm in enumerate(arms):
        assert env.step(arm)[1] == pytest.approx(right[t] - 0.2 * told.offloaded[0, t])


def test_names_say_what_is_observed(make_trace):
    assert ThresholdEnv(make_trace()).names == (*Features(exits=3).names, "previous")
    box = ThresholdEnv(make_trace(2), action="box")
    assert box.names == observation_names(2, "box") == (*Features(exits=2).names, "previous_1", "previous_2")
    assert box.observation_space.shape == (len(box.names),)


@pytest.mark.parametrize(
    ("action", "given"), [("grid", 11), ("grid", -1), ("box", [0.5, np.nan, 0.5]), ("box", [2] * 3)]
)
def test_actions_outside_the_space(make_trace, action, given):
    env = ThresholdEnv(make_trace(), action=action)
    env.reset(seed=0)
    with pytest.raises(EexError, match="an action must be"):
        env.step(given)
