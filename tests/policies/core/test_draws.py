"""Keyed draws: alike whatever is asked for beside them, unlike in all else."""

import math

import numpy as np
import pytest
from scipy import stats

from eex.policies.core.draws import normal, uniform

RUNS, FRAMES = np.arange(40), np.arange(500)
MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def mixed(x):
    """SplitMix64's finaliser, in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_the_finaliser_is_splitmix64s():
    assert mixed(STEP) == 0xE220A8397B1DCDAF  # its first output from seed 0, as published


@pytest.mark.parametrize(
    ("seed", "run", "frame", "k", "purpose"), [(0, 0, 0, 0, 0), (7, 3, 12, 2, 1), (-5, 10**6, 10**12, 1, 2)]
)
def test_uniform_against_plain_integers(seed, run, frame, k, purpose):
    key = mixed((seed + (purpose + 1) * STEP) & MASK)
    key = mixed((key + run * STEP) & MASK)
    key = mixed((key + (frame + 1) * STEP) & MASK)
    key = mixed((key + k * STEP) & MASK)
    drawn = uniform(seed, np.array([run]), np.array([frame]), k + 1, purpose)[0, 0, k]
    assert drawn == ((key >> 11) + 0.5) / 2**53


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neither_batch_nor_number_changes_a_draw(draw):
    whole = draw(3, RUNS, FRAMES, 5)
    assert whole.shape == (40, 500, 5)
    np.testing.assert_array_equal(draw(3, RUNS[7:9], FRAMES[100:103], 5), whole[7:9, 100:103])
    np.testing.assert_array_equal(draw(3, RUNS[::-1], FRAMES, 2), whole[::-1, :, :2])
    own = np.stack([FRAMES, FRAMES + 1])  # each run its own frames
    np.testing.assert_array_equal(draw(3, RUNS[:2], own, 5)[1, :-1], whole[1, 1:])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seeds_purposes_runs_and_frames_differ(draw):
    whole = draw(0, RUNS, FRAMES, 2)
    assert len(np.unique(whole)) == whole.size
    for other in (draw(1, RUNS, FRAMES, 2), draw(0, RUNS, FRAMES, 2, purpose=1), draw(-1, RUNS, FRAMES, 2)):
        assert not np.isin(other, whole).any()


def test_uniform_is_uniform():
    u = uniform(11, RUNS, FRAMES, 3)
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    for axis in range(3):
        means = u.mean(axis=tuple(a for a in range(3) if a != axis))
        np.testing.assert_allclose(means, 0.5, atol=5 * math.sqrt(1 / 12 / (u.size / len(means))))


def test_normal_is_normal():
    assert stats.kstest(normal(11, RUNS, FRAMES, 3).ravel(), "norm").pvalue > 0.01


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neighbours_are_independent(draw):
    x = stats.zscore(draw(2, RUNS, FRAMES, 4), axis=None)
    pairs = [(x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1]), (x, draw(3, RUNS, FRAMES, 4))]
    for one, other in pairs:
        for f in (lambda v: v, np.abs):
            assert abs(np.corrcoef(f(one).ravel(), f(other).ravel())[0, 1]) < 5 / math.sqrt(one.size)
