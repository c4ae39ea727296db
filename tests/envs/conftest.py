"""Traces made up: three distortions, each more often wrong at the edge."""

import numpy as np
import pytest

from eex.policies.core.trace import Trace


def _make_trace(exits=3, frames=300, seed=0, labels=True):
    rng = np.random.default_rng(seed)
    kind = np.arange(frames) * 3 // frames
    edge = np.sort(rng.uniform(0.2, 1.0, (frames, exits)) ** (1 + kind[:, None] / 2), axis=1)
    cloud = np.maximum(edge[:, -1:], rng.uniform(0.5, 1.0, (frames, 1)))
    probabilities = np.eye(3)[kind] * 0.7 + 0.1
    return Trace(
        confidence=np.hstack([edge, cloud]),
        prediction=rng.integers(4, size=(frames, exits + 1)),
        label=rng.integers(4, size=frames) if labels else np.full(frames, -1),
        classes=("a", "b", "c", "d"),
        distortion=np.array(["pristine", "gaussian_blur", "gaussian_noise"])[kind],
        level=kind.astype(float),
        probabilities=probabilities,
        experts=("pristine", "gaussian_blur", "gaussian_noise"),
    )


@pytest.fixture
def make_trace():
    return _make_trace
