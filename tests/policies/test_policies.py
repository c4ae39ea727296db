"""What every policy keeps to, then what each one chooses, by hand and against slow references."""

import math
from collections import defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest

from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.ucb import UCB
from eex.policies.core.base import Context, Outcomes
from eex.policies.core.errors import EexError
from eex.policies.core.reward import reward
from eex.policies.core.routing import route
from eex.policies.registry import POLICIES, list_policies, make_policy

pytestmark = pytest.mark.timeout(60)

FRAMES = 512
LEAST_EXITS = {"deex": 2, "deex-ucb": 2}  # 1 for all others
CASES = [(name, exits) for name in POLICIES for exits in (1, 2, 3) if exits >= LEAST_EXITS.get(name, 1)]

every_policy = pytest.mark.parametrize(("name", "exits"), CASES, ids=[f"{n}-{e}" for n, e in CASES])


class World:
    """Confidences of every exit for each run and frame, and what a policy is told of frames routed by them."""

    def __init__(self, exits, runs=1, seed=0):
        rng = np.random.default_rng(seed)
        self.confidence = rng.uniform(0.1, 1.0, (runs, FRAMES, exits + 1))
        self.distortion = rng.dirichlet(np.ones(3), (runs, FRAMES))

    def context(self, first, frames):
        seen = self.distortion[:, first : first + frames]
        return Context(frames, first, 0.1, distortion=seen, queue=2, link_ms=5.0)

    def outcomes(self, chosen, first, sent=True):
        """Outcomes of frames from `first` on, run after run."""
        parts = [self._of_run(run, chosen, first, sent) for run in range(len(chosen.arm))]
        return Outcomes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Outcomes)})

    def _of_run(self, run, chosen, first, sent):
        frames = chosen.arm.shape[1]
        seen = self.confidence[run, first : first + frames].copy()
        exit, offloaded, visited = route(seen, chosen, run)
        edge = seen[:, :-1]
        edge[np.arange(edge.shape[1]) >= visited[:, None]] = np.nan
        seen[~(offloaded & sent), -1] = np.nan
        overhead, really_sent = np.full(frames, 0.1), offloaded & sent
        return Outcomes(
            run=np.full(frames, run),
            frame=np.arange(first, first + frames),
            arm=chosen.arm[run],
            probability=chosen.probability[run],
            audited=chosen.audited[run],
            exit_at=chosen.exit_at[run],
            confidence=seen,
            prediction=np.where(np.isnan(seen), -1, 0),
            exit=exit,
            offloaded=offloaded,
            fallback=offloaded & ~really_sent,
            sent=really_sent,
            latency_ms=np.ones(frames),
            overhead=overhead,
            reward=reward(seen, offloaded, really_sent, overhead),
        )


def assert_same(one, other):
    for f in fields(one):
        np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), err_msg=f.name)


def assert_same_state(one, other, rtol=0.0):
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=rtol, err_msg=name)


def joined(parts):
    """Thresholds of frames that were asked for one after another."""
    return replace(
        parts[0], **{f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in fields(parts[0])}
    )


def live(policy, world, first, stop, size=8):
    """Choose and learn at once; the thresholds of all frames."""
    parts = []
    for at in range(first, stop, size):
        parts.append(policy.choose(world.context(at, min(size, stop - at))))
        policy.learn(world.outcomes(parts[-1], at))
    return joined(parts)


# ---- contracts


@every_policy
def test_thresholds_are_legal(name, exits):
    world, policy = World(exits, runs=2), make_policy(name, exits=exits, runs=2)
    arms = len(getattr(policy, "grid", [0]))
    for first, frames in ((0, 1), (1, 7), (8, 64)):
        chosen = policy.choose(world.context(first, frames))
        assert chosen.exit_at.shape == (2, frames, exits + 1)
        assert chosen.skip_below.shape == (2, frames, exits)
        assert chosen.arm.shape == chosen.probability.shape == chosen.audited.shape == (2, frames)
        assert ((chosen.exit_at >= 0) & ((chosen.exit_at <= 1) | np.isinf(chosen.exit_at))).all()
        assert (chosen.exit_at[..., -1] <= 1).all()  # the final exit is never without an answer
        assert ((chosen.skip_below >= 0) & (chosen.skip_below <= 1)).all()
        assert chosen.arm.dtype.kind == "i"
        assert ((chosen.arm >= 0) & (chosen.arm < arms)).all()
        assert (np.isnan(chosen.probability) | ((chosen.probability > 0) & (chosen.probability <= 1))).all()
        assert chosen.audited.dtype == bool
        policy.learn(world.outcomes(chosen, first))


@every_policy
def test_many_frames_at_once_are_chosen_as_one_by_one(name, exits):
    world = World(exits, runs=3)
    at_once, singly = (make_policy(name, exits=exits, runs=3, seed=4) for _ in range(2))
    first = 0
    for frames in (1, 2, 40, 7, 64, 100, 33):
        chosen = at_once.choose(world.context(first, frames))
        assert_same(chosen, joined([singly.choose(world.context(first + k, 1)) for k in range(frames)]))
        for policy in (at_once, singly):
            policy.learn(world.outcomes(chosen, first))
        first += frames
    assert_same_state(at_once, singly)


@every_policy
def test_feedback_comes_late_in_any_order_and_number(name, exits):
    world, policy = World(exits, runs=2), make_policy(name, exits=exits, runs=2)
    chosen = [policy.choose(world.context(first, 50)) for first in range(0, 200, 50)]
    told = world.outcomes(joined(chosen), 0)
    order = np.random.default_rng(1).permutation(len(told))
    policy.learn(told[order[:0]])
    for rows in np.split(order, [1, 2, 5, 130, 131, 399]):
        policy.learn(told[rows])
        policy.choose(world.context(200, 1))
    for array in policy.state_dict().values():
        assert np.isfinite(array).all()


@every_policy
def test_runs_played_at_once_are_independent_learners(name, exits):
    runs = 4
    world = World(exits, runs=runs)
    together = live(make_policy(name, exits=exits, runs=runs, seed=5), world, 0, 256)
    for run in range(runs):
        alone = World(exits)
        alone.confidence, alone.distortion = world.confidence[run : run + 1], world.distortion[run : run + 1]
        policy = make_policy(name, exits=exits, seed=5)
        policy.keys = np.array([run])  # by which what is drawn is keyed
        single = live(policy, alone, 0, 256)
        for f in fields(single):
            np.testing.assert_array_equal(getattr(together, f.name)[run], getattr(single, f.name)[0], err_msg=f.name)


@every_policy
def test_stopped_policy_goes_on_exactly_where_it_was(name, exits):
    world, policy = World(exits, runs=2), make_policy(name, exits=exits, runs=2, seed=6)
    live(policy, world, 0, 100, size=7)
    awaited = policy.choose(world.context(100, 20))
    state = policy.state_dict()
    again = make_policy(name, exits=exits, runs=2, seed=6)
    again.load_state_dict(state)
    for array in state.values():
        array[...] = -1  # what was given out and taken in are copies
    for one in (policy, again):
        one.learn(world.outcomes(awaited, 100))
    assert_same(live(policy, world, 120, 300), live(again, world, 120, 300))
    assert_same_state(policy, again)


@every_policy
def test_state_that_does_not_fit_changes_nothing(name, exits):
    world, policy = World(exits, runs=2), make_policy(name, exits=exits, runs=2)
    untouched = make_policy(name, exits=exits, runs=2)
    for one in (policy, untouched):
        live(one, world, 0, 100)
    other = {key: array + 1 for key, array in policy.state_dict().items()}
    wrong = [other | {"unknown": np.zeros(1)}]
    for key, array in other.items():
        wrong += [
            {k: v for k, v in other.items() if k != key},
            other | {key: array[:1]},
            other | {key: array[..., :-1]},
            other | {key: array.astype(str)},
        ]
    for state in wrong:
        with pytest.raises(ValueError, match=r"expected the arrays|must be"):
            policy.load_state_dict(state)
    assert_same_state(policy, untouched)
    assert_same(live(policy, world, 100, 200), live(untouched, world, 100, 200))


@every_policy
def test_same_seed_same_choices(name, exits):
    one, other = (live(make_policy(name, exits=exits, seed=7), World(exits), 0, FRAMES) for _ in range(2))
    assert_same(one, other)


@every_policy
def test_frames_that_could_not_be_sent_teach_nothing(name, exits):
    world, policy = World(exits), make_policy(name, exits=exits)
    fresh = make_policy(name, exits=exits)
    told = world.outcomes(policy.choose(world.context(0, 200)), 0, sent=False)
    unsent = told[told.offloaded]
    assert len(unsent)
    assert np.isnan(unsent.reward).all()
    blind = replace(
        told,
        reward=np.full(len(told), np.nan),
        confidence=np.full_like(told.confidence, np.nan),
        sent=told.sent & False,
    )
    policy.learn(blind)
    assert_same_state(policy, fresh)
    assert_same(policy.choose(world.context(200, 50)), fresh.choose(world.context(200, 50)))


@pytest.mark.parametrize(("exits", "runs"), [(0, 1), (2, 0), (-1, 1)])
@pytest.mark.parametrize("name", POLICIES)
def test_no_exits_or_no_runs(name, exits, runs):
    with pytest.raises(EexError, match="must be at least 1"):
        make_policy(name, exits=exits, runs=runs)


# ---- UCB


def learn_reward(policy, arm, frame, earned, run=0):
    one = np.array([earned])
    policy.learn(
        Outcomes(
            run=np.array([run]),
            frame=np.array([frame]),
            arm=np.array([arm]),
            probability=one * np.nan,
            audited=np.array([False]),
            exit_at=np.zeros((1, 2)),
            confidence=np.full((1, 2), np.nan),
            prediction=np.full((1, 2), -1),
            exit=np.array([0]),
            offloaded=np.array([False]),
            fallback=np.array([False]),
            sent=np.array([False]),
            latency_ms=one * 0,
            overhead=one * 0,
            reward=one,
        )
    )


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
    world, policy = World(1, runs=2), make_policy("ucb", runs=2)
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
        ("ucb", {"c": "much"}, "policy ucb: option c must be float, got 'much'"),
        ("ucb", {"grid": "0.5 high"}, "policy ucb: option grid must be numbers between spaces, got '0.5 high'"),
        ("deex:extended=perhaps", {}, "policy deex: option extended must be bool, got 'perhaps'"),
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
    assert listed["fixed"][0] == "Leave at the first exit whose confidence reaches one fixed threshold."
    assert listed["ucb"][1] == "grid=0 0.1 … 1, c=1.0"
    assert listed["deex"][1] == "p_d=0.5, p_tar=0.8, extended=False"
