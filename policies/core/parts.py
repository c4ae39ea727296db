"""Policies with parts that have a state of their own: another policy, features, values kept for frames in flight."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Arrays, Bools, ExitCost, Floats, Ints, Policy, Reward, State

LEAST, MOST = 64, 16384  # slots of `Awaited`


class Part(Protocol):
    """What has a state."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """A copy of it."""

    def load_state_dict(self, state: State) -> None:
        """Go on from a state; a ValueError if it does not fit, and then nothing is changed."""


class Composite(Policy):
    """A policy whose parts hold state too: their arrays are named by the part, a dot, and the array's own name.

    Attributes
    ----------
    parts
        Names of the attributes that have a state. Those that are policies draw by the same `keys` and learn from the
        same kind of `reward`, under the same `exit_cost`.
    """

    parts: tuple[str, ...] = ()
    _reward: Reward = "adaee"
    _exit_cost: ExitCost = 0.0

    @property
    def keys(self) -> Ints:
        """Number of each run, (runs,), as for every `Policy`."""
        return self._keys

    @keys.setter
    def keys(self, keys: Ints) -> None:
        self._keys = keys
        for part in self.named_parts().values():
            if isinstance(part, Policy):
                part.keys = keys

    @property
    def reward(self) -> Reward:
        """What the rewards count, as for every `Policy`."""
        return self._reward

    @reward.setter
    def reward(self, kind: Reward) -> None:
        self._reward = kind
        for part in self.named_parts().values():
            if isinstance(part, Policy):
                part.reward = kind

    @property
    def exit_cost(self) -> ExitCost:
        """How the prices of the further edge exits compare, as for every `Policy`."""
        return self._exit_cost

    @exit_cost.setter
    def exit_cost(self, cost: ExitCost) -> None:
        self._exit_cost = cost
        for part in self.named_parts().values():
            if isinstance(part, Policy):
                part.exit_cost = cost

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """A copy of all that was learned."""
        theirs = {f"{name}.{k}": a for name, part in self.named_parts().items() for k, a in part.state_dict().items()}
        return super().state_dict() | theirs

    def load_state_dict(self, state: State) -> None:
        """Go on from a state; a ValueError if any part of it does not fit, and nothing is changed then."""
        parts = self.named_parts()
        theirs = {name: {k[len(name) + 1 :]: a for k, a in state.items() if k.startswith(name + ".")} for name in parts}
        own = {k: a for k, a in state.items() if not k.startswith(tuple(name + "." for name in parts))}
        before = {name: part.state_dict() for name, part in parts.items()}
        try:
            for name, part in parts.items():
                part.load_state_dict(theirs[name])
            super().load_state_dict(own)
        except ValueError:
            for name, part in parts.items():
                part.load_state_dict(before[name])
            raise

    def named_parts(self) -> dict[str, Part]:
        """The parts, by the names that their arrays begin with."""
        return {name: getattr(self, name) for name in self.parts}


def await_nothing(part: Part) -> None:
    """Forget which frames are under way: no feedback for them will come, as after a process was killed."""
    if isinstance(part, Awaited):
        part.load_state_dict(Awaited(part.runs, part.width).state_dict())
    elif isinstance(part, Arrays) and "pending" in part.state:
        part.load_state_dict(part.state_dict() | {"pending": np.zeros_like(part.state_dict()["pending"])})
    if isinstance(part, Composite):
        for inner in part.named_parts().values():
            await_nothing(inner)


class Awaited(Arrays):
    """Numbers to remember of each frame, from when it is chosen for until its feedback comes.

    A ring per run that grows with the frames in flight, to at most 16,384; beyond that, the oldest are forgotten.

    Parameters
    ----------
    runs, width
        Independent learners; numbers per frame.

    Attributes
    ----------
    frame
        Number of the frame in each slot plus 1, 0 in a free one, (runs, slots).
    value
        What is remembered, (runs, slots, width); 0 in a free slot.

    Examples
    --------
    >>> awaited = Awaited(runs=1, width=2)
    >>> awaited.put(np.array([7]), np.array([[[0.5, 0.25]]]))
    >>> awaited.take(np.array([0, 0]), np.array([7, 8]))
    (array([ True, False]), array([[0.5 , 0.25],
           [0.  , 0.  ]]))
    """

    state = ("frame", "value")

    def __init__(self, runs: int, width: int) -> None:
        self.runs, self.width = runs, width
        self.frame: Ints = np.zeros((runs, LEAST), dtype=np.int64)
        self.value: Floats = np.zeros((runs, LEAST, width))

    def put(self, frames: Ints, value: Floats) -> None:
        """Remember the values (runs, frames, width) of frames (frames,) that follow each other."""
        frames, value = frames[-MOST:], value[:, -MOST:]
        while self.slots < MOST and (len(frames) > self.slots or self.frame[:, frames % self.slots].any()):
            self._grow()
        self.frame[:, frames % self.slots] = frames + 1
        self.value[:, frames % self.slots] = value

    def take(self, run: Ints, frame: Ints) -> tuple[Bools, Floats]:
        """Whether frames were awaited, (rows,), and what was remembered of them, (rows, width); then forget it."""
        slot = frame % self.slots
        found = self.frame[run, slot] == frame + 1
        value = np.where(found[:, None], self.value[run, slot], 0.0)
        self.frame[run[found], slot[found]] = 0
        self.value[run[found], slot[found]] = 0.0
        if self.slots > LEAST and not self.frame.any():
            self._clear(LEAST)
        return found, value

    def load_state_dict(self, state: State) -> None:
        """As `Arrays` do, with as many slots as were saved."""
        slots = np.atleast_1d(state.get("frame", self.frame)).shape[-1]
        other = Awaited(self.runs, self.width)
        other._clear(slots if LEAST <= slots <= MOST and slots & (slots - 1) == 0 else self.slots)
        Arrays.load_state_dict(other, state)
        self.frame, self.value = other.frame, other.value

    @property
    def slots(self) -> int:
        """How many frames of each run fit in now."""
        return int(self.frame.shape[1])

    def _clear(self, slots: int) -> None:
        self.frame = np.zeros((self.runs, slots), dtype=np.int64)
        self.value = np.zeros((self.runs, slots, self.width))

    def _grow(self) -> None:
        frame, value = self.frame, self.value
        self._clear(2 * self.slots)
        run, slot = np.nonzero(frame)
        self.frame[run, (frame[run, slot] - 1) % self.slots] = frame[run, slot]
        self.value[run, (frame[run, slot] - 1) % self.slots] = value[run, slot]
