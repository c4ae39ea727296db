"""The simulated link: round trips over the frames, and its text."""

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.link import DOWN, FIRST_WINDOW, PRESETS, Piece, SimulatedLink, parse_link, transfer_ms

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
        ("12:1.5", "a length is a whole number of frames, or seconds as in 30s"),
        ("12:infs", "a length is a whole number of frames"),
        ("12@fast", "'12@fast' is neither MS:FRAMES, MS@MBIT:SECONDSs, down:FRAMES, one of sao-paulo"),
        ("12@0", "a link's rate must be more than 0 Mbit/s, got 0"),
        ("12@nan", "a link's rate must be more than 0 Mbit/s"),
        ("rio", "'rio' is neither"),
        ("12, bytes=-1", "a link's bytes must be at least 0"),
        ("12:3, speed=4", "'speed=4' is neither"),
        ("12:3, jitter=", "'jitter=' is neither"),
        ("12:3,", "'' is neither"),
        ("jitter=5", "a link needs round trips"),
        ("-1:5", "a link needs round trips of at least 0 ms"),
        ("nan:5", "a link needs round trips of at least 0 ms"),
        ("12:0", "for at least 1 frame"),
        ("12, jitter=-1", "a link's jitter_ms must be at least 0, and finite, got -1"),
        ("12, frame=0", "a link's frame_ms must be at least 0.001, and finite, got 0"),
        ("12, deadline=inf", "a link's deadline_ms must be at least 0.001, and finite, got inf"),
        ("12, deadline=nan", "a link's deadline_ms must be at least 0.001, and finite, got nan"),
    ],
)
def test_links_that_cannot_be(text, message):
    with pytest.raises(EexError) as caught:
        parse_link(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_text_for_replay_and_for_live_streams():
    link = parse_link("paris:2s, down:0.5s, 12.5@100:50, wifi, frame=20")
    assert link.pieces == ((213, 100, 42), (DOWN, 25, np.inf), (12.5, 50, 100), (5, 1, 18.8))
    assert [link.piece_at(t) for t in (0, 1.999, 2.0, 2.499, 2.5, 3.5, 3.52)] == [
        link.pieces[k] for k in (0, 0, 1, 1, 2, 3, 0)
    ]
    assert [link.up_at(t) for t in (0.0, 1.5, 2.0, 2.3, 2.5)] == [0.0, 1.5, 2.5, 2.5, 2.5]
    assert link.up_at(3.52 + 2.1) == pytest.approx(3.52 + 2.5)
    assert parse_link("down").up_at(3.0) == np.inf
    assert {name: parse_link(name).pieces[0] for name in PRESETS} == {
        "sao-paulo": Piece(12, 1, 93),
        "north-california": Piece(182, 1, 68),
        "paris": Piece(213, 1, 42),
        "wifi": Piece(5, 1, 18.8),
    }


def test_a_transfer_by_hand():
    assert transfer_ms(0, 100, 10) == 50
    assert transfer_ms(FIRST_WINDOW, 100, 8) == 50 + FIRST_WINDOW / 1000
    assert transfer_ms(FIRST_WINDOW + 1, 100, 8) == pytest.approx(100 + 50 + 1 / 1000)
    # windows of 1, 2, 4, … times the first, until they fill the link: 100 ms at 8 Mbit/s hold 100,000 bytes
    assert transfer_ms(7 * FIRST_WINDOW + 50_000, 100, 8) == pytest.approx(3 * 100 + 50 + 50)
    assert transfer_ms(10**7, 100, 8) == pytest.approx(3 * 100 + 50 + (10**7 - 7 * FIRST_WINDOW) / 1000)
    assert transfer_ms(10**6, 100, 8, window=1e9) == 50 + 1000
    assert transfer_ms(10**6, 0, np.inf) == 0


def test_replay_knows_what_a_frame_sends():
    link = parse_link("100@8, bytes=1000")
    assert steady(link, 0) == (101.0, False)
    assert steady(parse_link("100@8"), 0) == (100.0, False)
    assert steady(parse_link("100@8, bytes=1000, deadline=100.5"), 0) == (100.5, True)
    assert steady(parse_link("down, bytes=1000"), 0) == (1000.0, True)
