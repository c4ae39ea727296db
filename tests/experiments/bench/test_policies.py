"""The table of speeds, with as little measuring as possible; and the trace it needs no file for."""

import subprocess
import sys

import numpy as np
import pytest

from eex.experiments.bench.policies import fits, in_river, synthetic_trace
from eex.policies.core.trace import write_trace


def test_the_table_names_policies_and_rivers():
    arguments = ["--policies", "ucb,fixed", "--seconds", "0.01", "--runs", "1", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "eex.experiments.bench.policies", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    for words in ("ucb", "fixed", "1 run", "8 runs side by side", "river's UCB", "river's Thompson"):
        assert words in done.stdout


def test_policies_of_fewer_exits_are_left_out():
    assert fits("rl", 3)
    assert not fits("rl", 4)
    assert not fits("deex", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["live", "--only", "typo"], "--only typo: expected one of single, many, overload, push, long"),
        (["live", "--only", "single,typo"], "--only typo: expected one of single, many, overload, push, long"),
        (["agent_search", "--only", "typo"], "--only typo: expected one of base, "),
        (["aims", "t.arrow", "--exit-ms", "a"], "--exit-ms: expected milliseconds, one for each exit, got 'a'"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
    write_trace(tmp_path / "t.arrow", synthetic_trace(50))
    done = subprocess.run(
        [sys.executable, "-m", f"eex.experiments.bench.{arguments[0]}", *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_synthetic_answers_are_right_as_often_as_they_are_confident():
    trace = synthetic_trace()
    np.testing.assert_allclose(trace.correct.mean(axis=0), trace.confidence.mean(axis=0), atol=0.02)
    assert (trace.confidence[:, 1] >= trace.confidence[:, 0]).all()


@pytest.mark.parametrize("exits", [1, 3])
def test_synthetic_exits_are_surer_the_deeper_they_lie(exits):
    trace = synthetic_trace(exits=exits)
    assert trace.edge_exits == exits
    assert (np.diff(trace.confidence, axis=1) >= 0).all()
    np.testing.assert_allclose(trace.correct.mean(axis=0), trace.confidence.mean(axis=0), atol=0.02)


def test_river_is_told_the_rewards_of_the_arms_it_pulls():
    told = []

    class Greedy:
        def pull(self, arms):
            return arms[-1]

        def update(self, arm, reward):
            told.append((arm, reward))

    trace = synthetic_trace(3)
    assert in_river(Greedy, trace)(50) == 50
    gains = trace.confidence[:, 1] - trace.confidence[:, 0] - 0.1  # threshold 1 sends every frame
    assert {arm for arm, _ in told} == {10}
    assert sorted({reward for _, reward in told}) == pytest.approx(sorted(gains))
