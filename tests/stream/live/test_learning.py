"""What was learned, from one session to the next."""

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy
from eex.stream.live import learning

MADE_FOR = {"policy": "ucb", "edge exits": 3, "network": "f00"}


@pytest.mark.parametrize("name", ["ucb", "gain-curve", "linucb", "fixed"])
def test_round_trip(tmp_path, name):
    policies = [make_policy(name, exits=3) for _ in range(3)]
    if name == "linucb":
        policies[1].awaited._grow()  # states may differ in size
    learned = {f"stream {k}": (10 * k, policy.state_dict()) for k, policy in enumerate(policies)}
    learning.write(tmp_path / "new" / "state.npz", MADE_FOR, learned)
    again = learning.read(tmp_path / "new" / "state.npz", MADE_FOR)
    assert list(again) == list(learned)
    for stream, (frames, state) in learned.items():
        assert again[stream][0] == frames
        assert again[stream][1].keys() == state.keys()
        for key, array in state.items():
            np.testing.assert_array_equal(again[stream][1][key], array)
        make_policy(name, exits=3).load_state_dict(again[stream][1])


def test_no_file_is_nothing_learned(tmp_path):
    assert learning.read(tmp_path / "state.npz", MADE_FOR) == {}


def test_what_differs_is_named(tmp_path):
    path = tmp_path / "state.npz"
    learning.write(path, MADE_FOR, {"": (3, make_policy("ucb", exits=3).state_dict())})
    with pytest.raises(EexError, match="edge exits: 3 there, 2 here"):
        learning.read(path, MADE_FOR | {"edge exits": 2})


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(EexError, match="not what a session has learned"):
        learning.read(path, MADE_FOR)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EexError, match="cannot be written"):
        learning.write(tmp_path / "file" / "state.npz", MADE_FOR, {})
