"""`check_policy`: whether a policy keeps to the contract of `Policy`; for authors of policies, and for our tests."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from eex.policies.core.base import Bools, Context, Outcomes, Policy, Thresholds
from eex.policies.core.errors import ContractError
from eex.policies.core.learners import Learners
from eex.policies.core.routing import seen
from eex.policies.core.world import step

Make = Callable[..., Policy]
FRAMES = 512


def check_policy(make: Make, exits: Iterable[int] = (1, 2, 3), clauses: Iterable[str] | None = None) -> None:
    """Check that a policy keeps to the contract; its thresholds may still be poor.

    Parameters
    ----------
    make
        Makes the policy from the keyword arguments `exits`, `runs` and `seed`: a class, or
        `functools.partial(make_policy, "ucb:c=0.5")`.
    exits
        Numbers of edge exits to check it with.
    clauses
        Names of the clauses to check, of `CLAUSES`; by default all of them.

    Raises
    ------
    ContractError
        Naming the first clause that is broken, and the values that break it.

    Examples
    --------
    >>> from eex.policies.algorithms.ucb import UCB
    >>> check_policy(UCB)
    """
    names = list(CLAUSES if clauses is None else clauses)
    for count in exits:
        for name in names:
            try:
                CLAUSES[name](make, count)
            except ContractError as error:
                raise ContractError(f"{name}: {error} (with exits={count})") from None
            except Exception as error:  # of the policy, whatever it is
                reason = (str(error).splitlines() or [""])[0]
                raise ContractError(f"{name}: raises {type(error).__name__}: {reason} (with exits={count})") from error


class MadeUpStream:
    """Random confidences of every exit, of frames of several runs, and the outcomes under given thresholds.

    Attributes
    ----------
    confidence
        (runs, FRAMES, exits + 1).
    distortion
        The distortion classifier's probabilities, (runs, FRAMES, 3).
    """

    def __init__(self, exits: int, runs: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.confidence = rng.uniform(0.1, 1.0, (runs, FRAMES, exits + 1))
        self.distortion = rng.dirichlet(np.ones(3), (runs, FRAMES))

    def context(self, first: int, frames: int) -> Context:
        """The context of a micro-batch."""
        distortion = self.distortion[:, first : first + frames]
        return Context(frames, first, 0.1, distortion=distortion, queue=2, link_ms=5.0)

    def outcomes(self, chosen: Thresholds, first: int, sent: bool = True) -> Outcomes:
        """Outcomes of frames from `first` on, run after run; `sent` says whether those offloaded could be sent."""
        runs, frames = chosen.arm.shape
        confidence = self.confidence[:, first : first + frames]
        could_be_sent: Bools = np.full((runs, frames), sent)
        stepped = step(confidence, chosen.exit_at, chosen.skip_below, 0.1, sent=could_be_sent)
        nothing = np.zeros(confidence.shape, dtype=np.int64)
        confidence, prediction = seen(confidence, nothing, stepped.visited, stepped.replied)
        return Outcomes(
            run=np.repeat(np.arange(runs), frames),
            frame=np.tile(np.arange(first, first + frames), runs),
            arm=chosen.arm.reshape(-1),
            probability=chosen.probability.reshape(-1),
            audited=chosen.audited.reshape(-1),
            exit_at=chosen.exit_at.reshape(runs * frames, -1),
            confidence=confidence.reshape(runs * frames, -1),
            prediction=prediction.reshape(runs * frames, -1),
            exit=stepped.exit.reshape(-1),
            offloaded=stepped.offloaded.reshape(-1),
            fallback=stepped.fallback.reshape(-1),
            sent=stepped.sent.reshape(-1),
            latency_ms=np.ones(runs * frames),
            overhead=np.full(runs * frames, 0.1),
            reward=stepped.reward.reshape(-1),
        )


def joined(parts: list[Thresholds]) -> Thresholds:
    """Thresholds of frames that were chosen for one after another."""
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in fields(Thresholds)}
    return Thresholds(**columns)


def live(policy: Policy, stream: MadeUpStream, first: int, stop: int, size: int = 8) -> Thresholds:
    """Choose for frames in micro-batches and learn from each at once; the thresholds of all frames."""
    parts = []
    for at in range(first, stop, size):
        parts.append(policy.choose(stream.context(at, min(size, stop - at))))
        policy.learn(stream.outcomes(parts[-1], at))
    return joined(parts)


# ---- the clauses


def _thresholds_are_legal(make: Make, exits: int) -> None:
    stream, policy = MadeUpStream(exits, runs=2), make(exits=exits, runs=2)
    arms = len(getattr(policy, "grid", [0]))
    for first, frames in ((0, 1), (1, 7), (8, 64)):
        chosen = policy.choose(stream.context(first, frames))
        shapes: dict[str, tuple[int, ...]] = {"exit_at": (2, frames, exits + 1), "skip_below": (2, frames, exits)}
        for name in ("arm", "probability", "audited"):
            shapes[name] = (2, frames)
        for name, shape in shapes.items():
            _need(getattr(chosen, name).shape == shape, f"{name} must have shape {shape}", getattr(chosen, name).shape)
        at, below, arm, probability = chosen.exit_at, chosen.skip_below, chosen.arm, chosen.probability
        _all(((at >= 0) & (at <= 1)) | np.isinf(at), "exit_at must lie in [0, 1] or be inf", at)
        _all(at[..., -1] <= 1, "the final exit's exit_at, which someone must answer, must lie in [0, 1]", at[..., -1])
        _all((below >= 0) & (below <= 1), "skip_below must lie in [0, 1]", below)
        _need(arm.dtype.kind == "i", "arm must be integers", arm.dtype)
        _all((arm >= 0) & (arm < arms), f"arm must lie in 0 … {arms - 1}, the places of the grid", arm)
        ok = np.isnan(probability) | ((probability > 0) & (probability <= 1))
        _all(ok, "probability must lie in (0, 1], or be NaN where nothing is drawn", probability)
        _need(chosen.audited.dtype == bool, "audited must be truth values", chosen.audited.dtype)
        policy.learn(stream.outcomes(chosen, first))


def _batches_change_no_choice(make: Make, exits: int) -> None:
    stream = MadeUpStream(exits, runs=3)
    at_once, singly = (make(exits=exits, runs=3, seed=4) for _ in range(2))
    first = 0
    for frames in (1, 2, 40, 7, 64, 100, 33):
        chosen = at_once.choose(stream.context(first, frames))
        one_by_one = joined([singly.choose(stream.context(first + k, 1)) for k in range(frames)])
        _same(chosen, one_by_one, f"{frames} frames from {first} on, chosen for at once and one by one, differ")
        for policy in (at_once, singly):
            policy.learn(stream.outcomes(chosen, first))
        first += frames
    _same_state(at_once, singly, "what was learned differs after choosing at once and one by one")


def _feedback_may_be_late(make: Make, exits: int) -> None:
    stream, policy = MadeUpStream(exits, runs=2), make(exits=exits, runs=2)
    chosen = [policy.choose(stream.context(first, 50)) for first in range(0, 200, 50)]
    outcomes = stream.outcomes(joined(chosen), 0)
    order = np.random.default_rng(1).permutation(len(outcomes))
    policy.learn(outcomes[order[:0]])
    for rows in np.split(order, [1, 2, 5, 130, 131, 399]):
        policy.learn(outcomes[rows])
        policy.choose(stream.context(200, 1))
    for name, array in policy.state_dict().items():
        _all(np.isfinite(array), f"the state's {name} must be finite", array)


def _runs_are_independent(make: Make, exits: int) -> None:
    runs = 4
    stream = MadeUpStream(exits, runs=runs)
    together = live(make(exits=exits, runs=runs, seed=5), stream, 0, 256)
    for run in range(runs):
        alone = MadeUpStream(exits)
        alone.confidence, alone.distortion = stream.confidence[run : run + 1], stream.distortion[run : run + 1]
        policy = make(exits=exits, runs=1, seed=5)
        policy.keys = np.array([run])  # by which what is drawn is keyed
        of_run = Thresholds(**{f.name: getattr(together, f.name)[run : run + 1] for f in fields(Thresholds)})
        _same(of_run, live(policy, alone, 0, 256), f"run {run} of {runs} and the same run played alone differ")


def _a_saved_state_goes_on(make: Make, exits: int) -> None:
    stream, policy = MadeUpStream(exits, runs=2), make(exits=exits, runs=2, seed=6)
    live(policy, stream, 0, 100, size=7)
    awaited = policy.choose(stream.context(100, 20))
    state = policy.state_dict()
    again = make(exits=exits, runs=2, seed=6)
    again.load_state_dict(state)
    for array in state.values():
        array[...] = -1  # what was given out and taken in must be copies
    for learner in (policy, again):
        learner.learn(stream.outcomes(awaited, 100))
    one, other = live(policy, stream, 120, 300), live(again, stream, 120, 300)
    _same(one, other, "a policy and one that goes on from its saved state differ")
    _same_state(policy, again, "what they learned then differs")


def _a_wrong_state_changes_nothing(make: Make, exits: int) -> None:
    stream, policy = MadeUpStream(exits, runs=2), make(exits=exits, runs=2)
    untouched = make(exits=exits, runs=2)
    for learner in (policy, untouched):
        live(learner, stream, 0, 100)
    other = {key: array + 1 for key, array in policy.state_dict().items()}
    wrong = {"an unknown array": other | {"unknown": np.zeros(1)}}
    for key, array in other.items():
        wrong |= {
            f"no array {key}": {k: v for k, v in other.items() if k != key},
            f"a {key} of fewer runs": other | {key: array[:1]},
            f"a {key} of another shape": other | {key: array[..., :-1]},
            f"a {key} of text": other | {key: array.astype(str)},
        }
    for what, state in wrong.items():
        try:
            policy.load_state_dict(state)
        except ValueError:
            continue
        raise ContractError(f"a state with {what} must be refused with a ValueError, got none")
    _same_state(policy, untouched, "a state that was refused changed what was learned")
    one, same = live(policy, stream, 100, 200), live(untouched, stream, 100, 200)
    _same(one, same, "a state that was refused changed the choices")


def _a_seed_fixes_the_choices(make: Make, exits: int) -> None:
    one, other = (live(make(exits=exits, runs=1, seed=7), MadeUpStream(exits), 0, FRAMES) for _ in range(2))
    _same(one, other, "two policies of the same seed differ")


def _unsent_frames_teach_nothing(make: Make, exits: int) -> None:
    stream, policy = MadeUpStream(exits), make(exits=exits, runs=1)
    fresh = make(exits=exits, runs=1)
    outcomes = stream.outcomes(policy.choose(stream.context(0, 200)), 0, sent=False)
    unknown = np.full_like(outcomes.confidence, np.nan)
    blind = replace(outcomes, reward=np.full(len(outcomes), np.nan), confidence=unknown, sent=outcomes.sent & False)
    policy.learn(blind)
    _same_state(policy, fresh, "frames whose reward is NaN changed what was learned, or are still awaited")
    one, other = policy.choose(stream.context(200, 50)), fresh.choose(stream.context(200, 50))
    _same(one, other, "frames whose reward is NaN changed the choices")


def _joint_learners_are_independent(make: Make, exits: int) -> None:
    if not make(exits=exits, runs=1).joint:
        return  # each stream gets a policy of its own
    fresh = make(exits=exits, runs=3, seed=8).state_dict()
    for name, array in fresh.items():
        _need(array.shape[:1] == (3,), f"joint: {name} must have a row per run, the shape (3, …)", array.shape)
    learners = Learners(lambda runs: make(exits=exits, runs=runs, seed=8))
    streams = [MadeUpStream(exits, seed=seed) for seed in range(3)]
    rows: list[int] = []
    alone: list[Policy] = []
    for turn in range(24):
        if turn in (0, 3, 8):  # so that each learner is at another frame
            rows.append(learners.add(key=len(rows)))
            alone.append(make(exits=exits, runs=1, seed=8))
            alone[-1].keys = np.array([len(alone) - 1])
        at = [int(learners.next[row]) for row in rows]
        counts = [1 + (turn + k * (turn % 2)) % 4 for k in range(len(rows))]  # the same in every other turn
        own = [streams[k].context(at[k], count) for k, count in enumerate(counts)]
        distortion = np.concatenate([context.distortion[0] for context in own if context.distortion is not None])
        together = replace(own[0], frames=sum(counts), distortion=distortion)
        _, chosen = learners.choose(np.repeat(rows, counts), together)
        first = 0
        for k, count in enumerate(counts):
            of = {f.name: getattr(chosen, f.name)[None, first : first + count] for f in fields(Thresholds)}
            message = f"joint: learner {k} at frame {at[k]}, one of {len(rows)} rows and alone, differ"
            _same(Thresholds(**of), alone[k].choose(own[k]), message)
            first += count
            outcomes = streams[k].outcomes(Thresholds(**of), at[k])
            alone[k].learn(outcomes)
            learners.learn(replace(outcomes, run=np.full(count, rows[k])))
    for name, array in alone[0].state_dict().items():
        _need(array.shape[1:] == fresh[name].shape[1:], f"joint: the shape of {name} must never change", array.shape)


def _no_exits_or_runs_are_refused(make: Make, exits: int) -> None:
    for given in ({"exits": 0, "runs": 1}, {"exits": exits, "runs": 0}, {"exits": -1, "runs": 1}):
        try:
            make(**given)
        except ValueError as error:
            _need("must be at least 1" in str(error), "the error must say 'must be at least 1'", error)
        else:
            raise ContractError(f"exits={given['exits']}, runs={given['runs']} must be refused, but a policy was made")


CLAUSES: dict[str, Callable[[Make, int], None]] = {
    "thresholds are legal": _thresholds_are_legal,
    "batches change no choice": _batches_change_no_choice,
    "feedback may be late": _feedback_may_be_late,
    "runs are independent": _runs_are_independent,
    "a saved state goes on": _a_saved_state_goes_on,
    "a wrong state changes nothing": _a_wrong_state_changes_nothing,
    "a seed fixes the choices": _a_seed_fixes_the_choices,
    "unsent frames teach nothing": _unsent_frames_teach_nothing,
    "joint learners are independent": _joint_learners_are_independent,
    "no exits or runs are refused": _no_exits_or_runs_are_refused,
}
"""The clauses of the contract by name: each raises a `ContractError` if a policy of so many exits breaks it."""


def _need(holds: bool, what: str, found: Any) -> None:
    if not holds:
        raise ContractError(f"{what}, got {found}")


def _all(holds: Bools, what: str, values: Any) -> None:
    if not holds.all():
        raise ContractError(f"{what}, got {np.asarray(values)[~holds][0]}")


def _same(one: Thresholds, other: Thresholds, what: str) -> None:
    for f in fields(Thresholds):
        _same_array(getattr(one, f.name), getattr(other, f.name), f"{what} in {f.name}")


def _same_state(one: Policy, other: Policy, what: str) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    _need(set(ours) == set(theirs), f"{what} in its arrays", f"{sorted(ours)} and {sorted(theirs)}")
    for name, array in ours.items():
        _same_array(array, theirs[name], f"{what} in {name}")


def _same_array(one: Any, other: Any, what: str) -> None:
    _need(one.shape == other.shape, what, f"shapes {one.shape} and {other.shape}")
    different = (one != other) & ~((one != one) & (other != other))  # NaN is as good as NaN
    if different.any():
        place = tuple(int(k) for k in np.argwhere(different)[0])
        raise ContractError(f"{what}, first at {place}: got {one[place]} and {other[place]}")
