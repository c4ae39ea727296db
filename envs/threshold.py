"""`eex/Threshold-v0`: choose the exit threshold for each frame of a recorded trace."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from eex.envs.episodes import Episodes
from eex.envs.render import MODES, History, check_mode
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace

Observation = NDArray[np.float32]
ROUNDING = 1e-6
"""How far from [0, 1] a threshold may lie, as rescaling wrappers round; it is clipped then."""
SEEDS = 2**63
"""Seeds count modulo this."""


def action_space(episodes: Episodes) -> spaces.Space[Any]:
    """Of one environment."""
    if episodes.action == "grid":
        return spaces.Discrete(len(episodes.grid))
    return spaces.Box(0.0, 1.0, (episodes.exits,), np.float32)


def observation_space(episodes: Episodes) -> spaces.Space[Observation]:
    """Of one environment."""
    space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (len(episodes.names),), np.float32)
    return space


def legal(action: Any, space: spaces.Space[Any]) -> NDArray[Any]:
    """An action of one environment, or those of several, as an array of the space's shape.

    Arms are integers of any type; thresholds are numbers of any type, also lists of them.

    Raises
    ------
    EexError
        If the shape is another, an arm is no integer or not of the grid, or a threshold is NaN or outside [0, 1].
    """
    box = isinstance(space, spaces.Box)
    if isinstance(space, spaces.Box):
        what = "thresholds in [0, 1]"
    else:
        arms = int(np.max(space.n if isinstance(space, spaces.Discrete) else space.nvec))  # type: ignore[attr-defined]
        what = f"an arm, an integer from 0 to {arms - 1}"
    try:
        given = np.asarray(action)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # ragged, or on another device
        raise EexError(f"an action must be {what}, got a {type(action).__name__} that is no array") from None
    if given.dtype.kind not in ("fiu" if box else "iu"):
        raise EexError(f"an action must be {what}, got {given.dtype}{f' {action!r}' if given.ndim == 0 else ''}")
    if given.shape != space.shape:
        raise EexError(f"an action must be {what}: expected actions of shape {space.shape}, got {given.shape}")
    good = (given >= -ROUNDING) & (given <= 1 + ROUNDING) if box else (given >= 0) & (given < arms)
    if not good.all():
        at, several = np.argwhere(~good)[0], given.ndim > box
        where = f" in environment {at[0]}" if several else f" at exit {at[0] + 1}" if given.ndim else ""
        raise EexError(f"an action must be {what}, got {given[~good].flat[0]}{where}")
    return np.clip(given.astype(np.float64), 0.0, 1.0) if box else given.astype(np.int64)


class ThresholdEnv(gym.Env[Observation, Any]):
    """Choose the exit threshold for each frame of a recorded trace.

    Action: Discrete(K), a threshold of the grid for all exits; or Box(0, 1, (exits,)), one per edge exit. What lies
    outside the space is refused, not clipped, unless it is off by rounding alone.
    Observation: Box(0, 1, (F,)), what a live policy knows before inference; `names` lists it.
    Reward: the confidence gained by offloading less its overhead, 0 for a frame answered on the edge; the utility; or
    accuracy less costs. Episode end: never terminated; truncated after `rounds` frames; a further step needs a reset.

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
        If an option is out of range or does not fit the trace; in `step`, if the action is outside its space.
    ResetNeeded
        In `step`, before the first reset and after the end of an episode. It is an `EexError`, and Gymnasium's error
        of this name.

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

    metadata = {"render_modes": [*MODES], "render_fps": 30}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, trace: Trace | str | Path, *, render_mode: str | None = None, **options: Any) -> None:
        self.episodes = Episodes(1, trace, **options)
        self.names = self.episodes.names
        self.action_space = action_space(self.episodes)
        self.observation_space = observation_space(self.episodes)
        self.render_mode = check_mode(render_mode)
        self._history = History()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, the first that it gives."""
        super().reset(seed=seed)
        if seed is None and self.episodes.episode < 0:
            seed = int(self.np_random.integers(2**31))
        self._history = History()
        return self.episodes.reset(None if seed is None else np.array([seed % SEEDS]))[0], {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play the next window; `info` has where its last frame left (the number of edge exits = offloaded)."""
        observation, reward, over = self.episodes.step(legal(action, self.action_space)[None])
        earned = round(float(reward[0]), 12)
        if self.render_mode is not None:
            self._history.add(self.episodes, 0, earned)
        return observation[0], earned, False, over, {"exit": int(self.episodes.exit[0])}

    def render(self) -> Any:
        """A picture (height, width, 3) or a line of text, by `render_mode`; None without one."""
        return self._history.shown(self.render_mode, self.episodes.exits)
