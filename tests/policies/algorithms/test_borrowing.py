"""What a learner borrows from others: all of it while nothing speaks against it, little of what does not fit."""

import numpy as np
import pytest

from eex.policies.algorithms.borrowing import MOST_LENT, lender, with_borrowed
from eex.policies.algorithms.curves import BINS
from eex.policies.core.fleet import Layout, frames_of

LAYOUT = Layout(exits=1)


def sums(frames, gain, seed=0):
    """Frames of all confidences, all of which are offloaded and gain about as much."""
    rng = np.random.default_rng(seed)
    flat = np.zeros((1, LAYOUT.size))
    of = LAYOUT.views(flat)
    of["seen"][:] = of["offloads"][:] = frames / BINS
    gains = np.clip(rng.normal(gain, 0.3, (int(frames), BINS)), 0, 1) / BINS if frames else np.zeros((1, BINS))
    of["gains"][:], of["squares"][:] = gains.sum(axis=0), (BINS * gains**2).sum()
    return flat


def borrowed(own, lent, unit=1.0):
    found = with_borrowed(LAYOUT.views(own * unit), lender(LAYOUT, lent), np.full((1, 1), unit), np.arange(1))
    return LAYOUT.flat(found) / unit - own


@pytest.mark.parametrize("unit", [1.0, 1e30])
def test_who_knows_nothing_borrows_all_but_no_more_than_it_may(unit):
    assert frames_of(LAYOUT, borrowed(sums(0, 0.5), sums(300, 0.2), unit)) == pytest.approx(300)
    assert frames_of(LAYOUT, borrowed(sums(0, 0.5), sums(50_000, 0.2), unit)) == pytest.approx(MOST_LENT)


def test_who_sees_the_same_goes_on_borrowing_and_who_sees_something_else_does_not():
    own = sums(200, 0.3, seed=1)
    alike = borrowed(own, sums(20_000, 0.3))
    unlike = borrowed(own, sums(20_000, 0.6))
    assert LAYOUT.views(alike)["offloads"].sum() > 500
    assert LAYOUT.views(unlike)["offloads"].sum() < 20
