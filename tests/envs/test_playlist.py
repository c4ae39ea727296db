"""Frames of a trace in another order."""

import numpy as np

from eex.envs.playlist import reordered


def test_reordered_trace_switches_as_it_should(make_trace):
    switching = reordered(make_trace(), 5000, (40, 90), seed=3)
    length = np.bincount(switching.segments)[:-1]
    assert length.min() >= 40
    assert length.max() <= 90
    assert abs(length.mean() - 65) < 5
    assert set(switching.distortion) == {"pristine", "gaussian_blur", "gaussian_noise"}
    again = reordered(make_trace(), 5000, (40, 90), seed=3)
    np.testing.assert_array_equal(switching.confidence, again.confidence)
