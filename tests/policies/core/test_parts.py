"""What is remembered of frames in flight, and states that are made of parts."""

import numpy as np
import pytest

from eex.policies.core.parts import MOST, Awaited
from eex.policies.registry import make_policy


def test_awaited_against_a_dictionary():
    rng, awaited, expected = np.random.default_rng(0), Awaited(runs=2, width=3), {}
    first = 0
    for _ in range(60):
        frames = np.arange(first, first + rng.integers(1, 90))
        first += len(frames)
        value = rng.random((2, len(frames), 3))
        awaited.put(frames, value)
        expected |= {(run, frame): value[run, k] for run in (0, 1) for k, frame in enumerate(frames.tolist())}
        keys = list(expected)
        due = [keys[k] for k in rng.permutation(len(keys))[: rng.integers(0, len(keys) + 1)]]
        run, frame = np.array([*due, (0, 10**6)]).T
        found, taken = awaited.take(run, frame)
        assert found.tolist() == [True] * len(due) + [False]
        for key, row in zip(due, taken, strict=False):
            np.testing.assert_array_equal(row, expected.pop(key))
    assert awaited.slots > 64


def test_of_too_many_the_oldest_are_forgotten():
    awaited = Awaited(runs=1, width=1)
    for first in range(0, 2 * MOST, 1000):
        awaited.put(np.arange(first, first + 1000), np.ones((1, 1000, 1)))
    assert awaited.slots == MOST
    last = 2 * MOST // 1000 * 1000 + 999
    found, _ = awaited.take(np.zeros(3, dtype=int), np.array([0, last - MOST + 1, last]))
    assert found.tolist() == [False, True, True]


def test_any_number_of_slots_is_loaded():
    awaited, other = Awaited(runs=1, width=2), Awaited(runs=1, width=2)
    awaited.put(np.arange(300), np.ones((1, 300, 2)))
    other.load_state_dict(awaited.state_dict())
    assert other.slots == 512
    other.load_state_dict(Awaited(runs=1, width=2).state_dict())
    assert other.slots == 64
    for wrong in (
        {"frame": np.zeros((1, 65), dtype=int)},
        {"frame": np.zeros((1, 128), dtype=int)},
        {"frame": np.zeros(())},
    ):
        with pytest.raises(ValueError, match="must be"):
            other.load_state_dict(awaited.state_dict() | wrong)


def test_a_part_that_refuses_its_state_changes_nothing():
    policy = make_policy("drift@safe@linucb")
    before = policy.state_dict()
    for key, array in before.items():
        wrong = {k: a + 1 for k, a in before.items()} | {key: np.zeros((9, *array.shape))}
        with pytest.raises(ValueError, match="must be"):
            policy.load_state_dict(wrong)
        for name, now in policy.state_dict().items():
            np.testing.assert_array_equal(now, before[name])
