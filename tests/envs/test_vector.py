"""The vector environment: Gymnasium's own of as many scalar ones, step for step; actions that cannot be; attributes."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

import eex.envs  # noqa: F401 (registers the environment)
from eex.envs.episodes import ResetNeeded
from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.threshold import ThresholdEnv
from eex.envs.vector import ThresholdVectorEnv
from eex.policies.core.errors import EexError

pytestmark = pytest.mark.timeout(120)

ENVS = 4
WORLDS = {
    "plain": {"rounds": 23},
    "link": {"order": "switching", "link": "20:50, 150:50, down:9, jitter=30", "rounds": 37, "switch": (5, 30)},
    "box": {"action": "box", "order": "segments", "rounds": 30, "window": 4, "overhead": (0.0, 0.5), "link": "35:7"},
    "resampled": {"order": "resampled", "rounds": 31, "window": 3, "reward": "accuracy", "exit_cost": 0.01},
}
MASKS = {9: [True, False, False, True], 15: [False, True, False, False], 40: [False, False, True, True]}


def both(make_trace, options, mode, exits=2):
    trace = make_trace(exits)
    ours = ThresholdVectorEnv(trace, ENVS, autoreset_mode=mode, **options)
    usual = SyncVectorEnv([lambda: ThresholdEnv(trace, **options)] * ENVS, autoreset_mode=mode)
    assert ours.metadata == usual.metadata
    return ours, usual


def assert_same_infos(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same_infos(value, other[name])
        else:
            assert [None if x is None else np.asarray(x).tolist() for x in value] == [
                None if x is None else np.asarray(x).tolist() for x in other[name]
            ]


def assert_same(one, other):
    for mine, theirs in zip(one[:-1], other[:-1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert_same_infos(one[-1], other[-1])


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_gives_what_gymnasiums_own_gives(make_trace, options, mode):
    ours, usual = both(make_trace, options, mode)
    assert_same(ours.reset(seed=7), usual.reset(seed=7))
    usual.action_space.seed(0)
    ends = 0
    for t in range(200):
        if mask := MASKS.get(t):
            seed = [3, None, 8, None] if t == 15 else 90 if t == 40 else None
            again = [envs.reset(seed=seed, options={"reset_mask": np.array(mask)}) for envs in (ours, usual)]
            assert_same(*again)
        if t == 70:
            assert_same(*(envs.reset(seed=[1, None, 2, None]) for envs in (ours, usual)))
        if t == 90:
            assert_same(*(envs.reset() for envs in (ours, usual)))
        actions = usual.action_space.sample()
        one, other = ours.step(actions), usual.step(actions)
        assert_same(one, other)
        ends += one[3].sum()
        if mode is AutoresetMode.DISABLED and one[3].any():
            with pytest.raises(ResetNeeded, match="episodes are over, the first in environment"):
                ours.step(actions)
            assert_same(*(envs.reset(options={"reset_mask": one[3].copy()}) for envs in (ours, usual)))
    assert ends > ENVS


def test_the_last_info_is_the_scalar_ones(make_trace):
    envs, env = ThresholdVectorEnv(make_trace(1), 2, rounds=5), ThresholdEnv(make_trace(1), rounds=5)
    envs.reset(seed=[3, 4])
    env.reset(seed=4)
    for _ in range(5):
        *_, infos = envs.step(np.array([0, 10]))
        *_, info = env.step(10)
    assert infos["final_info"]["exit"].tolist() == [0, info["exit"]] == [0, 1]
    assert "exit" not in infos


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([0, 1, 0, 1]), "must hold truth values, got ndarray of int64"),
        ("all", "must hold truth values, got str"),
        (np.array([True, False]), r"must have the shape \(4,\), got \(2,\)"),
        (np.zeros(4, dtype=bool), "must mark at least one environment, got none"),
    ],
)
def test_masks_that_cannot_be(make_trace, mask, message):
    envs = ThresholdVectorEnv(make_trace(), ENVS)
    envs.reset(seed=0)
    with pytest.raises((EexError, TypeError), match=message):
        envs.reset(options={"reset_mask": mask})


def test_nothing_is_played_or_masked_before_the_first_reset(make_trace):
    envs, env = ThresholdVectorEnv(make_trace(), ENVS), ThresholdEnv(make_trace())
    with pytest.raises(ResetNeeded, match="reset all environments once"):
        envs.reset(options={"reset_mask": np.array([True, False, False, False])})
    for step in (lambda: envs.step(np.zeros(ENVS, dtype=int)), lambda: env.step(0)):
        with pytest.raises(ResetNeeded, match="no episode has begun: call reset before step"):
            step()


def test_a_step_after_the_end_needs_a_reset(make_trace):
    env = ThresholdEnv(make_trace(), rounds=3)
    env.reset(seed=0)
    assert [env.step(5)[3] for _ in range(3)] == [False, False, True]
    for error in (EexError, gymnasium.error.ResetNeeded):
        with pytest.raises(error, match="the episode is over after 3 frames: call reset before the next step"):
            env.step(5)
    env.reset()
    env.step(5)


@pytest.mark.parametrize("seed", [[1, 2], "now", 1.5, -1, [0, 1, 2, -3], [1, 2, 3, "four"]])
def test_seeds_that_cannot_be(make_trace, seed):
    with pytest.raises(EexError, match="seed must be"):
        ThresholdVectorEnv(make_trace(), ENVS).reset(seed=seed)


def test_seeds_of_any_integer_type(make_trace):
    envs = ThresholdVectorEnv(make_trace(), ENVS, order="resampled")
    first = envs.reset(seed=5)[0]
    for seed in (np.int32(5), np.arange(5, 9), (5, 6, 7, 8)):
        np.testing.assert_array_equal(envs.reset(seed=seed)[0], first)
    big = envs.reset(seed=2**63 + 5)[0], ThresholdEnv(make_trace(), order="resampled").reset(seed=2**63 + 5)[0]
    np.testing.assert_array_equal(big[0][0], big[1])


def test_without_seeds_the_environments_differ(make_trace):
    envs = ThresholdVectorEnv(make_trace(), ENVS, overhead=(0.0, 1.0))
    prices = envs.reset(seed=[None, 1, None, None])[0][:, envs.names.index("overhead")]
    assert len(set(prices.tolist())) == ENVS
    assert envs.reset(seed=[1, None, None, None])[0][0, envs.names.index("overhead")] == prices[1]


def test_an_autoreset_mode_that_is_none(make_trace):
    with pytest.raises(EexError, match="autoreset_mode must be one of NextStep, SameStep, Disabled, got 'never'"):
        ThresholdVectorEnv(make_trace(), ENVS, autoreset_mode="never")


# ---- actions

ARMS = "an action must be an arm, an integer from 0 to 10"
THRESHOLDS = r"an action must be thresholds in \[0, 1\]"


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", "int64"])
def test_arms_of_any_integer_type(make_trace, kind):
    env, envs = ThresholdEnv(make_trace()), ThresholdVectorEnv(make_trace(), ENVS)
    env.reset(seed=0)
    envs.reset(seed=0)
    expected = env.step(7)[1]
    for given in (np.dtype(kind).type(7), np.array(7, dtype=kind)):
        env.reset(seed=0)
        assert env.step(given)[1] == expected
    for given in (np.full(ENVS, 7, dtype=kind), [7] * ENVS, tuple([np.int16(7)] * ENVS)):
        envs.reset(seed=0)
        assert envs.step(given)[1][0] == expected


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int64"])
def test_thresholds_of_any_number_type(make_trace, kind):
    env = ThresholdEnv(make_trace(2), action="box")
    env.reset(seed=0)
    env.step(np.array([0, 1], dtype=kind))
    assert env.episodes.chosen.ravel().tolist() == [0, 1]
    env.step([1 + 1e-7, -1e-7])  # as wrappers round
    assert env.episodes.chosen.ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1.0, f"{ARMS}, got float64 1.0"),
        (np.float32(1), f"{ARMS}, got float32"),
        ([1], rf"{ARMS}: expected actions of shape \(\), got \(1,\)"),
        (np.array([1]), rf"{ARMS}: expected actions of shape \(\), got \(1,\)"),
        (True, f"{ARMS}, got bool True"),
        ("1", f"{ARMS}, got <U1 '1'"),
        (None, f"{ARMS}, got object None"),
        (float("nan"), f"{ARMS}, got float64 nan"),
        (11, f"{ARMS}, got 11"),
        (-1, f"{ARMS}, got -1"),
        (2**70, f"{ARMS}, got object"),
        ([[1], [1, 2]], f"{ARMS}, got a list that is no array"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_arms_that_are_none(make_trace, given, message, wrapped):
    env = gymnasium.make("eex/Threshold-v0", trace=make_trace()) if wrapped else ThresholdEnv(make_trace())
    env.reset(seed=0)
    with pytest.raises(EexError, match=f"^{message}") as caught:
        env.step(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.5, rf"{THRESHOLDS}: expected actions of shape \(2,\), got \(\)"),
        ([0.5], rf"{THRESHOLDS}: expected actions of shape \(2,\), got \(1,\)"),
        ([[0.5, 0.5]], rf"{THRESHOLDS}: expected actions of shape \(2,\), got \(1, 2\)"),
        ([0.5, np.nan], f"{THRESHOLDS}, got nan"),
        ([0.5, np.inf], f"{THRESHOLDS}, got inf"),
        ([-0.5, 0.5], f"{THRESHOLDS}, got -0.5"),
        ([0.5, 70], f"{THRESHOLDS}, got 70"),
        (["0.5", "0.5"], f"{THRESHOLDS}, got <U3"),
        ([True, False], f"{THRESHOLDS}, got bool"),
        ([0.5 + 0j, 0.5], f"{THRESHOLDS}, got complex128"),
    ],
)
def test_thresholds_that_are_none(make_trace, given, message):
    env = ThresholdEnv(make_trace(2), action="box")
    env.reset(seed=0)
    with pytest.raises(EexError, match=f"^{message}") as caught:
        env.step(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (4, 2), ()])
def test_box_actions_of_another_shape_are_refused(make_trace, shape):
    envs = gymnasium.make_vec("eex/Threshold-v0", num_envs=4, trace=make_trace(1), action="box")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected actions of shape \(4, 1\)"):
        envs.step(np.zeros(shape))


@pytest.mark.parametrize("given", [np.zeros(4), [1] * 3, 1, np.zeros((4, 1), int), [0, 1, 2, 11], [0, 1, 2, -1], None])
def test_a_refused_action_plays_nothing(make_trace, given):
    envs, same = (ThresholdVectorEnv(make_trace(), ENVS) for _ in range(2))
    envs.reset(seed=0)
    same.reset(seed=0)
    with pytest.raises(EexError, match=ARMS):
        envs.step(given)
    arms = np.array([1, 3, 8, 10])
    assert_same(envs.step(arms), same.step(arms))


def test_which_environments_action_is_wrong(make_trace):
    envs = ThresholdVectorEnv(make_trace(2), ENVS, action="box")
    envs.reset(seed=0)
    actions = np.full((ENVS, 2), 0.5)
    actions[2, 1] = np.nan
    with pytest.raises(EexError, match=rf"^{THRESHOLDS}, got nan in environment 2$"):
        envs.step(actions)


def test_a_rescaled_action_is_checked_too(make_trace):
    env = gymnasium.wrappers.RescaleAction(gymnasium.make("eex/Threshold-v0", trace=make_trace(2), action="box"), -1, 1)
    env.reset(seed=0)
    env.step(np.array([-1.0, 1.0], dtype=np.float32))
    assert env.unwrapped.episodes.chosen.ravel().tolist() == [0, 1]
    with pytest.raises(EexError, match=THRESHOLDS):
        env.step(np.array([np.nan, 0.0], dtype=np.float32))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize(
    "name", ["RecordEpisodeStatistics", "NormalizeObservation", "RescaleAction", "NormalizeReward"]
)
def test_gymnasiums_vector_wrappers(make_trace, name, mode):
    if name == "NormalizeObservation" and mode is AutoresetMode.SAME_STEP:
        pytest.skip("Gymnasium refuses this mode itself")
    more = (np.float32(-1), np.float32(1)) if name == "RescaleAction" else ()
    ours, usual = (
        getattr(gymnasium.wrappers.vector, name)(envs, *more)
        for envs in both(make_trace, {"action": "box", "rounds": 9, "order": "resampled"}, mode)
    )
    np.testing.assert_array_equal(ours.reset(seed=1)[0], usual.reset(seed=1)[0])
    usual.action_space.seed(0)
    for _ in range(25):
        actions = usual.action_space.sample()
        one, other = ours.step(actions), usual.step(actions)
        for mine, theirs in zip(one[:-1], other[:-1], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        assert set(one[-1]) == set(other[-1])


# ---- attributes of some environments


def test_attributes_reach_only_those_named(make_trace):
    ours = ThresholdVecEnv(make_trace(), 3)
    usual = DummyVecEnv([lambda: ThresholdEnv(make_trace())] * 3)
    for envs in (ours, usual):
        envs.set_attr("note", "mine", indices=[0, 2])
        envs.set_attr("other", 5)
        assert envs.get_attr("note", indices=[0, 2]) == ["mine", "mine"]
        assert envs.get_attr("other", indices=1) == [5]
        assert envs.get_attr("names") == [ours.inner.names] * 3
        assert not envs.has_attr("note")
        with pytest.raises(AttributeError):
            envs.get_attr("note", indices=1)


@pytest.mark.parametrize("name", ["names", "action_space", "render_mode", "overhead", "window", "reset"])
def test_what_all_have_in_common_cannot_be_set(make_trace, name):
    envs = ThresholdVecEnv(make_trace(), 3)
    envs.reset()
    for indices in (None, [1]):
        with pytest.raises(EexError, match=f"^{name} is the same for all environments"):
            envs.set_attr(name, 0, indices=indices)


def test_a_method_reaches_only_those_named(make_trace):
    ours = ThresholdVecEnv(make_trace(), 3, seed=4, order="resampled")
    usual = DummyVecEnv([lambda: ThresholdEnv(make_trace(), order="resampled")] * 3)
    usual.seed(4)
    np.testing.assert_array_equal(ours.reset(), usual.reset())
    for t in range(9):
        one, other = (envs.step(np.array([2, 8, 10])) for envs in (ours, usual))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[3] == other[3]
        if t == 3:
            again = [envs.env_method("reset", seed=9, indices=[1])[0][0] for envs in (ours, usual)]
            np.testing.assert_array_equal(*again)


def test_gymnasiums_calls_reach_each_environment(make_trace):
    envs = ThresholdVectorEnv(make_trace(), 3, render_mode="ansi")
    envs.reset(seed=0)
    envs.set_attr("note", [1, 2, 3])
    assert envs.get_attr("note") == envs.call("note") == (1, 2, 3)
    envs.set_attr("note", "all")
    assert envs.get_attr("note") == ("all",) * 3
    assert envs.call("render") == envs.render() == ("nothing played yet",) * 3
    with pytest.raises(EexError, match="expected one value for each of 3 environments, got 2"):
        envs.set_attr("note", [1, 2])
