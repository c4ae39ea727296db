"""From a model of stable-baselines3 to the agent that the stream plays, whatever wrappers it was trained in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers as gym_wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from eex.envs.episodes import Episodes
from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.threshold import ThresholdEnv
from eex.policies.algorithms.agent import FORMAT, RECURRENT, WRAPPED, Agent, AgentCard, observation_names, save_agent
from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError

ALIKE = (
    VecCheckNan,
    VecMonitor,
    Monitor,
    gym.RewardWrapper,
    gym_wrappers.NormalizeReward,
    gym_wrappers.OrderEnforcing,
    gym_wrappers.PassiveEnvChecker,
    gym_wrappers.RecordEpisodeStatistics,
    gym_wrappers.RecordVideo,
    gym_wrappers.TimeLimit,
)
"""Wrappers that leave observations and actions as they are."""
PROBES = 64
"""Observations on which an exported agent is compared with its model."""
OWN = "for what else a wrapper does, write a policy of your own (docs/own-policy.md)"


def export_agent(model: Any, folder: Path | str, name: str = "agent", env: Any = None) -> AgentCard:
    """Write a model's agent into a folder, to be played by `eex-stream --policy rl --policy-option model=FOLDER`.

    The model may have been trained in `eex.envs.sb3.ThresholdVecEnv` or in a `DummyVecEnv` of `ThresholdEnv`, and in
    wrappers around them that

    - scale each observation by itself (`VecNormalize`, `NormalizeObservation`, `RescaleObservation`, …): what they
      have learned goes into the agent and stays as it is;
    - stack the latest observations (`VecFrameStack`, `FrameStackObservation`), outside those that scale; before there
      are so many, zeros stand for those that are missing;
    - scale actions evenly, so that all thresholds from 0 to 1 can be chosen (`RescaleAction`, …);
    - leave both as they are (`Monitor`, `VecMonitor`, `NormalizeReward`, …).

    Parameters
    ----------
    model
        Of PPO, A2C, DQN, SAC, TD3 or sb3-contrib's RecurrentPPO, with an MLP of tanh or ReLU.
    folder, name
        Where to write, and what the card calls the agent.
    env
        The environment with its wrappers; by default the one that the model holds.

    Raises
    ------
    EexError
        If the model or a wrapper is another, the spaces are not those of the environment, or the agent does not play
        what the model would; nothing is written then.
    """
    return save_agent(exported(model, name, {}, env), folder)


def exported(model: Any, name: str, trained: Mapping[str, Any], env: Any = None) -> Agent:
    """A model's actor as the stream plays it: without its critic, and without chance; as for `export_agent`."""
    world = _world(model, model.get_env() if env is None else env)
    episodes, kind = world.episodes, type(model).__name__
    algorithm = {"RecurrentPPO": "recurrent-ppo"}.get(kind, kind.lower())
    grid, recurrent, squashed = episodes.action == "grid", kind == "RecurrentPPO", kind in ("SAC", "TD3")
    layers, activation = _layers(model, kind)
    if not grid and not squashed:  # from the box to thresholds
        matrix, bias = layers[-1]
        width = world.high - world.low
        layers[-1] = matrix / width[:, None], (bias - world.low) / width
    lstm: tuple[Floats, Floats] | None = None
    if recurrent:
        actor = model.policy.lstm_actor
        if actor.num_layers != 1:
            raise EexError(f"an agent has one layer of LSTM at most, got {actor.num_layers}")
        theirs = {key: _array(tensor) for key, tensor in actor.named_parameters()}
        matrix = np.hstack([theirs["weight_ih_l0"], theirs["weight_hh_l0"]])
        lstm = matrix, theirs["bias_ih_l0"] + theirs["bias_hh_l0"]
    scaled = bool(world.clip or world.mean.any() or (world.scale != 1).any())
    card = AgentCard(
        format=WRAPPED if scaled or world.stack > 1 else RECURRENT if recurrent else FORMAT,
        name=name,
        algorithm=algorithm,
        exits=episodes.exits,
        observation=observation_names(episodes.exits, episodes.action, episodes.experts, episodes.rate),
        normalisation=(0.0, 1.0),
        means=tuple(world.mean.tolist()) if scaled else (),
        scales=tuple(world.scale.tolist()) if scaled else (),
        clip=world.clip,
        stack=world.stack,
        experts=episodes.experts,
        rate=episodes.rate,
        action=episodes.action,
        grid=tuple(episodes.grid.tolist()) if grid else (),
        layers=(layers[0][0].shape[1], *(len(bias) for _, bias in layers)),
        activation=activation,
        squashed=squashed,
        lstm=model.policy.lstm_actor.hidden_size if recurrent else 0,
        window=episodes.window if recurrent or world.stack > 1 else 1,
        trained=dict(trained),
    )
    agent = Agent(card, tuple(layers), lstm)
    _compare(agent, model, world)
    return agent


@dataclass
class World:
    """An environment as seen from outside its wrappers.

    Attributes
    ----------
    episodes
        Inside them all.
    observe, act
        From an observation (inputs,) to what the model gets of it, not stacked; from the model's action to thresholds.
    mean, scale, clip, stack
        The former is (x - mean) / scale, clipped to ±clip if that is not 0; so many of them are stacked.
    low, high
        Actions that become thresholds of 0 and 1, (exits,).
    """

    episodes: Episodes
    observe: Callable[[Floats], Floats]
    act: Callable[[Floats], Floats]
    mean: Floats
    scale: Floats
    clip: float
    stack: int
    low: Floats
    high: Floats


def _world(model: Any, env: Any) -> World:
    if env is None:
        raise EexError("the model holds no environment: give the one that it was trained in, with its wrappers (env=)")
    for space in ("observation_space", "action_space"):
        theirs, ours = getattr(model, space), getattr(env, space)
        if theirs != ours:
            raise EexError(f"the model was trained with the {space} {theirs}, the environment's is {ours}")
    around: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        around.append(env)
        env = env.venv
    halved = isinstance(env, ThresholdVecEnv) and env.box
    if isinstance(env, DummyVecEnv):
        env = env.envs[0]
    while isinstance(env, gym.Wrapper):
        around.append(env)
        env = env.env
    if not isinstance(env, (ThresholdEnv, ThresholdVecEnv)):
        raise EexError(f"a {type(env).__name__} is no environment of eex's: expected ThresholdVecEnv or ThresholdEnv")
    episodes: Episodes = env.episodes if isinstance(env, ThresholdEnv) else env.inner.template
    inputs = len(observation_names(episodes.exits, episodes.action, episodes.experts, episodes.rate))
    steps: list[Callable[[Floats], Floats]] = []
    mean, scale, clip, stack = np.zeros(inputs), np.ones(inputs), 0.0, 1
    for wrapper in reversed(around):  # from within
        found = _observes(wrapper, inputs)
        if isinstance(found, int):
            stack *= found
            continue
        if found is None:
            continue
        if clip or stack > 1:
            raise EexError(
                f"{type(wrapper).__name__}: must not stand outside VecNormalize or stacked observations; {OWN}"
            )
        step, a, b, clip = found  # b in the middle of what it makes 0, times a
        mean, scale = mean + b * scale, scale * a
        steps.append(step)
    acts = [wrapper.action for wrapper in around if isinstance(wrapper, gym.ActionWrapper)]

    def observe(x: Floats) -> Floats:
        for step in steps:
            x = step(x)
        return x

    def act(action: Floats) -> Floats:
        for one in acts:
            action = one(action)
        return (1 + np.asarray(action)) / 2 if halved else np.asarray(action)

    low = high = np.zeros(0)
    if episodes.action == "box":
        low, high = _ends(model.action_space)
        _need_even(act, low, high)
    elif acts:
        raise EexError(f"a wrapper changes the arms of a grid, which an agent does not; {OWN}")
    return World(episodes, observe, act, mean, scale, clip, stack, low, high)


def _observes(wrapper: Any, inputs: int) -> int | tuple[Callable[[Floats], Floats], Floats, Floats, float] | None:
    """What a wrapper does to observations: how many it stacks, or (x - b) / a with a, b and a clip, or nothing."""
    name = type(wrapper).__name__
    if isinstance(wrapper, VecFrameStack):
        return int(wrapper.stacked_obs.n_stack)
    if isinstance(wrapper, gym_wrappers.FrameStackObservation):
        return int(wrapper.stack_size)
    if isinstance(wrapper, VecNormalize):
        if not wrapper.norm_obs:
            return None
        rms: Any = wrapper.obs_rms
        scale: Floats = np.sqrt(rms.var + wrapper.epsilon)
        return lambda x: np.asarray(wrapper.normalize_obs(x)), scale, np.asarray(rms.mean), float(wrapper.clip_obs)
    if isinstance(wrapper, gym_wrappers.NormalizeObservation):
        rms, epsilon = wrapper.obs_rms, wrapper.epsilon
        a, b = np.sqrt(np.asarray(rms.var, dtype=float) + epsilon), np.asarray(rms.mean, dtype=float)
        return lambda x: (x - b) / a, a, b, 0.0
    if isinstance(wrapper, gym.ObservationWrapper):

        def step(x: Floats) -> Floats:
            return np.asarray(wrapper.observation(x.astype(np.float32)), dtype=float)

        zero, one = np.zeros(inputs), np.ones(inputs)
        between = np.random.default_rng(0).uniform(size=(8, inputs))
        try:
            start = step(zero)
            rise = step(one) - start
            even = all(np.allclose(step(x), start + rise * x, rtol=1e-4, atol=1e-4) for x in between)
        except (TypeError, ValueError, IndexError):
            even = False
        if not even or start.shape != (inputs,) or not rise.all():
            raise EexError(f"{name}: does not scale each observation by itself; {OWN}")
        return step, 1 / rise, -start / rise, 0.0
    if isinstance(wrapper, (*ALIKE, gym.ActionWrapper)):
        return None
    raise EexError(f"{name}: what it does to observations is not known; {OWN}")


def _ends(space: gym.Space[Any]) -> tuple[Floats, Floats]:
    """The bounds of a model's actions."""
    if not isinstance(space, gym.spaces.Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise EexError(f"an agent's actions are a box with bounds, one per edge exit; got {space}")
    return space.low.astype(float), space.high.astype(float)


def _need_even(act: Callable[[Floats], Floats], low: Floats, high: Floats) -> None:
    """Raise `EexError` unless actions from low to high become thresholds from 0 to 1, evenly."""
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        action: Any = (low + share * (high - low)).astype(np.float32)
        found = act(action)
        if found.shape != low.shape or not np.allclose(found, share, atol=1e-4):
            raise EexError(
                f"actions from {low.min():g} to {high.max():g} must become thresholds from 0 to 1, evenly: "
                f"{action.tolist()} becomes {np.round(found, 4).tolist()}; {OWN}"
            )


def _layers(model: Any, kind: str) -> tuple[list[tuple[Floats, Floats]], str]:
    """Matrices and biases of a model's actor, and the activation function between them."""
    from torch import nn

    policy = model.policy
    try:
        if kind == "DQN":
            modules = [*policy.q_net.q_net]
        elif kind == "SAC":
            modules = [*policy.actor.latent_pi, policy.actor.mu]
        elif kind == "TD3":
            modules = [*policy.actor.mu]
        elif kind in ("PPO", "A2C", "RecurrentPPO"):
            modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        else:
            raise EexError(f"an agent is made of PPO, A2C, DQN, SAC, TD3 or RecurrentPPO, not of {kind}")
    except (AttributeError, TypeError):
        raise EexError(f"an agent is a small MLP: {type(policy).__name__} is none") from None
    layers = [(_array(m.weight), _array(m.bias)) for m in modules if isinstance(m, nn.Linear)]
    between = {type(m) for m in modules[:-1] if not isinstance(m, nn.Linear)} - {nn.Flatten, nn.Identity}
    if kind == "TD3":  # ends with its squashing
        between = {type(m) for m in modules[:-2] if not isinstance(m, nn.Linear)}
    if len(between) > 1 or between - {nn.Tanh, nn.ReLU}:
        raise EexError(f"an agent's activation is tanh or ReLU, got {', '.join(sorted(c.__name__ for c in between))}")
    return layers, "relu" if nn.ReLU in between else "tanh"


def _compare(agent: Agent, model: Any, world: World) -> None:
    """Raise `EexError` if an agent does not play what its model does, on made-up observations."""
    card = agent.card
    inputs = len(card.observation)
    x = np.random.default_rng(0).uniform(size=(PROBES, card.stack, inputs)).astype(np.float32).astype(float)
    seen = np.array([[world.observe(one) for one in several] for several in x], dtype=np.float32)
    actions = model.predict(seen.reshape(PROBES, *model.observation_space.shape), deterministic=True)[0]
    if card.remembers:
        memory = np.zeros((PROBES, *card.memory))
        found = agent.remember(x, memory)[0][:, -1]
    else:
        found = agent(x[:, -1])
    if card.action == "grid":
        arms = np.arange(PROBES), np.asarray(actions).reshape(PROBES)
        off = float((found.max(axis=1) - found[arms]).max() / max(1.0, np.abs(found).max()))
    else:
        off = float(np.abs(np.clip(found, 0, 1) - np.clip([world.act(action) for action in actions], 0, 1)).max())
    if not off < 1e-3:
        raise EexError(f"the agent does not play what {type(model).__name__}'s model does: they differ by {off:.3g}")


def _array(tensor: Any) -> Floats:
    found: Floats = tensor.detach().cpu().numpy().astype(np.float64)
    return found
