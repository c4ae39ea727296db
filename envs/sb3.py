"""The vectorised environment as stable-baselines3 takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from eex.envs.vector import One, ThresholdVectorEnv
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace


class ThresholdVecEnv(VecEnv):
    """`ThresholdVectorEnv` as a `VecEnv`: the same numbers, but that "box" actions lie in [-1, 1].

    stable-baselines3's Gaussian policies start around 0 with a spread of 1, and squashed ones end at -1 and 1; action x
    is the threshold (1 + x) / 2, and what lies outside [-1, 1] is clipped, as stable-baselines3 clips.

    Parameters
    ----------
    trace, num_envs, options
        As for `ThresholdVectorEnv`, but for `autoreset_mode`: an episode that ends begins anew in the same step.
    seed
        Of the first episodes.
    """

    def __init__(self, trace: Trace | str | Path, num_envs: int = 1, seed: int = 0, **options: Any) -> None:
        if "autoreset_mode" in options:
            raise EexError(
                "autoreset_mode cannot be chosen: stable-baselines3 has environments begin anew in the same step"
            )
        self.inner = ThresholdVectorEnv(trace, num_envs, **options)
        space = self.inner.single_action_space
        self.box = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        super().__init__(num_envs, self.inner.single_observation_space, space)
        self._seed: int | None = seed
        self._action: NDArray[Any] = np.zeros(num_envs)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Of the episodes after the next reset: n, n + 1, …"""
        self._seed = seed
        return [None if seed is None else seed + k for k in range(self.num_envs)]

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        seed, self._seed = self._seed, None
        return self.inner.reset(seed=seed)[0]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step."""
        self._action = np.clip((1 + np.asarray(actions)) / 2, 0.0, 1.0) if self.box else actions

    def step_wait(self) -> VecEnvStepReturn:
        """Play the next window of every environment."""
        observations, rewards, _, truncated, info = self.inner.step(self._action)
        last = info.get("final_info", {}).get("exit", 0)
        exits = np.where(truncated, last, info.get("exit", 0))
        infos = [
            {"exit": exit, "TimeLimit.truncated": over}
            for exit, over in zip(exits.tolist(), truncated.tolist(), strict=True)
        ]
        for env in np.flatnonzero(truncated):
            infos[env]["terminal_observation"] = info["final_obs"][env]
        return observations, rewards.astype(np.float32), truncated, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of each environment, under `render_mode="rgb_array"`."""
        return self.inner.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment that is asked for."""
        if attr_name == "action_space":
            return [self.action_space for _ in self._asked(indices)]
        return [getattr(one, attr_name) for one in self._asked(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment that is asked for; an `EexError` if it is not one that can be set."""
        for one in self._asked(indices):
            setattr(one, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **named: Any) -> list[Any]:
        """What a method of each environment that is asked for returns."""
        return [getattr(one, method_name)(*args, **named) for one in self._asked(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """None is."""
        return [False for _ in self._asked(indices)]

    def _asked(self, indices: VecEnvIndices) -> list[One]:
        return [self.inner.ones[env] for env in self._get_indices(indices)]
