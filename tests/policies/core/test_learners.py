"""Many learners side by side, at frames of their own, choose and learn as each would alone."""

from dataclasses import fields

import numpy as np
import pytest

from eex.policies.algorithms.ucb import UCB
from eex.policies.core.base import Context, Outcomes, Thresholds
from eex.policies.core.learners import Learners
from eex.policies.core.routing import seen
from eex.policies.core.world import step
from eex.policies.registry import POLICIES, make_policy

EXITS = 2
NAMES = [*POLICIES, "drift@ucb", "safe@gain-curve", "river.bandit.UCB:delta=1"]


def outcomes_of(run, frame, chosen, confidence, prediction, overhead):
    """Outcomes of frames, flat, for thresholds without the axis of runs."""
    stepped = step(confidence, chosen.exit_at, chosen.skip_below, overhead, 0.0)
    confidence, prediction = seen(confidence, prediction, stepped.visited, stepped.replied)
    return Outcomes(
        run=run,
        frame=frame,
        arm=chosen.arm,
        probability=chosen.probability,
        audited=chosen.audited,
        exit_at=chosen.exit_at,
        confidence=confidence,
        prediction=prediction,
        exit=stepped.exit,
        offloaded=stepped.offloaded,
        sent=stepped.sent,
        fallback=stepped.fallback,
        overhead=np.broadcast_to(overhead, (len(run),)),
        reward=stepped.reward,
        latency_ms=np.zeros(len(run)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_side_by_side_is_as_alone(name):
    def make(runs):
        return make_policy(name, exits=EXITS, runs=runs, seed=3)

    rng = np.random.default_rng(0)
    keys = [5, 0, 9, 70]
    learners = Learners(make)
    rows = [learners.add(key) for key in keys]
    alone = []
    for key in keys:
        policy = make(1)
        policy.keys = np.array([key])
        alone.append(Learners.of(policy))
    price = np.array([0.05, 0.1, 0.2, 0.3])
    for turn in range(40):
        who = rng.integers(0, len(keys), rng.integers(1, 9))
        confidence = rng.uniform(0.3, 1.0, (len(who), EXITS + 1))
        prediction = rng.integers(0, 10, (len(who), EXITS + 1))
        distortion = rng.dirichlet(np.ones(3), len(who))
        run = np.array(rows)[who]
        known = Context(len(who), 0, price[who], 0.0, distortion, queue=2, link_ms=50.0)
        frame, chosen = learners.choose(run, known)
        outcomes = outcomes_of(run, frame, chosen, confidence, prediction, price[who])
        order = rng.permutation(len(who))
        ranks = learners.learn(outcomes[order])
        for k in np.unique(who):
            mine = who == k
            count = int(mine.sum())
            own = Context(count, 0, price[k], 0.0, distortion[mine], queue=2, link_ms=50.0)
            own_frame, own_chosen = alone[k].choose(np.zeros(count, dtype=int), own)
            np.testing.assert_array_equal(frame[mine], own_frame)
            for f in fields(Thresholds):
                ours, theirs = getattr(chosen, f.name)[mine], getattr(own_chosen, f.name)
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=f"{f.name}, turn {turn}")
            again = order[mine[order]]  # the learner's frames in the order of the feedback
            own_outcomes = outcomes[again]
            own_ranks = alone[k].learn(
                Outcomes(**{f.name: getattr(own_outcomes, f.name) for f in fields(Outcomes)} | {"run": 0 * again})
            )
            for ours, theirs in zip(ranks, own_ranks, strict=True):
                np.testing.assert_array_equal(ours[mine[order]], theirs)
    for k, row in enumerate(rows):
        ours, theirs = learners.state_of(row), alone[k].state_of(0)
        assert ours.keys() == theirs.keys()
        for array in ours:
            np.testing.assert_allclose(ours[array], theirs[array], rtol=1e-9, err_msg=array)


@pytest.mark.parametrize("name", ["gain-curve", "linucb"])
def test_a_row_that_was_left_starts_afresh(name):
    learners = Learners(lambda runs: make_policy(name, exits=1, runs=runs))
    rows = [learners.add(key) for key in range(20)]
    assert len(set(rows)) == 20
    row = rows[7]
    fresh = learners.state_of(row)
    rng = np.random.default_rng(1)
    for _ in range(5):
        frame, chosen = learners.choose(np.full(4, row), Context(4))
        confidence, prediction = rng.uniform(0.3, 1, (4, 2)), rng.integers(0, 10, (4, 2))
        learners.learn(outcomes_of(np.full(4, row), frame, chosen, confidence, prediction, 0.1))
    learned = learners.state_of(row)
    learners.remove(row)
    assert learners.add(key=99) == row
    for array, value in learners.state_of(row).items():
        np.testing.assert_array_equal(value, fresh[array])
    assert learners.next[row] == learners.learned[row] == 0
    again = learners.add(key=7, state=learned, first=20)
    assert learners.next[again] == 20
    for array, value in learners.state_of(again).items():
        np.testing.assert_array_equal(value, learned[array])


@pytest.mark.parametrize("name", ["ucb", "linucb", "hedge-hi", "policy-gradient", "safe@ucb", "drift@linucb"])
def test_who_resumes_awaits_nothing(name):
    """A state that was saved while frames were under way, before a kill: their feedback never comes."""
    learners = Learners(lambda runs: make_policy(name, exits=1, runs=runs))
    row = learners.add(0)
    learners.choose(np.full(100, row), Context(100))
    saved, fresh = learners.state_of(row), learners.state_of(learners.add(1))
    waiting = [array for array in saved if array.endswith(("pending", "awaited.frame"))]
    assert any(saved[array].any() for array in waiting)
    other = learners.add(2, saved, first=100)
    learners.set_state(row, saved, first=100)
    for resumed in (row, other):
        for array in waiting:
            np.testing.assert_array_equal(learners.state_of(resumed)[array], fresh[array], err_msg=array)


def test_a_state_of_another_policy_adds_no_learner():
    learners = Learners(lambda runs: UCB(exits=1, runs=runs))
    with pytest.raises(ValueError, match="expected the arrays"):
        learners.add(0, state={"other": np.zeros(1)})
    assert learners.add(0) == 0


def test_one_learner_may_meet_several_prices():
    """Streams that share a learner, each at a price of its own."""
    learners = Learners(lambda runs: make_policy("gain-curve", exits=1, runs=runs))
    row = learners.add(0)
    frame, chosen = learners.choose(np.full(4, row), Context(4, overhead=np.array([0.1, 0.9, 0.1, 0.1])))
    np.testing.assert_array_equal(np.sort(frame), np.arange(4))
    assert chosen.exit_at[0, 0] != chosen.exit_at[1, 0]
    assert chosen.exit_at[0, 0] == chosen.exit_at[2, 0]
