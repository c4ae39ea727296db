"""Policies over a grid of thresholds, against slow references from the papers, and what they share."""

import math
from statistics import NormalDist, fmean, pvariance

import numpy as np
import pytest

from eex.policies.algorithms.arms import GRID, add, turns, variance
from eex.policies.algorithms.kl_ucb import upper
from eex.policies.core.base import Context, Outcomes
from eex.policies.core.draws import normal, uniform
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy

ARMS = ("random", "ucb", "ucb-v", "ucb-tuned", "bayes-ucb", "kl-ucb", "thompson", "epsilon-greedy", "exp3", "sw-ucb")
ARMS += ("d-ucb",)
OVERHEAD = 0.2
FIVE = "grid=0 0.25 0.5 0.75 1"


def told(policy, arm, earned, run=0, probability=math.nan):
    """Outcomes of frames played for these arms, which may be many."""
    earned = np.atleast_1d(np.asarray(earned, dtype=float))
    n = len(earned)
    no = np.zeros(n, dtype=bool)
    return Outcomes(
        run=np.broadcast_to(run, n),
        frame=np.arange(n),
        arm=np.broadcast_to(arm, n),
        probability=np.broadcast_to(probability, n),
        audited=no,
        exit_at=np.zeros((n, policy.exits + 1)),
        confidence=np.full((n, policy.exits + 1), np.nan),
        prediction=np.full((n, policy.exits + 1), -1),
        exit=np.zeros(n, dtype=np.int64),
        offloaded=no,
        fallback=no,
        sent=no,
        latency_ms=np.zeros(n),
        overhead=np.full(n, OVERHEAD),
        reward=earned,
    )


# ---- indices against slow references: `earned` holds an arm's rewards, n also counts what is in flight


def ucb_v(earned, n, t):
    v = pvariance(earned) if earned else 0.0
    return mean(earned) + math.sqrt(2 * 1.2 * v * math.log(t) / n) + 3 * 1.2 * math.log(t) / n


def ucb_tuned(earned, n, t):
    v = (pvariance(earned) if earned else 0.0) + math.sqrt(2 * math.log(t) / n)
    return mean(earned) + math.sqrt(math.log(t) / n * min(0.25, v))


def bayes_ucb(earned, n, t):
    return mean(earned) + 0.5 / math.sqrt(n) * NormalDist().inv_cdf(1 - 1 / max(t, 2))


def kl_ucb(earned, n, t):
    return largest(mean(earned) + OVERHEAD, math.log(t) / n)


def kl_ucb_with_c(earned, n, t):
    return largest(mean(earned) + OVERHEAD, (math.log(t) + 3 * max(math.log(max(math.log(t), 1)), 0)) / n)


def kl_ucb_of_utilities(earned, n, t):
    return largest((mean(earned) + OVERHEAD) / (1 + OVERHEAD), math.log(t) / n)


def mean(earned):
    return fmean(earned) if earned else 0.0


def largest(p, level):
    """By bisection: the largest q with d(p, q) at most `level`."""
    low, high = p, 1.0
    for _ in range(60):
        q = (low + high) / 2
        d = (p * math.log(p / q) if p > 0 else 0.0) + ((1 - p) * math.log((1 - p) / (1 - q)) if q < 1 else math.inf)
        low, high = (q, high) if d <= level else (low, q)
    return low


@pytest.mark.parametrize("longest_delay", [0, 30])
@pytest.mark.parametrize(
    ("policy", "index"),
    [
        ("ucb-v", ucb_v),
        ("ucb-tuned", ucb_tuned),
        ("bayes-ucb", bayes_ucb),
        ("kl-ucb", kl_ucb),
        ("kl-ucb:c=3", kl_ucb_with_c),
        ("kl-ucb", kl_ucb_of_utilities),
    ],
)
def test_index_against_a_slow_reference(policy, index, longest_delay):
    rng = np.random.default_rng(3)
    of_utilities = index is kl_ucb_of_utilities
    worth, most = (rng.uniform(0.5, 0.9, 5), 1.0) if of_utilities else (rng.uniform(-0.1, 0.5, 5), 1 - OVERHEAD)
    policy = make_policy(f"{policy}:{FIVE}")
    policy.reward = "utility" if of_utilities else "adaee"
    earned, waiting, played = [[] for _ in worth], [], set()
    for frame in range(250):
        for back in [w for w in waiting if w[0] <= frame]:
            waiting.remove(back)
            earned[back[1]].append(back[2])
            policy.learn(told(policy, back[1], back[2]))
        t = max(sum(map(len, earned)), 1)
        n = [len(earned[a]) + sum(w[1] == a for w in waiting) for a in range(5)]
        indices = [index(earned[a], n[a], t) if n[a] else math.inf for a in range(5)]
        arm = int(policy.choose(Context(first=frame, overhead=OVERHEAD)).arm[0, 0])
        if t > 2:  # before, indices are alike but for a hair
            assert indices[arm] >= max(indices) - 1e-7, f"round {frame}"
        played.add(arm)
        reward = float(np.clip(rng.normal(worth[arm], 0.1), -OVERHEAD, most))
        waiting.append((frame + 1 + int(rng.integers(longest_delay + 1)), arm, reward))
    assert played == set(range(5))


def test_upper_by_hand():
    # d(0, q) = -ln(1 - q); d(1/2, q) = -ln(2) - ln(q (1 - q)) / 2
    np.testing.assert_allclose(upper(np.array([0.0]), np.array([math.log(2)])), [0.5], atol=1e-6)
    np.testing.assert_allclose(upper(np.array([0.5]), np.array([-math.log(2) - math.log(0.09) / 2])), [0.9], atol=1e-9)


def test_upper_is_what_bisection_finds():
    p, level = np.meshgrid(np.linspace(0.0, 0.99, 34), 10.0 ** np.linspace(-6, 1, 29))
    slow = [largest(a, b) for a, b in zip(p.ravel(), level.ravel(), strict=True)]
    np.testing.assert_allclose(upper(p, level).ravel(), slow, atol=1e-6)
    assert (upper(np.ones(3), np.array([1e-9, 0.1, 20.0])) <= 1).all()


# ---- streams that change


def windowed(heard, window, c, in_flight):
    latest = heard[-window:]
    best = []
    for arm in range(5):
        earned = [r for a, r in latest if a == arm]
        n = len(earned) + in_flight.count(arm)
        best.append(mean(earned) + c * math.sqrt(math.log(max(len(latest), 1)) / n) if n else math.inf)
    return best


def discounted(heard, gamma, c, in_flight):
    weights = [gamma**k for k in range(len(heard))][::-1]
    best = []
    for arm in range(5):
        weight = sum(w for w, (a, _) in zip(weights, heard, strict=True) if a == arm)
        total = sum(w * r for w, (a, r) in zip(weights, heard, strict=True) if a == arm)
        n = weight + in_flight.count(arm)
        bonus = c * math.sqrt(math.log(max(sum(weights), 1)) / n) if n else math.inf
        best.append((total / weight if weight else 0.0) + bonus)
    return best


@pytest.mark.parametrize("longest_delay", [0, 20])
@pytest.mark.parametrize(
    ("policy", "indices_of", "memory", "c"),
    [
        ("sw-ucb:window=40", windowed, 40, 1.0),
        ("sw-ucb:window=1:c=0.5", windowed, 1, 0.5),
        ("d-ucb:gamma=0.95", discounted, 0.95, 1.0),
        ("d-ucb:gamma=0.8:c=0.1", discounted, 0.8, 0.1),  # weights fall below 1
        ("d-ucb:gamma=1", discounted, 1.0, 1.0),
    ],
)
def test_forgetting_against_a_slow_reference(policy, indices_of, memory, c, longest_delay):
    rng = np.random.default_rng(4)
    worth = rng.uniform(-0.1, 0.5, 5)
    policy = make_policy(f"{policy}:{FIVE}")
    heard, waiting = [], []
    for frame in range(250):
        back = [w for w in waiting if w[0] <= frame]
        waiting = [w for w in waiting if w[0] > frame]
        heard += [w[1:] for w in back]
        if back:  # all at once: the order among them counts
            policy.learn(told(policy, [w[1] for w in back], [w[2] for w in back]))
        indices = indices_of(heard, memory, c, [w[1] for w in waiting])
        arm = int(policy.choose(Context(first=frame)).arm[0, 0])
        if sum(not math.isinf(i) for i in indices) == 5 and len(heard) > 1:
            assert indices[arm] >= max(indices) - 1e-7, f"round {frame}"
        waiting.append((frame + 1 + int(rng.integers(longest_delay + 1)), arm, float(rng.normal(worth[arm], 0.1))))


@pytest.mark.parametrize("name", ["sw-ucb:window=200:c=0.3", "d-ucb:gamma=0.99:c=0.3"])
def test_a_change_is_followed(name):
    policy = make_policy(f"{name}:{FIVE}")
    late = []
    for frame in range(3000):
        arm = int(policy.choose(Context(first=frame)).arm[0, 0])
        policy.learn(told(policy, arm, 0.6 if arm == (1 if frame < 2000 else 3) else 0.0))
        late += [arm] if frame >= 2500 else []
    assert late.count(3) > 300


def test_one_run_may_have_many_outcomes_at_once():
    rng = np.random.default_rng(5)
    run, arm, earned = rng.integers(0, 3, 200), rng.integers(0, 5, 200), rng.normal(size=200)
    for name in ("ucb", "ucb-v", "sw-ucb:window=20", "d-ucb:gamma=0.9"):
        at_once, singly = (make_policy(f"{name}:{FIVE}", runs=3) for _ in range(2))
        at_once.learn(told(at_once, arm, earned, run))
        for k in range(200):
            singly.learn(told(singly, arm[k], earned[k], run[k]))
        for key, array in singly.state_dict().items():
            np.testing.assert_allclose(at_once.state_dict()[key], array, atol=1e-12, err_msg=f"{name} {key}")


# ---- policies that draw


def test_thompson_against_a_slow_reference():
    policy = make_policy(f"thompson:sigma=0.7:{FIVE}", seed=9, runs=2)
    rng = np.random.default_rng(6)
    n, total = np.zeros((2, 5)), np.zeros((2, 5))
    for frame in range(200):
        z = normal(9, np.arange(2), np.array([frame]), 5)[:, 0]
        theta = total / (n + 1) + 0.7 * z / np.sqrt(n + 1)
        arm = policy.choose(Context(first=frame)).arm[:, 0]
        np.testing.assert_array_equal(arm, theta.argmax(axis=1))
        earned = rng.normal(0.1 * arm, 0.1)
        policy.learn(told(policy, arm, earned, np.arange(2)))
        n[np.arange(2), arm] += 1
        total[np.arange(2), arm] += earned


@pytest.mark.parametrize("name", ["random", "epsilon-greedy:epsilon=0.3", "exp3:gamma=0.4"])
def test_arms_are_drawn_as_often_as_is_recorded(name):
    policy = make_policy(f"{name}:{FIVE}", seed=1)
    policy.learn(told(policy, np.arange(5), [0.1, 0.5, 0.5, 0.2, 0.0], probability=0.2))
    chosen = policy.choose(Context(frames=20000))
    arm, probability = chosen.arm[0], chosen.probability[0]
    for a in range(5):
        assert len(set(probability[arm == a])) == 1
        np.testing.assert_allclose((arm == a).mean(), probability[arm == a][0], atol=0.012)


def test_epsilon_greedy_by_hand():
    policy = make_policy(f"epsilon-greedy:epsilon=0.3:decay=2:{FIVE}")

    def probabilities():
        chosen = policy.choose(Context(frames=4000))
        return {int(a): float(chosen.probability[0][chosen.arm[0] == a][0]) for a in set(chosen.arm[0])}

    policy.learn(told(policy, [0, 1, 2], [0.9, 0.1, 0.1]))  # arms 3 and 4 are not known: they go first
    assert probabilities() == pytest.approx({0: 0.06, 1: 0.06, 2: 0.06, 3: 0.41, 4: 0.41})
    policy.learn(told(policy, [3, 4], [0.2, 0.9]))  # 0 and 4 are alike
    assert probabilities() == pytest.approx({0: 0.41, 1: 0.06, 2: 0.06, 3: 0.06, 4: 0.41})
    policy.learn(told(policy, [0] * 95, [0.5] * 95))  # 100 rounds: epsilon = 2 * 5 / 100
    assert probabilities() == pytest.approx({0: 0.02, 1: 0.02, 2: 0.02, 3: 0.02, 4: 0.92})


def test_exp3_by_hand():
    policy = make_policy(f"exp3:gamma=0.5:{FIVE}")
    # gains: arm 1 (0.3 + 0.2) / 0.25 = 2, arm 2 (-0.2 + 0.2) / 0.5 = 0, arm 1 again (0.8 + 0.2) / 0.5 = 2
    policy.learn(told(policy, [1, 2, 1], [0.3, -0.2, 0.8], probability=[0.25, 0.5, 0.5]))
    weight = [math.exp(0.1 * gain) for gain in (0, 4, 0, 0, 0)]
    chosen = policy.choose(Context(frames=500))
    for arm, probability in zip(chosen.arm[0], chosen.probability[0], strict=True):
        assert probability == pytest.approx(0.5 * weight[arm] / sum(weight) + 0.1)


def test_exp3_explores_less_and_less():
    policy = make_policy(f"exp3:{FIVE}")
    assert policy.choose(Context()).probability[0, 0] == pytest.approx(0.2)
    policy.learn(told(policy, np.zeros(1000, dtype=int), np.full(1000, 0.8), probability=0.2))
    chosen = policy.choose(Context(frames=200))
    gamma = math.sqrt(5 * math.log(5) / ((math.e - 1) * 1000))
    assert chosen.probability[0][chosen.arm[0] == 0][0] == pytest.approx(1 - gamma + gamma / 5)


# ---- all of them


@pytest.mark.parametrize("kind", ["adaee", "utility"])
@pytest.mark.parametrize("delay", [0, 100])
@pytest.mark.parametrize("name", [n for n in ARMS if n != "random"])
def test_finds_the_best_arm(name, delay, kind):
    runs, rounds = 8, 4000
    policy = make_policy(f"{name}:{FIVE}", runs=runs, seed=2)
    policy.reward = kind
    least, most = {"adaee": (-OVERHEAD, 1 - OVERHEAD), "utility": (0.4, 1.0)}[kind]
    u = uniform(0, np.arange(runs), np.arange(rounds), 1, purpose=7)[..., 0]
    worth = np.array([0.1, 0.3, 0.8, 0.4, 0.2])  # how often an arm earns the most
    waiting, late = [], []
    for frame in range(rounds):
        chosen = policy.choose(Context(first=frame, overhead=OVERHEAD))
        arm = chosen.arm[:, 0]
        earned = np.where(u[:, frame] < worth[arm], most, least)
        waiting.append(told(policy, arm, earned, np.arange(runs), chosen.probability[:, 0]))
        if frame >= delay:
            policy.learn(waiting.pop(0))
        late.append(arm == 2)
    assert np.mean(late[rounds // 2 :]) > 0.6, name  # of five


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_played_before_the_first_reply(name):
    arms = make_policy(name).choose(Context(frames=200)).arm[0]
    count = np.bincount(arms, minlength=len(GRID))
    assert count.min() > 0
    assert count.max() < 60


@pytest.mark.parametrize("name", ARMS)
def test_what_is_pending_is_counted(name):
    policy = make_policy(name, runs=2)
    chosen = policy.choose(Context(frames=30))
    assert policy.pending.sum(axis=1).tolist() == [30, 30]
    policy.learn(told(policy, chosen.arm[1], np.full(30, np.nan), 1))
    assert policy.pending.sum(axis=1).tolist() == [30, 0]
    policy.learn(told(policy, chosen.arm[0], np.full(30, 0.1), 0, probability=1.0))
    assert not policy.pending.any()


@pytest.mark.parametrize("name", ARMS)
def test_a_single_arm(name):
    policy = make_policy(f"{name}:grid=0.5")
    for frame in range(3):
        chosen = policy.choose(Context(first=frame, overhead=OVERHEAD))
        assert chosen.exit_at.tolist() == [[[0.5, 0.5]]]
        policy.learn(told(policy, 0, 0.1, probability=1.0))


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("grid", ["", "0.5 1.1", "nan", "-0.1 0.5"])
def test_grids_that_cannot_be(name, grid):
    with pytest.raises(EexError, match=f"^policy {name}: grid must hold thresholds in"):
        make_policy(name, {"grid": grid})


@pytest.mark.parametrize(
    "wish",
    [
        *("ucb-v:c=0", "ucb-v:zeta=-1", "bayes-ucb:sigma=0", "kl-ucb:c=-1", "kl-ucb:c=inf", "thompson:sigma=inf"),
        *("epsilon-greedy:epsilon=1.1", "epsilon-greedy:decay=-1", "epsilon-greedy:decay=nan", "exp3:gamma=0"),
        *("exp3:gamma=1.5", "sw-ucb:window=0", "sw-ucb:c=nan", "d-ucb:gamma=0", "d-ucb:gamma=1.1", "d-ucb:c=-1"),
    ],
)
def test_options_that_cannot_be(wish):
    name, option = wish.split(":")
    with pytest.raises(EexError, match=f"^policy {name}: {option.split('=')[0]} must"):
        make_policy(wish)


def test_state_laid_out_otherwise_is_learned_into():
    policy = make_policy(f"ucb:{FIVE}", runs=2)
    policy.load_state_dict({k: np.asfortranarray(v) for k, v in policy.state_dict().items()})
    policy.learn(told(policy, [3, 3], [0.5, 0.25], [1, 1]))
    assert policy.totals.tolist() == [[0] * 5, [0, 0, 0, 0.75, 0]]


# ---- helpers


def test_add_takes_cells_that_repeat():
    table = np.zeros((2, 3))
    add(table, np.array([0, 1, 1, 0]), np.array([2, 0, 0, 2]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert table.tolist() == [[0, 0, 5], [5, 0, 0]]


def test_turns_are_in_order_and_complete():
    run = np.array([2, 0, 2, 1, 2, 0])
    assert [rows.tolist() for rows in turns(run)] == [[0, 1, 3], [2, 5], [4]]
    assert list(turns(np.array([0, 3, 7]))) == [slice(None)]
    assert list(turns(np.array([], dtype=np.int64))) == [slice(None)]


def test_variance():
    rewards = np.array([0.3, -0.1, 0.4])
    found = variance(
        np.array([[3.0, 0.0, 1.0]]), np.array([[0.6, 0.0, 0.3]]), np.array([[(rewards**2).sum(), 0, 0.09]])
    )
    np.testing.assert_allclose(found[0, :, 0], [rewards.var(), 0, 0], atol=1e-15)
