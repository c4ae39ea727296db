"""What was learned, from one session to the next."""

import json
import zipfile

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


ABOUT = {"format": 1, "made_for": MADE_FOR, "streams": ["a"]}
IMPOSSIBLE = {
    "nested": ("[" * 100_000 + "]" * 100_000, [1], None),
    "no names": (ABOUT | {"streams": [["a"]]}, [1], None),
    "a text of names": (ABOUT | {"streams": "a"}, [1], None),
    "made for a list": (ABOUT | {"made_for": [1]}, [1], None),
    "a list": ([], [1], None),
    "frames that are none": (ABOUT, [np.nan], None),
    "frames below 0": (ABOUT, [-3], None),
    "frames of others": (ABOUT, [1, 2], None),
    "frames in columns": (ABOUT, [[1]], None),
    "no rows": (ABOUT, [1], 3.0),
    "too few rows": (ABOUT, [1], np.zeros((0, 3))),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_contents_are_one_line(tmp_path, case):
    about, frames, array = IMPOSSIBLE[case]
    arrays = {} if array is None else {"all.counts": array}
    text = about if isinstance(about, str) else json.dumps(about)
    np.savez(tmp_path / "state.npz", about=np.array(text), frames=np.array(frames), **arrays)
    with pytest.raises(EexError, match="not what a session has learned") as caught:
        learning.read(tmp_path / "state.npz", MADE_FOR)
    assert "\n" not in str(caught.value)


def test_an_array_that_announces_terabytes_is_refused_before_it_is_made(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (125000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "state.npz", "w") as archive:
        archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80))
    with pytest.raises(EexError, match="not what a session has learned: an array of shape"):
        learning.read(tmp_path / "state.npz", MADE_FOR)
