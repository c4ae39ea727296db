"""Change detection: against a slow reference, when it alarms and when not, and what late frames do to it."""

import numpy as np
import pytest

from eex.policies.algorithms.change import BLOCK, OPEN, Change


def slow(values, alarm, variance):
    """Frame at whose block a signal alarms, or None; `values` in order, NaN where there is none."""
    means, weights, up, down = [], [], 0.0, 0.0
    for at in range(0, len(values) - BLOCK + 1, BLOCK):
        block = [v for v in values[at : at + BLOCK] if not np.isnan(v)]
        if not block:
            continue
        x, w = sum(block) / len(block), len(block)
        if len(means) >= 2:
            total = sum(weights)
            m = sum(a * b for a, b in zip(means, weights, strict=True)) / total
            spread = sum(b * (a - m) ** 2 for a, b in zip(means, weights, strict=True))
            s = (spread + 4 * variance) / (len(means) - 1 + 4)
            z = max(-4.0, min(4.0, (x - m) / (s * (1 / w + 1 / total)) ** 0.5))
            up, down = max(0.0, up + z - 1), max(0.0, down - z - 1)
            if max(up, down) > alarm:
                return at
        means.append(x)
        weights.append(w)
    return None


@pytest.mark.parametrize("shift", [0.0, 0.04, 0.1, -0.3])
@pytest.mark.parametrize("missing", [0.0, 0.6])
def test_against_a_slow_reference(shift, missing):
    rng = np.random.default_rng(1)
    values = rng.normal(0.6, 0.2, 3000) + shift * (np.arange(3000) >= 1500)
    values[rng.uniform(size=3000) < missing] = np.nan
    change, found = Change(1, 3.0, (0.05, 0.05)), None
    for frame, value in enumerate(values):
        change.hear(np.array([0]), np.array([frame]), np.array([0.5]), np.array([value]))
        if change.alarmed[0] and found is None:
            found = frame - BLOCK + 1
    assert found == slow(values, 3.0, 0.05)


def test_runs_and_signals_are_apart():
    rng = np.random.default_rng(2)
    values = rng.normal(0.5, 0.1, (3, 2000, 2))
    values[1, 1000:, 0] += 0.3
    values[2, 1000:, 1] -= 0.3
    change = Change(3, 4.0, (0.05, 0.05))
    for frame in range(2000):
        change.hear(np.arange(3), np.full(3, frame), *values[:, frame].T)
    assert change.alarmed.tolist() == [False, True, True]
    change.begin(np.array([1]))
    assert change.alarmed.tolist() == [False, False, True]


def test_hears_alike_in_any_number_and_from_late_frames():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.1, (2000, 1))
    whole, late = Change(1, 4.0, (0.05,)), Change(1, 4.0, (0.05,))
    whole.hear(np.zeros(2000, dtype=int), np.arange(2000), values[:, 0])
    # low values are heard of 300 frames later: taken as they come, the first 300 would look like another stream
    order = np.argsort(np.arange(2000) + 300 * (values[:, 0] < 0.5), kind="stable")
    for row in order:
        late.hear(np.zeros(1, dtype=int), np.array([row]), values[[row], 0])
    for name, array in whole.state_dict().items():
        np.testing.assert_allclose(array, late.state_dict()[name], err_msg=name)
    assert not late.alarmed[0]


def test_false_alarms_are_rare():
    runs, frames = 200, 10_000
    rng = np.random.default_rng(4)
    change, alarms = Change(runs, 4.0, (0.05, 0.08)), 0
    for frame in range(frames):
        confidence, gain = rng.beta(4, 2, runs), rng.uniform(size=runs)
        gain[confidence > 0.6] = np.nan
        change.hear(np.arange(runs), np.full(runs, frame), confidence, gain)
        alarms += change.alarmed.sum()
        change.begin(np.flatnonzero(change.alarmed))
    assert alarms <= runs * frames / 50_000


def test_a_frame_that_never_is_heard_of_holds_nothing_up():
    rng = np.random.default_rng(5)
    change = Change(1, 4.0, (0.05,))
    frames = np.delete(np.arange(3 * BLOCK * OPEN), np.arange(7, 3 * BLOCK * OPEN, 5 * BLOCK))
    value = rng.normal(0.5, 0.1, len(frames)) + 0.3 * (frames >= 2 * BLOCK * OPEN)
    for at in range(0, len(frames), 1000):
        part = slice(at, at + 1000)
        change.hear(np.zeros(len(frames[part]), dtype=int), frames[part], value[part])
    assert change.alarmed[0]


@pytest.mark.parametrize("size", [1, 7, 32, 200])
def test_one_run_hears_in_plain_numbers_as_many_do(size):
    rng = np.random.default_rng(0)
    level = np.where(np.arange(1600) < 1000, 0.7, 0.4)
    values = level + 0.1 * rng.normal(size=1600)
    gains = np.where(rng.random(1600) < 0.2, rng.normal(size=1600), np.nan)
    alone, two = Change(1, 4.0, (0.05, 0.08)), Change(2, 4.0, (0.05, 0.08))
    for start in range(0, 1600, size):
        rows = np.arange(start, min(start + size, 1600))
        alone.hear(np.zeros(len(rows), dtype=np.int64), rows, values[rows], gains[rows])
        two.hear(np.ones(len(rows), dtype=np.int64), rows, values[rows], gains[rows])
    assert alone.alarmed[0]
    for name, array in two.state_dict().items():
        np.testing.assert_allclose(alone.state_dict()[name][0], array[1], rtol=1e-9, atol=1e-12, err_msg=name)
