"""Optimal stopping learned while the stream runs: against gain-curve with one exit, against hindsight with several."""

from dataclasses import replace

import numpy as np
import pytest

from eex.policies.algorithms.stop_curve import StopCurve
from eex.policies.checks import MadeUpStream
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.references import best_per_exit
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy

GRID = np.linspace(0, 1, 21)


def made_up(exits, frames=4000, ease=0.0, seed=0):
    """A trace whose confidences rise with depth, those of a frame alike: `ease` moves all of them."""
    rng = np.random.default_rng(seed)
    depth = np.linspace(0.0, 1.6, exits + 1)
    score = 1.2 * (rng.normal(size=(frames, 1)) + depth + ease) + 0.8 * rng.normal(size=(frames, exits + 1))
    nothing = np.zeros((frames, exits + 1), dtype=np.int64)
    return Trace(0.1 + 0.9 / (1 + np.exp(-score)), nothing, nothing[:, 0], ("a",))


@pytest.mark.parametrize("delay", [0, 100])
@pytest.mark.parametrize("overhead", [0.05, 0.2, 0.4])
def test_with_one_exit_it_chooses_as_gain_curve(overhead, delay):
    trace = made_up(1, 1500)
    options = {"order": "in-order", "delay": delay}
    found = replay(make_policy("stop-curve"), trace, overhead, **options)
    expected = replay(make_policy("gain-curve"), trace, overhead, **options)
    np.testing.assert_array_equal(found.exit, expected.exit)


@pytest.mark.parametrize(("overhead", "exit_cost"), [(0.1, 0.02), (0.3, 0.05)])
def test_with_three_exits_it_earns_what_hindsight_does_and_more_than_one_threshold_can(overhead, exit_cost):
    trace = made_up(3)
    paid = {"order": "in-order", "exit_cost": exit_cost, "kind": "utility"}
    earned = {
        name: replay(make_policy(name, exits=3, runs=1), trace, overhead, **paid).reward[:, 1000:].mean()
        for name in ("stop-curve", "gain-curve", "ucb")
    }
    _, best = best_per_exit(trace.confidence[1000:], overhead, GRID, exit_cost, "utility")
    assert earned["stop-curve"] > best.mean() - 0.002
    assert earned["stop-curve"] > max(earned["gain-curve"], earned["ucb"]) + 0.002


def test_with_twelve_exits():
    trace = made_up(12, 3000)
    played = replay(make_policy("stop-curve", exits=12), trace, 0.1, order="in-order", exit_cost=0.005, kind="utility")
    _, best = best_per_exit(trace.confidence[1000:], 0.1, GRID, 0.005, "utility")
    assert played.reward[:, 1000:].mean() > best.mean() - 0.004


def test_the_utility_is_shown_beside_the_reward_that_is_learned_from():
    trace = made_up(3, 500)
    kinds = [
        replay(make_policy("stop-curve", exits=3), trace, 0.1, order="in-order", exit_cost=0.02, kind=kind)
        for kind in ("adaee", "utility")
    ]
    np.testing.assert_array_equal(kinds[0].exit, kinds[1].exit)  # it learns from confidences, not from rewards
    np.testing.assert_allclose(kinds[0].utility, kinds[1].reward)
    np.testing.assert_array_equal(kinds[1].utility, kinds[1].reward)


def hopeless_middle(frames=4000):
    """Half of the frames are sure at once; the others learn nothing at exits 2 and 3, and all from the cloud."""
    rng = np.random.default_rng(0)
    easy = rng.random(frames) < 0.5
    first = np.where(easy, 0.9, 0.3) + rng.uniform(-0.05, 0.05, frames)
    confidence = np.column_stack([first, first, first, np.where(easy, first, 0.95)])
    nothing = np.zeros((frames, 4), dtype=np.int64)
    return Trace(confidence, nothing, nothing[:, 0], ("a",))


@pytest.mark.parametrize(("skip", "visits"), [("true", 1), ("false", 3)])
def test_frames_that_exits_in_between_cannot_help_skip_them(skip, visits):
    trace = hopeless_middle()
    policy = make_policy(f"stop-curve:skip={skip}", exits=3)
    played = replay(policy, trace, 0.1, order="in-order", exit_cost=0.05, kind="utility")
    late = slice(2000, None)
    hard = trace.confidence[late, 0] < 0.5
    assert (played.offloaded[0, late] == hard).mean() > 0.99
    paid = 0.95 - 0.1 - 0.05 * (visits - 1)
    assert played.reward[0, late][hard].mean() == pytest.approx(paid, abs=0.01)


def test_begins_anew_when_the_stream_changes():
    easy, hard = made_up(3, 2500, 1.0), made_up(3, 2500, -1.0, seed=1)
    both = (np.concatenate([getattr(t, name) for t in (easy, hard)]) for name in ("confidence", "prediction", "label"))
    trace = Trace(*both, ("a",))
    paid = {"order": "in-order", "exit_cost": 0.02, "kind": "utility"}
    _, best = best_per_exit(hard.confidence[500:], 0.1, GRID, 0.02, "utility")
    played = replay(make_policy("stop-curve", exits=3), trace, 0.1, **paid)
    assert played.reward[:, 3000:].mean() > best.mean() - 0.004


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 50}, "memory must be 0"),
        ({"beta": -1}, "beta must"),
        ({"alarm": -1}, "alarm must be 0"),
        ({"grid": ()}, "threshold"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(EexError, match=message):
        StopCurve(**options)


def test_prices_may_differ_between_runs():
    policy = StopCurve(exits=2, runs=2)
    chosen = policy.choose(Context(overhead=np.array([0.1, 0.9]), exit_cost=0.01))
    assert chosen.exit_at[0, 0, 1] > chosen.exit_at[1, 0, 1]  # what costs less is asked for more


@pytest.mark.parametrize("name", ["stop-curve", "gain-curve"])
def test_what_is_learned_over_a_long_time_is_loaded_again(name):
    trace = made_up(1, 1000)
    policy, other = (make_policy(f"{name}:memory=100:alarm=0") for _ in range(2))
    replay(policy, trace, 0.1, rounds=9000)
    assert policy.known.max() > 2**53  # as each frame weighs more than the one before
    other.load_state_dict(policy.state_dict())
    earned = [replay(p, trace, 0.1, rounds=500).reward for p in (policy, other)]
    np.testing.assert_array_equal(*earned)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("name", ["stop-curve", "gain-curve"])
def test_a_frame_that_a_network_is_at_a_loss_about_teaches_nothing(name, exits, together):
    stream = MadeUpStream(exits)
    policy, other = (make_policy(name, exits=exits) for _ in range(2))
    chosen = policy.choose(stream.context(0, 6))
    outcomes = stream.outcomes(chosen, 0)
    lost = replace(
        outcomes,
        confidence=np.where(np.arange(exits + 1) < exits, np.nan, outcomes.confidence),
        offloaded=np.ones(6, dtype=bool),
        reward=np.full(6, -0.1),
    )
    for rows in (lost[:together], outcomes):
        policy.learn(rows)
    other.learn(outcomes)
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(policy.state_dict()[key], value, err_msg=key)
