"""Groups of frames: how they are merged, and when the stage that they wait for runs."""

import numpy as np
import pytest
import torch

from eex.stream import groups
from eex.stream.groups import LONGEST_GATHER, Group, Queues, decide, merged, runs


def group(*slots, experts=None):
    slots = np.array(slots)
    experts = np.zeros(len(slots), dtype=np.int64) if experts is None else np.array(experts)
    return Group(10.0 * slots[:, None], slots, experts)


def test_merged_groups_are_sorted_by_expert():
    both = merged([group(3, 5, experts=[0, 2]), group(4, 6, experts=[0, 1])])
    assert both.slots.tolist() == [3, 4, 6, 5]
    assert both.experts.tolist() == [0, 0, 1, 2]
    assert both.features[:, 0].tolist() == [30, 40, 60, 50]
    assert runs(both.experts) == [(0, 0, 2), (1, 2, 3), (2, 3, 4)]


def test_earlier_stages_run_first_and_groups_together():
    queues = Queues(2)
    queues.put(1, group(1))
    queues.put(0, group(2))
    queues.put(0, group(3))
    queues.put(2, group(4), to_the_end=True)
    taken = [queues.take() for _ in range(4)]
    assert [(stage, end, g.slots.tolist()) for stage, end, g in taken[:3]] == [
        (0, False, [2, 3]), (1, False, [1]), (2, True, [4]),
    ]  # fmt: skip
    assert taken[3] is None


@pytest.mark.parametrize("frames", [1, 4])
def test_what_a_gpu_decides_comes_back_as_from_the_processor(frames, monkeypatch):
    for first in range(5 - frames):
        confidence, prediction = (
            torch.tensor([0.2, 0.5, 0.7, 0.9])[first:][:frames],
            torch.tensor([3, 1, 2, 0])[:frames],
        )
        thresholds = np.array([0.8, 0.4, 0.7, 0.95])[first:][:frames], np.array([0.3, 0.1, 0.75, 0.0])[first:][:frames]
        if frames == 1:
            thresholds = tuple(each[0] for each in thresholds)
        here = decide(confidence, prediction, *thresholds)
        with monkeypatch.context() as patched:
            patched.setattr(groups, "on_cpu", lambda x: False)
            there = decide(confidence, prediction, *thresholds)
        for a, b in zip(here, there, strict=True):
            assert np.shape(a) == np.shape(b) == (() if frames == 1 else (4,))
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("to_the_end", [False, True])
def test_frames_wait_for_others_but_not_for_ever(to_the_end):
    queues = Queues(2, gather=3)
    queues.put(1, group(1, 2), to_the_end)
    assert queues.take() is None
    assert queues.take(force=True)[2].slots.tolist() == [1, 2]
    queues.put(1, group(1, 2), to_the_end)
    queues.put(1, group(3), to_the_end)
    assert queues.take()[2].slots.tolist() == [1, 2, 3]
    queues.put(1, group(4), to_the_end)
    for _ in range(LONGEST_GATHER):
        assert queues.take() is None
        queues.batch_entered()
    assert queues.take()[2].slots.tolist() == [4]
    queues.put(0, group(5))
    assert queues.take()[0] == 0  # the first stage waits for nobody
