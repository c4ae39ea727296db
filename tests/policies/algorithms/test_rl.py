"""The policy that plays a trained agent: what it computes, and files that cannot be."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest

from eex.policies.algorithms.agent import (
    CARD,
    FORMAT,
    RECURRENT,
    WEIGHTS,
    Agent,
    AgentCard,
    load_agent,
    observation_names,
    save_agent,
)
from eex.policies.algorithms.rl import RL
from eex.policies.checks import CLAUSES, MadeUpStream, check_policy
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_agent(exits=2, action="grid", hidden=(7, 5), seed=0, lstm=0, **card):
    rng = np.random.default_rng(seed)
    names = observation_names(exits, action)
    layers = (lstm or len(names), *hidden, len(GRID) if action == "grid" else exits)
    made = AgentCard(
        format=RECURRENT if lstm else FORMAT,
        name="test",
        algorithm="none",
        exits=exits,
        observation=names,
        normalisation=(0.0, 1.0),
        experts=4,
        rate=0.05,
        action=action,
        grid=GRID if action == "grid" else (),
        layers=layers,
        activation="tanh",
        lstm=lstm,
    )
    pairs = [(rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(layers)]
    gates = rng.normal(size=(4 * lstm, len(names) + lstm)), rng.normal(size=4 * lstm)
    return Agent(dataclasses.replace(made, **card), tuple(pairs), gates if lstm else None)


@pytest.fixture
def folder(tmp_path):
    save_agent(make_agent(), tmp_path / "agent")
    return tmp_path / "agent"


@pytest.mark.parametrize("action", ["grid", "box"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_network_against_torch(tmp_path, action, activation):
    import torch

    agent = make_agent(action=action, activation=activation, normalisation=(0.5, 2.0), squashed=action == "box")
    save_agent(agent, tmp_path)
    loaded = load_agent(tmp_path)
    x = np.random.default_rng(1).uniform(size=(4, 9, agent.card.layers[0]))
    y = (torch.tensor(x) - 0.5) / 2
    for k, (matrix, bias) in enumerate(agent.layers):
        y = {"tanh": torch.tanh, "relu": torch.relu}[activation](y) if k else y
        y = torch.nn.functional.linear(y, torch.tensor(matrix), torch.tensor(bias))
    y = (1 + torch.tanh(y)) / 2 if action == "box" else y
    np.testing.assert_allclose(loaded(x), y.numpy(), rtol=1e-5, atol=1e-5)


def test_plays_the_best_arm_of_its_grid(folder):
    world, policy = MadeUpStream(2, runs=3), RL(str(folder), exits=2, runs=3)
    chosen = policy.choose(world.context(0, 5))
    x = np.concatenate([policy.features.vector(world.context(0, 5)), np.zeros((3, 5, 1))], axis=2)
    np.testing.assert_array_equal(chosen.arm, policy.agent(x).argmax(axis=2))
    np.testing.assert_array_equal(chosen.exit_at, np.repeat(np.array(GRID)[chosen.arm][..., None], 3, axis=2))


def test_plays_a_threshold_for_each_exit(tmp_path):
    save_agent(make_agent(action="box"), tmp_path)
    world, policy = MadeUpStream(2), RL(str(tmp_path), exits=2)
    chosen = policy.choose(world.context(0, 5))
    x = np.concatenate([policy.features.vector(world.context(0, 5)), np.zeros((1, 5, 2))], axis=2)
    np.testing.assert_allclose(chosen.exit_at[..., :2], np.clip(policy.agent(x), 0, 1), atol=1e-4)
    np.testing.assert_array_equal(chosen.exit_at[..., 2], chosen.exit_at[..., 1])
    assert not chosen.arm.any()


@pytest.mark.parametrize("action", ["grid", "box"])
def test_batches_are_single_frames(tmp_path, action):
    save_agent(make_agent(action=action), tmp_path)
    world = MadeUpStream(2, runs=2)
    whole, single = (RL(str(tmp_path), exits=2, runs=2) for _ in range(2))
    for first in (0, 100, 200):
        chosen = whole.choose(world.context(first, 100))
        one = [single.choose(world.context(first + k, 1)).exit_at for k in range(100)]
        np.testing.assert_array_equal(chosen.exit_at, np.concatenate(one, axis=1))
        for policy in (whole, single):
            policy.learn(world.outcomes(chosen, first))


def test_previous_is_of_the_frame_last_heard_of(folder):
    world, policy = MadeUpStream(2, runs=2), RL(str(folder), exits=2, runs=2)
    chosen = policy.choose(world.context(0, 50))
    told = world.outcomes(chosen, 0)
    policy.learn(told[[3, 70, 20, 65]])
    np.testing.assert_array_equal(policy.previous[:, 0], [chosen.exit_at[0, 20, 0], chosen.exit_at[1, 15, 0]])
    assert set(policy.state_dict()) == {"previous", "features.recent"}


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_shipped_agents(exits):
    policy = make_policy("rl", exits=exits)
    assert policy.agent.card.exits == exits
    dear, cheap = (policy.choose(Context(overhead=o)).exit_at[0, 0, exits - 1] for o in (0.5, 0.02))
    assert dear < cheap  # the dearer the cloud, the more is answered on the edge


# ---- with an LSTM

RECURRENT_CASES = [("grid", 1), ("box", 1), ("grid", 4), ("box", 4)]
# their memory moves on with each choice, so a policy that chose differs from a fresh one: below
KEPT = [c for c in CLAUSES if c not in ("unsent frames teach nothing", "no exits or runs are refused")]


@pytest.fixture(params=RECURRENT_CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def recurrent(request, tmp_path):
    """Folder of an agent that remembers."""
    action, window = request.param
    made = make_agent(action=action, lstm=6, window=window, squashed=action == "box")
    save_agent(made, tmp_path / "recurrent")
    return tmp_path / "recurrent"


@pytest.mark.parametrize("clause", KEPT)
def test_agents_that_remember_keep_to_the_contract(recurrent, clause):
    check_policy(functools.partial(make_policy, f"rl:model={recurrent}"), [2], [clause])


def test_frames_that_could_not_be_sent_are_not_remembered(recurrent):
    world, policy = MadeUpStream(2), RL(str(recurrent), exits=2)
    told = world.outcomes(policy.choose(world.context(0, 200)), 0, sent=False)
    before = policy.state_dict()
    policy.learn(told[told.offloaded])
    for name, array in policy.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_run_begun_anew_begins_a_window(tmp_path):
    save_agent(make_agent(lstm=6, window=4), tmp_path)
    world = MadeUpStream(2, runs=2)
    both, fresh = (RL(str(tmp_path), exits=2, runs=2) for _ in range(2))
    both.choose(world.context(0, 3))
    state = both.state_dict()
    for name, array in fresh.state_dict().items():
        state[name][1] = array[1]  # as the wrapper drift@ does it
    both.load_state_dict(state)
    on, anew = RL(str(tmp_path), exits=2, runs=2), fresh.choose(world.context(3, 9))
    on.choose(world.context(0, 3))
    on = on.choose(world.context(3, 9))
    chosen = both.choose(world.context(3, 9))
    np.testing.assert_array_equal(chosen.exit_at[0], on.exit_at[0])
    np.testing.assert_array_equal(chosen.exit_at[1], anew.exit_at[1])


def test_decisions_hold_for_a_window(tmp_path):
    save_agent(make_agent(action="box", lstm=6, window=4, squashed=True), tmp_path / "4")
    save_agent(make_agent(action="box", lstm=6, window=1, squashed=True), tmp_path / "1")
    world = MadeUpStream(2)
    four, one = RL(str(tmp_path / "4"), exits=2), RL(str(tmp_path / "1"), exits=2)
    held = np.concatenate([four.choose(world.context(0, 6)).exit_at, four.choose(world.context(6, 26)).exit_at], axis=1)
    decided = [one.choose(world.context(first, 1)).exit_at for first in range(0, 32, 4)]
    np.testing.assert_array_equal(held, np.repeat(np.concatenate(decided, axis=1), 4, axis=1))
    assert len(np.unique(held[0, :, 0])) > 4


@pytest.mark.parametrize("action", ["grid", "box"])
def test_lstm_against_torch(tmp_path, action):
    import torch

    save_agent(make_agent(action=action, lstm=6, normalisation=(0.5, 2.0)), tmp_path)
    agent = load_agent(tmp_path)
    inputs = len(agent.card.observation)
    lstm = torch.nn.LSTM(inputs, 6, batch_first=True, dtype=torch.float64)
    matrix, bias = agent.lstm
    named = {"weight_ih_l0": matrix[:, :inputs], "weight_hh_l0": matrix[:, inputs:], "bias_ih_l0": bias}
    lstm.load_state_dict({k: torch.tensor(a) for k, a in (named | {"bias_hh_l0": 0 * bias}).items()})
    x = np.random.default_rng(1).uniform(size=(3, 40, inputs))
    with torch.no_grad():
        y, (hidden, cell) = lstm((torch.tensor(x) - 0.5) / 2)
    for k, (matrix, bias) in enumerate(agent.layers):
        y = torch.nn.functional.linear(torch.tanh(y) if k else y, torch.tensor(matrix), torch.tensor(bias))
    said, memory = agent.remember(x, np.zeros((3, 2, 6)))
    np.testing.assert_allclose(said, y.numpy(), atol=1e-12)
    np.testing.assert_allclose(memory, np.stack([hidden[0].numpy(), cell[0].numpy()], axis=1), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT}, f"format: expected {RECURRENT}, found {FORMAT}"),
        ({"lstm": 0}, f"format: expected {FORMAT}, found {RECURRENT}"),
        ({"lstm": -1}, "lstm out of range: expected 0…100000, found -1"),
        ({"window": 0}, "window out of range: expected 1…1000000, found 0"),
        ({"lstm": 7}, "inputs of the first layer: expected 7, found 6"),
        ({"lstm": 7, "layers": [7, 7, 5, 5]}, "does not fit its card: expected tensors .*lstm.matrix"),
    ],
)
def test_cards_with_an_lstm_that_cannot_be(tmp_path, changes, message):
    save_agent(make_agent(lstm=6, window=4), tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(EexError, match=message):
        load_agent(tmp_path)


def test_cards_from_before_there_were_lstms(folder):
    card = json.loads((folder / CARD).read_text())
    assert (card.pop("lstm"), card.pop("window"), card["format"]) == (0, 1, "eex-agent-1")
    (folder / CARD).write_text(json.dumps(card))
    assert load_agent(folder).lstm is None


def test_another_number_of_exits(folder):
    with pytest.raises(EexError, match=r"agent: the agent was trained for 2 edge exits, found 3$"):
        make_policy(f"rl:model={folder}", exits=3)
    with pytest.raises(EexError, match=r"agents are shipped for 1, 2, 3 edge exits, found 7; train one"):
        make_policy("rl", exits=7)


def edited(folder, **changes):
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "eex-agent-9"}, "format: expected eex-agent-1, found eex-agent-9"),
        ({"exits": 3}, "observation of an agent for 3 edge exits: expected distortion_1, .*, found distortion_1"),
        ({"exits": 0}, "out of range"),
        ({"observation": ["weather"]}, "observation of an agent for 2 edge exits: expected .*, found weather"),
        ({"grid": [0.1, 0.2]}, "outputs of the last layer, action grid: expected 2, found 5"),
        ({"grid": [0.1, 1.2]}, r"grid: expected thresholds in \[0, 1\]"),
        ({"grid": []}, "grid: expected thresholds"),
        ({"layers": [13, 7, 6, 5]}, "expected .*, found"),
        ({"layers": [5]}, "layers: expected inputs, hidden ones and outputs"),
        ({"activation": "softmax"}, "activation: expected tanh or relu, found softmax"),
        ({"normalisation": [0.0, 0.0]}, "normalisation: expected"),
        ({"sha256": "0" * 64}, "does not match its card: expected SHA-256 000000000000…, found"),
        ({"action": "dance"}, "not an agent's card: Invalid enum value 'dance'"),
        ({"rate": "fast"}, "not an agent's card: Expected `float`, got `str`"),
        ({"exits": 10**9}, "exits out of range: expected 1…1000"),
        ({"exits": 10**30}, "not an agent's card|exits out of range"),
        ({"experts": 10**9}, "experts out of range: expected 1…1000"),
        ({"window": 10**18}, "window out of range"),
        ({"lstm": 10**9, "format": RECURRENT}, "lstm out of range"),
        ({"layers": [10**9, 10**9]}, "inputs of the first layer"),
        ({"rate": 0.0}, "rate out of range"),
        ({"name": "a\0b"}, "not an agent's card: the text 'a.x00b' holds a NUL"),
        ({"trained": {"x": functools.reduce(lambda inner, _: [inner], range(500), [])}}, "nested deeper than"),
    ],
)
def test_cards_that_cannot_be(folder, changes, message):
    edited(folder, **changes)
    with pytest.raises(EexError, match=message) as caught:
        make_policy(f"rl:model={folder}", exits=2)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be(folder, tmp_path):
    with pytest.raises(EexError, match="No such file or directory; expected an agent's folder"):
        RL(str(tmp_path / "nowhere"))
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EexError, match="does not match its card"):
        load_agent(folder)
    (folder / CARD).write_text('{"format": ')
    with pytest.raises(EexError, match="not an agent's card"):
        load_agent(folder)


def _of_header(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(0 if "0]}" in text.decode()[-6:] else 4)


def test_weights_that_are_not_of_the_card(folder, monkeypatch):
    import hashlib

    from safetensors.numpy import save

    for weights, message in (
        (b"PK\x03\x04 a pickle in a zip", "not a safetensors file"),
        (b"\xff" * 8 + b"{}", "not a safetensors file"),
        (_of_header({"a": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}}), "not a safetensors file"),
        (_of_header({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}), "tensors of the type 'BF16'"),
        (_of_header({"a": {"dtype": "F32", "shape": [1] * 80, "data_offsets": [0, 4]}}), "not a safetensors file"),
        (save({"0.matrix": np.zeros((2, 2), np.float32)}), "does not fit its card: expected tensors"),
    ):
        (folder / WEIGHTS).write_bytes(weights)
        edited(folder, sha256=hashlib.sha256(weights).hexdigest())
        with pytest.raises(EexError, match=message):
            load_agent(folder)
    bad = make_agent()
    bad.layers[0][1][0] = np.nan
    save_agent(bad, folder)
    with pytest.raises(EexError, match="expected finite weights"):
        load_agent(folder)
