"""The vectorised environment as stable-baselines3 takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from eex.envs.vector import ThresholdVectorEnv
from eex.policies.core.trace import Trace


class ThresholdVecEnv(VecEnv):
    """`ThresholdVectorEnv` as a `VecEnv`: the same numbers, but that "box" actions lie in [-1, 1].

    stable-baselines3's Gaussian policies start around 0 with a spread of 1, and squashed ones end at -1 and 1; action x
    is the threshold (1 + x) / 2.

    Parameters
    ----------
    trace, num_envs, options
        As for `ThresholdVectorEnv`.
    seed
        Of the first episodes.
    """

    def __init__(self, trace: Trace | str | Path, num_envs: int = 1, seed: int = 0, **options: Any) -> None:
        self.inner = ThresholdVectorEnv(trace, num_envs, **options)
        space = self.inner.single_action_space
        self.box = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        self.render_mode = None
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
        self._action = np.clip((1 + actions) / 2, 0.0, 1.0) if self.box else actions

    def step_wait(self) -> VecEnvStepReturn:
        """Play the next window of every environment."""
        observations, rewards, _, truncated, info = self.inner.step(self._action)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if truncated[0]:
            for one, last in zip(infos, info["final_obs"], strict=True):
                one |= {"terminal_observation": last, "TimeLimit.truncated": True}
        return observations, rewards.astype(np.float32), truncated, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The same of every environment."""
        return [getattr(self if attr_name == "render_mode" else self.inner, attr_name)] * len(self._asked(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Of all environments together."""
        setattr(self.inner, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **named: Any) -> list[Any]:
        """Call a method once, for all environments together."""
        return [getattr(self.inner, method_name)(*args, **named)] * len(self._asked(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """None is."""
        return [False] * len(self._asked(indices))

    def _asked(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))
