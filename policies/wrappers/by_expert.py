"""A wrapper for streams whose distortion alternates: a learner for each expert."""

import copy
from dataclasses import replace

import numpy as np

from eex.policies.algorithms.features import EXPERTS
from eex.policies.algorithms.options import at_least
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, State, Thresholds
from eex.policies.core.errors import EexError
from eex.policies.core.fleet import Shares
from eex.policies.core.parts import Awaited, Composite, Part


class ByExpert(Composite):
    """Learn separately for each expert: what going on is worth for a blurred frame says little about a sharp one.

    Each expert has a learner, a copy of the policy inside, which chooses for the frames that the distortion classifier
    gives to that expert, and learns from them alone, as if they were a stream of their own. Frames of a stream without
    a classifier all go to the first learner.

    This pays where kinds of distortion alternate from frame to frame. Where they come one after another, a policy that
    notices the change and begins anew does as well. Each learner begins with nothing, so that the first few hundred
    frames cost a little more than with one learner for all. A learner's frames are numbered in the order of their
    feedback: where feedback becomes much later at once, a learner may begin anew without need.

    Frames go by the classifier's likeliest expert, also those that it abstains from.

    Parameters
    ----------
    inner
        The policy: `stop-curve`, whose choice does not depend on how often it is asked.
    experts
        Learners, at least 1. Experts beyond them share the last.

    Attributes
    ----------
    numbers
        Frames that each learner has learned from, (runs, experts), by which they are numbered for it.

    Raises
    ------
    EexError
        If the policy is another, or `experts` is below 1.

    Examples
    --------
    >>> from eex.policies.algorithms.stop_curve import StopCurve
    >>> policy = ByExpert(StopCurve(exits=2), experts=3)
    >>> policy.choose(Context(2, distortion=np.array([[[0.9, 0.1, 0.0], [0.0, 0.1, 0.9]]]))).exit_at.shape
    (1, 2, 3)
    """

    state = ("numbers",)

    def __init__(self, inner: Policy, experts: int = EXPERTS) -> None:
        at_least("experts", experts, 1)
        if not isinstance(inner, Shares):
            raise EexError(f"wraps stop-curve alone, not {type(inner).__name__}: write by-expert@stop-curve")
        self.learners = [inner, *(copy.deepcopy(inner) for _ in range(experts - 1))]
        self.awaited = Awaited(inner.runs, 1)  # the learner of each frame
        self.priced = inner.priced
        super().__init__(inner.exits, inner.runs, inner.seed)
        if hasattr(inner, "grid"):
            self.grid = inner.grid
        self.numbers: Ints = np.zeros((inner.runs, experts), dtype=np.int64)

    def choose(self, context: Context) -> Thresholds:
        """What the learner of each frame chooses."""
        whose = self._learner_of(context)
        shape = self.runs, context.frames
        exit_at, skip_below = np.empty((*shape, self.exits + 1)), np.empty((*shape, self.exits))
        asked = replace(context, frames=1, distortion=None)
        for k, learner in enumerate(self.learners):
            run, frame = (whose == k).nonzero()
            if not (len(run) or self.numbers[:, k].any()):
                continue  # all others are asked: a run's decisions must not depend on other runs' frames
            chosen = learner.choose(asked)
            exit_at[run, frame], skip_below[run, frame] = chosen.exit_at[run, 0], chosen.skip_below[run, 0]
        self.awaited.put(context.numbers, whose[..., None].astype(float))
        unknown: Floats = np.full(shape, np.nan)
        return Thresholds(exit_at, skip_below, np.zeros(shape, np.int64), unknown, np.zeros(shape, dtype=bool))

    def learn(self, outcomes: Outcomes) -> None:
        """Each learner learns from its own frames."""
        found, value = self.awaited.take(outcomes.run, outcomes.frame)
        found &= outcomes.confidence[:, 0] == outcomes.confidence[:, 0]  # also those that teach nothing: change is seen
        whose = value[:, 0].astype(np.int64)
        for k in np.unique(whose[found]).tolist():
            own = outcomes[found & (whose == k)]
            earlier = np.empty(len(own), dtype=np.int64)  # frames of the same run before each
            order = own.run.argsort(kind="stable")
            earlier[order] = np.arange(len(own)) - own.run[order].searchsorted(own.run[order])
            self.learners[k].learn(replace(own, frame=self.numbers[own.run, k] + earlier))
            np.add.at(self.numbers[:, k], own.run, 1)

    def load_state_dict(self, state: State) -> None:
        """As for every `Composite`; the frames awaited must be those of learners that there are."""
        whose = np.asarray(state.get("awaited.value", 0.0))
        if not (np.isin(whose, np.arange(len(self.learners))).all()):
            raise ValueError(f"awaited.value: expected learners from 0 to {len(self.learners) - 1}")
        super().load_state_dict(state)

    def _learner_of(self, context: Context) -> Ints:
        """Which learner each frame belongs to, (runs, frames)."""
        if context.distortion is None:
            return np.zeros((self.runs, context.frames), dtype=np.int64)
        whose: Ints = np.minimum(context.distortion.argmax(axis=2), len(self.learners) - 1)
        return whose

    def named_parts(self) -> dict[str, Part]:
        """The learners, and the frames awaited."""
        return {"awaited": self.awaited} | {f"learner_{k + 1}": each for k, each in enumerate(self.learners)}
