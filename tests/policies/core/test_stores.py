"""Learners that are kept one by one or side by side: what is lent comes back to its rows."""

import numpy as np
import pytest

from eex.policies.core.stores import OneByOne, SideBySide
from eex.policies.registry import make_policy


def make(runs):
    return make_policy("gain-curve", runs=runs)


def learner(frames):
    policy = make(1)
    policy.known[:] = frames
    policy.keys = np.array([int(frames)])
    return policy


@pytest.fixture(params=["one by one", "side by side"])
def store(request):
    found = OneByOne() if request.param == "one by one" else SideBySide(make(1))
    found.grow(4, make)
    for row in range(4):
        found.put(row, learner(10.0 * row))
    return found


def test_a_row_is_what_was_put_there_and_stays_when_the_store_grows(store):
    store.grow(8, make)
    for row in range(4):
        assert store.state_of(row, make)["known"].tolist() == [10.0 * row]
        policy, run = store.place_of(row)
        assert (policy.known[run], policy.keys[run]) == (10.0 * row, 10 * row)


@pytest.mark.parametrize("rows", [[2], [0, 1], [0, 2, 3]])
def test_what_a_lent_policy_learns_comes_back_to_its_rows(store, rows):
    if len(rows) > store.most:
        rows = rows[:1]
    policy = store.lend(np.array(rows), make)
    assert policy.runs == len(rows)
    assert policy.known.tolist() == [10.0 * row for row in rows]
    assert policy.keys.tolist() == [10 * row for row in rows]
    policy.known += 1
    store.take_back(policy)
    expected = [10.0 * row + (row in rows) for row in range(4)]
    assert [store.state_of(row, make)["known"][0] for row in range(4)] == expected


def test_another_learner_takes_the_place_of_one_that_is_gone(store):
    store.drop(1)
    store.put(1, learner(7.0))
    assert store.state_of(1, make)["known"].tolist() == [7.0]


def test_a_policy_that_does_not_share_has_no_sums(store):
    assert store.sums(np.arange(4)) is None
