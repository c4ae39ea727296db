"""`check_policy` finds a policy that breaks a clause of the contract, one for each clause."""

import re
from dataclasses import replace

import numpy as np
import pytest

from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.ucb import UCB
from eex.policies.checks import CLAUSES, FRAMES, MadeUpStream, check_policy, live
from eex.policies.core.errors import ContractError


class ShapeOfOneRun(Fixed):
    def choose(self, context):
        chosen = super().choose(context)
        return replace(chosen, exit_at=chosen.exit_at[:1])


class FinalExitNeverAnswers(Fixed):
    def choose(self, context):
        chosen = super().choose(context)
        chosen.exit_at[..., -1] = np.inf
        return chosen


class CountsBatches(UCB):
    """Changes with the batch size: every frame of a batch plays one arm."""

    def choose(self, context):
        chosen = super().choose(context)
        return replace(chosen, exit_at=np.repeat(chosen.exit_at[:, :1], context.frames, axis=1))


class TakesOutcomesInOrder(UCB):
    def learn(self, outcomes):
        if (np.diff(outcomes.frame) < 0).any():
            raise IndexError("frames come in order")
        super().learn(outcomes)


class SharesRuns(UCB):
    def credit(self, heard):
        super().credit(heard)
        self.totals[:] = self.totals.mean(axis=0)


class ForgetsPending(UCB):
    state = ("counts", "totals")


class TakesAnyState(UCB):
    def load_state_dict(self, state):
        for name in self.state:
            if name in state:
                setattr(self, name, np.array(state[name]))


class Unseeded(Fixed):
    def choose(self, context):
        chosen = super().choose(context)
        chosen.exit_at[..., 0] = np.random.default_rng().uniform(size=chosen.arm.shape)
        return chosen


class LearnsFromNothing(UCB):
    def learn(self, outcomes):
        super().learn(replace(outcomes, reward=np.nan_to_num(outcomes.reward)))


class OneClock(Fixed):
    """All runs at the frame of the first: harmless, but for a policy that says that it is joint."""

    def choose(self, context):
        chosen = super().choose(context)
        numbers = np.ravel(context.first)[0] + np.arange(context.frames)
        chosen.exit_at[..., 0] = numbers % 7 / 7
        return chosen


class Grows(Fixed):
    state = ("heard",)

    def __init__(self, exits=1, runs=1, seed=0):
        super().__init__(exits=exits, runs=runs, seed=seed)
        self.heard = np.zeros((runs, 1))

    def learn(self, outcomes):
        self.heard = np.zeros((self.runs, self.heard.shape[1] + len(outcomes)))


class TurnsItsRows(Grows):
    def __init__(self, **given):
        super().__init__(**given)
        self.heard = self.heard.T

    def learn(self, outcomes):
        pass


class TakesNoRuns(Fixed):
    def __init__(self, exits=1, runs=1, seed=0):
        super().__init__(exits=max(exits, 1), runs=max(runs, 1), seed=seed)


def ucb(kind):
    return lambda **given: kind([0.2, 0.5, 0.8], **given)


BROKEN = {
    "thresholds are legal": [
        (ShapeOfOneRun, r"exit_at must have shape \(2, 1, 2\), got \(1, 1, 2\)"),
        (FinalExitNeverAnswers, r"the final exit's exit_at, which .* must lie in \[0, 1\], got inf"),
    ],
    "batches change no choice": [
        (ucb(CountsBatches), "2 frames from 1 on, .* differ in exit_at, first at .*: got .* and")
    ],
    "feedback may be late": [(ucb(TakesOutcomesInOrder), "raises IndexError: frames come in order")],
    "runs are independent": [(ucb(SharesRuns), "run 0 of 4 and the same run played alone differ in")],
    "a saved state goes on": [(ucb(ForgetsPending), "a policy and one that goes on from its saved state differ in")],
    "a wrong state changes nothing": [(ucb(TakesAnyState), "a state with an unknown array must be refused")],
    "a seed fixes the choices": [(Unseeded, "two policies of the same seed differ in exit_at, first at")],
    "unsent frames teach nothing": [(ucb(LearnsFromNothing), "frames whose reward is NaN changed what was learned")],
    "joint learners are independent": [
        (OneClock, r"joint: learner 1 at frame \d+, one of 2 rows and alone, differ in exit_at, first at"),
        (TurnsItsRows, r"joint: heard must have a row per run, the shape \(3, …\), got \(1, 3\)"),
        (Grows, "raises ValueError: |joint: the shape of heard must never change"),
    ],
    "no exits or runs are refused": [(TakesNoRuns, "exits=0, runs=1 must be refused, but a policy was made")],
}


def test_every_clause_has_a_broken_policy():
    assert list(BROKEN) == list(CLAUSES)


@pytest.mark.parametrize(
    ("clause", "make", "message"), [(clause, *broken) for clause, several in BROKEN.items() for broken in several]
)
def test_broken_policies_are_found(clause, make, message):
    with pytest.raises(ContractError, match=rf"^{re.escape(clause)}: {message}.* \(with exits=1\)$") as caught:
        check_policy(make, clauses=[clause])
    assert "\n" not in str(caught.value)
    with pytest.raises(ContractError):
        check_policy(make)


def test_a_sound_policy_passes():
    check_policy(UCB)


def test_the_made_up_stream_knows_only_what_inference_reached():
    stream = MadeUpStream(exits=2, runs=2)
    policy = UCB(exits=2, runs=2)
    for sent in (True, False):
        outcomes = stream.outcomes(policy.choose(stream.context(0, 200)), 0, sent=sent)
        assert len(outcomes) == 400
        assert outcomes.offloaded.any()
        assert (~outcomes.offloaded).any()
        np.testing.assert_array_equal(np.isnan(outcomes.confidence[:, -1]), ~(outcomes.offloaded & sent))
        np.testing.assert_array_equal(np.isnan(outcomes.reward), outcomes.offloaded & (not sent))
        np.testing.assert_array_equal(outcomes.prediction < 0, np.isnan(outcomes.confidence))
    assert live(policy, stream, 0, FRAMES).arm.shape == (2, FRAMES)
