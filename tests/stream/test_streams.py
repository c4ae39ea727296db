"""Streams whose thresholds are frozen or set by hand."""

import numpy as np

from eex.policies.algorithms.ucb import UCB
from eex.policies.core.base import Thresholds
from eex.policies.core.price import parse_price
from eex.stream.streams import Streams


def chosen(count, exits=2):
    exit_at = np.arange(count * (exits + 1), dtype=float).reshape(count, exits + 1) / 100
    zeros = np.zeros((count, exits))
    return Thresholds(exit_at, zeros, np.arange(count), np.full(count, 0.5), np.ones(count, dtype=bool))


def made():
    streams = Streams(lambda runs: UCB([0.7, 0.8], exits=2, runs=runs), parse_price("0.1"))
    return streams, streams.add("door"), streams.add("yard")


def test_a_frozen_stream_keeps_what_its_next_frame_had():
    streams, door, yard = made()
    streams.frozen[door] = None
    given = chosen(3)
    played = streams.played(np.array([door, yard, door]), given)
    np.testing.assert_array_equal(played.exit_at[[0, 2]], given.exit_at[[2, 2]])
    np.testing.assert_array_equal(played.exit_at[1], given.exit_at[1])
    assert np.isnan(played.probability[[0, 2]]).all()
    assert played.audited.tolist() == [False, True, False]
    again = streams.played(np.array([door]), chosen(9))
    np.testing.assert_array_equal(again.exit_at[0], given.exit_at[2])


def test_who_comes_after_is_not_frozen():
    streams, door, _ = made()
    streams.frozen[door] = np.array([0.5, 0.5, 0.0]), np.zeros(2)
    streams.remove(door)
    assert streams.add("gate") == door
    assert not streams.frozen


def test_each_stream_pays_by_its_own_price_and_budget():
    streams, door, yard = made()
    streams.set_price(yard, parse_price("0.2+0.1/s+budget=1/s:2"))
    of = np.array([door, yard, yard, door, yard])
    scarcity, overhead = streams.arrive(of, 0.0, 100.0)
    assert overhead[[0, 3]].tolist() == [0.1, 0.1]
    assert (overhead[[1, 2, 4]] >= 0.2).all()
    assert streams.admits(of).tolist() == [True, True, True, True, False]  # the yard's budget lets two through
    [(rows, paid)] = streams.paid(of, scarcity, 500.0, 0.0)  # the door's price is known before
    assert rows.tolist() == [1, 2, 4]
    np.testing.assert_allclose(paid, 0.2 + 0.1 * 0.5 + scarcity[rows])


def test_frames_are_chosen_for_at_the_price_of_their_stream():
    streams, door, yard = made()
    streams.set_price(yard, parse_price("0.3"))
    columns = streams.choose(np.array([yard, door]), 0.0, link_ms=20.0, queue=3, reachable=True)
    assert columns["stream"].tolist() == ["yard", "door"]
    assert columns["overhead"].tolist() == [0.3, 0.1]
    assert columns["exit_at"].shape == (2, 3)
    assert (columns["queue"], columns["link_estimate_ms"]) == (3, 20.0)
    assert "frozen" not in columns
    streams.frozen[door] = None
    assert streams.choose(np.array([yard, door]), 0.0, link_ms=20.0)["frozen"].tolist() == [False, True]
