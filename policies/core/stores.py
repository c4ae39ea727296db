"""Where the learners of a policy are kept: each as a policy of its own, or side by side in the arrays of one."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Floats, Ints, Policy
from eex.policies.core.fleet import sharing
from eex.policies.core.parts import Composite

Make = Callable[[int], Policy]
"""Makes a policy for a number of runs."""


class OneByOne:
    """Each learner is a policy of its own."""

    most = 1

    def __init__(self, *policies: Policy) -> None:
        self._policies: list[Policy | None] = list(policies)

    def grow(self, rows: int, make: Make) -> None:
        """Have room for so many."""
        self._policies += [None] * (rows - len(self._policies))

    def put(self, row: int, learner: Policy) -> None:
        """Let a row be a learner, a policy of one run."""
        self._policies[row] = learner

    def drop(self, row: int) -> None:
        """A row is free."""
        self._policies[row] = None

    def state_of(self, row: int, make: Make) -> dict[str, NDArray[Any]]:
        """A copy of what a row has learned: the state of a policy of one run."""
        return self._policy(row).state_dict()

    def place_of(self, row: int) -> tuple[Policy, int]:
        """The policy that a row is part of, and its run there."""
        return self._policy(row), 0

    def lend(self, rows: Ints, make: Make) -> Policy:
        """A policy that is just these rows, at most `most` of them, until it is taken back."""
        return self._policy(int(rows[0]))

    def take_back(self, policy: Policy) -> None:
        """What was lent has chosen or learned."""

    def policies(self) -> Iterator[Policy]:
        """All policies that are kept."""
        return filter(None, self._policies)

    def sums(self, rows: Ints) -> Floats | None:
        """What some rows have learned together, (size,); None if the policy does not share."""
        found = [part.sums().sum(axis=0) for part in map(sharing, self.policies()) if part is not None]
        return sum(found[1:], found[0]) if found else None

    def _policy(self, row: int) -> Policy:
        policy = self._policies[row]
        assert policy is not None
        return policy


class SideBySide:
    """The learners are runs of one policy that is `joint`; some of them are moved to a policy of just as many runs,
    which chooses or learns, and back."""

    most = 64  # for each number up to this, a policy is made and kept

    def __init__(self, whole: Policy) -> None:
        self._whole, self._rows = whole, 0
        self._parts: dict[int, Policy] = {}

    def grow(self, rows: int, make: Make) -> None:
        """Have room for so many."""
        whole, before = make(rows), self._rows
        if before:
            _put(whole, self._whole, np.arange(before))
            whole.keys = np.concatenate([self._whole.keys, np.zeros(rows - before, dtype=np.int64)])
        self._whole, self._rows = whole, rows

    def put(self, row: int, learner: Policy) -> None:
        """Let a row be a learner, a policy of one run."""
        _put(self._whole, learner, np.array([row]))
        keys = self._whole.keys.copy()
        keys[row] = learner.keys[0]
        self._whole.keys = keys

    def drop(self, row: int) -> None:
        """A row is free; it keeps what it holds until it is put again."""

    def state_of(self, row: int, make: Make) -> dict[str, NDArray[Any]]:
        """A copy of what a row has learned: the state of a policy of one run."""
        alone = make(1)
        _get(self._whole, alone, np.array([row]))
        return alone.state_dict()

    def place_of(self, row: int) -> tuple[Policy, int]:
        """The policy that a row is part of, and its run there."""
        return self._whole, row

    def lend(self, rows: Ints, make: Make) -> Policy:
        """A policy that is just these rows, at most `most` of them, until it is taken back."""
        if len(rows) not in self._parts:
            self._parts[len(rows)] = make(len(rows))
        part: Policy = self._parts[len(rows)]
        # rows that lie together are used in place
        together = rows[-1] - rows[0] == len(rows) - 1
        self._lent: Any = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        _get(self._whole, part, self._lent)
        part.keys = self._whole.keys[self._lent]
        return part

    def take_back(self, policy: Policy) -> None:
        """What was lent has chosen or learned."""
        _put(self._whole, policy, self._lent)

    def policies(self) -> Iterator[Policy]:
        """All policies that are kept."""
        yield self._whole
        yield from self._parts.values()

    def sums(self, rows: Ints) -> Floats | None:
        """What some rows have learned together, (size,); None if the policy does not share."""
        whole = sharing(self._whole)
        return None if whole is None else whole.sums()[rows].sum(axis=0)


def _get(whole: Policy, part: Policy, rows: Any) -> None:
    for (there, name), (here, _) in zip(_arrays(whole), _arrays(part), strict=True):
        values = getattr(there, name)  # `take` needs a fifth of the time that an index needs
        setattr(here, name, values[rows] if isinstance(rows, slice) else values.take(rows, axis=0))


def _put(whole: Policy, part: Policy, rows: Any) -> None:
    for (there, name), (here, _) in zip(_arrays(whole), _arrays(part), strict=True):
        values, target = getattr(here, name), getattr(there, name)
        if values.base is not target:  # else it was written in place
            target[rows] = values


def _arrays(policy: Policy) -> list[tuple[Any, str]]:
    """The owner and name of each array of a policy's state; looked up once per policy."""
    places: list[tuple[Any, str]] | None = vars(policy).get("_places")
    if places is None:
        places = list(_places(policy))
        vars(policy)["_places"] = places
    return places


def _places(policy: Any) -> Iterator[tuple[Any, str]]:
    for name in policy.state:
        yield policy, name
    if isinstance(policy, Composite):
        for part in policy.parts:
            yield from _places(getattr(policy, part))
