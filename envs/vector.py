"""`eex/Threshold-v0` many times side by side, on arrays: the same numbers as the scalar one, step for step."""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from eex.envs.episodes import Episodes, ResetNeeded
from eex.envs.render import MODES, History, check_mode
from eex.envs.threshold import SEEDS, Observation, action_space, legal, observation_space
from eex.policies.core.base import Bools, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace


class ThresholdVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """`ThresholdEnv` many times side by side; see there and `eex.envs.episodes.Episodes`.

    What `reset` and `step` give is what `gymnasium.vector.SyncVectorEnv` gives of as many `ThresholdEnv`.

    Parameters
    ----------
    trace, render_mode, options
        As for `ThresholdEnv`.
    num_envs
        Environments.
    autoreset_mode
        What follows the end of an episode, as Gymnasium has it. By default its environment begins the next one in the
        same step (`AutoresetMode.SAME_STEP`): the observation is then the new episode's, and the last one and its info
        stand in `info["final_obs"]` and `info["final_info"]`. Otherwise in the next step, whose action it ignores
        (`NEXT_STEP`), or when it is reset (`DISABLED`); a step before that raises `ResetNeeded`.

    Raises
    ------
    EexError
        If an option is out of range or does not fit the trace; in `step`, if an action is outside its space.

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

    metadata = {  # noqa: RUF012 (Gymnasium's)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [*MODES],
        "render_fps": 30,
    }

    def __init__(
        self,
        trace: Trace | str | Path,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        self.num_envs = num_envs
        self.template = Episodes(num_envs, trace, **options)  # is never begun itself: see `_parts`
        self.names = self.template.names
        self.single_action_space = action_space(self.template)
        self.single_observation_space = observation_space(self.template)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.render_mode = check_mode(render_mode)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            known = ", ".join(mode.value for mode in AutoresetMode)
            raise EexError(f"autoreset_mode must be one of {known}, got {autoreset_mode!r}") from None
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.ones = tuple(One(self, env) for env in range(num_envs))
        # environments whose episodes began together are played together; at first, and unless some are reset, all are
        self._parts: list[tuple[Ints, Episodes]] = []
        self._seed: Ints = np.zeros(num_envs, dtype=np.int64)
        self._episode: Ints = np.full(num_envs, -1)  # which one of its seed each environment is in
        self._observations: Observation = np.zeros((num_envs, len(self.names)), dtype=np.float32)
        self._histories = [History() for _ in range(num_envs if self.render_mode else 0)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every environment, or in those that `options["reset_mask"]` marks.

        Parameters
        ----------
        seed
            Of each environment, None for those that go on with their next episode; n stands for n, n + 1, …
        options
            "reset_mask": truth values (num_envs,); the other environments stay where they are, and their seeds are
            ignored.

        Raises
        ------
        EexError
            If there is not one seed per environment, or the mask is none.
        """
        who = self._asked((options or {}).get("reset_mask"))
        seeds = _seeds(seed, self.num_envs)
        super().reset(seed=seeds[0] if np.ndim(seed) == 0 else None)  # type: ignore[arg-type]
        for env in who.tolist():
            if seeds[env] is not None:
                self._seed[env], self._episode[env] = seeds[env], -1
        unseeded = [env for env in who.tolist() if self._episode[env] < 0 and seeds[env] is None]
        if unseeded:
            self._seed[unseeded] = self.np_random.integers(2**31) + np.array(unseeded)
        self._begin(who)
        return self._observations.copy(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play the next window of every environment.

        `info["exit"]` has where the last frame of each left, as that of `ThresholdEnv`.

        Raises
        ------
        EexError
            If an action is outside its space; nothing is played then.
        """
        legal_ones = legal(actions, self.action_space)
        if not self._parts:
            raise ResetNeeded("no episode has begun: call reset before step")
        before = _joined([where for where, part in self._parts if part.over])
        if len(before) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"{len(before)} episodes are over, the first in environment {before.min()}: reset those "
                "(options={'reset_mask': …}) before the next step, or choose another autoreset_mode"
            )
        rewards, exits = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        stepped, over = np.zeros((2, self.num_envs), dtype=bool)
        for where, part in self._parts:
            if part.over:
                continue
            self._observations[where], earned, over[where] = part.step(legal_ones[where])
            rewards[where], exits[where], stepped[where] = np.round(earned, 12), part.exit, True
            if self._histories:
                for k, env in enumerate(where.tolist()):
                    self._histories[env].add(part, k, float(rewards[env]))
        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and over.any():
            last = np.full(self.num_envs, None, dtype=object)
            for env in np.flatnonzero(over):
                last[env] = self._observations[env].copy()
            info = {"final_obs": last, "_final_obs": over.copy(), "final_info": _info(exits, over)}
            info["_final_info"] = over.copy()
            before, stepped = np.flatnonzero(over), stepped & ~over
        if len(before):
            self._begin(before)
        info |= _info(exits, stepped)
        return self._observations.copy(), rewards, np.zeros(self.num_envs, dtype=bool), over, info

    def render(self) -> tuple[Any, ...] | None:
        """What each environment shows, as `ThresholdEnv.render`; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(history.shown(self.render_mode, self.template.exits) for history in self._histories)

    def call(self, name: str, *args: Any, **named: Any) -> tuple[Any, ...]:
        """What a method of each environment returns, or the value of its attribute; see `One`."""
        found = [getattr(one, name) for one in self.ones]
        return tuple(each(*args, **named) if callable(each) else each for each in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment: a list or tuple has one value per environment, else all get the same.

        Raises
        ------
        EexError
            If there is not one value per environment, or the attribute is not one that can be set.
        """
        several = isinstance(values, (list, tuple))
        if several and len(values) != self.num_envs:
            raise EexError(f"expected one value for each of {self.num_envs} environments, got {len(values)}")
        for k, one in enumerate(self.ones):
            setattr(one, name, values[k] if several else values)

    def _asked(self, mask: Any) -> Ints:
        """The environments that a mask marks; all without one."""
        if mask is None:
            return np.arange(self.num_envs)
        given = np.asarray(mask)
        if given.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must hold truth values, got {type(mask).__name__} of {given.dtype}")
        if given.shape != (self.num_envs,):
            raise EexError(f"options['reset_mask'] must have the shape ({self.num_envs},), got {given.shape}")
        if not given.any():
            raise EexError("options['reset_mask'] must mark at least one environment, got none")
        if not self._parts and not given.all():
            raise ResetNeeded("options['reset_mask']: reset all environments once before some of them")
        return np.flatnonzero(given)

    def _begin(self, who: Ints) -> None:
        """Begin the next episode of some environments."""
        stay = np.ones(self.num_envs, dtype=bool)
        stay[who] = False
        parts = []
        for where, part in self._parts:
            if not stay[where].all():
                part.keep(np.flatnonzero(stay[where]))
            if part.envs:
                parts.append((where[stay[where]], part))
        self._episode[who] += 1
        for number in np.unique(self._episode[who]).tolist():
            where, part = who[self._episode[who] == number], self.template.apart()
            self._observations[where] = part.begin(self._seed[where], number)
            parts.append((where, part))
        self._parts = parts
        for env in who.tolist() if self._histories else ():
            self._histories[env] = History()


class One:
    """One environment of a `ThresholdVectorEnv`, as `call`, `get_attr` and `set_attr` reach it.

    It has the attributes below, which all environments have in common and nobody can set, and whatever others are set.

    Attributes
    ----------
    names, action_space, observation_space, render_mode, metadata
        As of `ThresholdEnv`.
    """

    COMMON = ("names", "action_space", "observation_space", "render_mode", "metadata")

    def __init__(self, envs: ThresholdVectorEnv, env: int) -> None:
        common = envs.names, envs.single_action_space, envs.single_observation_space, envs.render_mode, envs.metadata
        self.__dict__.update(zip(self.COMMON, common, strict=True), _envs=envs, _env=env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Begin an episode in this environment; the others stay where they are."""
        envs: ThresholdVectorEnv = self.__dict__["_envs"]
        this = np.arange(envs.num_envs) == self.__dict__["_env"]
        observations, info = envs.reset(seed=[seed if k else None for k in this], options={"reset_mask": this})
        return observations[this][0], info

    def render(self) -> Any:
        """What this environment shows."""
        shown = self.__dict__["_envs"].render()
        return None if shown is None else shown[self.__dict__["_env"]]

    def __setattr__(self, name: str, value: Any) -> None:
        given = (*self.COMMON, "overhead", *vars(self.__dict__["_envs"].template))
        if name in given or hasattr(type(self), name):
            raise EexError(f"{name} is the same for all environments from when they are made; it cannot be set")
        self.__dict__[name] = value


def _seeds(seed: Any, envs: int) -> list[int | None]:
    """A seed, or None, for each environment."""
    try:
        if seed is None:
            return [None] * envs
        seeds = [operator.index(seed) + k for k in range(envs)] if np.ndim(seed) == 0 else list(seed)
        found = [None if one is None else operator.index(one) for one in seeds]
    except TypeError:
        raise EexError(
            f"seed must be an integer, or one or None for each of {envs} environments, got {seed!r}"
        ) from None
    if len(found) != envs or any(one is not None and one < 0 for one in found):
        raise EexError(f"seed must be at least 0, or one such or None for each of {envs} environments, got {seed!r}")
    return [None if one is None else one % SEEDS for one in found]


def _info(exits: Ints, known: Bools) -> dict[str, Any]:
    """Where frames left in those environments of which it is known, as Gymnasium lays out infos."""
    return {"exit": np.where(known, exits, 0), "_exit": known.copy()} if known.any() else {}


def _joined(pieces: list[Ints]) -> Ints:
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
