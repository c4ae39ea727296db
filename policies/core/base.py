"""The contract between policies and whatever plays them: context, thresholds, outcomes, two verbs."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.columns import Bools, Floats, Ints, Outcomes
from eex.policies.core.errors import EexError

__all__ = [
    "Arrays",
    "Bools",
    "Context",
    "ExitCost",
    "Floats",
    "Ints",
    "Outcomes",
    "Policy",
    "Reward",
    "State",
    "Thresholds",
    "check_threshold",
    "check_thresholds",
    "classes_of",
    "go_on_from",
    "is_foreign",
]

State = Mapping[str, NDArray[Any]]
Reward = Literal["adaee", "utility"]
"""What frames earn: AdaEE's reward, which is 0 wherever a frame leaves on the edge; or the utility, which adds the
confidence at the last edge exit that it visited, so that depth counts: a frame answered at exit i earns its confidence
less the cost of the further exits, an offloaded one the higher of its two confidences less that and the overhead."""

ExitCost = float | Floats
"""Price of the further edge exits, in units of confidence: one number for each of them, or one each, (edge exits - 1,),
the second exit's first."""


@dataclass(frozen=True)
class Context:
    """What is known of a micro-batch before the backbone runs.

    Attributes
    ----------
    frames
        Frames in the batch, at least 1.
    first
        Number of its first frame; the others follow. One number, or one per run (runs,) for a policy that is `joint`.
    overhead
        Price of offloading a frame, in units of confidence, in [0, 1]; one number, or one per run (runs,). Where it
        depends on what will be measured (`eex.policies.core.price`), the price that is expected.
    exit_cost
        Price of each further edge exit that a frame visits, in the same units: one number, or one per further exit
        (edge exits - 1,). Where it differs between runs, (runs, 1) or (runs, edge exits - 1).
    distortion
        The distortion classifier's probabilities, shape (runs, frames, experts); None where there is no classifier.
    queue
        Offloaded frames whose reply is awaited; one number, or one per run (runs,).
    link_ms
        Estimate of the round trip to the cloud worker in milliseconds; NaN before the first reply. One number, or one
        per run (runs,).
    reachable
        Whether a cloud worker is believed to be there and well; while none is, offloaded frames fall back. One truth
        value, or one per run (runs,).
    """

    frames: int = 1
    first: int | Ints = 0
    overhead: float | Floats = 0.0
    exit_cost: ExitCost = 0.0
    distortion: Floats | None = None
    queue: int | Ints = 0
    link_ms: float | Floats = float("nan")
    reachable: bool | Bools = True

    @property
    def numbers(self) -> Ints:
        """Numbers of the frames: (frames,), or (runs, frames) where each run has its own."""
        numbers: Ints = np.asarray(self.first)[..., None] + np.arange(self.frames)
        return numbers


@dataclass(frozen=True)
class Thresholds:
    """What a policy chose for a micro-batch, per run, frame and exit.

    The last column of `exit_at` is the final exit's: below it, the answer is the most confident exit's. All other
    columns are edge exits. A frame leaves at the first exit whose confidence reaches `exit_at`; it goes to the cloud
    at once where its confidence is below `skip_below`, and also when no edge exit answers.

    Attributes
    ----------
    exit_at
        (runs, frames, edge exits + 1); inf never answers, 0 always.
    skip_below
        (runs, frames, edge exits); 0 never skips.
    arm
        (runs, frames), the arm that the thresholds stand for; 0 for policies without arms.
    probability
        (runs, frames), of the arm, for policies that draw at random; NaN elsewhere.
    audited
        (runs, frames), true where a frame is sent to the cloud to learn from it, regardless of the arm.
    """

    exit_at: Floats
    skip_below: Floats
    arm: Ints
    probability: Floats
    audited: Bools


COUNTS = frozenset(
    {"counts", "pending", "played", "frames", "turn", "recent_arm"}
    | {"count", "numbers", "blocks", "spread", "up", "down"}
)
"""Names of learned arrays that are never negative, but for rounding."""
MOST_COUNTED = 2.0**53
WEIGHED = frozenset({"seen", "offloads", "gains", "squares", "news", "weight", "moves", "known"})
"""Names of counts and sums, never negative either, in which each frame may weigh more than the one before."""
LARGEST_WEIGHT = 1e100
"""Of a frame; then the sums are scaled down."""
SUMS = frozenset({"totals", "curve", "total", "mean", "recent", "recent_reward", "memory", "held", "vector", "inverse"})
"""Names of learned arrays that are always finite."""
ROUNDING = 1e-6
FOREVER = 2**62
"""Frames for which a policy is settled whose choice does not depend on what it learns."""


class Arrays:
    """Attributes named in `state` are arrays: all that was learned, to be saved and resumed from."""

    state: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """A copy of them."""
        return {name: np.array(getattr(self, name)) for name in self.state}

    def load_state_dict(self, state: State) -> None:
        """Load saved arrays, laid out row after row (C order), as flat views of them require.

        Raises
        ------
        ValueError
            If one is missing, unknown, of another shape, or holds an impossible count or sum; nothing is changed then.
        """
        if set(state) != set(self.state):
            raise ValueError(f"expected the arrays {sorted(self.state)}, got {sorted(state)}")
        for name in self.state:
            here, given = getattr(self, name), np.asarray(state[name])
            if here.shape != given.shape or here.dtype.kind != given.dtype.kind:
                raise ValueError(f"{name} must be {here.dtype} {here.shape}, got {given.dtype} {given.shape}")
            kind = name.rpartition(".")[2]
            most = MOST_COUNTED * (LARGEST_WEIGHT if kind in WEIGHED else 1)
            if kind in COUNTS | WEIGHED and not np.all(good := (given >= -ROUNDING) & (given < most)):
                raise ValueError(f"{name} must hold counts, got {given[~good][0]}")
            if kind in SUMS and not np.isfinite(given).all():
                raise ValueError(f"{name} must hold finite sums, got {given[~np.isfinite(given)][0]}")
        for name in self.state:
            setattr(self, name, np.array(state[name], dtype=getattr(self, name).dtype, order="C"))


class Policy(Arrays):
    """Chooses thresholds while a stream runs, for `runs` independent learners side by side.

    A subclass names its options as keyword arguments, and also takes `exits` (edge exits), `runs` and `seed`. What it
    has learned is in arrays with a leading axis `runs`, named in `state`.

    Parameters
    ----------
    exits
        Edge exits; thresholds have one more column, the final exit's.
    runs
        Independent learners played side by side: 1 in a live stream.
    seed
        Seed of random draws, which are also keyed by run and frame (`eex.policies.core.draws`).

    Attributes
    ----------
    joint
        Whether learners of many streams may be rows of one such policy (`eex.policies.core.learners`): each run may be
        at another frame, and all that it has learned is its row of the arrays in `state`, whose shapes never change.
        Otherwise, and by default, each stream gets a policy of its own.
    priced
        Whether its choices follow from the context's overhead and exit cost at once, so that prices steer it: wishes
        (`eex.policies.wrappers.aim`) are kept with such policies alone.
    reward
        What the rewards that it learns from count (`Reward`); set by whoever plays the policy.
    exit_cost
        How the prices of the further edge exits compare (`ExitCost`); set by whoever plays the policy, to whom what a
        frame paid is known from its reward.
    keys
        Number of each run, (runs,), by which draws are keyed: 0, 1, … unless whoever plays the policy gives others, as
        the parts of a sweep do, so that they draw what the whole would.

    Raises
    ------
    ValueError
        If `exits` or `runs` is below 1.
    """

    joint: ClassVar[bool] = False
    priced: bool = False
    reward: Reward = "adaee"
    exit_cost: ExitCost = 0.0

    def __init__(self, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        if not all(isinstance(count, int | np.integer) and count >= 1 for count in (exits, runs)):
            raise ValueError(f"exits and runs must be at least 1, and whole numbers, got {exits!r} and {runs!r}")
        self.exits, self.runs, self.seed = exits, runs, seed
        self.keys: Ints = np.arange(runs)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        promise = _provider(cls, "settled_for")
        if not all(issubclass(promise, _provider(cls, verb)) for verb in ("choose", "learn")):
            cls.settled_for = Policy.settled_for  # type: ignore[method-assign]  # it was made for another choose or learn

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames, in order.

        Asking for n frames at once gives what asking n times for one gives, if nothing is learned between.
        """
        raise NotImplementedError

    def learn(self, outcomes: Outcomes) -> None:
        """Take in finished frames.

        Frames whose reward is NaN teach nothing of what thresholds earn, but are no longer awaited. What their edge
        exits said is there all the same, and may tell that the stream has changed.
        """

    def settled_for(self, first: int) -> int:
        """How many frames its choice stands for, at least 1: learning from fewer cannot change it, whatever they bring.

        Replay plays that many rounds at once. The promise holds while prices stay as they are and feedback comes in the
        order of the frames. A subclass that chooses or learns otherwise does not inherit it.

        Parameters
        ----------
        first
            Number of the next frame that it learns from, the same for all runs; -n if it learns from none before it has
            chosen for n more, feedback being late.
        """
        never_learns = getattr(self.learn, "__func__", None) is Policy.learn
        return FOREVER if never_learns and not is_foreign(self) else 1

    def same_at_every_exit(self, threshold: Floats, arm: Ints, probability: Floats | None = None) -> Thresholds:
        """Thresholds that hold at every exit, from those of each run and frame, both (runs, frames)."""
        runs, frames = threshold.shape
        exit_at = np.empty((runs, frames, self.exits + 1))
        exit_at[:] = threshold[:, :, None]
        if probability is None:
            probability = np.empty((runs, frames))
            probability.fill(np.nan)
        return Thresholds(
            exit_at=exit_at,
            skip_below=np.zeros((runs, frames, self.exits)),
            arm=arm,
            probability=probability,
            audited=np.zeros((runs, frames), dtype=bool),
        )


def _provider(cls: type, name: str) -> type:
    """The class that a method comes from."""
    return next(base for base in cls.__mro__ if name in vars(base))


def classes_of(policy: Policy) -> Iterator[type]:
    """The classes that a policy is made of: its own with their bases, and those of the policies inside."""
    yield from (cls for cls in type(policy).__mro__ if cls is not object)
    for value in vars(policy).values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Policy):
                yield from classes_of(part)
            elif isinstance(part, type):
                yield part


def is_foreign(policy: Policy) -> bool:
    """Whether any part of a policy comes from elsewhere than eex, so that its thresholds are to be checked."""
    return any(cls.__module__.split(".")[0] != "eex" for cls in classes_of(policy))


def check_thresholds(policy: Policy, chosen: Thresholds, frames: int) -> None:
    """Whether what a policy chose for some frames are thresholds.

    Raises
    ------
    EexError
        If not, with the name of the policy: if it is no `Thresholds`, has another shape, or holds NaN or what lies
        outside [0, 1] and is not inf.
    """
    name = type(policy).__name__
    if not isinstance(chosen, Thresholds):
        raise EexError(f"policy {name}: choose must return Thresholds, got {type(chosen).__name__}")
    runs = policy.runs, frames
    shapes: dict[str, tuple[int, ...]] = {"exit_at": (*runs, policy.exits + 1), "skip_below": (*runs, policy.exits)}
    shapes |= {"arm": runs, "probability": runs, "audited": runs}
    for column, shape in shapes.items():
        if np.shape(getattr(chosen, column)) != shape:
            got = np.shape(getattr(chosen, column))
            raise EexError(f"policy {name}: {column} must have the shape {shape}, got {got}")
    for column in ("exit_at", "skip_below"):
        values = np.asarray(getattr(chosen, column))
        good = ((values >= 0) & (values <= 1 + 1e-6)) | (values == np.inf)  # just above 1 is "never", too
        if not good.all():
            raise EexError(f"policy {name}: {column} must lie in [0, 1], or be inf; got {values[~good][0]:g}")


def go_on_from(policy: Policy, state: State) -> None:
    """Load a state and check that the policy can choose with it.

    Raises
    ------
    ValueError
        If the state does not fit the policy, or its choices with it would not be thresholds.
    """
    policy.load_state_dict(state)
    trial = copy.deepcopy(policy)
    try:
        check_thresholds(trial, trial.choose(Context(frames=2)), 2)
    except (EexError, IndexError, ArithmeticError) as error:
        raise ValueError(f"its arrays are of no use to the policy: {error}") from None


def check_threshold(name: str, value: float) -> float:
    """A threshold, if it lies in [0, 1].

    Raises
    ------
    EexError
        If not.
    """
    if not 0 <= value <= 1:
        raise EexError(f"{name} must lie in [0, 1], got {value:g}")
    return float(value)
