"""`eex/Threshold-v0` many times side by side, on arrays: the same numbers as the scalar one, step for step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from eex.envs.episodes import Episodes
from eex.envs.threshold import Observation, action_space, observation_space
from eex.policies.core.trace import Trace


class ThresholdVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """`ThresholdEnv` many times side by side; see there and `eex.envs.episodes.Episodes`.

    All episodes end together. They begin anew in the same step (`AutoresetMode.SAME_STEP`): the observations are then
    those of the new episodes, and the last ones stand in `info["final_obs"]`.

    Parameters
    ----------
    trace, options
        As for `ThresholdEnv`.
    num_envs
        Environments.

    Examples
    --------
    >>> import gymnasium, eex.envs
    >>> trace = Trace(
    ...     confidence=np.array([[0.6, 0.9], [0.9, 0.9]]), prediction=np.zeros((2, 2), int), label=np.zeros(2, int),
    ...     classes=("cat",),
    ... )
    >>> envs = gymnasium.make_vec("eex/Threshold-v0", num_envs=3, trace=trace, grid=(0.5, 0.7), overhead=0.1)
    >>> observations, infos = envs.reset(seed=0)
    >>> envs.step(np.array([0, 1, 1]))[1]
    array([0. , 0.2, 0.2])
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, trace: Trace | str | Path, num_envs: int = 1, **options: Any) -> None:
        self.num_envs = num_envs
        self.episodes = Episodes(num_envs, trace, **options)
        self.names = self.episodes.names
        self.single_action_space = action_space(self.episodes)
        self.single_observation_space = observation_space(self.episodes)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every environment; seed n gives them the seeds n, n + 1, …"""
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None and self.episodes.episode < 0:
            seed = int(self.np_random.integers(2**31))
        if seed is None:
            return self.episodes.reset(), {}
        first = np.arange(seed, seed + self.num_envs) if isinstance(seed, int) else np.array(seed, dtype=np.int64)
        return self.episodes.reset(first), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play the next window of every environment.

        Raises
        ------
        ValueError
            If the actions do not have the shape of `action_space`.
        """
        if np.shape(actions) != self.action_space.shape:
            raise ValueError(f"expected actions of shape {self.action_space.shape}, got {np.shape(actions)}")
        observations, rewards, over = self.episodes.step(actions)
        info: dict[str, Any] = {}
        if over:
            everywhere = np.ones(self.num_envs, dtype=bool)
            info = {"final_obs": observations, "_final_obs": everywhere, "final_info": {}, "_final_info": everywhere}
            observations = self.episodes.reset()
        return (
            observations,
            np.round(rewards, 12),
            np.zeros(self.num_envs, dtype=bool),
            np.full(self.num_envs, over),
            info,
        )
