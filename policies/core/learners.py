"""Learners of one policy that come and go, each at its own frame: one per stream, or one that all streams share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import (
    Context,
    ExitCost,
    Floats,
    Ints,
    Outcomes,
    Policy,
    Reward,
    State,
    Thresholds,
    check_thresholds,
    go_on_from,
    is_foreign,
)
from eex.policies.core.fleet import sharing
from eex.policies.core.parts import Composite

FEWEST = 8
"""Rows that a joint policy has at first; it doubles when they are all taken."""
MOST_AT_ONCE = 64
"""Learners that choose or learn in one call; for each number of them up to this, a policy is made and kept."""


class Learners:
    """Independent learners of one policy; those whose frames arrive together choose and learn together.

    If the policy is `joint`, the learners are rows of one policy's arrays. The rows that have frames are moved to a
    policy of just as many runs, which chooses or learns, and back. Otherwise, each learner is a policy of its own.
    Both ways give the same choices, which do not depend on the other learners.

    Parameters
    ----------
    make
        Makes the policy for a number of runs.

    Attributes
    ----------
    next
        Number of each learner's next frame, (rows,).
    learned
        Frames that each learner has learned from, (rows,).

    Examples
    --------
    >>> from eex.policies.algorithms.ucb import UCB
    >>> learners = Learners(lambda runs: UCB([0.7, 0.8, 0.9], runs=runs))
    >>> door, gate = learners.add(key=1), learners.add(key=2)
    >>> frame, chosen = learners.choose(np.array([door, gate, door]), Context(frames=3))
    >>> frame, chosen.arm
    (array([0, 0, 1]), array([0, 0, 1]))
    """

    def __init__(self, make: Callable[[int], Policy]) -> None:
        self._make = make
        self._fleet: Floats | None = None
        self._whole = make(1)
        self.exits, self.joint = self._whole.exits, self._whole.joint
        self._foreign = is_foreign(self._whole)
        self._parts: dict[int, Policy] = {}
        self._own: list[Policy | None] = []  # by row, of a policy that is not joint
        self._free: list[int] = []
        self.next: Ints = np.zeros(0, dtype=np.int64)
        self.learned: Ints = np.zeros(0, dtype=np.int64)

    @classmethod
    def of(cls, policy: Policy, first: int = 0) -> "Learners":
        """The one learner that a policy of one run is, before its frame number `first`.

        Raises
        ------
        ValueError
            If the policy is of several runs.
        """
        if policy.runs != 1:
            raise ValueError(f"a stream is one run, got a policy of {policy.runs}")
        learners = cls.__new__(cls)
        learners._make = lambda runs: policy  # there will be no other
        learners._whole, learners.exits, learners.joint = policy, policy.exits, False
        learners._parts, learners._own, learners._free, learners._fleet = {}, [policy], [], None
        learners._foreign = is_foreign(policy)
        learners.next, learners.learned = np.array([first]), np.array([first])
        return learners

    def __len__(self) -> int:
        """Number of learners."""
        return len(self.next) - len(self._free)

    def count(self, kind: Reward, exit_cost: ExitCost = 0.0) -> None:
        """Set the kind of reward that all learners learn from, present and future ones."""
        make = self._make

        def counting(runs: int) -> Policy:
            policy = make(runs)
            policy.reward, policy.exit_cost = kind, exit_cost
            return policy

        self._make = counting
        for policy in (self._whole, *self._parts.values(), *filter(None, self._own)):
            policy.reward, policy.exit_cost = kind, exit_cost

    # ---- a fleet

    @property
    def example(self) -> Policy:
        """A policy as theirs, to be looked at only."""
        return self._whole

    def sums(self) -> Floats | None:
        """What all learners have learned together, (size,); None if the policy does not share (`core.fleet`)."""
        if self.joint:
            whole = sharing(self._whole)
            there = np.setdiff1d(np.arange(len(self.next)), self._free)
            return None if whole is None else whole.sums()[there].sum(axis=0)
        total = None
        for policy in filter(None, self._own):
            if (part := sharing(policy)) is not None:
                total = part.sums().sum(axis=0) + (0.0 if total is None else total)
        return total

    def take_fleet(self, flat: Floats) -> None:
        """Let all learners, those to come too, borrow from what others have learned, (1, size)."""
        self._fleet = flat
        for policy in (self._whole, *self._parts.values(), *filter(None, self._own)):
            if (part := sharing(policy)) is not None:
                part.take_fleet(flat)

    def _made(self, runs: int) -> Policy:
        """A policy of so many runs."""
        policy = self._make(runs)
        if self._fleet is not None and (part := sharing(policy)) is not None:
            part.take_fleet(self._fleet)
        return policy

    # ---- who learns

    def add(self, key: int, state: State | None = None, first: int = 0) -> int:
        """Add a learner and return its row; it resumes from a state before its frame number `first`, if given.

        Parameters
        ----------
        key
            Keys its draws, as `Policy.keys`.

        Raises
        ------
        ValueError
            If the state is that of another policy; nothing is added then.
        """
        fresh = self._made(1)
        if state is not None:
            go_on_from(fresh, state)
        fresh.keys = np.array([key])
        if not self._free:
            self._grow()
        row = self._free.pop()
        if self.joint:
            self._put(self._whole, fresh, np.array([row]))
            keys = self._whole.keys.copy()
            keys[row] = key
            self._whole.keys = keys
        else:
            self._own[row] = fresh
        self.next[row] = self.learned[row] = first
        return row

    def remove(self, row: int) -> None:
        """Remove a learner; its row is free for another."""
        if not self.joint:
            self._own[row] = None
        self._free.append(row)

    def set_state(self, row: int, state: State, first: int) -> None:
        """Let a learner resume from a state before its frame number `first`.

        Raises
        ------
        ValueError
            If the state is that of another policy; nothing is changed then.
        """
        fresh = self._made(1)
        go_on_from(fresh, state)
        if self.joint:
            self._put(self._whole, fresh, np.array([row]))
        else:
            fresh.keys = self.policy(row).keys
            self._own[row] = fresh
        self.next[row] = self.learned[row] = first

    def state_of(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of what a learner has learned: the state of a policy of one run."""
        if not self.joint:
            return self.policy(row).state_dict()
        alone = self._made(1)
        self._get(self._whole, alone, np.array([row]))
        return alone.state_dict()

    def place_of(self, row: int) -> tuple[Policy, int]:
        """The policy that a learner is part of, read-only, and its run there."""
        return (self._whole, row) if self.joint else (self.policy(row), 0)

    def policy(self, row: int) -> Policy:
        """The policy of a learner that is not a row of a joint one."""
        policy = self._own[row]
        assert policy is not None
        return policy

    # ---- choose, learn

    def choose(self, run: Ints, context: Context) -> tuple[Ints, Thresholds]:
        """Numbers and thresholds of the next frames; each learner's are chosen for in their order.

        Parameters
        ----------
        run
            Learner of each frame, (frames,).
        context
            Of all frames: `overhead` may be one number, or one per frame (frames,); `distortion` is (frames, experts).

        Returns
        -------
        frame
            Number of each frame among those of its learner, (frames,).
        chosen
            Thresholds without the axis of runs: (frames, …).
        """
        count = len(run)
        if count == 1:
            return self._choose_one(int(run[0]), context)
        price = np.broadcast_to(np.asarray(context.overhead, dtype=float), (count,))
        groups = list(_alike(run, price, MOST_AT_ONCE if self.joint else 1))
        if len(groups) == 1 and groups[0].shape[0] == 1:
            return self._choose(groups[0], run, price, context, slice(None))
        frame = np.empty(count, dtype=np.int64)
        parts: dict[str, NDArray[Any]] = {}
        for group in groups:
            at = group.ravel()
            numbers, chosen = self._choose(group, run, price, context, at)
            frame[at] = numbers
            for f in fields(Thresholds):
                values = getattr(chosen, f.name)
                if f.name not in parts:
                    parts[f.name] = np.empty((count, *values.shape[1:]), values.dtype)
                parts[f.name][at] = values
        return frame, Thresholds(**parts)

    def learn(self, outcomes: Outcomes) -> tuple[Ints, Ints]:
        """Learn from finished frames, whose `run` is their learner.

        Returns
        -------
        rank, chosen
            Of each frame: its rank in its learner's feedback, and how many frames the learner had chosen for; (frames,)
            each.
        """
        run = outcomes.run
        if len(run) == 1:
            return self._learn_one(int(run[0]), outcomes)
        chosen = self.next[run]
        rows = np.unique(run) if len(run) > 1 and (run != run[0]).any() else run[:1]
        rank = self.learned[run] + (np.arange(len(run)) if len(rows) == 1 else _earlier(run))
        np.add.at(self.learned, run, 1)
        if not self.joint:
            for row in rows.tolist():
                mine = outcomes if len(rows) == 1 else outcomes[run == row]
                self.policy(row).learn(replace(mine, run=np.zeros(len(mine), dtype=np.int64)))
            return rank, chosen
        for start in range(0, len(rows), MOST_AT_ONCE):
            some = rows[start : start + MOST_AT_ONCE]
            mine = outcomes if len(some) == len(rows) else outcomes[np.isin(run, some)]
            with _Moved(self, some) as policy:
                policy.learn(replace(mine, run=np.searchsorted(some, mine.run)))
        return rank, chosen

    def _choose_one(self, row: int, context: Context) -> tuple[Ints, Thresholds]:
        """As `choose`, for one frame: what frames that come one at a time need, and no more."""
        number = int(self.next[row])
        self.next[row] = number + 1
        overhead = context.overhead
        asked = Context(
            frames=1,
            first=number,
            overhead=overhead if isinstance(overhead, float) else float(np.ravel(overhead)[0]),
            exit_cost=context.exit_cost,
            distortion=None if context.distortion is None else context.distortion[None],
            queue=context.queue,
            link_ms=context.link_ms,
            reachable=context.reachable,
        )
        if self.joint:
            with _Moved(self, np.array([row])) as policy:
                chosen = policy.choose(asked)
        else:
            policy = self.policy(row)
            chosen = policy.choose(asked)
        if self._foreign:
            check_thresholds(policy, chosen, 1)
        of_run = (chosen.exit_at[0], chosen.skip_below[0], chosen.arm[0], chosen.probability[0], chosen.audited[0])
        return np.array([number]), Thresholds(*of_run)

    def _learn_one(self, row: int, outcomes: Outcomes) -> tuple[Ints, Ints]:
        """As `learn`, from one frame."""
        rank, chosen = self.learned[row : row + 1].copy(), self.next[row : row + 1].copy()
        self.learned[row] += 1
        if row:  # policies of one run know their run as 0
            outcomes = replace(outcomes, run=np.zeros(1, dtype=np.int64))
        if self.joint:
            with _Moved(self, np.array([row])) as policy:
                policy.learn(outcomes)
        else:
            self.policy(row).learn(outcomes)
        return rank, chosen

    def _choose(
        self, group: Ints, run: Ints, price: NDArray[Any], context: Context, at: Any
    ) -> tuple[Ints, Thresholds]:
        """Numbers and thresholds of some frames, of `group` (learners, frames of each), flat."""
        rows, frames = run[group[:, 0]], group.shape[1]
        first = self.next[rows]
        self.next[rows] += frames
        numbers = (first[:, None] + np.arange(frames)).ravel()
        distortion = context.distortion
        if distortion is not None:
            distortion = distortion[at].reshape(len(rows), frames, -1)
        overhead = price[group[:, 0]]
        if len(rows) == 1:
            asked = replace(
                context, frames=frames, first=int(first[0]), overhead=float(overhead[0]), distortion=distortion
            )
        else:
            asked = replace(context, frames=frames, first=first, overhead=overhead, distortion=distortion)
        if self.joint:
            with _Moved(self, rows) as policy:
                chosen = policy.choose(asked)
        else:
            policy = self.policy(int(rows[0]))
            chosen = policy.choose(asked)
        if self._foreign:
            check_thresholds(policy, chosen, frames)
        if len(rows) == 1:
            return numbers, Thresholds(**{f.name: getattr(chosen, f.name)[0] for f in fields(Thresholds)})
        flat = {f.name: getattr(chosen, f.name) for f in fields(Thresholds)}
        return numbers, Thresholds(**{k: v.reshape(-1, *v.shape[2:]) for k, v in flat.items()})

    # ---- rows

    def _grow(self) -> None:
        before = len(self.next)
        rows = max(FEWEST, 2 * before)
        more = rows - before
        self.next = np.concatenate([self.next, np.zeros(more, dtype=np.int64)])
        self.learned = np.concatenate([self.learned, np.zeros(more, dtype=np.int64)])
        self._free += range(rows - 1, before - 1, -1)
        if not self.joint:
            self._own += [None] * more
            return
        whole = self._made(rows)
        if before:
            self._put(whole, self._whole, np.arange(before))
            whole.keys = np.concatenate([self._whole.keys, np.zeros(more, dtype=np.int64)])
        self._whole = whole

    def _part(self, runs: int) -> Policy:
        if runs not in self._parts:
            self._parts[runs] = self._made(runs)
        return self._parts[runs]

    @staticmethod
    def _get(whole: Policy, part: Policy, rows: Any) -> None:
        for (there, name), (here, _) in zip(_arrays(whole), _arrays(part), strict=True):
            values = getattr(there, name)  # `take` needs a fifth of the time that an index needs
            setattr(here, name, values[rows] if isinstance(rows, slice) else values.take(rows, axis=0))

    @staticmethod
    def _put(whole: Policy, part: Policy, rows: Any) -> None:
        for (there, name), (here, _) in zip(_arrays(whole), _arrays(part), strict=True):
            values, target = getattr(here, name), getattr(there, name)
            if values.base is not target:  # else it was written in place
                target[rows] = values


@dataclass
class _Moved:
    """Some rows of a joint policy, as a policy of their own while the block runs."""

    learners: Learners
    rows: Ints

    def __enter__(self) -> Policy:
        rows, whole = self.rows, self.learners._whole
        self.part = self.learners._part(len(rows))
        # rows side by side are used in place
        side_by_side = rows[-1] - rows[0] == len(rows) - 1
        self.at: Any = slice(int(rows[0]), int(rows[-1]) + 1) if side_by_side else rows
        self.learners._get(whole, self.part, self.at)
        self.part.keys = whole.keys[self.at]
        return self.part

    def __exit__(self, *_: object) -> None:
        self.learners._put(self.learners._whole, self.part, self.at)


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


def _alike(run: Ints, price: NDArray[Any], most: int) -> Iterator[Ints]:
    """Frames in groups (learners, frames of each) whose learners have equally many, at one price per learner;
    at most `most` learners in a group.

    Where a learner's frames differ in price, those of one price come after those of another.
    """
    if len(run) == 1 or ((run == run[0]).all() and (price == price[0]).all()):
        yield np.arange(len(run))[None]
        return
    turn = _turns(run, price)
    for k in range(int(turn.max()) + 1):
        frames = np.flatnonzero(turn == k)
        order = frames[np.argsort(run[frames], kind="stable")]
        _, start, count = np.unique(run[order], return_index=True, return_counts=True)
        for some in np.unique(count):
            of = start[count == some]
            for first in range(0, len(of), most):
                yield order[of[first : first + most, None] + np.arange(some)]


def _turns(run: Ints, price: NDArray[Any]) -> Ints:
    """How often the price of a frame's learner changed before that frame, (frames,)."""
    turn = np.zeros(len(run), dtype=np.int64)
    order = np.argsort(run, kind="stable")
    changed = (price[order][1:] != price[order][:-1]) & (run[order][1:] == run[order][:-1])
    if changed.any():
        total = np.concatenate([[0], np.cumsum(changed)])
        first = np.searchsorted(run[order], run[order])
        turn[order] = total - total[first]
    return turn


def _earlier(run: Ints) -> Ints:
    """How many rows of the same run come before each row, (rows,)."""
    order = np.argsort(run, kind="stable")
    before = np.empty(len(run), dtype=np.int64)
    before[order] = np.arange(len(run)) - np.searchsorted(run[order], run[order])
    return before
