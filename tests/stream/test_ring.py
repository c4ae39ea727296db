"""Frames enter in order, finish in any, and leave in order, in constant memory."""

import numpy as np
import pytest

from eex.policies.core.columns import COLUMNS, blank
from eex.stream.ring import Ring


def test_a_row_that_enters_holds_defaults_whatever_was_there_before():
    ring = Ring(capacity=4, exits=3, kinds=2)
    for turn in range(5):
        _, slots = ring.enter(3)
        fresh = blank(3, exits=3)
        for column in COLUMNS:
            got = getattr(ring.rows, column.name)[slots]
            assert got.shape == getattr(fresh, column.name).shape
            np.testing.assert_array_equal(got, getattr(fresh, column.name), err_msg=f"{column.name}, turn {turn}")
            getattr(ring.rows, column.name)[slots] = "x" if column.kind == "text" else 7
        ring.finish(np.arange(3 * turn, 3 * turn + 3) % 4)
        assert sum(len(rows) for rows in ring.take()) == 3


def test_frames_leave_in_order_once_they_are_complete():
    ring = Ring(capacity=5, exits=2, kinds=2, first=100)
    number, slots = ring.enter(4)
    assert number.tolist() == [100, 101, 102, 103]
    ring.rows.frame[slots] = number
    ring.finish(number[[1, 3]] % 5)
    assert ring.ready == 0
    assert list(ring.take()) == []
    ring.finish(number[[0]] % 5)
    assert [rows.frame.tolist() for rows in ring.take()] == [[100, 101]]
    assert not ring.has_room(4)
    more, slots = ring.enter(3)  # around the end of the table
    ring.rows.frame[slots] = more
    ring.finish(np.append(number[2:3], more) % 5)
    frames = [frame for rows in ring.take() for frame in rows.frame.tolist()]
    assert frames == [102, 103, 104, 105, 106]
    assert ring.ready == 0
    assert ring.has_room(5)


def test_what_was_taken_does_not_change_any_more():
    ring = Ring(capacity=2, exits=2, kinds=2)
    _, slots = ring.enter(2)
    ring.rows.confidence[slots] = 0.5
    ring.finish(np.arange(2))
    (rows,) = ring.take()
    ring.enter(2)
    assert (rows.confidence == 0.5).all()
    with pytest.raises(AttributeError):
        rows.frame = np.zeros(2)
