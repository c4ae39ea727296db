"""Sums that edges share: which are possible, and how much a member of a fleet counts for."""

import numpy as np
import pytest

from eex.policies.core.fleet import MOST_FRAMES, Layout, capped, frames_of, moderated

LAYOUT = Layout(exits=2)


def sums(frames=100.0, sent=0.25, gain=0.5, at=20):
    """Frames of one confidence, a half of which go on; of these, some are offloaded and gain."""
    flat = np.zeros(LAYOUT.size)
    of = LAYOUT.views(flat)
    of["seen"][0, at] = frames
    of["moves"][0, at // 2, at // 2] = of["seen"][1, at] = frames / 2
    of["offloads"][1, at] = sent * frames
    of["gains"][1, at] = gain * sent * frames
    of["squares"][1] = gain**2 * sent * frames
    return flat


def changed(name, place, value):
    flat = sums()
    LAYOUT.views(flat)[name][place] = value
    return flat


def test_flat_and_views_are_inverses():
    flat = np.random.default_rng(0).random((3, LAYOUT.size))
    np.testing.assert_array_equal(LAYOUT.flat(LAYOUT.views(flat)), flat)


@pytest.mark.parametrize("flat", [np.zeros(LAYOUT.size), sums(), sums().astype(np.float32), sums(1e6)])
def test_what_a_stream_can_have_is_possible(flat):
    assert LAYOUT.problem(flat) == ""


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        (np.zeros(7), "there must be 927 numbers, got 7"),
        (changed("seen", (0, 3), np.nan), "not finite"),
        (changed("seen", (0, 3), np.inf), "not finite"),
        (changed("gains", (1, 20), -1.0), "negative"),
        (changed("seen", (0, 3), 1e300), "larger than can be counted"),
        (changed("gains", (1, 20), 26.0), "more than there was to gain"),
        (changed("squares", 1, 13.0), "squares of the gains"),
        (changed("offloads", (1, 21), 30.0), "more frames went on"),
        (changed("moves", (0, 3, 3), 30.0), "more frames went on"),
        (changed("seen", (1, 21), 30.0), "not those that went on to it"),
    ],
)
def test_what_no_stream_can_have_is_named(flat, says):
    assert says in LAYOUT.problem(flat)


def test_who_says_to_have_seen_much_counts_for_no_more_than_others():
    given = np.stack([sums(100.0), sums(1e9)])
    np.testing.assert_allclose(frames_of(LAYOUT, capped(LAYOUT, given)), [100.0, MOST_FRAMES])
    np.testing.assert_allclose(moderated(LAYOUT, given), capped(LAYOUT, given))


def test_who_says_much_of_what_others_have_hardly_seen_says_it_of_few_frames():
    honest = np.stack([sums(4000.0, at=20)] * 19)
    liar = sums(4000.0, sent=0.5, gain=1.0, at=44)
    pooled = moderated(LAYOUT, np.vstack([honest, liar]))
    np.testing.assert_allclose(pooled[:19], honest)
    of = LAYOUT.views(pooled[19])
    assert of["offloads"].sum() <= 1.0
    assert of["moves"].sum() <= 1.0
    assert of["squares"][1] <= of["gains"].sum() + 1e-9
    assert LAYOUT.problem(pooled.sum(axis=0), moderated=True) == ""
