"""The gain curve: its formula against a slow reference, what it finds, and how it forgets."""

import math
from pathlib import Path

import numpy as np
import pytest

from eex.policies.algorithms.curves import BINS, LOCAL, WIDTH
from eex.policies.algorithms.gain_curve import GainCurve
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_reward
from eex.policies.core.replay import Feedback, replay
from eex.policies.core.trace import Trace, read_trace
from eex.policies.registry import make_policy

pytestmark = pytest.mark.timeout(120)

ADAEE = Path(__file__).parents[4] / "shared" / "data" / "adaee"
GRID = np.round(np.arange(0, 1.01, 0.1), 2)


def made_up(relative_gain, frames=4000, seed=0):
    """A trace of one exit with uniform confidences, and a cloud that gains as the function of the confidence says."""
    rng = np.random.default_rng(seed)
    edge = rng.uniform(0.1, 1, frames)
    mean = np.broadcast_to(relative_gain(edge), frames)
    cloud = edge + (1 - edge) * np.clip(mean + rng.normal(0, 0.2, frames), 0, 1)
    nothing = np.zeros((frames, 2), dtype=np.int64)
    return Trace(np.column_stack([edge, cloud]), nothing, nothing[:, 0], ("a",))


def slow_threshold(confidences, gains, everything, overhead):
    """The docstring's formulas in loops; `gains` of the offloaded `confidences`, `everything` that was seen."""
    grid = np.arange(BINS + 1) / BINS
    centre = [(b + 0.5) / BINS for b in range(BINS)]
    bins = [min(int(c * BINS), BINS - 1) for c in confidences]
    y = [g / (1 - c) for c, g in zip(confidences, gains, strict=True)]
    count = len(y) + 2
    mean = (sum(y) + 2 * 0.5) / count
    variance = (sum(v * v for v in y) + 2 / 3) / count - mean**2
    earned = []
    for b in range(BINS):
        kernel = [math.exp(-(((centre[b] - centre[i]) / WIDTH) ** 2) / 2) for i in bins]
        kernel = [k if k >= 1e-3 else 0.0 for k in kernel]
        near = sum(kernel) + LOCAL
        curve = (sum(k * v for k, v in zip(kernel, y, strict=True)) + LOCAL * mean) / near
        plausible = min(1.0, curve + math.sqrt(variance / near))
        often = sum(min(int(c * BINS), BINS - 1) == b for c in everything) + 1 / BINS
        earned.append(often * (plausible * (1 - centre[b]) - overhead))
    values = [sum(earned[: round(t * BINS)]) for t in grid]
    return grid[int(np.argmax(values))]


@pytest.mark.parametrize("overhead", [0.05, 0.3, 0.5])
def test_against_a_slow_reference(overhead):
    trace = made_up(lambda c: 0.8 - 0.5 * c, frames=30)
    policy = GainCurve(memory=0)
    played = replay(policy, trace, overhead, order="in-order")
    policy.learn(_last(trace, played))
    threshold = float(policy.choose(Context(first=30, overhead=overhead)).exit_at[0, 0, 0])
    sent = played.offloaded[0]
    edge, cloud = trace.confidence.T
    assert threshold == slow_threshold(edge[sent], np.maximum(0, cloud - edge)[sent], edge, overhead)
    assert sent.any()


def _last(trace, played):
    """The outcome of the last round, which the replay did not live to tell."""
    from dataclasses import replace

    from eex.policies.core.base import Outcomes

    one, no = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    told = Outcomes(
        run=one,
        frame=one + len(trace) - 1,
        arm=one,
        probability=one * np.nan,
        audited=no,
        exit_at=np.ones((1, 2)),
        confidence=trace.confidence[-1:],
        prediction=np.zeros((1, 2), dtype=np.int64),
        exit=one,
        offloaded=no,
        fallback=no,
        sent=no,
        latency_ms=one * 0.0,
        overhead=one * 0.0,
        reward=one * 0.0,
    )
    if played.offloaded[0, -1]:
        gain = np.maximum(0, trace.confidence[-1:, 1] - trace.confidence[-1:, 0])
        return replace(told, offloaded=~no, sent=~no, exit=one + 1, reward=gain)
    return told


@pytest.mark.parametrize(("overhead", "threshold"), [(0.0, 1.0), (0.5, 0.28), (1.0, 0.0)])
def test_before_the_first_reply_it_plays_the_prior(overhead, threshold):
    # relative gain 1/2, variance 1/3 - 1/4, known as well as by 2 frames: 1/2 + sqrt(1/24) = 0.704
    # worth 0.5 below 1 - 0.5 / 0.704 = 0.290, which is the middle of a bin
    chosen = GainCurve(exits=2, runs=2).choose(Context(frames=3, overhead=overhead))
    np.testing.assert_allclose(chosen.exit_at, threshold)


@pytest.mark.parametrize(
    ("curve", "overhead", "best"),
    [
        (lambda c: 0.5 + 0 * c, 0.1, 0.8),  # 0.5 (1 - c) = 0.1
        (lambda c: 0.8 + 0 * c, 0.4, 0.5),
        (lambda c: 1.0 - c, 0.25, 0.5),  # (1 - c)^2 = 0.25
    ],
)
def test_finds_where_the_gain_meets_the_price(curve, overhead, best):
    policy = GainCurve()
    replay(policy, made_up(curve), overhead, rounds=6000)
    assert float(policy.choose(Context(overhead=overhead)).exit_at[0, 0, 0]) == pytest.approx(best, abs=0.06)


def test_offloads_little_where_nothing_is_gained():
    played = replay(GainCurve(), made_up(lambda c: -1.0 + 0 * c), 0.3, rounds=3000)
    assert played.offloaded[0, 1500:].mean() < 0.02


def test_never_tries_where_nothing_can_be_gained():
    played = replay(GainCurve(runs=4), made_up(lambda c: 1.0 + 0 * c), 0.3, rounds=500)
    edge = made_up(lambda c: 1.0 + 0 * c).confidence[played.frame, 0]
    assert edge[played.offloaded].max() <= 0.72  # 1 - 0.3, to a bin


@pytest.mark.soak
def test_forgets_what_changed():
    before, after = made_up(lambda c: 0.9 + 0 * c), made_up(lambda c: 0.3 + 0 * c, frames=16000, seed=1)
    joined = Trace(
        np.concatenate([before.confidence, after.confidence]),
        np.zeros((20000, 2), dtype=np.int64),
        np.zeros(20000, dtype=np.int64),
        ("a",),
    )
    found = {}
    for memory in (0, 1000):
        policy = GainCurve(memory=memory, alarm=0)
        replay(policy, joined, 0.2, order="in-order")
        found[memory] = float(policy.choose(Context(overhead=0.2)).exit_at[0, 0, 0])
    assert found[1000] == pytest.approx(1 / 3, abs=0.07)  # 0.3 (1 - c) = 0.2
    assert found[1000] < found[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0.9, 4, 2), (0.1, 2, 3)),  # other confidences
        ((0.9, 3, 2), (0.1, 3, 2)),  # the same, but the cloud knows no better
    ],
)
@pytest.mark.parametrize("delay", [0, 300])
def test_begins_anew_when_the_stream_changes(before, after, delay):
    rng = np.random.default_rng(0)

    def part(gain, a, b):
        edge = rng.beta(a, b, 3000)
        return np.column_stack([edge, edge + (1 - edge) * rng.beta(10 * gain, 10 * (1 - gain), 3000)])

    confidence = np.concatenate([part(*before), part(*after)])
    nothing = np.zeros((6000, 2), dtype=np.int64)
    trace = Trace(confidence, nothing, nothing[:, 0], ("a",))
    lost = {}
    for alarm in (0, 4.0):
        played = replay(GainCurve(alarm=alarm, runs=5), trace, 0.3, order="in-order", delay=delay)
        lost[alarm] = -played.reward[:, 3000:].sum(axis=1).mean()  # nothing can be gained there
    assert lost[4.0] < 0.35 * lost[0]


def test_a_false_alarm_is_rare_where_nothing_changes():
    trace, runs = made_up(lambda c: 0.8 - 0.5 * c), 20
    rewards = {
        alarm: replay(GainCurve(alarm=alarm, runs=runs), trace, 0.2, rounds=5000).reward.sum(axis=1)
        for alarm in (0, 4.0)
    }
    assert (rewards[0] != rewards[4.0]).mean() <= 0.2


@pytest.mark.soak
@pytest.mark.parametrize("chunk", [64, 256, 1024])
def test_feedback_in_chunks_raises_no_false_alarm(chunk):
    trace, frame = made_up(lambda c: 0.9 - 0.2 * c, frames=8192), np.arange(8192)
    feedback = Feedback(
        frame=frame,
        chosen=(frame // chunk + 1) * chunk,
        queue=np.zeros(8192, dtype=np.int64),
        link_ms=np.full(8192, np.nan),
        sent=np.ones(8192, dtype=bool),
        fallback=np.zeros(8192, dtype=bool),
    )
    never, usual = (
        replay(GainCurve(alarm=alarm), trace, 0.1, order="in-order", feedback=feedback).arm for alarm in (0, 4.0)
    )
    np.testing.assert_array_equal(usual, never)


@pytest.mark.soak
def test_weights_stay_finite_in_a_long_stream():
    policy = GainCurve(memory=100)
    trace = made_up(lambda c: 0.6 + 0 * c)
    replay(policy, trace, 0.2, rounds=40_000)  # 1.01^40000 is beyond any float
    for name, array in policy.state_dict().items():
        assert np.isfinite(array).all(), name
    assert float(policy.choose(Context(overhead=0.2)).exit_at[0, 0, 0]) == pytest.approx(2 / 3, abs=0.15)


def test_a_grid_of_ones_own():
    policy = GainCurve(grid=[0.9, 0.0, 0.33])
    assert policy.grid.tolist() == [0.0, 0.33, 0.9]
    played = replay(policy, made_up(lambda c: 0.9 + 0 * c), 0.1, rounds=500)
    assert set(np.unique(played.arm)) <= {0, 1, 2}
    assert played.arm[0, -1] == 2  # 0.89 would be best


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("memory=5", "policy gain-curve: memory must be 0 (never forget) or at least 100 frames, got 5"),
        ("memory=nan", "policy gain-curve: memory must be 0 (never forget) or at least 100 frames, got nan"),
        ("beta=-1", "policy gain-curve: beta must be 0 or more, got -1.0"),
        ("alarm=-1", "policy gain-curve: alarm must be 0 (never) or more, got -1.0"),
        ("grid=0.5 1.5", "policy gain-curve: grid must hold thresholds in [0, 1], got [0.5, 1.5]"),
        ("grid=", "policy gain-curve: grid must hold thresholds in [0, 1], got []"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(EexError) as caught:
        make_policy(f"gain-curve:{options}")
    assert str(caught.value) == message


def regret(policy, trace, overheads, delay=0):
    """Mean regret against the best of the grid's thresholds, for each overhead."""
    runs = policy.runs // len(overheads)
    price = np.repeat(overheads, runs)
    played = replay(policy, trace, price, rounds=10_000, keys=np.tile(np.arange(runs), len(overheads)), delay=delay)
    found = []
    for overhead in overheads:
        rows = price == overhead
        fixed = [fixed_reward(trace.confidence, overhead, t)[played.frame[rows]].sum(axis=1) for t in GRID]
        found.append((np.max(fixed, axis=0) - played.reward[rows].sum(axis=1)).mean())
    return np.array(found)


@pytest.mark.soak
@pytest.mark.skipif(not ADAEE.exists(), reason="AdaEE's traces are not here")
# the timed one is a MobileNetV2 in spite of its name
@pytest.mark.parametrize("name", ["alexnet-cifar10-one-branch", "alexnet-cifar10-one-branch-timed"])
def test_a_fortieth_of_the_regret_of_adaee(name):
    trace = read_trace(ADAEE / f"{name}.csv")
    overheads = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    adaee = regret(make_policy("ucb", runs=30), trace, overheads)
    ours = regret(make_policy("gain-curve", runs=60), trace, overheads)
    same_arms = regret(make_policy("gain-curve", {"grid": " ".join(map(str, GRID))}, runs=60), trace, overheads)
    late = regret(make_policy("gain-curve", runs=60), trace, overheads, delay=500)
    assert ours.sum() <= 0.025 * adaee.sum()
    assert (ours <= 0.08 * adaee).all()
    assert same_arms.sum() <= 0.025 * adaee.sum()
    assert late.sum() <= 0.065 * adaee.sum()
