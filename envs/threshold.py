"""`eex/Threshold-v0`: choose the exit threshold for each frame of a recorded trace."""

from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from eex.envs.episodes import Episodes
from eex.envs.render import SHOWN, Shown, line, picture
from eex.policies.core.trace import Trace

Observation = NDArray[np.float32]


def action_space(episodes: Episodes) -> spaces.Space[Any]:
    """Of one environment."""
    if episodes.action == "grid":
        return spaces.Discrete(len(episodes.grid))
    return spaces.Box(0.0, 1.0, (episodes.exits,), np.float32)


def observation_space(episodes: Episodes) -> spaces.Space[Observation]:
    """Of one environment."""
    space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (len(episodes.names),), np.float32)
    return space


class ThresholdEnv(gym.Env[Observation, Any]):
    """Choose the exit threshold for each frame of a recorded trace.

    Action: Discrete(K), a threshold of the grid for all exits; or Box(0, 1, (exits,)), one per edge exit.
    Observation: Box(0, 1, (F,)), what a live policy knows before inference; `names` lists it.
    Reward: the confidence gained by offloading less its overhead, 0 for a frame answered on the edge; or accuracy less
    cost. Episode end: never terminated; truncated after `rounds` frames.

    `eex.envs.episodes.Episodes` explains all of this and the options.

    Parameters
    ----------
    trace
        A trace, or a file of one.
    render_mode
        "rgb_array": a picture of the latest thresholds, confidences, exits and rewards. "ansi": the latest, as text.
    options
        Of `Episodes`, by name.

    Attributes
    ----------
    names
        Of the observation's columns.

    Raises
    ------
    EexError
        If an option is out of range or does not fit the trace.

    Examples
    --------
    >>> import gymnasium
    >>> trace = Trace(
    ...     confidence=np.array([[0.6, 0.9], [0.9, 0.9]]), prediction=np.zeros((2, 2), int), label=np.zeros(2, int),
    ...     classes=("cat",),
    ... )
    >>> env = gymnasium.make("eex.envs:eex/Threshold-v0", trace=trace, grid=(0.5, 0.7), overhead=0.1)
    >>> observation, info = env.reset(seed=0)
    >>> env.step(1)[1:4]  # 0.6 is below 0.7: offloaded for a gain of 0.9 - 0.6 - 0.1
    (0.2, False, False)
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, trace: Trace | str | Path, *, render_mode: str | None = None, **options: Any) -> None:
        self.episodes = Episodes(1, trace, **options)
        self.names = self.episodes.names
        self.action_space = action_space(self.episodes)
        self.observation_space = observation_space(self.episodes)
        self.render_mode = render_mode
        self._history: deque[Shown] = deque(maxlen=SHOWN)
        self._total = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, the first that it gives."""
        super().reset(seed=seed)
        if seed is None and self.episodes.episode < 0:
            seed = int(self.np_random.integers(2**31))
        self._history.clear()
        self._total = 0.0
        return self.episodes.reset(None if seed is None else np.array([seed]))[0], {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play the next window; `info` has where its last frame left (the number of edge exits = offloaded)."""
        observation, reward, over = self.episodes.step(np.asarray(action)[None])
        earned, exit = round(float(reward[0]), 12), int(self.episodes.exit[0])
        if self.render_mode is not None:
            self._total += earned
            last = min(exit, self.episodes.exits - 1)
            confidence = float(self.episodes.confidence[last, self.episodes.played[0]])
            threshold = self.episodes.chosen[:, 0].tolist()
            self._history.append(Shown(self.episodes.t, threshold, confidence, exit, earned, self._total))
        return observation[0], earned, False, over, {"exit": exit}

    def render(self) -> Any:
        """A picture (height, width, 3) or a line of text, by `render_mode`; None without one."""
        if self.render_mode == "rgb_array":
            return picture(list(self._history), self.episodes.exits)
        if self.render_mode == "ansi":
            return line(self._history[-1] if self._history else None, self.episodes.exits)
        return None
