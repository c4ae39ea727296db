"""Off-policy estimates against the truth, on synthetic logs of random arms, and what logs cannot support."""

from dataclasses import replace

import numpy as np
import pytest

from eex.policies.core.base import Outcomes
from eex.policies.core.errors import EexError
from eex.policies.core.off_policy import estimate
from eex.policies.core.references import fixed_reward
from eex.policies.core.routing import leave

pytestmark = pytest.mark.timeout(120)

GRID = np.round(np.arange(0, 1.01, 0.1), 2)
OVERHEAD = 0.1


def frames(count, exits=1, seed=0):
    """Confidences of every exit, deeper ones surer, and what offloading gains the smaller the surer; by frame."""
    rng = np.random.default_rng(seed)
    edge = np.sort(rng.beta(4, 2, (count, exits)), axis=1)
    gain = (1 - edge[:, -1]) * rng.beta(2, 1, count) * (rng.random(count) < 0.8)
    return np.column_stack([edge, edge[:, -1] + gain])


def log_of(confidence, arm, probability, thresholds=GRID, audited=None, sent=None, lost=None, overhead=OVERHEAD):
    """What a live run leaves of these frames if it plays these arms, one threshold at every edge exit."""
    count, exits = len(confidence), confidence.shape[1] - 1
    none = np.zeros(count, dtype=bool)
    audited, lost = (none if flags is None else flags for flags in (audited, lost))
    exit_at = np.repeat(np.where(audited, np.inf, thresholds[arm])[:, None], exits + 1, axis=1)
    answered, _ = leave(confidence[:, :-1], exit_at[:, :-1], np.zeros((count, exits)))
    offloaded = ~answered.any(axis=1)
    exit = np.where(offloaded, exits, answered.argmax(axis=1))
    sent = offloaded if sent is None else offloaded & sent
    fallback = offloaded & (lost | ~sent)
    seen = np.where(np.arange(exits + 1) <= exit[:, None], confidence, np.nan)
    seen[fallback, -1] = np.nan
    return Outcomes(
        run=np.zeros(count, dtype=np.int64),
        frame=np.arange(count),
        arm=arm,
        probability=np.broadcast_to(probability, count).astype(float),
        audited=audited,
        exit_at=exit_at,
        confidence=seen,
        prediction=np.where(np.isnan(seen), -1, 0),
        exit=np.where(fallback, 0, exit),
        offloaded=offloaded,
        fallback=fallback,
        sent=sent,
        latency_ms=np.zeros(count),
        overhead=np.full(count, overhead),
        reward=np.full(count, np.nan),  # nobody needs it
    )


def uniform_log(confidence, rng, **more):
    arm = rng.integers(len(GRID), size=len(confidence))
    return log_of(confidence, arm, 1 / len(GRID), **more)


def greedy_log(confidence, rng, epsilon=0.2):
    """An ε-greedy policy's log that learns as it goes: its favourite arm, and so each arm's probability, changes."""
    count, arms = len(confidence), len(GRID)
    earned = np.column_stack([fixed_reward(confidence, OVERHEAD, t) for t in GRID])
    totals, counts = np.zeros(arms), np.ones(arms)
    arm, probability = np.zeros(count, dtype=int), np.zeros(count)
    for i in range(count):
        best = int((totals / counts).argmax())
        arm[i] = rng.integers(arms) if rng.random() < epsilon else best
        probability[i] = epsilon / arms + (1 - epsilon) * (arm[i] == best)
        totals[arm[i]] += earned[i, arm[i]]
        counts[arm[i]] += 1
    return log_of(confidence, arm, probability)


# ---- against the truth


@pytest.mark.parametrize(
    ("make_log", "exits", "targets"),
    [(uniform_log, 1, (0.4, 0.5, 0.65, 0.8, 1.0)), (uniform_log, 3, (0.65, 0.8, 1.0)), (greedy_log, 1, (0.65, 0.8))],
    ids=["uniform", "uniform, 3 exits", "greedy"],
)
def test_intervals_cover_the_truth(make_log, exits, targets):
    truth = {b: fixed_reward(frames(1_000_000, exits, seed=1), OVERHEAD, b).mean() for b in targets}
    covered, error, width = (dict.fromkeys(("ips", "snips", "dr"), 0.0) for _ in range(3))
    logs, intervals = 200, 0
    for k in range(logs):
        log = make_log(frames(2000, exits, seed=100 + k), np.random.default_rng(k))
        for found in estimate(log, targets):
            if found.problem:
                continue
            intervals += 1
            for name in covered:
                mean, true = getattr(found, name), truth[found.thresholds[0]]
                covered[name] += mean.low <= true <= mean.high
                error[name] += (mean.value - true) / mean.se
                width[name] += mean.se
    assert intervals > 0.95 * logs * len(targets)
    for name in covered:
        assert 0.915 <= covered[name] / intervals <= 0.985, (name, covered[name] / intervals)
        assert abs(error[name] / intervals) < 0.25, (name, error[name] / intervals)
    assert width["dr"] < (0.95 if exits == 1 else 1.02) * width["ips"]


def test_intervals_cover_each_threshold_of_its_own():
    targets = (0.5, 0.7, 0.9)
    truth = {b: fixed_reward(frames(1_000_000, seed=1), OVERHEAD, b).mean() for b in targets}
    covered = dict.fromkeys(targets, 0)
    for k in range(200):
        for found in estimate(uniform_log(frames(1000, seed=100 + k), np.random.default_rng(k)), targets):
            covered[found.thresholds[0]] += found.dr.low <= truth[found.thresholds[0]] <= found.dr.high
    assert all(180 <= hits <= 199 for hits in covered.values()), covered


def test_one_sidedness_tells_more_than_the_same_arm_alone():
    confidence, rng = frames(5000), np.random.default_rng(0)
    log = uniform_log(confidence, rng)
    found = estimate(log, [0.6])[0]
    matched = log.arm == 6
    assert found.effective > 3 * (matched & (confidence[:, 0] < 0.6)).sum()
    alone = np.where(matched, fixed_reward(confidence, OVERHEAD, 0.6) * len(GRID), 0.0)
    assert found.ips.se < 0.6 * alone.std() / np.sqrt(len(alone))


def test_a_log_that_reveals_everything_is_summed_up_as_it_is():
    confidence = frames(3000, exits=2)
    log = log_of(confidence, np.full(3000, 9), np.nan)  # nothing was drawn
    for b in (0.3, 0.55, 0.9):
        found = estimate(log, [b])[0]
        earned = fixed_reward(confidence, OVERHEAD, b)
        assert found.ips == found.snips == found.dr
        assert found.dr.value == pytest.approx(earned.mean())
        assert found.dr.se == pytest.approx(earned.std() / np.sqrt(3000))
        assert (found.effective, found.problem) == (3000, "")


def test_by_hand():
    confidence = np.array([[0.9, 0.95], [0.4, 0.9], [0.4, 0.8], [0.6, 0.9], [0.6, 0.7]])
    probability = np.array([0.5, 0.25, 0.75, 0.4, 0.6])
    log = log_of(confidence, np.array([0, 0, 1, 1, 0]), probability, thresholds=np.array([0.5, 0.8]))
    found = estimate(log, [0.7], least=0)[0]
    # frame 0: answered at the first exit, 0. Frames 1 and 2: both arms offload them, 0.5 - 0.1 and 0.4 - 0.1.
    # Frame 3: arm 0.8 alone does, drawn with probability 0.4, so 2.5 times 0.3 - 0.1. Frame 4 is not known.
    assert found.ips.value == pytest.approx((0.4 + 0.3 + 2.5 * 0.2) / 5)
    assert found.snips.value == pytest.approx((0.4 + 0.3 + 2.5 * 0.2) / 5.5)
    model3 = (0.4 + 0.3) / 2  # no other of its bin: the mean of frames 1 and 2
    model4 = (2.5 * 0.2 + (0.4 + 0.3 + 2.5 * 0.2) / 4.5) / 3.5  # frame 3, and one of the mean
    dr = np.array([0, 0.4, 0.3, model3 + 2.5 * (0.2 - model3), model4])
    assert (found.dr.value, found.dr.se) == pytest.approx((dr.mean(), dr.std() / np.sqrt(5)))
    assert found.effective == pytest.approx(4.5**2 / (1 + 1 + 2.5**2))


def test_another_overhead_and_cost_of_exits():
    confidence = frames(20_000, exits=3)
    log = uniform_log(confidence, np.random.default_rng(0))
    found = estimate(log, [0.7], overhead=0.3, exit_cost=0.02)[0]
    truth = fixed_reward(confidence, 0.3, 0.7, 0.02).mean()
    assert abs(found.dr.value - truth) < 4 * found.dr.se
    assert found.dr.se < 0.003


def test_one_threshold_an_exit():
    confidence = frames(20_000, exits=3)
    log = uniform_log(confidence, np.random.default_rng(0))
    target = [0.8, 0.65, 0.7]
    found = estimate(log, [target])[0]
    assert found.thresholds == tuple(target)
    truth = fixed_reward(confidence, OVERHEAD, np.array(target)).mean()
    assert abs(found.dr.value - truth) < 4 * found.dr.se


def test_thresholds_that_offload_nothing():
    confidence = frames(4000, exits=2)
    found = estimate(uniform_log(confidence, np.random.default_rng(0)), [[0.9, 0.0]], exit_cost=0.02)[0]
    truth = fixed_reward(confidence, OVERHEAD, np.array([0.9, 0.0]), 0.02).mean()
    assert not found.problem
    assert abs(found.dr.value - truth) < 4 * found.dr.se


@pytest.mark.parametrize("cost", [-1.0, np.array([0.1, 0.1, 0.1])])
def test_prices_of_exits_that_cannot_be(cost):
    with pytest.raises(EexError, match=r"exit"):
        estimate(uniform_log(frames(10, exits=2), np.random.default_rng(0)), [0.5], exit_cost=cost)


def test_frames_that_could_not_be_sent_and_replies_that_never_came():
    confidence, rng = frames(20_000), np.random.default_rng(0)
    sent, lost = rng.random(20_000) < 0.7, rng.random(20_000) < 0.2
    found = estimate(uniform_log(confidence, rng, sent=sent, lost=lost), [0.7])[0]
    answered = confidence.copy()
    answered[lost, -1] = 0.0  # gains nothing, costs the overhead
    truth = fixed_reward(answered, OVERHEAD, 0.7).mean()
    for mean in (found.ips, found.snips, found.dr):
        assert abs(mean.value - truth) < 4 * mean.se


def test_audits_change_nothing():
    confidence, rng = frames(20_000), np.random.default_rng(0)
    found = estimate(uniform_log(confidence, rng, audited=rng.random(20_000) < 0.1), [0.7])[0]
    assert abs(found.dr.value - fixed_reward(confidence, OVERHEAD, 0.7).mean()) < 4 * found.dr.se


# ---- what a log cannot support


def problem(log, threshold=0.7):
    found = estimate(log, [threshold])[0]
    assert "\n" not in found.problem
    if found.problem:
        assert np.isnan([found.ips.value, found.snips.se, found.dr.low]).all()
    return found.problem


def test_no_propensities():
    confidence, rng = frames(2000), np.random.default_rng(0)
    assert problem(log_of(confidence, rng.integers(11, size=2000), np.nan)).startswith("no propensities")


def test_a_threshold_above_all_arms():
    confidence, rng = frames(2000), np.random.default_rng(0)
    log = log_of(confidence, rng.integers(6, size=2000), 1 / 6)  # up to 0.5
    assert problem(log, 0.5) == ""
    between = ((confidence[:, 0] >= 0.5) & (confidence[:, 0] < 0.7)).sum()
    assert f"of {between} frames" in problem(log)


def test_too_few_frames():
    confidence, rng = frames(3000), np.random.default_rng(0)
    rare = rng.random(3000) < 0.005
    log = log_of(confidence, np.where(rare, 10, 2), np.where(rare, 0.005, 0.995))
    assert problem(log).startswith("the effective sample size is ")
    assert problem(uniform_log(frames(20), rng)).startswith("the effective sample size is ")


def test_propensities_that_are_not_those_of_the_draws():
    confidence, rng = frames(3000), np.random.default_rng(0)
    log = uniform_log(confidence, rng)
    assert "the propensities do not fit" in problem(replace(log, probability=np.full(3000, 1.0)))


def test_arms_that_are_no_fixed_thresholds():
    confidence, rng = frames(2000), np.random.default_rng(0)
    log = uniform_log(confidence, rng)
    assert "do not stand for fixed thresholds" in problem(replace(log, arm=np.zeros(2000, dtype=int)))


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [([1.5], "a threshold must lie in"), ([[0.5, 0.6]], "one for each of 1 edge exits"), ([np.nan], "must lie in")],
)
def test_bad_thresholds(thresholds, message):
    log = uniform_log(frames(100), np.random.default_rng(0))
    with pytest.raises(EexError, match=message):
        estimate(log, thresholds)


def test_bad_logs():
    log = uniform_log(frames(100), np.random.default_rng(0))
    with pytest.raises(EexError, match="the log has no frames"):
        estimate(log[:0], [0.5])
    with pytest.raises(EexError, match="a propensity must lie in"):
        estimate(replace(log, probability=np.zeros(100)), [0.5])
    with pytest.raises(EexError, match="overhead must lie in"):
        estimate(log, [0.5], overhead=2.0)
