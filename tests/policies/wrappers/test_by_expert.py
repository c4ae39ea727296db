"""A learner for each expert: the contract, and what alternating distortions gain by it."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from eex.policies.algorithms.stop_curve import StopCurve
from eex.policies.checks import CLAUSES, FRAMES, MadeUpStream, check_policy, live
from eex.policies.core.base import Context, is_foreign
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.by_expert import ByExpert

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("name", ["by-expert@stop-curve", "by-expert:experts=2@stop-curve:memory=500"])
@pytest.mark.parametrize("clause", CLAUSES)
def test_it_keeps_the_contract(clause, name, exits):
    check_policy(functools.partial(make_policy, name), [exits], [clause])


@pytest.fixture(scope="module")
def alternating():
    """Two distortions in turn: one whose unsure frames the cloud makes sure, and one for which it does nothing."""
    rng = np.random.default_rng(0)
    edge, kind = rng.uniform(0.3, 0.9, 3000), np.arange(3000) % 2
    cloud = np.where(kind, edge, 0.95)
    label = np.zeros((3000, 2), dtype=int)
    trace = Trace(np.column_stack([edge, cloud]), label, label[:, 0], ("a",))
    return trace, np.eye(2)[kind]


def test_alternating_distortions_are_told_apart(alternating):
    trace, probabilities = alternating
    told = Trace(
        trace.confidence, trace.prediction, trace.label, trace.classes, probabilities=probabilities, experts=("a", "b")
    )
    earned = {}
    for name in ("stop-curve", "by-expert@stop-curve", "ucb"):
        earned[name] = replay(make_policy(name, runs=4), told, 0.1, order="in-order", kind="utility")
    late = {name: played.utility[:, 1000:].mean() for name, played in earned.items()}
    assert late["by-expert@stop-curve"] > max(0.72, late["stop-curve"] + 0.03)  # 0.725 would be best
    sent = earned["by-expert@stop-curve"].offloaded[:, 1000:]
    assert sent[:, ::2].mean() > 0.7  # below 0.85, which is 92 % of them
    assert sent[:, 1::2].mean() < 0.1


def test_without_a_classifier_it_is_the_policy_inside(alternating):
    trace, _ = alternating
    one, other = (
        replay(make_policy(name, runs=2), trace, 0.1, order="in-order")
        for name in ("stop-curve", "by-expert@stop-curve")
    )
    np.testing.assert_array_equal(one.offloaded, other.offloaded)


def test_an_outage_is_no_change_of_the_stream():
    policy, stream = make_policy("by-expert:experts=2@stop-curve"), MadeUpStream(1)
    stream.distortion = np.tile(np.eye(2), (FRAMES // 2, 1))[None]
    live(policy, stream, 0, FRAMES // 2)
    known = [learner.known.copy() for learner in policy.learners]
    for first in range(FRAMES // 2, FRAMES, 8):
        outcomes = stream.outcomes(policy.choose(stream.context(first, 8)), first, sent=False)
        policy.learn(replace(outcomes, reward=np.where(outcomes.offloaded, np.nan, outcomes.reward)))
    assert not any(learner.change.alarmed.any() for learner in policy.learners)
    assert all((learner.known >= before).all() for learner, before in zip(policy.learners, known, strict=True))
    assert policy.numbers.tolist() == [[FRAMES // 2, FRAMES // 2]]


def test_a_state_of_learners_that_are_not_there_is_refused():
    policy = make_policy("by-expert:experts=2@stop-curve")
    policy.choose(Context(4, distortion=np.eye(2)[None, [0, 1, 0, 1]]))
    state = policy.state_dict()
    state["awaited.value"][0, 1] = 2.0
    with pytest.raises(ValueError, match="expected learners from 0 to 1"):
        make_policy("by-expert:experts=2@stop-curve").load_state_dict(state)


def test_a_policy_of_ones_own_within_is_seen():
    class Own(StopCurve):
        pass

    assert is_foreign(ByExpert(Own()))
    assert not is_foreign(ByExpert(StopCurve()))


def test_more_experts_than_learners_share_the_last():
    policy, stream = make_policy("by-expert:experts=2@stop-curve", exits=2), MadeUpStream(2)
    stream.distortion = np.tile(np.eye(4), (128, 1))[None]
    live(policy, stream, 0, 64)
    assert policy.numbers.tolist() == [[16, 48]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("by-expert@ucb", "policy by-expert: wraps stop-curve alone, not UCB: write by-expert@stop-curve"),
        ("by-expert:experts=0@stop-curve", "experts must be at least 1, got 0"),
    ],
)
def test_what_it_cannot_wrap_is_refused(name, message):
    with pytest.raises(EexError, match=message):
        make_policy(name)
