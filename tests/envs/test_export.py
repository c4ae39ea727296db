"""From a model trained in wrappers to the agent in the stream: it plays what the model would, or is refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from eex.envs import export_agent
from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.threshold import ThresholdEnv
from eex.policies.algorithms.agent import load_agent
from eex.policies.algorithms.rl import RL
from eex.policies.checks import CLAUSES, check_policy
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.registry import make_policy

pytestmark = pytest.mark.timeout(120)


def model_of(kind, env, **options):
    return kind("MlpPolicy", env, device="cpu", seed=3, policy_kwargs={"net_arch": [6, 5]}, **options)


def seen_much(env):
    """Play on, so that what normalises knows something."""
    env.seed(0)  # an agent that is at the edge of another choice may make it in one and not in the other
    env.action_space.seed(0)
    env.reset()
    for _ in range(200):
        env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
    return env


def in_gymnasium(trace, *around, **options):
    def make():
        env = ThresholdEnv(trace, **options)
        for wrap in around:
            env = wrap(env)
        return env

    return DummyVecEnv([make])


def to_pm1(env):
    return wrappers.RescaleAction(env, np.float32(-1), np.float32(1))


def centred(env):
    space = gymnasium.spaces.Box(-1, 1, env.observation_space.shape)
    return wrappers.TransformObservation(env, lambda x: (2 * x - 1).astype(np.float32), space)


WORLDS = {
    "bare": lambda t, **o: ThresholdVecEnv(t, 1, **o),
    "not rescaled": lambda t, **o: in_gymnasium(t, **o),
    "rescaled": lambda t, **o: in_gymnasium(t, to_pm1, **o),
    "rescaled oddly": lambda t, **o: in_gymnasium(
        t, lambda e: wrappers.RescaleAction(e, np.float32(2), np.float32(5)), **o
    ),
    "transformed": lambda t, **o: in_gymnasium(t, to_pm1, centred, **o),
    "watched": lambda t, **o: in_gymnasium(t, to_pm1, Monitor, wrappers.RecordEpisodeStatistics, **o),
    "watched from outside": lambda t, **o: VecMonitor(ThresholdVecEnv(t, 1, **o)),
    "normalised": lambda t, **o: VecNormalize(ThresholdVecEnv(t, 1, **o)),
    "normalised, tight": lambda t, **o: VecNormalize(ThresholdVecEnv(t, 1, **o), clip_obs=0.5),
    "normalised by gymnasium": lambda t, **o: in_gymnasium(t, wrappers.NormalizeObservation, to_pm1, **o),
    "both": lambda t, **o: VecNormalize(in_gymnasium(t, centred, wrappers.NormalizeReward, to_pm1, **o)),
    "rewards only": lambda t, **o: VecNormalize(ThresholdVecEnv(t, 1, **o), norm_obs=False),
    "stacked": lambda t, **o: VecFrameStack(ThresholdVecEnv(t, 1, **o), 3),
    "normalised and stacked": lambda t, **o: VecFrameStack(VecNormalize(ThresholdVecEnv(t, 1, **o)), 4),
    "stacked by gymnasium": lambda t, **o: in_gymnasium(
        t, to_pm1, lambda e: wrappers.FrameStackObservation(e, 3, padding_type="zero"), **o
    ),
}
OPTIONS = {"action": "box", "link": "2:20, 9:20", "rounds": 300, "overhead": 0.1}


def live(model, env, rounds):
    """Thresholds that a model plays over an episode, its wrappers' statistics frozen."""
    inside = env
    while hasattr(inside, "venv"):
        if isinstance(inside, VecNormalize):
            inside.training = False
        inside = inside.venv
    if isinstance(inside, DummyVecEnv):
        one = inside.envs[0]
        while isinstance(one, gymnasium.Wrapper):
            if isinstance(one, wrappers.NormalizeObservation):
                one.update_running_mean = False
            one = one.env
        episodes = one.episodes
    else:
        episodes = None
    x, played = env.reset(), []
    for _ in range(rounds):
        action = model.predict(x, deterministic=True)[0]
        x, *_ = env.step(action)
        of = episodes if episodes is not None else inside.inner._parts[0][1]
        played.append(of.chosen[:, 0].copy())
    return np.array(played)


@pytest.mark.parametrize("world", WORLDS)
def test_an_agent_of_a_wrapped_environment_plays_in_replay_what_the_model_plays_there(make_trace, tmp_path, world):
    trace = make_trace(2)
    env = seen_much(WORLDS[world](trace, **OPTIONS))
    model = model_of(PPO, env, n_steps=8, batch_size=8)
    model.policy.action_net.weight.data *= 100  # so that it changes its mind
    model.policy.action_net.bias.data += float(env.action_space.low[0] + env.action_space.high[0]) / 2
    card = export_agent(model, tmp_path / "agent", name=world)
    assert (card.name, card.algorithm, card.exits) == (world, "ppo", 2)
    played = live(model, model.get_env(), len(trace) - 1)
    assert np.ptp(played, axis=0).max() > 0.05
    policy = make_policy(f"rl:model={tmp_path / 'agent'}", exits=2)

    class Kept(RL):
        def choose(self, context):
            chosen = super().choose(context)
            kept.extend(chosen.exit_at[0, :, :-1])
            return chosen

    kept = []
    replay(Kept(str(tmp_path / "agent"), exits=2), trace, 0.1, order="in-order", link=_link(env))
    np.testing.assert_allclose(np.array(kept)[: len(played)], played, atol=2e-3)
    assert policy.agent.card == load_agent(tmp_path / "agent").card


def _link(env):
    from eex.policies.core.link import parse_link

    return parse_link(OPTIONS["link"])


@pytest.mark.parametrize("kind", [A2C, SAC, TD3])
@pytest.mark.parametrize("world", ["not rescaled", "rescaled oddly", "normalised"])
def test_other_algorithms(make_trace, tmp_path, kind, world):
    env = seen_much(WORLDS[world](make_trace(2), **OPTIONS))
    assert export_agent(model_of(kind, env), tmp_path).algorithm == kind.__name__.lower()


@pytest.mark.parametrize("kind", [PPO, DQN])
def test_a_grid(make_trace, tmp_path, kind):
    env = seen_much(VecNormalize(in_gymnasium(make_trace(1), grid=(0.2, 0.5, 0.9))))
    assert export_agent(model_of(kind, env), tmp_path).grid == (0.2, 0.5, 0.9)
    make_policy("rl", {"model": str(tmp_path)}, exits=1)


@pytest.mark.parametrize("world", ["normalised", "normalised and stacked"])
def test_agents_keep_to_the_contract(make_trace, tmp_path, world):
    def make(exits=1, runs=1, seed=0):
        folder = tmp_path / str(exits)
        if not folder.exists():
            env = seen_much(WORLDS[world](make_trace(max(exits, 1)), **OPTIONS, window=3))
            export_agent(model_of(PPO, env, n_steps=8, batch_size=8), folder)
        return RL(str(folder), exits=exits, runs=runs, seed=seed)

    kept = [c for c in CLAUSES if c not in ("unsent frames teach nothing", "no exits or runs are refused")]
    check_policy(make, exits=[2], clauses=kept)


def half(env):
    space = gymnasium.spaces.Box(-1, 1, env.action_space.shape)
    return wrappers.TransformAction(env, lambda a: np.clip((1 + a) / 4, 0, 1), space)


def mixed(env):
    return wrappers.TransformObservation(env, lambda x: x[::-1].copy(), env.observation_space)


def timed(env):
    return wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 50))


def squared(env):
    return wrappers.TransformObservation(env, lambda x: x**2, env.observation_space)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, **o: in_gymnasium(t, half, **o), "actions from -1 to 1 must become thresholds from 0 to 1, evenly"),
        (lambda t, **o: in_gymnasium(t, mixed, **o), "TransformObservation: does not scale each observation by itself"),
        (
            lambda t, **o: in_gymnasium(t, squared, **o),
            "TransformObservation: does not scale each observation by itself",
        ),
        (
            lambda t, **o: in_gymnasium(t, lambda e: wrappers.TimeLimit(e, 50), wrappers.TimeAwareObservation, **o),
            "TimeAwareObservation: ",
        ),
        (lambda t, **o: in_gymnasium(t, lambda e: wrappers.DelayObservation(e, 2), **o), "DelayObservation: "),
        (
            lambda t, **o: VecNormalize(VecFrameStack(ThresholdVecEnv(t, 1, **o), 3)),
            "VecNormalize: must not stand outside VecNormalize or stacked observations",
        ),
    ],
)
def test_wrappers_that_cannot_be_taken_along(make_trace, tmp_path, make, message):
    model = model_of(PPO, make(make_trace(2), **OPTIONS), n_steps=8, batch_size=8)
    with pytest.raises(EexError, match=f"^{message}.*write a policy of your own"):
        export_agent(model, tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


def test_thresholds_are_not_taken_for_another_box(make_trace, tmp_path):
    """Actions in [0, 1] and in [-1, 1] give two agents, and a model is not exported with the other's environment."""
    trace = make_trace(2)
    model = model_of(PPO, in_gymnasium(trace, **OPTIONS), n_steps=8, batch_size=8)
    for other in (ThresholdVecEnv(trace, 1, **OPTIONS), in_gymnasium(trace, to_pm1, **OPTIONS)):
        with pytest.raises(
            EexError, match=r"^the model was trained with the action_space Box\(0.0, 1.0.*'s is Box\(-1"
        ):
            export_agent(model, tmp_path, env=other)
    model.env = None
    with pytest.raises(EexError, match=r"^the model holds no environment"):
        export_agent(model, tmp_path)
    export_agent(model, tmp_path, env=in_gymnasium(trace, **OPTIONS))


def test_other_networks_are_refused(make_trace, tmp_path):
    from torch import nn

    trace = make_trace(2)
    options = {"n_steps": 8, "batch_size": 8}
    model = PPO("MlpPolicy", ThresholdVecEnv(trace, 1, **OPTIONS), policy_kwargs={"activation_fn": nn.GELU}, **options)
    with pytest.raises(EexError, match="an agent's activation is tanh or ReLU, got GELU"):
        export_agent(model, tmp_path)
    model = PPO("MlpPolicy", gymnasium.make("CartPole-v1"), **options)
    with pytest.raises(EexError, match="a CartPoleEnv is no environment of eex's"):
        export_agent(model, tmp_path)
