"""Any policy of river.bandit over a grid of thresholds."""

import inspect
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, add, scaled
from eex.policies.core.base import Context, Floats, Ints, Outcomes, State, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError

PREFIX = "river.bandit."
_PURPOSE, _SUCCESS = 4, 5  # of draws
LARGE = 1e100


class RiverBandit(Arms):
    """A policy of river.bandit over a grid of thresholds: one object per run, whose arms are indices of the grid.

    River's policies draw from generators of their own; here these are set anew, keyed by run and frame, before each
    pull, so that neither batching nor saving changes what is drawn. The arms in flight count as pulled while the next
    one is: where an object goes by its counts (UCB, any `burn_in`), it does not play one arm until the first reply.
    Rewards are scaled to [0, 1] (`scaled`); an exit cost may cut them off. A policy that counts successes (BayesUCB, a
    Beta distribution) gets 1 with the scaled reward's probability and else 0, which leaves its means as they are
    (Agrawal and Goyal, "Analysis of Thompson sampling for the multi-armed bandit problem", 2012). Exp3 weighs each
    reward by the probability that its arm had when it was chosen.

    Its state is all arms and rewards so far, in order, from which its objects are rebuilt: 24 bytes per frame, at
    river's speed, about ten microseconds per frame.

    Parameters
    ----------
    kind
        Class in river.bandit by name ("UCB", "EpsilonGreedy", "ThompsonSampling", …), or a class like those.
    options
        Its arguments; `reward_obj` is a class of river.proba or river.stats by name, for Thompson sampling by default
        "proba.Gaussian" with a burn-in of at least 2, and else "proba.Beta".
    grid
        The arms: confidence thresholds in [0, 1].
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold.

    Raises
    ------
    ValueError
        If there is no such class, it is contextual, or its arguments do not fit; if the grid is empty or leaves [0, 1].

    Examples
    --------
    >>> policy = RiverBandit("UCB", {"delta": 1.0, "burn_in": 1}, grid=[0.5, 0.7, 0.9])
    >>> policy.choose(Context(frames=3)).arm
    array([[0, 1, 2]])
    """

    state = ("pending", "arms", "rewards", "chances", "filled")
    joint = False  # river's objects have a state of their own
    sums: tuple[str, ...] = ()

    def __init__(
        self,
        kind: str | type,
        options: Mapping[str, Any] | None = None,
        grid: Sequence[float] = GRID,
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        self.kind, self.options = kind if isinstance(kind, str) else kind.__name__, dict(options or {})
        cls = river_class(kind) if isinstance(kind, str) else kind
        self._cls, self.name = cls, PREFIX + kind if isinstance(kind, str) else cls.__name__
        if self.kind == "ThompsonSampling":
            learns = self.options.get("burn_in", 0) >= 2
            self.options.setdefault("reward_obj", "proba.Gaussian" if learns else "proba.Beta")
        if self.options.get("reward_obj") == "proba.Gaussian" and self.options.get("burn_in", 0) < 2:
            raise EexError(
                f"{self.name}: a Gaussian knows no spread before its second reward, so arms not yet played would never "
                "be; add burn_in=2, or leave reward_obj out"
            )
        self._counts_successes = self.kind == "BayesUCB" or self.options.get("reward_obj") == "proba.Beta"
        self.arms: Ints = np.zeros((runs, 0), dtype=np.int64)  # rewarded, in order; padded with 0
        self.rewards: Floats = np.zeros((runs, 0))
        self.chances: Floats = np.zeros((runs, 0))  # of those arms when they were chosen; 0 = none
        self.filled: Ints = np.zeros(runs, dtype=np.int64)
        self._learners = [self._new() for _ in range(runs)]

    def choose(self, context: Context) -> Thresholds:
        """Pull an arm for each frame, one after another."""
        frames = context.numbers
        seeds = (uniform(self.seed, self.keys, frames, 1, _PURPOSE)[..., 0] * 2.0**53).astype(np.int64)
        arm = np.empty(seeds.shape, dtype=np.int64)
        chance = np.full(seeds.shape, np.nan)
        ids, in_flight = list(range(self.grid.size)), self.pending.copy()
        for run, learner in enumerate(self._learners):
            counts = dict(learner._counts)
            for k, key in enumerate(seeds[run].tolist()):
                _reseed(learner, key)
                for a in ids:
                    learner._counts[a] = counts.get(a, 0) + int(in_flight[run, a])
                arm[run, k] = learner.pull(ids)
                in_flight[run, arm[run, k]] += 1
                chance[run, k] = getattr(learner, "_probabilities", {}).get(arm[run, k], np.nan)
            learner._counts = Counter(counts)
        return self.play(arm, chance)

    def learn(self, outcomes: Outcomes) -> None:
        """Update each run's object with the rewards of its arms."""
        add(self.pending, outcomes.run, outcomes.arm, -1.0)
        returned = outcomes[~np.isnan(outcomes.reward)]
        most = int((self.filled + np.bincount(returned.run, minlength=self.runs)).max())
        if most > self.arms.shape[1]:
            more = ((0, 0), (0, max(64, 2 * most) - self.arms.shape[1]))
            self.arms = np.pad(self.arms, more)
            self.rewards, self.chances = np.pad(self.rewards, more), np.pad(self.chances, more)
        rewards = np.clip(scaled(returned.reward, returned.overhead, self.reward), 0.0, 1.0)
        if self._counts_successes:
            keys, frames = self.keys[returned.run], returned.frame
            u = [uniform(self.seed, keys[k : k + 1], frames[k : k + 1], 1, _SUCCESS)[0, 0, 0] for k in range(len(keys))]
            rewards = (np.array(u).reshape(-1) < rewards).astype(float)
        for run, arm, reward, chance in zip(
            returned.run.tolist(), returned.arm.tolist(), rewards.tolist(), returned.probability.tolist(), strict=True
        ):
            at, chance = self.filled[run], np.nan_to_num(chance)
            self.arms[run, at], self.rewards[run, at], self.chances[run, at] = arm, reward, chance
            self.filled[run] += 1
            _tell(self._learners[run], arm, reward, chance)

    def load_state_dict(self, state: State) -> None:
        """As for every `Policy`, with as many frames as were saved; river's objects learn all of them again."""
        slots = np.atleast_1d(state.get("arms", self.arms)).shape[-1]
        before = self.arms, self.rewards, self.chances
        shape = (self.runs, slots)
        self.arms, self.rewards, self.chances = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
        try:
            super().load_state_dict(state)
        except ValueError:
            self.arms, self.rewards, self.chances = before
            raise
        self._learners = [self._new() for _ in range(self.runs)]
        for run, learner in enumerate(self._learners):
            columns = (a[run, : self.filled[run]].tolist() for a in (self.arms, self.rewards, self.chances))
            for row in zip(*columns, strict=True):
                _tell(learner, *row)

    def _new(self) -> Any:
        from river import proba, stats

        options = dict(self.options)
        wanted = options.get("reward_obj")
        if wanted is not None:
            module, _, name = str(wanted).rpartition(".")
            cls = getattr({"proba": proba, "stats": stats}.get(module), name, None)
            if not inspect.isclass(cls):
                raise EexError(f"reward_obj must be a class such as proba.Gaussian or stats.Mean, got '{wanted}'")
            options["reward_obj"] = cls()
        if "seed" in inspect.signature(self._cls).parameters:  # one that draws nothing has none
            options["seed"] = 0
        try:
            learner = self._cls(**options)
            learner.pull(list(range(self.grid.size)))  # makes what it keeps of each arm
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise EexError(f"{self.name}: {str(error).splitlines()[0]}") from None
        return learner


def river_class(kind: str) -> Any:
    """The class of a policy in river.bandit.

    Raises
    ------
    EexError
        If there is none, or it is contextual.
    """
    from river import bandit

    found = getattr(bandit, kind, None)
    if not (inspect.isclass(found) and issubclass(found, bandit.base.Policy)):
        known = [n for n in bandit.__all__ if inspect.isclass(getattr(bandit, n))]
        raise EexError(f"river.bandit has no policy '{kind}'; it has {', '.join(known)}")
    if issubclass(found, bandit.base.ContextualPolicy):
        raise EexError(f"river.bandit.{kind} needs a context; linucb is the contextual policy here")
    return found


def _tell(learner: Any, arm: int, reward: float, chance: float) -> None:
    if chance:
        learner._probabilities = {arm: chance}
    learner.update(arm, reward)
    weights = getattr(learner, "_weights", {})
    if weights and (most := max(weights.values())) > LARGE:  # only their ratios matter; they would overflow
        for known in weights:
            weights[known] /= most


def _reseed(learner: Any, seed: int) -> None:
    learner._rng = random.Random(seed)
    for arm, learned in sorted(learner._rewards.items()):
        if hasattr(learned, "_rng"):
            learned._rng = random.Random(seed ^ (arm + 1))
