"""Rows as an engine hands them out, made up; a worker that tests share."""

from dataclasses import replace

import numpy as np
import pytest
from commands import start

from eex.policies.core.columns import blank
from eex.policies.core.schedule import KINDS
from eex.stream.worker.embedded import READY


def _make_rows(first, count, exits=3, classes=4, experts=2, seed=0):
    """Frames from `first` on: every kind of end, labels known and not, drawn from a seed."""
    rng = np.random.default_rng((seed, first))
    exit = rng.integers(exits, size=count)
    offloaded = (exit == exits - 1) | (rng.random(count) < 0.2)
    fallback = offloaded & (exit < exits - 1)
    sent = offloaded & ~(fallback & (rng.random(count) < 0.5))
    visited = np.arange(exits) <= np.where(offloaded, exits - 2, exit)[:, None]
    visited[:, -1] = offloaded & ~fallback
    prediction = np.where(visited, rng.integers(classes, size=(count, exits)), -1)
    split = rng.gamma(2.0, 3.0, (3, count))
    return replace(
        blank(count, exits, len(KINDS)),
        frame=np.arange(first, first + count),
        name=np.array([f"näme/{k}.png" for k in range(first, first + count)], dtype=object),
        label=rng.integers(-1, classes, size=count),
        levels=rng.uniform(0, 2, (count, len(KINDS))),
        expert=rng.integers(experts, size=count),
        arm=rng.integers(11, size=count),
        probability=np.where(rng.random(count) < 0.5, rng.random(count), np.nan),
        audited=rng.random(count) < 0.1,
        queue=rng.integers(100, size=count),
        link_estimate_ms=np.where(rng.random(count) < 0.5, rng.random(count), np.nan),
        reachable=rng.random(count) < 0.9,
        exit_at=np.where(rng.random((count, exits)) < 0.1, np.inf, rng.random((count, exits))),
        skip_below=rng.random((count, exits - 1)),
        confidence=np.where(visited, rng.random((count, exits)), np.nan),
        prediction=prediction,
        exit=exit,
        offloaded=offloaded,
        sent=sent,
        fallback=fallback,
        answer=prediction[np.arange(count), np.where(visited[np.arange(count), exit], exit, 0)],
        overhead=np.full(count, 0.1),
        reward=np.where(offloaded & ~sent, np.nan, rng.normal(0, 0.3, count)),
        feedback_rank=first + rng.permutation(count),
        feedback_at=np.arange(first, first + count) + rng.integers(1, 50, size=count),
        bytes=np.where(sent, 4096.0, 0.0),
        edge_ms=split[0],
        link_ms=split[1],
        cloud_ms=split[2],
        latency_ms=split.sum(axis=0),
        captured=1.8e9 + np.arange(first, first + count) / 100,
    )


@pytest.fixture
def make_rows():
    return _make_rows


@pytest.fixture(scope="session")
def cloud():
    """The options by which a stream finds a worker with the shipped model, which stays up for all tests."""
    with start("worker", "--plain", "--bind", "tcp://127.0.0.1:*", "--threads", 1) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(READY)
            yield "--worker", line.removeprefix(READY).strip(), "--plain"
        finally:
            process.kill()
