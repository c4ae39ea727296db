"""Safe: the bound holds in as many runs as promised, and the policy inside learns as if it were alone."""

import functools
import math

import numpy as np
import pytest
from same import assert_same

from eex.policies.checks import CLAUSES, MadeUpStream, check_policy, joined
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.safe import FLOORS, Safe

pytestmark = pytest.mark.timeout(120)

KEPT = [clause for clause in CLAUSES if clause != "runs are independent"]  # audits are drawn for each run: below
NAMES = ["safe:bound=0.3@ucb", "safe:bound=0.3:audit=0.3:window=20@fixed", "safe:bound=0.5@drift@hedge-hi"]


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clause", KEPT)
def test_wrapped_policies_keep_the_contract(clause, name, exits):
    check_policy(functools.partial(make_policy, name), [exits], [clause])


def test_runs_are_independent_and_drawn_by_their_keys():
    world = MadeUpStream(1, runs=3)
    together = make_policy("safe:bound=0.5@ucb", runs=3)
    together.keys = np.array([5, 0, 9])
    alone = make_policy("safe:bound=0.5@ucb")
    alone.keys = np.array([9])
    single = MadeUpStream(1)
    single.confidence, single.distortion = world.confidence[2:], world.distortion[2:]
    for first in range(0, 500, 10):
        both = together.choose(world.context(first, 10)), alone.choose(single.context(first, 10))
        np.testing.assert_array_equal(both[0].audited[2:], both[1].audited)
        np.testing.assert_array_equal(both[0].exit_at[2:], both[1].exit_at)
        together.learn(world.outcomes(both[0], first))
        alone.learn(single.outcomes(both[1], first))
    assert 0 < both[0].audited.mean() < 1


def made_up_trace(exits=1, frames=4000, seed=0, harder=0.0):
    """The surer an exit, the likelier it agrees with the cloud; later exits are surer, as in AdaEE's traces."""
    rng = np.random.default_rng(seed)
    confidence = np.sort(rng.beta(3.0, 1.2, (frames, exits + 1)), axis=1)
    wrong = rng.random((frames, exits + 1)) < (1 - confidence) * 0.6 + harder
    prediction = np.where(wrong, 1, 0)
    prediction[:, -1] = 0
    return Trace(confidence, prediction, np.full(frames, -1), ("a", "b"))


def risks(trace):
    """Of each floor: the share of frames with an edge exit that is as sure and differs from the cloud."""
    differs = trace.prediction[:, :-1] != trace.prediction[:, -1:]
    worst = np.where(differs, trace.confidence[:, :-1], -1.0).max(axis=1)
    return (worst[:, None] >= FLOORS).mean(axis=0)


class Watched(Safe):
    """Remembers the floors it played with."""

    def choose(self, context):
        self.floors = [*getattr(self, "floors", []), self.floor]
        return super().choose(context)


@pytest.mark.parametrize(("exits", "delay"), [(1, 0), (2, 200)])
def test_the_bound_holds_in_as_many_runs_as_promised(exits, delay):
    runs, delta, bound = 300, 0.1, 0.08
    trace = made_up_trace(exits)
    inner = make_policy("fixed:p_tar=0.3", exits=exits, runs=runs)
    policy = Watched(inner, bound=bound, delta=delta)
    played = replay(policy, trace, 0.1, rounds=2000, delay=delay)
    floors = np.array(policy.floors)  # (rounds, runs)
    index = np.searchsorted(FLOORS, np.where(np.isinf(floors), 1.0, floors))
    risk = np.where(np.isinf(floors), 0.0, risks(trace)[index])
    failed = (risk > bound).any(axis=0).mean()  # at any time
    assert failed <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)
    differs = played.answer != trace.prediction[played.frame, -1]
    assert differs.mean(axis=1).max() <= bound
    # power: what the best floor would leave on the edge, and what is left in the end
    best = FLOORS[(risks(trace) <= bound).argmax()]
    possible = (trace.confidence[:, :-1].max(axis=1) >= best).mean()
    assert (~played.offloaded[:, -500:]).mean() > possible / 2
    assert policy.audits.sum(axis=1).mean() < 2000 / 2


def test_few_frames_are_audited_in_the_long_run():
    policy = make_policy("safe:bound=0.1:audit=0.02@fixed", runs=4)
    policy.audits[:, 1] = 10000
    audited = policy.choose(Context(frames=5000)).audited
    assert abs(audited.mean() - 0.02) < 0.003


def test_what_is_certified_by_hand():
    # with no audit against a floor, M = mean((1 - p) / (1 - b)) ** n reaches 20 after as many audits as it takes
    policy = make_policy("safe:bound=0.1:delta=0.05@fixed")
    p = 0.1 * (np.arange(8) + 0.5) / 8
    needed = next(n for n in range(1000) if np.mean(((1 - p) / 0.9) ** n) >= 20)
    assert policy.allowed(np.array([0, needed - 1, needed])).tolist() == [-1, -1, 0]
    n = np.arange(3000)
    allowed = policy.allowed(n)
    assert set(np.diff(allowed)) == {0, 1}
    assert (allowed[500:] < 0.1 * n[500:]).all()
    assert allowed[-1] > 0.07 * n[-1]
    assert 0.096e7 < policy.allowed(np.array([10_000_000]))[0] < 0.1e7  # at once, after however many
    policy.audits[0, 1] = needed
    assert policy.floor.tolist() == [0.0]
    policy.against[0, 1, :61] = 1  # of floors up to 0.6
    assert policy.floor.tolist() == [0.61]
    policy.against[0, 1] = 1
    assert policy.floor.tolist() == [math.inf]


@pytest.mark.parametrize("exits", [1, 2, 3])
@pytest.mark.parametrize("inner", ["ucb", "deex", "h2t2:epsilon=0.2"])  # the last audits, too
def test_the_policy_inside_learns_as_if_it_were_alone(inner, exits):
    if inner == "deex" and exits == 1:
        return
    world = MadeUpStream(exits, runs=2)
    seen, alone = [], []
    safe = make_policy(f"safe:bound=0.4:audit=0.2@{inner}", exits=exits, runs=2)
    learn = safe.inner.learn
    safe.inner.learn = lambda outcomes: (seen.append(outcomes), learn(outcomes))
    policy = make_policy(inner, exits=exits, runs=2)
    for first in range(0, 500, 20):
        wanted = policy.choose(world.context(first, 20))
        alone.append(world.outcomes(wanted, first))
        chosen = safe.choose(world.context(first, 20))
        assert (chosen.exit_at[..., :-1] >= wanted.exit_at[..., :-1]).all()
        np.testing.assert_array_equal(chosen.arm, wanted.arm)
        told = world.outcomes(chosen, first)
        told.prediction[:, -1] = np.where(told.prediction[:, -1] < 0, -1, (told.confidence[:, 0] < 0.5) * 1)
        policy.learn(alone[-1])
        safe.learn(told)
    assert np.isfinite(safe.floor).all()
    for one, other in zip(seen, alone, strict=True):
        for name in ("run", "frame", "arm", "exit_at", "confidence", "exit", "offloaded", "reward", "audited"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12, err_msg=name)


def test_without_a_floor_all_is_offloaded_and_the_cloud_has_the_last_word():
    chosen = make_policy("safe@ucb", exits=2).choose(Context(frames=4))
    assert np.isinf(chosen.exit_at[..., :-1]).all()
    assert not chosen.exit_at[..., -1].any()
    assert chosen.audited.all()


def test_replies_that_never_come_are_no_audits():
    world, policy = MadeUpStream(1), make_policy("safe@ucb")
    policy.learn(world.outcomes(policy.choose(world.context(0, 100)), 0, sent=False))
    assert not policy.audits.any()


def test_a_window_certifies_anew_after_a_drift():
    before, after = made_up_trace(frames=2000), made_up_trace(frames=4000, seed=1, harder=0.15)
    both = [np.concatenate([getattr(before, n), getattr(after, n)]) for n in ("confidence", "prediction", "label")]
    trace = Trace(*both, ("a", "b"))
    bound = 0.08
    safe_floor = FLOORS[(risks(after) <= bound).argmax()]
    floors = {}
    for name in ("safe:window=300", "safe"):
        policy = make_policy(f"{name}@fixed:p_tar=0.3".replace("safe", f"safe:bound={bound}:audit=0.2", 1), runs=4)
        replay(policy, trace, 0.1, order="in-order")
        floors[name] = policy.floor
    assert (floors["safe:window=300"] >= safe_floor).all()
    assert floors["safe"].mean() < floors["safe:window=300"].mean()  # old audits still count


def test_what_it_promises():
    policy = make_policy("safe:bound=0.1@fixed")
    assert "no floor is certified yet" in policy.promise()
    policy.audits[0, 1] = 1000
    assert policy.promise().startswith(
        "with probability 0.95, at most 10 % of the answers differ from the cloud's, as long"
    )
    assert "after a drift, nothing" in policy.promise()
    policy.window = 500
    assert policy.promise().endswith("if the stream stood still over the last 1000 audits")


@pytest.mark.parametrize("wrong", ["bound=0", "bound=1", "delta=0", "delta=nan", "audit=0", "audit=2", "window=-1"])
def test_bounds_that_cannot_be(wrong):
    with pytest.raises(EexError, match=f"^policy safe: {wrong.partition('=')[0]} must"):
        make_policy(f"safe:{wrong}@ucb")


def test_asked_at_once_or_singly_around_certification():
    world = MadeUpStream(1, runs=2)
    one, other = (make_policy("safe:bound=0.6@ucb", runs=2) for _ in range(2))
    for first in range(0, 400, 40):
        chosen = one.choose(world.context(first, 40))
        assert_same(chosen, joined([other.choose(world.context(first + k, 1)) for k in range(40)]))
        for policy in (one, other):
            policy.learn(world.outcomes(chosen, first))
    assert np.isfinite(one.floor).all()
