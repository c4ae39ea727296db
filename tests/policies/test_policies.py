"""Every policy keeps to the contract; then what each one chooses, by hand and against slow references."""

import functools
import math
from collections import defaultdict

import numpy as np
import pytest
from routes import route
from same import assert_same_state, learn_reward

from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.ucb import UCB
from eex.policies.checks import CLAUSES, MadeUpStream, check_policy
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.registry import POLICIES, list_policies, make_policy

pytestmark = pytest.mark.timeout(60)

LEAST_EXITS = {"deex": 2, "deex-ucb": 2}  # 1 for all others
CASES = [(name, exits) for name in POLICIES for exits in (LEAST_EXITS.get(name, 1), 3)]  # the least, and several


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize(("name", "exits"), CASES, ids=[f"{n}-{e}" for n, e in CASES])
def test_every_policy_keeps_the_contract(name, exits, clause):
    check_policy(functools.partial(make_policy, name), [exits], [clause])


@pytest.mark.parametrize("name", POLICIES)
def test_a_wrong_state_is_named(name):
    policy = make_policy(name, exits=2, runs=2)
    state = policy.state_dict()
    wrong = [state | {"unknown": np.zeros(1)}, *(state | {key: array[:1]} for key, array in state.items())]
    for arrays in wrong:
        with pytest.raises(ValueError, match=r"expected the arrays|must be"):
            policy.load_state_dict(arrays)


# ---- UCB


def test_ucb_by_hand():
    # t   index of arm 0                    arm 1                        arm 2                        played, reward
    #     each arm once: 0 earns .5, 1 earns .1, 2 earns .3
    # 3   .5 + sqrt(ln 3 / 1) = 1.548       .1 + 1.048 = 1.148           .3 + 1.048 = 1.348           0: .2
    # 4   .35 + sqrt(ln 4 / 2) = 1.183      .1 + sqrt(ln 4) = 1.277      .3 + 1.177 = 1.477           2: .0
    # 5   .35 + sqrt(ln 5 / 2) = 1.247      .1 + sqrt(ln 5) = 1.369      .15 + .897 = 1.047           1: .7
    # 6   .35 + sqrt(ln 6 / 2) = 1.297      .4 + .947 = 1.347            .15 + .947 = 1.097           1: .1
    # 7   .35 + sqrt(ln 7 / 2) = 1.336      .3 + sqrt(ln 7 / 3) = 1.105  .15 + .986 = 1.136           0: .5
    # 8   .4 + sqrt(ln 8 / 3) = 1.233       .3 + .833 = 1.133            .15 + sqrt(ln 8 / 2) = 1.170 0
    policy = UCB([0.7, 0.8, 0.9], c=1.0)
    arms = []
    for frame, earned in enumerate([0.5, 0.1, 0.3, 0.2, 0.0, 0.7, 0.1, 0.5]):
        chosen = policy.choose(Context(first=frame))
        arms.append(int(chosen.arm[0, 0]))
        np.testing.assert_array_equal(chosen.exit_at, np.full((1, 1, 2), policy.grid[arms[-1]]))
        learn_reward(policy, arms[-1], frame, earned)
    assert arms == [0, 1, 2, 0, 2, 1, 1, 0]
    assert policy.choose(Context(first=8)).arm[0, 0] == 0
    np.testing.assert_array_equal(policy.counts, [[3, 3, 2]])
    np.testing.assert_allclose(policy.totals, [[1.2, 0.9, 0.3]])


def slow_ucb(arms, c, heard, in_flight):
    """The docstring's formula, from lists: `heard` (arm, reward) in order, `in_flight` arms."""
    rewards = defaultdict(list)
    for arm, earned in heard:
        rewards[arm].append(earned)
    best = None
    for arm in range(arms):
        n = len(rewards[arm]) + in_flight.count(arm)
        if n == 0:
            index = math.inf
        else:
            mean = sum(rewards[arm]) / len(rewards[arm]) if rewards[arm] else 0.0
            index = mean + c * math.sqrt(math.log(max(len(heard), 1)) / n)
        if best is None or (index, -n) > best[:2]:
            best = index, -n, arm
    return best[2]


@pytest.mark.parametrize(("c", "longest_delay"), [(1.0, 0), (2**0.5, 0), (0.3, 0), (1.0, 40), (0.0, 9)])
def test_ucb_against_a_slow_reference(c, longest_delay):
    rng = np.random.default_rng(8)
    means = rng.uniform(-0.1, 0.6, 5)
    policy = UCB(np.linspace(0, 1, 5), c=c)
    heard, waiting = [], []  # waiting: (due, arm, frame, reward)
    played = set()
    for frame in range(300):
        for due in sorted(w for w in waiting if w[0] <= frame):
            waiting.remove(due)
            heard.append((due[1], due[3]))
            learn_reward(policy, due[1], due[2], due[3])
        expected = slow_ucb(5, c, heard, [w[1] for w in waiting])
        arm = int(policy.choose(Context(first=frame)).arm[0, 0])
        assert arm == expected, f"round {frame}"
        played.add(arm)
        waiting.append((frame + 1 + int(rng.integers(longest_delay + 1)), arm, frame, rng.normal(means[arm], 0.1)))
    assert played == set(range(5))


@pytest.mark.parametrize("frames", [1, 3, 33])
def test_ucb_plays_all_arms_in_turn_before_any_reply(frames):
    policy = UCB()
    arms = np.concatenate([policy.choose(Context(frames, k * frames)).arm[0] for k in range(66 // frames)])
    np.testing.assert_array_equal(arms, np.tile(np.arange(len(GRID)), 6))


def test_ucb_counts_what_is_pending():
    world, policy = MadeUpStream(1, runs=2), make_policy("ucb", runs=2)
    told = world.outcomes(policy.choose(world.context(0, 300)), 0)
    assert policy.pending.sum(axis=1).tolist() == [300, 300]
    order = np.random.default_rng(2).permutation(len(told))
    for rows in np.array_split(order, 13):
        policy.learn(told[rows])
        assert (policy.counts + policy.pending).sum(axis=1).tolist() == [300, 300]
    assert not policy.pending.any()
    in_order = make_policy("ucb", runs=2)
    in_order.choose(world.context(0, 300))
    in_order.learn(told)
    assert_same_state(policy, in_order, rtol=1e-12)


def test_ucb_finds_the_best_arm():
    policy = UCB([0.7, 0.8, 0.9], c=2**0.5)
    for frame in range(200):
        arm = int(policy.choose(Context(first=frame)).arm[0, 0])
        learn_reward(policy, arm, frame, 1.0 if arm == 1 else 0.2)
    assert policy.counts[0, 1] > 150


@pytest.mark.parametrize(
    "wrong", [{"grid": []}, {"grid": [0.5, 1.1]}, {"grid": [math.nan]}, {"c": -1}, {"c": math.inf}]
)
def test_ucb_that_cannot_be(wrong):
    with pytest.raises(EexError, match=r"^(grid|c) must"):
        UCB(**wrong)


# ---- DEEx and fixed

ROWS = np.array(
    [  # exit 1, exit 2, exit 3, cloud
        [0.90, 0.95, 0.99, 0.99],
        [0.49, 0.99, 0.99, 0.99],
        [0.50, 0.80, 0.10, 0.99],
        [0.50, 0.79, 0.80, 0.99],
        [0.70, 0.10, 0.20, 0.99],
    ]
)


@pytest.mark.parametrize(
    ("policy", "exits", "visited"),
    [
        (Fixed(0.8, exits=3), [0, 1, 1, 2, 3], [1, 2, 2, 3, 3]),
        (Fixed(0.0, exits=3), [0] * 5, [1] * 5),
        (Fixed(1.0, exits=3), [3] * 5, [3] * 5),
        # below 0.5 at exit 1: at once to the cloud; never answered there, however sure; exit 3 takes the rest
        (DEEx(0.5, 0.8, exits=3), [1, 3, 1, 2, 2], [2, 1, 2, 3, 3]),
        (DEEx(0.5, 0.8, extended=True, exits=3), [1, 3, 1, 2, 3], [2, 1, 2, 3, 3]),
        (DEEx(0.0, 1.0, exits=3), [2] * 5, [3] * 5),
    ],
    ids=["fixed", "fixed-0", "fixed-1", "deex", "deex-extended", "deex-0"],
)
def test_where_known_frames_leave(policy, exits, visited):
    exit, offloaded, seen = route(ROWS, policy.choose(Context(frames=5)))
    assert exit.tolist() == exits
    assert offloaded.tolist() == [e == 3 for e in exits]
    assert seen.tolist() == visited


def test_deex_final_exit():
    assert DEEx(0.5, 0.8, exits=2).choose(Context()).exit_at.tolist() == [[[math.inf, 0, 0]]]
    assert DEEx(0.5, 0.8, extended=True, exits=2).choose(Context()).exit_at.tolist() == [[[math.inf, 0.8, 0.8]]]


# ---- the registry


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ucbb", {}, "unknown policy 'ucbb' (did you mean 'ucb'?); eex-stream --list-policies shows all"),
        ("UCB", {}, "unknown policy 'UCB' (did you mean 'ucb'?); eex-stream --list-policies shows all"),
        ("", {}, "unknown policy ''; eex-stream --list-policies shows all"),
        ("fixed", {"p_tr": "0.5"}, "policy fixed has no option 'p_tr' (did you mean 'p_tar'?); its options: p_tar"),
        ("ucb:seed=3", {}, "policy ucb has no option 'seed'; its options: grid, c"),
        ("ucb:c", {}, "a policy option is written name=value, got 'c'"),
        ("ucb:=1", {}, "a policy option is written name=value, got '=1'"),
        ("ucb", {"c": "much"}, "policy ucb: option c must be a number, got 'much'"),
        ("ucb", {"grid": "0.5 high"}, "policy ucb: option grid must be numbers such as 0.5,0.7, got '0.5 high'"),
        ("deex:extended=perhaps", {}, "policy deex: option extended must be true or false, got 'perhaps'"),
        ("fixed:p_tar=1.5", {}, "policy fixed: p_tar must lie in [0, 1], got 1.5"),
        ("fixed:p_tar=nan", {}, "policy fixed: p_tar must lie in [0, 1], got nan"),
        ("ucb:grid=", {}, "policy ucb: grid must hold thresholds in [0, 1], got []"),
        ("ucb:c=-1", {}, "policy ucb: c must be 0 or more, got -1.0"),
    ],
)
def test_wishes_that_cannot_be_met(name, options, message):
    with pytest.raises(EexError) as caught:
        make_policy(name, options, exits=2)
    assert str(caught.value) == message


def test_deex_needs_two_exits():
    with pytest.raises(EexError, match=r"^policy deex: deex needs two edge exits: .*; got 1$"):
        make_policy("deex", exits=1)


def test_options_as_text():
    policy = make_policy("ucb:c=0.5:grid=0.5 0.7", exits=3, runs=2)
    assert (policy.c, policy.grid.tolist(), policy.exits, policy.runs) == (0.5, [0.5, 0.7], 3, 2)
    assert make_policy("ucb:c=0.5", {"c": "2"}).c == 2  # what is said apart wins
    assert make_policy("ucb", {"grid": "0.5; 0.7"}).grid.tolist() == [0.5, 0.7]
    deex = make_policy("deex:extended=True", {"p_d": "0.25"}, exits=2)
    assert (deex.extended, deex.p_d, deex.p_tar) == (True, 0.25, 0.8)
    assert make_policy("deex:extended=0", exits=2).extended is False


def test_list_shows_every_policy():
    listed = {name: (summary, options) for name, summary, options in list_policies()}
    assert list(listed)[: len(POLICIES)] == list(POLICIES)
    for name, (summary, options) in listed.items():
        assert summary, name
        assert "seed" not in options
    assert listed["fixed"][0] == "Leave at the first exit whose confidence reaches a fixed threshold."
    assert listed["ucb"][1] == "grid=0 0.1 … 1, c=1.0"
    assert listed["deex"][1] == "p_d=0.5, p_tar=0.8, extended=False"
