"""Learners of one policy that come and go, each at its own frame: one per stream, or one that all streams share."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
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
from eex.policies.core.parts import await_nothing
from eex.policies.core.stores import OneByOne, SideBySide

FEWEST = 8
"""Rows that a joint policy has at first; it doubles when they are all taken."""


class Learners:
    """Independent learners of one policy; those whose frames arrive together choose and learn together.

    If the policy is `joint`, the learners are runs of one policy, otherwise each is a policy of its own
    (`eex.policies.core.stores`). Both ways give the same choices, which do not depend on the other learners.

    Parameters
    ----------
    make
        Makes the policy for a number of runs.

    Attributes
    ----------
    example
        A policy as theirs, to be looked at only.
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
        self.example = make(1)
        self.exits, self.joint = self.example.exits, self.example.joint
        self._foreign = is_foreign(self.example)
        self._store: OneByOne | SideBySide = SideBySide(self.example) if self.joint else OneByOne()
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
        learners.example, learners.exits, learners.joint = policy, policy.exits, False
        learners._store, learners._free, learners._fleet = OneByOne(policy), [], None
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
        for policy in (self.example, *self._store.policies()):
            policy.reward, policy.exit_cost = kind, exit_cost

    # ---- a fleet

    def sums(self) -> Floats | None:
        """What all learners have learned together, (size,); None if the policy does not share (`core.fleet`)."""
        return self._store.sums(np.setdiff1d(np.arange(len(self.next)), self._free))

    def take_fleet(self, flat: Floats) -> None:
        """Let all learners, those to come too, borrow from what others have learned, (1, size)."""
        self._fleet = flat
        for policy in (self.example, *self._store.policies()):
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
            await_nothing(fresh)
        fresh.keys = np.array([key])
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._store.put(row, fresh)
        self.next[row] = self.learned[row] = first
        return row

    def remove(self, row: int) -> None:
        """Remove a learner; its row is free for another."""
        self._store.drop(row)
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
        await_nothing(fresh)
        policy, run = self._store.place_of(row)
        fresh.keys = policy.keys[run : run + 1]
        self._store.put(row, fresh)
        self.next[row] = self.learned[row] = first

    def state_of(self, row: int) -> dict[str, NDArray[Any]]:
        """A copy of what a learner has learned: the state of a policy of one run."""
        return self._store.state_of(row, self._made)

    def place_of(self, row: int) -> tuple[Policy, int]:
        """The policy that a learner is part of, read-only, and its run there."""
        return self._store.place_of(row)

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
        groups = list(_alike(run, price, self._store.most))
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
        for start in range(0, len(rows), self._store.most):
            some = rows[start : start + self._store.most]
            mine = outcomes
            if len(some) < len(rows):
                mine = outcomes[np.isin(run, some) if len(some) > 1 else run == some[0]]
            policy = self._store.lend(some, self._made)
            policy.learn(replace(mine, run=np.searchsorted(some, mine.run)))
            self._store.take_back(policy)
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
        policy = self._store.lend(np.array([row]), self._made)
        chosen = policy.choose(asked)
        self._store.take_back(policy)
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
        policy = self._store.lend(np.array([row]), self._made)
        policy.learn(outcomes)
        self._store.take_back(policy)
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
        policy = self._store.lend(rows, self._made)
        chosen = policy.choose(asked)
        self._store.take_back(policy)
        if self._foreign:
            check_thresholds(policy, chosen, frames)
        if len(rows) == 1:
            return numbers, Thresholds(**{f.name: getattr(chosen, f.name)[0] for f in fields(Thresholds)})
        flat = {f.name: getattr(chosen, f.name) for f in fields(Thresholds)}
        return numbers, Thresholds(**{k: v.reshape(-1, *v.shape[2:]) for k, v in flat.items()})

    def _grow(self) -> None:
        before = len(self.next)
        rows = max(FEWEST, 2 * before)
        more = np.zeros(rows - before, dtype=np.int64)
        self.next, self.learned = (np.concatenate([column, more]) for column in (self.next, self.learned))
        self._free += range(rows - 1, before - 1, -1)
        self._store.grow(rows, self._made)


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
