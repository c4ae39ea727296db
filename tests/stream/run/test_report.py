"""What is measured of a run, on frames worked by hand."""

import numpy as np
import pytest

from eex.policies.core.base import Outcomes
from eex.policies.core.errors import EexError
from eex.stream.run.report import measure


def outcomes(exit, confidence, prediction, fallback):
    count = len(exit)
    nothing = np.zeros(count)
    return Outcomes(
        run=np.zeros(count, dtype=int),
        frame=np.arange(count),
        arm=np.zeros(count, dtype=int),
        probability=nothing,
        audited=np.zeros(count, dtype=bool),
        exit_at=np.tile([0.8, 0.0], (count, 1)),
        confidence=np.array(confidence, dtype=float),
        prediction=np.array(prediction),
        exit=np.array(exit),
        offloaded=np.array(exit) == 1,
        fallback=np.array(fallback),
        sent=np.array(exit) == 1,
        latency_ms=np.array([1.0, 3.0, 10.0, 2.0, 7.0, 100.0]),
        overhead=nothing,
        reward=nothing,
    )


# of six frames the fourth was dropped, the fifth has no label, the last fell back on the device's answer
NONE = np.nan
FRAMES = outcomes(
    exit=[0, 0, 1, -1, 1, 0],
    confidence=[[0.9, NONE], [0.8, NONE], [0.4, 0.7], [0.1, NONE], [0.3, 0.6], [0.5, NONE]],
    prediction=[[1, -1], [0, -1], [0, 1], [0, -1], [0, 1], [1, -1]],
    fallback=[False, False, False, False, False, True],
)
LABELS = np.array([1, 1, 1, 0, -1, 1])


def test_a_run_by_hand():
    found = measure(FRAMES, LABELS, [0.5, 0.6], [2.0, 60.0], batch=2, bins=1)
    assert (found.frames, found.labelled, found.dropped, found.fallbacks) == (6, 4, 1, 1)
    assert found.accuracy == 3 / 4
    assert found.device_probability == 3 / 5
    assert found.latency_ms == pytest.approx(121 / 5)
    first, cloud = found.exits
    assert (first["seen"], first["share"], first["accuracy"]) == (4, 3 / 5, 1 / 2)  # it was wrong of the third frame
    assert first["confidence"] == pytest.approx(0.65)
    assert first["ece"] == pytest.approx(0.15)
    assert first["accuracy_answered"] == pytest.approx(2 / 3)
    assert (cloud["seen"], cloud["share"], cloud["accuracy"]) == (1, 2 / 5, 1.0)
    # frames 1, 2: the device right once of twice, in 2 ms; frames 3, 6: right once of once on the device, in 55 ms
    assert found.batches == 2
    assert [row["outage"] for row in found.outage] == [0, 1 / 2]
    assert [(row["p_tar"], row["t_tar_ms"], row["missed"]) for row in found.missed] == [
        (0.5, 2, 1 / 2),
        (0.5, 60, 0),
        (0.6, 2, 1),
        (0.6, 60, 1 / 2),
    ]
    assert len(found.notes) == 3


def test_nobody_answered():
    nobody = outcomes([-1] * 6, np.full((6, 2), NONE), np.full((6, 2), -1), [False] * 6)
    with pytest.raises(EexError, match="no frame of this run was answered"):
        measure(nobody, LABELS, [0.5], [1.0])
