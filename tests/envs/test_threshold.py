"""The environments: checked by their libraries, against replay, and one against the other step for step."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.vec_env import DummyVecEnv

from eex.envs import ID, check_environment
from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.threshold import ThresholdEnv
from eex.envs.vector import ThresholdVectorEnv
from eex.policies.algorithms.agent import observation_names
from eex.policies.algorithms.features import Features
from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_reward
from eex.policies.core.replay import replay
from eex.policies.core.trace import write_trace

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


def test_rendering_is_checked_too(make_trace):
    check_env(gymnasium.make(ID, trace=make_trace(), render_mode="ansi").unwrapped)
    check_env(gymnasium.make(ID, trace=make_trace(), render_mode="rgb_array").unwrapped)


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
    for _ in range(620):
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


def test_names_say_what_is_observed(make_trace):
    assert ThresholdEnv(make_trace()).names == (*Features(exits=3).names, "previous")
    box = ThresholdEnv(make_trace(2), action="box")
    assert box.names == observation_names(2, "box") == (*Features(exits=2).names, "previous_1", "previous_2")
    assert box.observation_space.shape == (len(box.names),)


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


def test_found_by_name_in_a_fresh_process(make_trace, tmp_path):
    write_trace(tmp_path / "trace.arrow", make_trace())
    program = (
        "import gymnasium, sys\n"
        "env = gymnasium.make('eex.envs:eex/Threshold-v0', trace=sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'stable_baselines3' not in sys.modules\n"
        "print(env.reset(seed=0)[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "trace.arrow"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "(15,)\n", done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 301}, "a trace too short for the episode: expected 301 frames or more, found 300"),
        ({"rounds": -1}, "an episode must have at least 1 round"),
        ({"order": "random"}, "order must be one of in-order, resampled, segments, switching, got 'random'"),
        ({"switch": (9, 5)}, "switch must be the fewest and most frames of a piece, got 9 and 5"),
        ({"action": "table"}, "action must be one of grid, box, got 'table'"),
        ({"reward": "fame"}, "reward must be one of confidence, utility, accuracy, got 'fame'"),
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


@pytest.mark.parametrize(
    ("action", "given"), [("grid", 11), ("grid", -1), ("box", [0.5, np.nan, 0.5]), ("box", [2] * 3)]
)
def test_actions_outside_the_space(make_trace, action, given):
    env = ThresholdEnv(make_trace(), action=action)
    env.reset(seed=0)
    with pytest.raises(EexError, match="an action must be"):
        env.step(given)
