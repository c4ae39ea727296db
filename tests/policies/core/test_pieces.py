"""Columns that come in pieces: alike in memory and in files, which travel by name and are removed."""

import pickle

import numpy as np
import pytest

from eex.policies.core import pieces
from eex.policies.core.errors import EexError
from eex.policies.core.pieces import Mapped, Pieces

pytestmark = pytest.mark.timeout(60)


def whole(limit, monkeypatch, text="<U3"):
    monkeypatch.setattr(pieces, "MOST_IN_MEMORY", limit)
    rng = np.random.default_rng(0)
    found = Pieces()
    for rows in (5, 1, 7):
        number = rng.integers(9, size=rows)
        found.add({"number": number, "pair": rng.random((rows, 2)), "name": number.astype(text)})
    assert found.rows == 13
    return found.whole()


def test_the_same_in_memory_and_in_files(monkeypatch):
    here, there = whole(1 << 20, monkeypatch), whole(64, monkeypatch)
    assert here.keys() == there.keys()
    for name, column in here.items():
        assert not isinstance(column, Mapped)
        assert isinstance(there[name], Mapped)
        np.testing.assert_array_equal(column, there[name])
        assert column.dtype == there[name].dtype


def test_a_mapped_column_travels_by_name_and_its_rows_as_numbers(monkeypatch):
    column = whole(64, monkeypatch)["pair"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(column)), column)
    assert column[0].tobytes() not in pickle.dumps(column)
    some = pickle.loads(pickle.dumps(column[3:5]))
    np.testing.assert_array_equal(some, column[3:5])
    assert not isinstance(some, Mapped)
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 0.0


def test_a_column_whose_file_is_elsewhere(tmp_path):
    with pytest.raises(EexError, match="not found; a trace this large is played on the machine that reads it"):
        pieces.mapped(str(tmp_path / "gone"), "<f8", (3,))


def test_where_there_is_no_room(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(EexError, match=r"is too large for memory, and cannot be kept in .*: No space left on device"):
        whole(64, monkeypatch)
