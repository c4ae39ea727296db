"""Drift: the wrapper keeps every policy's contract, and starts anew when the stream changes."""

import functools

import numpy as np
import pytest

from eex.policies.checks import CLAUSES, FRAMES, MadeUpStream, check_policy, live
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import POLICIES, make_policy

pytestmark = pytest.mark.timeout(120)

NAMES = [
    "drift@ucb",
    "drift@stop-curve",
    "drift@fixed",
    "drift:detector=kswin@hedge-hi",
    "drift:detector=page-hinkley@drift@linucb",
]


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clause", CLAUSES)
def test_wrapped_policies_keep_the_contract(clause, name, exits):
    check_policy(functools.partial(make_policy, name), [exits], [clause])


def changing_trace(frames=1500):
    """Sure at first, then unsure."""
    rng = np.random.default_rng(0)
    edge = np.concatenate([rng.uniform(0.7, 1.0, frames), rng.uniform(0.2, 0.5, frames)])
    cloud = np.concatenate([edge[:frames], edge[frames:] + 0.4])
    return Trace(np.column_stack([edge, cloud]), np.zeros((2 * frames, 2), dtype=int), np.full(2 * frames, -1), ("a",))


@pytest.mark.parametrize("name", POLICIES)
def test_any_policy_can_be_reset_and_held_safe(name):
    exits = 2 if name.startswith("deex") else 1
    world = MadeUpStream(exits, runs=2)
    world.confidence[:, 250:, 0] *= 0.3
    policy = make_policy(f"drift@safe:bound=0.5@{name}", exits=exits, runs=2)
    live(policy, world, 0, FRAMES)
    assert (policy.drifts >= 1).all()
    assert (policy.since > 250).all()
    assert (policy.inner.audits.sum(axis=1) <= FRAMES - policy.since).all()  # earlier ones count no more
    for array in policy.state_dict().values():
        assert np.isfinite(array).all()


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley", "kswin"])
def test_drift_is_seen_once_and_resets(detector):
    policy = make_policy(f"drift:detector={detector}@ucb", runs=2)
    replay(policy, changing_trace(), 0.1, order="in-order")
    assert (policy.drifts >= 1).all()
    assert (policy.drifts <= 2).all()
    assert (policy.inner.counts.sum(axis=1) < 1600).all()


def test_only_the_run_that_drifts_is_reset():
    policy, trace = make_policy("drift@ucb", runs=2), changing_trace()
    for frame in range(1700):
        chosen = policy.choose(Context(first=frame))
        world = MadeUpStream(1, runs=2)
        told = world.outcomes(chosen, 0)
        told.frame[:] = frame
        told.confidence[:, 0] = [trace.confidence[frame, 0], 0.8]
        policy.learn(told)
    assert policy.drifts.tolist() == [1, 0]
    assert policy.inner.counts[0].sum() < 1000
    assert policy.inner.counts[1].sum() == 1700


def test_it_learns_the_new_stream_sooner():
    trace = changing_trace()
    earned = {
        name: replay(make_policy(name, runs=4), trace, 0.1, order="in-order").reward.sum(axis=1).mean()
        for name in ("ucb:c=0.1", "drift@ucb:c=0.1")
    }
    assert earned["drift@ucb:c=0.1"] > earned["ucb:c=0.1"]


def test_what_was_in_flight_when_it_was_reset_is_not_told():
    policy = make_policy("drift@ucb")
    replay(policy, changing_trace(), 0.1, order="in-order", delay=200)
    assert (policy.drifts >= 1).all()
    counts, pending = policy.inner.counts.sum(), policy.inner.pending
    assert (pending >= 0).all()
    assert counts + pending.sum() <= 3000 - policy.since[0]


def test_forgetting_keeps_a_share_and_what_is_pending():
    policy, plain = make_policy("drift:keep=0.5@splitee-s"), make_policy("splitee-s")
    world = MadeUpStream(1)
    for one in (policy, plain):
        one.choose(world.context(0, 300))
    told = world.outcomes(make_policy("splitee-s").choose(world.context(0, 300)), 0)
    told.confidence[:, 0] = np.concatenate([np.full(100, 0.9), np.full(200, 0.1)])
    for one in (policy, plain):
        one.learn(told[:280])
    assert policy.drifts[0] == 1
    np.testing.assert_allclose(policy.inner.counts, plain.counts / 2)
    np.testing.assert_array_equal(policy.inner.pending, plain.pending)


def test_a_long_history_is_cut_and_still_restored_exactly():
    rng, context = np.random.default_rng(1), Context(frames=50)
    policy = make_policy("drift:detector=kswin@fixed")
    world = MadeUpStream(1)

    def play(one, values):
        told = world.outcomes(one.choose(context), 0)
        told.confidence[:, 0] = values
        one.learn(told)

    for _ in range(9):
        play(policy, rng.uniform(0, 1, 50))
    assert 128 <= (policy.history >= 0).sum() <= 256
    again = make_policy("drift:detector=kswin@fixed")
    again.load_state_dict(policy.state_dict())
    for low in (0.0, 0.0, 0.5, 0.5):
        values = rng.uniform(low, 1, 50)
        for one in (policy, again):
            play(one, values)
        np.testing.assert_array_equal(policy.history, again.history)
    assert policy.drifts[0] == again.drifts[0] >= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("drift", "drift wraps another policy: write drift@stop-curve, say"),
        ("drift@", "drift wraps another policy: write drift@stop-curve, say"),
        ("ucb@fixed", "policy ucb is not a wrapper; remove what follows the @"),
        ("drift@ucbb", "unknown policy 'ucbb' (did you mean 'ucb'?); eex-stream --list-policies shows all"),
        ("drift:detector=ddm@ucb", "policy drift: detector must be one of adwin, page-hinkley, kswin, got 'ddm'"),
        ("drift:level=-1@ucb", "policy drift: level must be 0 or more, got -1.0"),
        ("drift:keep=1@ucb", "policy drift: keep must lie in [0, 1), got 1"),
        ("drift:keep=0.5@fixed", "policy drift: Fixed cannot forget in part; keep=0 resets it"),
        ("drift:inner=3@ucb", "policy drift has no option 'inner'; its options: detector, level, keep"),
        ("drift:c=1@ucb", "policy drift has no option 'c'; its options: detector, level, keep"),
    ],
)
def test_wishes_that_cannot_be_met(name, message):
    with pytest.raises(EexError) as caught:
        make_policy(name)
    assert str(caught.value) == message


def test_options_and_keys_reach_where_they_belong():
    policy = make_policy("drift:detector=kswin@safe:bound=0.1@ucb:c=0.5", {"level": "0.001"}, exits=2, runs=3, seed=4)
    assert (policy.level, policy.inner.bound, policy.inner.inner.c) == (0.001, 0.1, 0.5)
    assert [(p.exits, p.runs, p.seed) for p in (policy, policy.inner, policy.inner.inner)] == [(2, 3, 4)] * 3
    policy.keys = np.array([7, 8, 9])
    assert policy.inner.inner.keys.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("name", "others", "best"),
    [("splitee-s:c=0", 0.1, 4), ("ucb-bwk:c=0:budget=1", 0.1, 4), ("hi-lcb:alpha=1e-9", 0.3, -1)],
)
def test_what_faded_below_one_frame_keeps_its_mean(name, others, best):
    policy = make_policy(name)
    policy.counts[:], policy.totals[:] = 10.0, 10 * others
    policy.counts[:, 4], policy.totals[:, 4] = 0.4, 0.4 * 0.3  # of 8 frames, after keep=0.05
    arm = policy.choose(Context(frames=1, overhead=0.2)).arm[0, 0]
    assert arm == best % policy.grid.size  # hi-lcb: no bin's gain is below the price, so that all is offloaded
