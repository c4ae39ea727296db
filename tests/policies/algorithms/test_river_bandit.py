"""River's bandits over the grid: the contract, and the same choices as river's own loop."""

import functools

import numpy as np
import pytest
from same import learn_reward

from eex.policies.checks import CLAUSES, MadeUpStream, check_policy
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy

pytestmark = pytest.mark.timeout(120)

# each run draws for itself, by numbers that its place gives and not its key: below
KEPT = [clause for clause in CLAUSES if clause != "runs are independent"]
NAMES = [
    "river.bandit.UCB:delta=1",
    "river.bandit.UCB:delta=0.5:burn_in=2:grid=0.5 0.7 0.9",
    "river.bandit.EpsilonGreedy:epsilon=0.2:decay=0.01",
    "river.bandit.ThompsonSampling:burn_in=2",
    "river.bandit.ThompsonSampling:reward_obj=proba.Beta",
    "river.bandit.Exp3:gamma=0.2",
    "river.bandit.BayesUCB",
    "river.bandit.RandomPolicy",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clause", KEPT)
def test_river_policies_keep_the_contract(clause, name):
    check_policy(functools.partial(make_policy, name), [2], [clause])


def test_ucb_plays_as_in_rivers_own_loop():
    from river import bandit

    rewards = np.random.default_rng(0).uniform(0, 1, (400, 3))
    own, policy = bandit.UCB(delta=1, burn_in=1, seed=1), make_policy("river.bandit.UCB:delta=1:burn_in=1:grid=0 0.5 1")
    for frame in range(400):
        arm = own.pull([0, 1, 2])
        assert policy.choose(Context(first=frame)).arm[0, 0] == arm
        own.update(arm, rewards[frame, arm])
        learn_reward(policy, arm, frame, rewards[frame, arm])


def test_draws_are_keyed_by_run():
    policy = make_policy("river.bandit.RandomPolicy", runs=3)
    policy.keys = np.array([4, 0, 4])
    arm = policy.choose(Context(frames=50)).arm
    assert (arm[0] == arm[2]).all()
    assert (arm[0] != arm[1]).any()


def test_no_arm_is_stuck_to_while_replies_are_late():
    ucb = make_policy("river.bandit.UCB:delta=1:burn_in=1").choose(Context(frames=110)).arm[0]
    assert set(ucb) == set(range(11))
    policy = make_policy("river.bandit.UCB:delta=1")
    policy.learn(MadeUpStream(1).outcomes(policy.choose(MadeUpStream(1).context(0, 110)), 0))
    arms = np.concatenate([policy.choose(Context(first=110 + k)).arm[0] for k in range(60)])
    assert np.bincount(arms).max() < 30


def test_exp3_records_and_uses_its_probabilities():
    policy = make_policy("river.bandit.Exp3:gamma=0.3:grid=0.2 0.8")
    chosen = policy.choose(Context(frames=5))
    np.testing.assert_allclose(chosen.probability, 0.5)
    told = MadeUpStream(1).outcomes(chosen, 0)
    told.probability[:] = 0.25
    told.reward[:] = 1.0
    policy.learn(told[:1])
    weight = policy._learners[0]._weights[int(told.arm[0])]
    np.testing.assert_allclose(weight, np.exp(0.3 / 0.25 / 2))


def test_it_finds_the_best_threshold():
    rng = np.random.default_rng(3)
    edge = rng.uniform(0, 1, 1000)
    cloud = edge + np.where(edge < 0.5, 0.45, 0.0)
    trace = Trace(np.column_stack([edge, cloud]), np.zeros((1000, 2), dtype=int), np.full(1000, -1), ("a",))
    played = replay(make_policy("river.bandit.UCB:delta=0.2:grid=0 0.5 1"), trace, 0.2, rounds=1500)
    assert (played.arm[:, -500:] == 1).mean() > 0.8


def test_a_wrapper_may_stand_before_it():
    policy = make_policy("drift@river.bandit.UCB:delta=1", runs=2)
    world = MadeUpStream(1, runs=2)
    for first in range(0, 400, 50):
        told = world.outcomes(policy.choose(world.context(first, 50)), first)
        told.confidence[:, 0] = 0.9 if first < 200 else 0.1
        policy.learn(told)
    assert policy.drifts.tolist() == [1, 1]
    assert (policy.inner.filled < 200).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("river.bandit.UBC", "river.bandit has no policy 'UBC'; it has"),
        ("river.bandit.evaluate", "river.bandit has no policy 'evaluate'; it has"),
        ("river.bandit.LinUCBDisjoint", "river.bandit.LinUCBDisjoint needs a context; linucb is"),
        ("river.bandit.UCB", "policy river.bandit.UCB: "),
        (
            "river.bandit.UCB:dleta=1",
            "policy river.bandit.UCB has no option 'dleta' (did you mean 'delta'?); its options",
        ),
        ("river.bandit.UCB:delta=much", "policy river.bandit.UCB: option delta must be a number, got 'much'"),
        ("river.bandit.UCB:delta=1:grid=2", "policy river.bandit.UCB: grid must hold thresholds in [0, 1], got [2.0]"),
        ("river.bandit.UCB:delta=1:reward_obj=os.path", "policy river.bandit.UCB: reward_obj must be a class such as"),
        ("river.bandit.UCB:delta=1@ucb", "policy river.bandit.UCB is not a wrapper"),
    ],
)
def test_wishes_that_cannot_be_met(name, message):
    with pytest.raises(EexError) as caught:
        make_policy(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["river.bandit.BayesUCB", "river.bandit.ThompsonSampling", "river.bandit.Exp3:gamma=0.2"]
)
def test_what_wants_successes_learns_the_best_arm_too(name):
    rng = np.random.default_rng(0)
    edge = rng.uniform(0.2, 1.0, 3000)
    confidence = np.column_stack([edge, np.minimum(1.0, edge + 0.3)])  # the cloud adds less than it costs
    nothing = np.zeros((3000, 2), dtype=np.int64)
    trace = Trace(confidence, nothing, nothing[:, 0], ("a",))
    played = replay(make_policy(name + ":grid=0,1", runs=3), trace, 0.8, order="in-order")
    assert played.offloaded[:, 1500:].mean() < 0.25


def test_exp3_weights_do_not_overflow():
    policy = make_policy("river.bandit.Exp3:gamma=0.9:grid=0.2,0.8")
    told = MadeUpStream(1).outcomes(policy.choose(Context(frames=1)), 0)
    told.probability[:], told.reward[:], told.overhead[:] = 0.05, 0.9, 0.1
    for _ in range(2000):
        policy.learn(told)
    assert np.isfinite(list(policy._learners[0]._weights.values())).all()
    policy.choose(Context(frames=3, first=1))


def test_a_gaussian_that_could_never_try_an_arm_is_refused():
    with pytest.raises(EexError, match="add burn_in=2"):
        make_policy("river.bandit.ThompsonSampling:reward_obj=proba.Gaussian")


def test_a_policy_of_ones_own_in_rivers_manner(tmp_path, monkeypatch):
    (tmp_path / "mine_river.py").write_text(
        "from river.bandit import EpsilonGreedy\n\n\nclass Mine(EpsilonGreedy):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    chosen = make_policy("mine_river:Mine:epsilon=0.5:grid=0.5,0.9", exits=2).choose(Context(frames=40))
    assert set(chosen.exit_at[..., :2].ravel()) == {0.5, 0.9}
