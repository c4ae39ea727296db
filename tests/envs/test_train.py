"""Training: the export of every algorithm plays what the algorithm would; stopping and going on; refusals."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from eex.envs.checkpoint import read_checkpoint, save_checkpoint
from eex.envs.export import exported
from eex.envs.playlist import reordered
from eex.envs.sb3 import ThresholdVecEnv
from eex.envs.train import ALGORITHMS, TrainRLConfig, algorithm_class, train_rl
from eex.envs.vector import ThresholdVectorEnv
from eex.policies.algorithms.agent import load_agent, save_agent
from eex.policies.algorithms.rl import RL
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in
from eex.policies.core.link import parse_link
from eex.policies.core.replay import replay
from eex.policies.core.trace import write_trace
from eex.policies.registry import make_policy

pytestmark = pytest.mark.timeout(300)

CASES = [
    (name, action) for name, (_, _, actions) in ALGORITHMS.items() for action in actions if name != "recurrent-ppo"
]
needs_contrib = pytest.mark.skipif(importlib.util.find_spec("sb3_contrib") is None, reason="sb3-contrib is optional")


@pytest.fixture
def config(make_trace, tmp_path):
    write_trace(tmp_path / "trace.arrow", make_trace(frames=600))
    return TrainRLConfig(
        trace=tmp_path / "trace.arrow",
        out=tmp_path / "agent",
        steps=256,
        envs=8,
        rounds=50,
        switch=(5, 30),
        layers=(6, 5),
        setting=("n_steps=8", "batch_size=64"),
        evaluate_every=128,
        evaluate_rounds=60,
        evaluate_seeds=1,
        threads=1,
    )


@pytest.mark.parametrize(("algorithm", "action"), CASES)
def test_export_plays_what_was_trained(make_trace, config, algorithm, action):
    config = dataclasses.replace(config, algorithm=algorithm, action=action, activation="relu")
    env = ThresholdVecEnv(make_trace(), 4, action=action, grid=config.grid, rounds=50)
    options = {"policy_kwargs": {"net_arch": [6, 5]}}
    if algorithm in ("ppo", "a2c"):
        import torch

        options["policy_kwargs"]["activation_fn"] = torch.nn.ReLU
    model = algorithm_class(algorithm, action)("MlpPolicy", env, device="cpu", seed=0, **options)
    agent = exported(model, "test", {})
    x = np.random.default_rng(0).uniform(size=(50, len(agent.card.observation))).astype(np.float32)
    said = model.predict(x, deterministic=True)[0]
    if action == "grid":
        np.testing.assert_array_equal(agent(x).argmax(axis=1), said)
    else:
        np.testing.assert_allclose(np.clip(agent(x), 0, 1), (1 + said) / 2, atol=1e-5)


def untrained(env, config):
    policy = {"net_arch": list(config.layers), "lstm_hidden_size": config.lstm}
    maker = algorithm_class("recurrent-ppo", config.action)
    return maker("MlpLstmPolicy", env, device="cpu", seed=3, policy_kwargs=policy)


@needs_contrib
@pytest.mark.parametrize("action", ["grid", "box"])
def test_recurrent_export_plays_what_was_trained_over_episodes(make_trace, config, action):
    config = dataclasses.replace(config, algorithm="recurrent-ppo", action=action, lstm=7)
    env = ThresholdVecEnv(
        make_trace(), 4, action=action, grid=config.grid, rounds=50, order="switching", switch=(5, 30)
    )
    model = untrained(env, config)
    agent = exported(model, "test", {})
    x, theirs, over = env.reset(), None, np.ones(4, dtype=bool)
    memory, played = np.zeros((4, 2, 7)), []
    for _ in range(120):  # the end of two episodes on the way
        action_of, theirs = model.predict(x, theirs, over, deterministic=True)
        memory[over] = 0.0
        said, memory = agent.remember(x[:, None].astype(float), memory)
        if action == "grid":
            np.testing.assert_array_equal(said[:, 0].argmax(axis=1), action_of)
        else:
            np.testing.assert_allclose(np.clip(said[:, 0], 0, 1), (1 + action_of) / 2, atol=1e-5)
        played.append(said[0, 0])
        x, _, over, _ = env.step(action_of)
    assert np.ptp(played, axis=0).max() > 1e-4


@needs_contrib
@pytest.mark.parametrize("link", [None, "2:20, 9:20"])
def test_recurrent_agent_in_replay_is_the_one_in_the_environment(make_trace, config, tmp_path, link):
    """The same decisions over a whole episode: the same features, one decision a window, the same memory."""
    config = dataclasses.replace(config, algorithm="recurrent-ppo", action="grid", lstm=7)
    trace = make_trace()
    options = {"grid": config.grid, "window": config.window, "overhead": 0.1, "link": link}
    env = ThresholdVecEnv(trace, 1, order="in-order", **options)
    model = untrained(env, config)
    model.policy.action_net.weight.data *= 100  # so that it changes its mind
    save_agent(exported(model, "test", {}), tmp_path)
    arms, x, theirs, over = [], env.reset(), None, np.ones(1, dtype=bool)
    for _ in range(len(trace) // config.window):
        arm, theirs = model.predict(x, theirs, over, deterministic=True)
        arms.append(int(arm[0]))
        x, _, over, _ = env.step(arm)
    assert len(set(arms)) > 1
    policy = RL(str(tmp_path), exits=3)
    done = replay(policy, trace, 0.1, order="in-order", link=None if link is None else parse_link(link))
    np.testing.assert_array_equal(done.arm[0], np.repeat(arms, config.window))


def test_recurrent_training_without_sb3_contrib(config, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sb3_contrib" else find(name))
    with pytest.raises(EexError, match=r"^sb3_contrib is not installed; pip install 'eex\[rl\]'$"):
        train_rl(dataclasses.replace(config, algorithm="recurrent-ppo"))


@pytest.mark.parametrize(
    ("algorithm", "action"),
    [
        ("ppo", "grid"),
        ("ppo", "box"),
        ("dqn", "grid"),
        ("td3", "box"),
        pytest.param("recurrent-ppo", "grid", marks=needs_contrib),
        pytest.param("recurrent-ppo", "box", marks=needs_contrib),
    ],
)
def test_a_small_training(config, algorithm, action):
    setting = (
        ("learning_starts=64", "batch_size=16", "buffer_size=1000") if algorithm in ("dqn", "td3") else config.setting
    )
    config = dataclasses.replace(config, algorithm=algorithm, action=action, setting=setting)
    best = train_rl(config)
    card = load_agent(config.out).card
    assert (card.algorithm, card.action, card.exits) == (algorithm, action, 3)
    assert card.evaluated["per_1000_frames"] == best
    assert card.trained["trained_steps"] == best["steps"] in (128, 256)
    assert set(best) == {"steps", "reward", "regret", "ucb", "gain-curve"}
    recurrent = algorithm == "recurrent-ppo"
    assert (card.lstm, card.window) == ((64, 4) if recurrent else (0, 1))
    assert ("lstm" in card.trained) == recurrent


def test_trainings_of_neighbouring_seeds_play_other_episodes(config, monkeypatch):
    seeds, reset = [], ThresholdVectorEnv.reset

    def seen(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ThresholdVectorEnv, "reset", seen)
    for k in range(2):
        train_rl(dataclasses.replace(config, seed=k, out=config.out / str(k)))
    first, second = (seed for seed in seeds if seed is not None)
    assert second - first > 10**9


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("recurrent-ppo", marks=needs_contrib)])
def test_stopped_training_goes_on(config, monkeypatch, algorithm):
    from eex.envs import train

    config = dataclasses.replace(config, algorithm=algorithm)
    calls = []
    score_of = train._score

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # two rivals, the first evaluation, then this
            raise KeyboardInterrupt
        return score_of(*arguments)

    monkeypatch.setattr(train, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_rl(config)
    assert read_checkpoint(config.out / "training" / "checkpoint.safetensors").counters["num_timesteps"] == 128
    monkeypatch.setattr("cloudpickle.loads", lambda *_: pytest.fail("something was unpickled"))
    steps = []
    train_rl(config, lambda done, text: steps.append(done))
    assert steps[0] > 128
    assert steps[-1] == 256
    again = []
    best = train_rl(config, lambda done, text: again.append(done))  # finished: nothing is left to do
    assert again == []
    assert best == load_agent(config.out).card.evaluated["per_1000_frames"]
    with pytest.raises(EexError, match="holds another training"):
        train_rl(dataclasses.replace(config, lr=0.5))


@pytest.mark.parametrize(
    ("steps", "parts"), [(20, [20 / 20]), (64, [1]), (160, [160 / 160, 96 / 160, 32 / 160]), (128, [1, 0.5])]
)
def test_the_learning_rate_falls_to_nothing_and_not_beyond(config, monkeypatch, steps, parts):
    """Of rollouts of 64 steps, of which the last may go beyond what was asked for."""
    from stable_baselines3 import PPO

    rates, train = [], PPO.train

    def noted(self):
        train(self)
        rates.append(self.policy.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(PPO, "train", noted)
    train_rl(dataclasses.replace(config, steps=steps, lr=0.01))
    assert rates == pytest.approx([0.01 * part for part in parts])


@pytest.mark.parametrize(("algorithm", "action"), [*CASES, pytest.param("recurrent-ppo", "box", marks=needs_contrib)])
def test_a_checkpoint_puts_a_new_model_where_the_old_one_stood(make_trace, tmp_path, algorithm, action):
    import torch

    env = ThresholdVecEnv(make_trace(), 4, action=action, rounds=50)
    few = {"learning_starts": 16, "batch_size": 8, "buffer_size": 100}
    settings = few if algorithm in ("dqn", "sac", "td3") else {"n_steps": 8}
    if "ppo" in algorithm:
        settings |= {"batch_size": 16}
    policy = "MlpLstmPolicy" if algorithm == "recurrent-ppo" else "MlpPolicy"
    old, new = (algorithm_class(algorithm, action)(policy, env, seed=s, device="cpu", **settings) for s in (0, 1))
    old.learn(64)
    save_checkpoint(tmp_path / "it.safetensors", old, "settings", None)
    read_checkpoint(tmp_path / "it.safetensors").restore(new)
    assert (new.num_timesteps, new._n_updates) == (64, old._n_updates)
    assert new._n_updates > 0
    for (name, theirs), ours in zip(old.get_parameters().items(), new.get_parameters().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)
    for name in old._get_torch_save_params()[1]:
        torch.testing.assert_close(getattr(new, name), getattr(old, name), rtol=0, atol=0)
    x = env.reset()
    np.testing.assert_array_equal(new.predict(x, deterministic=True)[0], old.predict(x, deterministic=True)[0])


def test_a_checkpoint_of_anything_else_is_refused(config, make_trace):
    path = config.out / "training" / "checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    for content in (b"", b"PK\x03\x04", b"\x80\x04cos\nsystem\n."):
        path.write_bytes(content)
        with pytest.raises(EexError, match=rf"^{path}: not a checkpoint of this training; delete {path.parent} to "):
            train_rl(config)
    env = ThresholdVecEnv(make_trace(), 4, rounds=50)
    model = algorithm_class("ppo", "box")("MlpPolicy", env, device="cpu", policy_kwargs={"net_arch": [3]})
    save_checkpoint(path, model, "settings", None)
    with pytest.raises(EexError, match=rf"^{path.parent} holds another training"):
        train_rl(config)
    path.rename(path.with_name("last.zip"))
    with pytest.raises(EexError, match=rf"^{path.parent} holds a training of an earlier eex; delete it, or name "):
        train_rl(config)
    path.with_name("last.zip").rename(path)
    other = algorithm_class("a2c", "box")("MlpPolicy", env, device="cpu")
    with pytest.raises(EexError, match=rf"^{path}: not a checkpoint of this training"):
        read_checkpoint(path).restore(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "pppo"}, r"unknown algorithm 'pppo' \(did you mean 'ppo'\?\); expected one of ppo, a2c, dqn, "),
        ({"algorithm": "dqn"}, r"dqn chooses actions of the kind grid, not box \(--action\)"),
        ({"setting": ("speed=9",)}, "ppo does not take these settings: .*speed"),
        ({"setting": ("speed",)}, "written name=value"),
        ({"rounds": 10_000, "order": "in-order"}, "a trace too short for the episode: expected 10000 .*, found 480"),
        ({"layers": ()}, "--layers must be"),
        ({"threads": 100_000}, r"--threads must lie in \[0, 1024\], got 100000"),
        ({"seed": 2**32}, "--seed must be at most 4294967295, got 4294967296"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"link": "fast"}, "link 'fast'"),
        ({"lstm": 0}, "--lstm must be at least 1, got 0"),
        pytest.param(
            {"algorithm": "recurrent-ppo", "setting": ('policy_kwargs={"n_lstm_layers": 2}',)},
            "recurrent-ppo does not take these settings: .*policy_kwargs",
            marks=needs_contrib,
        ),
    ],
)
def test_wishes_that_cannot_be_met(config, changes, message):
    with pytest.raises(EexError, match=message):
        train_rl(dataclasses.replace(config, **changes))


def test_an_agent_for_the_utility_is_evaluated_by_it(make_trace, tmp_path):
    from eex.envs import train

    config = TrainRLConfig(
        trace=tmp_path, out=tmp_path, reward="utility", link="", evaluate_rounds=200, evaluate_seeds=1
    )
    config = dataclasses.replace(config, switch=(20, 50), evaluate_overheads=(0.1,))
    trace = make_trace()
    by_reward = train._score(dataclasses.replace(config, reward="adaee"), "ucb", trace)[0]
    assert train._score(config, "ucb", trace)[0] > by_reward + 100
    assert set(train.RIVALS["utility"]) == {"ucb", "stop-curve"}


def test_an_agent_for_accuracy_is_evaluated_by_it(make_trace, tmp_path):
    from eex.envs import train

    config = TrainRLConfig(trace=tmp_path, out=tmp_path, reward="accuracy", link="", evaluate_rounds=200)
    config = dataclasses.replace(config, switch=(20, 50), evaluate_overheads=(0.0,), evaluate_seeds=1)
    trace = make_trace()
    frames = reordered(trace, 200, (20, 50), 0)
    done = replay(make_policy("ucb", exits=frames.edge_exits), frames, 0.0, order="in-order")
    assert train._score(config, "ucb", trace)[0] == pytest.approx(1000 * (done.answer[0] == frames.label).mean())


def test_a_folder_has_one_training_at_a_time(config):
    with alone_in(config.out / "training"), pytest.raises(EexError, match="another process is writing there"):
        train_rl(config)


def test_a_finished_training_knows_its_traces_and_its_agent(config, make_trace):
    best = train_rl(config)
    assert train_rl(config) == best
    write_trace(config.trace, make_trace(frames=600, seed=1))
    with pytest.raises(EexError, match="training holds another training"):
        train_rl(config)
    write_trace(config.trace, make_trace(frames=600))
    (config.out / "card.json").unlink()
    with pytest.raises(EexError, match=r"agent: the best agent of this training is gone; delete .*training to train"):
        train_rl(config)
