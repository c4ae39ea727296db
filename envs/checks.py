"""`check_environment`: whether an environment keeps to what `eex.envs` promises; for authors, and for our tests."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from eex.policies.core.errors import ContractError

STEPS = 500
"""Steps that are played at most, to see whether episodes go by their seed and how they end."""

Played = list[tuple[Any, float, bool, bool]]  # observation, reward, terminated, truncated of each step


def check_environment(make: Callable[[], gym.Env[Any, Any]]) -> None:
    """Check an environment as Gymnasium does, and that its episodes are what agents of this project are trained on.

    Parameters
    ----------
    make
        Makes the environment: `lambda: ThresholdEnv(trace)`.

    Raises
    ------
    ContractError
        Naming the first clause that is broken, and the values that break it.
    """
    env = make()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an observation outside its space is only warned of
            check_env(env.unwrapped, skip_render_check=True)
    except Exception as error:  # an AssertionError mostly, of several lines perhaps
        reason = (str(error).splitlines() or [""])[0]
        raise ContractError(f"Gymnasium finds no fault: {type(error).__name__}: {reason}") from error
    _observations_are_named(env)
    one, other = (_played(make()) for _ in range(2))
    _rewards_are_finite(one)
    _a_seed_fixes_the_episode(one, other)
    _episodes_are_only_truncated(one)


def _observations_are_named(env: gym.Env[Any, Any]) -> None:
    space, names = env.observation_space, tuple(getattr(env.unwrapped, "names", ()))
    if not (isinstance(space, gym.spaces.Box) and space.shape == (len(names),) and len(set(names)) == len(names)):
        raise ContractError(f"observations are named: `names` must name each column of {space} once, got {names}")
    if not ((space.low == 0).all() and (space.high == 1).all()):
        raise ContractError(f"observations are named: each column must lie in [0, 1], got the space {space}")


def _a_seed_fixes_the_episode(one: Played, other: Played) -> None:
    if len(one) != len(other):
        raise ContractError(f"a seed fixes the episode: two of seed 0 end after {len(one)} and {len(other)} steps")
    for k, (a, b) in enumerate(zip(one, other, strict=True)):
        different = np.flatnonzero(np.asarray(a[0]) != np.asarray(b[0]))
        if len(different):
            found = f"column {different[0]} of the observation: got {a[0][different[0]]} and {b[0][different[0]]}"
            raise ContractError(f"a seed fixes the episode: two of seed 0 differ in step {k}, {found}")
        if a[1:] != b[1:]:
            found = f"reward, terminated and truncated: got {a[1:]} and {b[1:]}"
            raise ContractError(f"a seed fixes the episode: two of seed 0 differ in step {k}, {found}")


def _rewards_are_finite(played: Played) -> None:
    for k, (_, reward, _, _) in enumerate(played):
        if not np.isfinite(reward):
            raise ContractError(f"rewards are finite: step {k} earned {reward}")


def _episodes_are_only_truncated(played: Played) -> None:
    for k, (_, _, terminated, _) in enumerate(played):
        if terminated:
            raise ContractError(f"episodes are only truncated: step {k} terminated; a stream goes on")


def _played(env: gym.Env[Any, Any]) -> Played:
    """What the steps of an episode of seed 0 bring, under actions drawn by seed 0."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    played: Played = [(observation, 0.0, False, False)]
    while len(played) < STEPS and not (played[-1][2] or played[-1][3]):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        played.append((observation, float(reward), terminated, truncated))
    return played
