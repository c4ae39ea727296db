"""Wishes are kept under drift, at prices that the policy inside heeds; and it is said when they cannot be."""

import functools

import numpy as np
import pytest

from eex.policies.algorithms.fixed import Fixed
from eex.policies.checks import CLAUSES, MadeUpStream, check_policy
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.aim import aims_of, keeping, sentences

pytestmark = pytest.mark.timeout(120)

KEPT = [clause for clause in CLAUSES if clause != "runs are independent"]  # audits are drawn for each run: below
NAMES = [
    "aim:wish=offload <= 10 %; mean latency <= 8 ms@stop-curve",
    "aim:wish=accuracy within 2 points; p99 <= 40 ms:audit=0.2@gain-curve",
    "drift@aim:wish=offload <= 10 %@stop-curve",
]
EXIT_MS = (1.0, 2.0, 20.0)


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clause", KEPT)
def test_policies_with_wishes_keep_the_contract(clause, name, exits):
    check_policy(functools.partial(make_policy, name), [exits], [clause])


def test_runs_are_independent_where_nothing_is_drawn():
    check_policy(functools.partial(make_policy, NAMES[0]), [1, 2], ["runs are independent"])


def test_audits_are_drawn_by_the_keys_of_runs():
    world = MadeUpStream(1, runs=2)
    together, alone = (make_policy("aim:wish=accuracy within 1 point:audit=0.3@gain-curve", runs=r) for r in (2, 1))
    together.keys, alone.keys = np.array([4, 9]), np.array([9])
    context = world.context(0, 200)
    one = together.choose(context).audited[1]
    np.testing.assert_array_equal(one, alone.choose(Context(200, 0, 0.1)).audited[0])
    assert 0.2 < one.mean() < 0.4


@functools.cache
def drifting(frames=800, seed=0):
    """Three segments: easy, hard, and one whose exits are far surer than they are right."""
    rng = np.random.default_rng(seed)
    parts = []
    for worse, flattered in ((0.0, 0.0), (0.25, 0.0), (0.25, 0.1)):
        sure = np.sort(rng.beta(4.0, 1.0, (frames, 3)), axis=1) * (1 - worse)
        wrong = rng.random((frames, 3)) > sure
        parts.append((np.minimum(sure + flattered * (np.arange(3) < 2), 1.0), np.where(wrong, 1 + np.arange(3), 0)))
    confidence, prediction = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kind = np.repeat(["pristine", "blur", "noise"], frames)
    return Trace(confidence, prediction, np.zeros(3 * frames, int), ("right", "a", "b", "c"), distortion=kind)


def play(wish, inner="stop-curve", runs=3, **options):
    trace = drifting()
    policy = make_policy(f"aim:wish={wish}@{inner}", exits=2, runs=runs)
    options = {"exit_cost": 0.01, "exit_ms": EXIT_MS, "order": "segments", "kind": "utility"} | options
    played = replay(policy, trace, 0.05, **options)
    differs = played.answer != trace.prediction[played.frame, -1]
    costs = [aim.cost(differs, played.latency_ms, played.offloaded) for aim in policy.aims]
    return policy, played, costs


@functools.cache
def without_wishes(inner):
    policy = make_policy(inner, exits=2)
    return replay(policy, drifting(), 0.05, exit_cost=0.01, exit_ms=EXIT_MS, order="segments")


@pytest.mark.parametrize(
    ("inner", "wish"),
    [("stop-curve", "offload <= 8 %"), ("stop-curve", "mean latency <= 3 ms"), ("gain-curve", "p90 <= 10 ms")],
)
def test_wishes_are_kept_under_drift(inner, wish):
    policy, _, (cost,) = play(wish, inner)
    (aim,) = policy.aims
    without = without_wishes(inner)
    assert not aim.kept(aim.cost(False, without.latency_ms, without.offloaded).mean())  # it is a wish to be kept
    assert aim.kept(cost.mean(axis=1)).all()
    assert cost.mean() > 0.6 * aim.limit  # and not by offloading nothing
    report = policy.report(run=2)[0]
    assert report["came_to"] == pytest.approx(cost[2, :-1].mean(), rel=0.01)  # the last frame is not learned from
    assert report["kept"] is True
    assert not report["problem"]
    assert sentences(policy.report())[0].startswith(f"wish '{wish}': kept; ")


def test_several_wishes_are_kept_together():
    policy, _, costs = play("offload <= 30 % and mean latency <= 4 ms and p50 <= 1.5 ms")
    for aim, cost in zip(policy.aims, costs, strict=True):
        assert aim.kept(cost.mean(axis=1)).all(), aim.text


def test_accuracy_is_kept_although_the_edge_is_overconfident():
    policy, _, (cost,) = play("accuracy within 4 points", runs=2)
    _, _, (without,) = play("accuracy within 99 points", runs=1)
    assert without.mean() > 0.06
    assert policy.aims[0].kept(cost.mean(axis=1)).all()
    assert cost.mean() > 0.2 * 0.04  # and not by offloading everything
    assert policy.report()[0]["came_to"] == pytest.approx(cost[0].mean(), abs=0.02)  # without any label


def test_frames_are_audited_for_accuracy_alone():
    outcomes = [
        make_policy(f"aim:wish={wish}@stop-curve", exits=2).choose(Context(2000))
        for wish in ("accuracy within 9 %", "p9 <= 1 s")
    ]
    assert 0.03 < outcomes[0].audited.mean() < 0.07
    assert not outcomes[1].audited.any()
    assert not make_policy(NAMES[1]).choose(Context(500, reachable=False)).audited.any()


def test_what_cannot_be_kept_is_said():
    policy, _, (cost,) = play("mean latency <= 0.5 ms", runs=1)  # the first exit takes 1 ms
    assert cost.mean() < 1.6  # it does what it can
    assert policy.problems().startswith("'mean latency <= 0.5 ms' cannot be kept: the mean latency is 1")
    row = policy.report()[0]
    assert row["kept"] is False
    assert row["problem"] == policy.problems()
    assert sentences([row])[0].endswith("at the end it could not be kept")
    policy, _, costs = play("accuracy within 0.1 points; offload <= 10 %", runs=1)
    assert costs[0].mean() < 0.01
    assert "offload <= 10 %' cannot be kept" in policy.problems()


def test_prices_of_the_user_come_on_top():
    policy = make_policy("aim:wish=offload <= 10 %@stop-curve", exits=2, runs=2)
    for price, dial in ((0.1, 0.0), (1.0, 1.2)):
        policy.dial[:] = dial
        overhead, cost = policy.prices(Context(overhead=0.1, exit_cost=0.05))
        np.testing.assert_allclose(overhead, price)
        np.testing.assert_allclose(cost, 0.05)


def test_a_wish_needs_a_policy_that_heeds_prices():
    with pytest.raises(EexError, match="Fixed heeds no price"):
        make_policy("aim:wish=offload <= 10 %@fixed")
    with pytest.raises(EexError, match=r"policy fixed:p_tar=0\.5 heeds no price, so it cannot keep a wish"):
        keeping(Fixed(0.5), ["offload <= 10 %"], "fixed:p_tar=0.5")
    with pytest.raises(EexError, match="'quick' is no wish"):
        make_policy("aim:wish=quick@stop-curve")
    with pytest.raises(EexError, match="audit must lie"):
        make_policy("aim:wish=offload <= 10 %:audit=0@stop-curve")
    assert keeping(inner := Fixed(0.5), [], "fixed") is inner


def test_the_keeper_is_found_inside_other_wrappers():
    assert aims_of(make_policy("ucb")) is None
    assert [aim.text for aim in aims_of(make_policy(NAMES[2])).aims] == ["offload <= 10 %"]
