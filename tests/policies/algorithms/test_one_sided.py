"""One-sided feedback: what lower thresholds would have earned, and the policies that learn from it."""

import math
from collections import defaultdict
from dataclasses import fields

import numpy as np
import pytest

from eex.policies.algorithms.hedge_hi import HedgeHI
from eex.policies.algorithms.hi_lcb import HILCB
from eex.policies.algorithms.one_sided import as_if, credit
from eex.policies.algorithms.splitee_s import SplitEES
from eex.policies.core.base import Context, Outcomes, Policy
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_rewards
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace

pytestmark = pytest.mark.timeout(60)

GRID = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
COST = 0.03
every_exits = pytest.mark.parametrize("exits", [1, 2, 3])


def make_trace(exits, frames=300, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.0, 1.0, (frames, exits + 1))
    confidence[:20] = rng.choice(GRID, (20, exits + 1))  # ties with thresholds
    prediction = rng.integers(0, 3, (frames, exits + 1))
    return Trace(confidence, prediction, np.full(frames, -1), ("a", "b", "c"))


class Told(Policy):
    """Plays given thresholds, (frames, exits + 1), and keeps what it is told."""

    def __init__(self, exit_at, arm, skip_below=None):
        super().__init__(exits=exit_at.shape[1] - 1)
        self.exit_at, self.arm, self.parts = exit_at, arm, []
        self.skip_below = np.zeros_like(exit_at[:, 1:]) if skip_below is None else skip_below

    def choose(self, context):
        at = slice(context.first, context.first + 1)
        chosen = self.same_at_every_exit(np.zeros((1, 1)), self.arm[None, at])
        chosen.exit_at[0], chosen.skip_below[0] = self.exit_at[at], self.skip_below[at]
        return chosen

    def learn(self, outcomes):
        self.parts.append(outcomes)


def told(trace, exit_at, arm, skip_below=None, overhead=0.1):
    """Outcomes of a whole trace in order, under given thresholds."""
    policy = Told(exit_at, arm, skip_below)
    replay(policy, trace, overhead, rounds=len(trace), order="in-order", exit_cost=COST)
    return Outcomes(**{f.name: np.concatenate([getattr(p, f.name) for p in policy.parts]) for f in fields(Outcomes)})


def under_arms(trace, seed=1):
    arm = np.random.default_rng(seed).integers(0, len(GRID), len(trace))
    return arm, told(trace, np.repeat(GRID[arm][:, None], trace.edge_exits + 1, axis=1), arm)


# ---- credit


@every_exits
def test_what_is_known_of_lower_arms_is_what_they_would_have_earned(exits):
    trace = make_trace(exits)
    arm, outcomes = under_arms(trace)
    known, earned = credit(outcomes, GRID)
    np.testing.assert_array_equal(known, np.arange(len(GRID)) <= arm[:, None])
    np.testing.assert_allclose(earned, np.where(known, fixed_rewards(trace.confidence, 0.1, GRID, COST), 0), atol=1e-12)


def test_what_is_known_does_not_hang_on_the_frame():
    trace = make_trace(2)
    arm, outcomes = under_arms(trace)
    other = make_trace(2, seed=5)
    again = told(other, outcomes.exit_at, arm)
    np.testing.assert_array_equal(credit(outcomes, GRID)[0], credit(again, GRID)[0])


def test_frames_without_reward_reveal_nothing():
    _, outcomes = under_arms(make_trace(1))
    outcomes.reward[:] = np.nan
    known, earned = credit(outcomes, GRID)
    assert not known.any()
    assert not earned.any()


@every_exits
def test_as_if_is_what_lower_thresholds_would_have_seen(exits):
    trace, rng = make_trace(exits), np.random.default_rng(2)
    arm = np.zeros(len(trace), dtype=int)
    lower = rng.choice(GRID, (len(trace), exits + 1))
    lower[::7, :-1] = np.inf
    higher = np.maximum(lower, rng.choice([0.3, 0.6, np.inf], (len(trace), 1)))
    skip = rng.choice([0.0, 0.4], (len(trace), exits))
    expected = told(trace, lower, arm, skip)
    audited = rng.random(len(trace)) < 0.5
    played = told(trace, np.where(audited[:, None], np.inf, higher), arm, np.where(audited[:, None], 0.0, skip))
    played.audited[:] = audited
    seen = as_if(played, lower, skip)
    for f in fields(Outcomes):
        np.testing.assert_allclose(getattr(seen, f.name), getattr(expected, f.name), atol=1e-12, err_msg=f.name)


# ---- HI-LCB and SplitEE-S against slow references


def slow_hi_lcb(alpha, overhead, heard):
    gains = defaultdict(list)
    for confidence, gain in heard:
        if gain is not None:
            gains[max(k for k in range(len(GRID)) if GRID[k] <= confidence)].append(gain)
    best = -math.inf
    for k in range(len(GRID) - 1):
        n = len(gains[k])
        if n:
            best = max(best, 1 - sum(gains[k]) / n - math.sqrt(alpha * math.log(len(heard)) / n))
        if best > 1 - overhead:
            return k
    return len(GRID) - 1


def test_hi_lcb_against_a_slow_reference():
    trace, policy, heard, arms = make_trace(1, 600), HILCB(GRID, alpha=0.1), [], []
    trace.confidence[:, 1] = np.maximum(trace.confidence[:, 1], trace.confidence[:, 0])
    played = replay(policy, trace, 0.2, order="in-order")
    for (edge, cloud), arm in zip(trace.confidence.tolist(), played.arm[0], strict=True):
        arms.append(slow_hi_lcb(0.1, 0.2, heard))
        heard.append((edge, cloud - edge if edge < GRID[arm] else None))
    assert played.arm[0].tolist() == arms
    assert len(set(arms)) > 1


def test_hi_lcb_by_exits_and_their_costs():
    # a gain of 0.3 at confidence 0.6, reached at exit 1 of 2: a threshold of 0.5 would have spared exit 2
    trace = make_trace(2)[:1]
    trace.confidence[:] = [0.6, 0.55, 0.85]
    policy = HILCB(GRID, exits=2)
    replay(policy, trace, 0.1, order="in-order", exit_cost=COST)
    np.testing.assert_allclose(policy.totals, [[0, 0, 0.3 - COST, 0, 0]])
    np.testing.assert_array_equal(policy.counts, [[0, 0, 1, 0, 0]])


def test_splitee_s_against_a_slow_reference():
    trace, policy = make_trace(1, 400), SplitEES(GRID, c=0.4)
    played = replay(policy, trace, 0.2, order="in-order")
    earned = fixed_rewards(trace.confidence, 0.2, GRID)
    rewards, own = defaultdict(list), [0] * len(GRID)
    for t, arm in enumerate(played.arm[0].tolist()):
        index = [
            sum(rewards[a]) / len(rewards[a]) + 0.4 * math.sqrt(math.log(max(t, 1)) / len(rewards[a]))
            if rewards[a]
            else math.inf
            for a in range(len(GRID))
        ]
        assert index[arm] >= max(index) - 1e-9, f"round {t}"
        own[arm] += 1
        for lower in range(arm + 1):
            rewards[lower].append(earned[t, lower])
    assert policy.played.sum() + policy.pending.sum() == 400
    assert min(own) > 0


def test_splitee_s_does_not_stick_to_an_arm_while_replies_are_late():
    chosen = SplitEES(GRID).choose(Context(frames=50))
    assert np.bincount(chosen.arm[0], minlength=5).tolist() == [10] * 5


# ---- Hedge-HI


def test_hedge_hi_sums_up_rewards_without_bias():
    trace, runs = make_trace(2, 40), 4000
    policy = HedgeHI(GRID, exits=2, runs=runs)
    replay(policy, trace, 0.1, order="in-order", delay=20, exit_cost=COST)
    truth = fixed_rewards(trace.confidence, 0.1, GRID, COST).sum(axis=0)
    error = policy.totals.std(axis=0) / math.sqrt(runs)
    assert (np.abs(policy.totals.mean(axis=0) - truth) < 4 * error + 1e-9).all()


def test_hedge_hi_records_how_probable_its_choices_are():
    policy = HedgeHI(GRID, runs=20000)
    policy.totals[:] = [0, 3, 6, 3, 0]
    p = policy.probabilities(3)
    np.testing.assert_allclose(p.sum(axis=2), 1)
    chosen = policy.choose(Context(frames=3))
    for k in range(3):
        share = np.bincount(chosen.arm[:, k], minlength=5) / 20000
        np.testing.assert_allclose(share, p[0, k], atol=0.02)
        np.testing.assert_allclose(chosen.probability[:, k], p[0, k][chosen.arm[:, k]])


@pytest.mark.parametrize("policy", [HILCB, HedgeHI, SplitEES])
def test_one_sided_policies_find_the_best_threshold(policy):
    rng = np.random.default_rng(3)
    edge = rng.uniform(0, 1, 3000)
    gain = np.where(edge < 0.5, 0.45, 0.0)  # offloading pays below 0.5 only
    trace = Trace(np.column_stack([edge, edge + gain]), np.zeros((3000, 2), dtype=int), np.full(3000, -1), ("a",))
    played = replay(policy(GRID, runs=4), trace, 0.2, rounds=3000)
    share = np.bincount(played.arm[:, -500:].ravel(), minlength=5) / 2000
    assert share.argmax() == 2
    assert share[2] > 0.4


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [
        (HILCB, {"alpha": 0}, "alpha must be above 0"),
        (HILCB, {"grid": []}, "grid must hold"),
        (HedgeHI, {"epsilon": 0}, "epsilon must be above 0"),
        (HedgeHI, {"eta": math.inf}, "eta must be above 0"),
        (HedgeHI, {"grid": [2]}, "grid must hold"),
        (SplitEES, {"c": -1}, "c must be 0 or more"),
    ],
)
def test_options_that_do_not_fit(cls, wrong, message):
    with pytest.raises(EexError, match=message):
        cls(**wrong)
