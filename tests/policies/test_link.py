"""The simulated link: round trips over the frames, and its text."""

import numpy as np
import pytest

from eex.policies.errors import EexError
from eex.policies.link import DOWN, SimulatedLink, parse_link

KEYS = np.arange(2000)


def steady(link, frame):
    took, lost = link.round_trip_ms(frame, np.array([0]), seed=0)
    return float(took[0]), bool(lost[0])


def test_pieces_follow_each_other_and_start_again():
    link = SimulatedLink(((12.0, 3), (DOWN, 2), (213.0, 1)), deadline_ms=500.0)
    cycle = [(12.0, False)] * 3 + [(500.0, True)] * 2 + [(213.0, False)]
    assert [steady(link, frame) for frame in range(12)] == cycle * 2
    assert steady(link, 6 * 10**12 + 5) == (213.0, False)


def test_jitter_is_spread_evenly_to_both_sides():
    took, lost = SimulatedLink(((50.0, 1),), jitter_ms=20.0).round_trip_ms(7, KEYS, seed=1)
    assert not lost.any()
    assert 30 <= took.min() < 31
    assert 69 < took.max() <= 70
    np.testing.assert_allclose(np.histogram(took, 4, (30, 70))[0], 500, atol=100)
    assert SimulatedLink(((5.0, 1),), jitter_ms=20.0).round_trip_ms(7, KEYS, seed=1)[0].min() == 0.0


def test_what_takes_longer_than_the_deadline_is_lost():
    link = SimulatedLink(((100.0, 1),), jitter_ms=50.0, deadline_ms=125.0)
    took, lost = link.round_trip_ms(0, KEYS, seed=2)
    np.testing.assert_allclose(lost.mean(), 0.25, atol=0.05)
    assert (took[lost] == 125).all()
    assert (took[~lost] <= 125).all()
    assert steady(SimulatedLink(((100.0, 1),), deadline_ms=100.0), 0) == (100.0, False)


def test_draws_are_keyed_by_run_frame_and_seed():
    link = SimulatedLink(((50.0, 1),), jitter_ms=20.0)
    took = link.round_trip_ms(3, KEYS, seed=0)[0]
    np.testing.assert_array_equal(link.round_trip_ms(3, KEYS[5:8], seed=0)[0], took[5:8])
    for other in (link.round_trip_ms(4, KEYS, seed=0), link.round_trip_ms(3, KEYS, seed=1)):
        assert (other[0] != took).all()


def test_parse():
    assert parse_link("12") == SimulatedLink(((12.0, 1),))
    assert parse_link(" 12.5:30 ,down : 4, jitter = 5,frame=20, deadline=300") == SimulatedLink(
        ((12.5, 30), (DOWN, 4)), jitter_ms=5.0, frame_ms=20.0, deadline_ms=300.0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "link 'fast': 'fast' is neither"),
        ("12:many", "'12:many' is neither"),
        ("12:3, speed=4", "'speed=4' is neither"),
        ("12:3, jitter=", "'jitter=' is neither"),
        ("12:3,", "'' is neither"),
        ("jitter=5", "a link needs round trips"),
        ("-1:5", "a link needs round trips of at least 0 ms"),
        ("nan:5", "a link needs round trips of at least 0 ms"),
        ("12:0", "for at least 1 frame"),
        ("12, jitter=-1", "a link's jitter_ms must be at least 0, got -1"),
        ("12, frame=0", "a link's frame_ms must be at least 0.001, got 0"),
        ("12, deadline=inf", "a link's deadline_ms must be at least 0.001, got inf"),
        ("12, deadline=nan", "a link's deadline_ms must be at least 0.001, got nan"),
    ],
)
def test_links_that_cannot_be(text, message):
    with pytest.raises(EexError) as caught:
        parse_link(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
