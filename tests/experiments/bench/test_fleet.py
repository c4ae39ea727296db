"""Fleets in replay: edges that share are better off, one that is unlike them and liars cost little."""

from pathlib import Path

import numpy as np
import pytest

from eex.experiments.bench.fleet import Bench, exchanges, lies_of, play
from eex.policies.core.fleet import Layout
from eex.policies.core.trace import Trace


@pytest.fixture(scope="module")
def trace():
    """Two segments, in which confidences rise with depth from another level."""
    rng = np.random.default_rng(0)
    ease = np.repeat([0.7, -0.7], 1000)[:, None]
    depth = np.linspace(0.0, 1.6, 3)
    score = 1.2 * (rng.normal(size=(2000, 1)) + depth + ease) + 0.8 * rng.normal(size=(2000, 3))
    nothing = np.zeros((2000, 3), dtype=np.int64)
    kind = np.repeat(["pristine", "blur"], 1000)
    return Trace(0.1 + 0.9 / (1 + np.exp(-score)), nothing, nothing[:, 0], ("a",), kind, np.repeat([0.0, 1.0], 1000))


def short(row):
    """Mean over the rounds of what is missing, in percent of the best."""
    spans = {tuple(map(int, span.split("-"))): value for span, value in row["short_percent"].items()}
    return sum(value * (b - a) for (a, b), value in spans.items()) / max(b for _, b in spans)


def test_edges_that_share_are_better_off_and_liars_and_strangers_cost_little(trace):
    bench = Bench(Path(), rounds=128, runs=60, overhead=0.1)
    alone = short(play(bench, trace, 1, "alike"))
    together = play(bench, trace, 30, "alike")
    assert short(together) < 0.75 * alone
    assert together["newcomer_short_percent"] < 0.75 * alone
    assert short(play(bench, trace, 30, "alike", lie=1.0)) < short(together) + 1.0
    assert short(play(bench, trace, 30, "alike", lie=0.0)) < short(together) + 1.0
    assert short(play(bench, trace, 30, "unlike")) < alone + 2.0


def test_exchanges_grow_rare():
    assert sorted(exchanges(4, 100)) == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_lies_are_such_that_they_are_not_refused(gain):
    layout = Layout(exits=3)
    (lie,) = lies_of(layout, 1, gain)
    assert layout.problem(lie) == ""
