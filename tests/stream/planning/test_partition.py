"""Where to cut: the shortest path against brute force and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.stream.planning.partition import Send, Times, best, every_plan, graph, leaving, plan, shortest_path
from eex.stream.planning.survey import option


def by_hand():
    """Three stages; the worked example of the tests below."""
    return Times(
        edge_ms=np.array([4.0, 6.0, 10.0]),
        exit_ms=np.array([1.0, 1.0, 1.0]),
        cloud_ms=np.array([0.4, 0.6, 1.0]),
        cloud_exit_ms=0.1,
        leave=np.array([0.5, 0.4]),
        sends=[
            [Send("input", 0, 12.0)],
            [Send("input", 0, 12.0), Send("fp32", 1, 30.0), Send("int8", 1, 11.0)],
            [Send("input", 0, 12.0), Send("fp32", 2, 20.0), Send("int8", 2, 10.0)],
        ],
    )


def test_the_example_worked_by_hand():
    """Of 100 frames, 50 leave at exit 1 and 20 of the others at exit 2.

    cut 0: 12 + 0.4 + 0.6 + 1 + 0.1                                  = 14.1
    cut 1: 5 + 0.5 (11 + 0.6 + 1 + 0.1) = 5 + 6.35                   = 11.35  (the input: 0.5 (12 + 2.1), more)
    cut 2: 5 + 0.5 · 7 + 0.3 (10 + 1 + 0.1) = 8.5 + 3.33             = 11.83
    cut 3: 5 + 0.5 · 7 + 0.3 · 11                                    = 11.8
    """
    times = by_hand()
    np.testing.assert_allclose(times.reach, [1, 0.5, 0.3])
    plans = every_plan(times)
    np.testing.assert_allclose([p.ms for p in plans], [14.1, 11.35, 11.83, 11.8])
    assert [p.send for p in plans] == ["input", "int8", "int8", ""]
    chosen = best(times)
    assert (chosen.cut, chosen.send) == (1, "int8")
    np.testing.assert_allclose([chosen.edge_ms, chosen.link_ms, chosen.cloud_ms], [5, 5.5, 0.85])
    assert option(chosen, 3) == "--partition 1 --send int8"
    total, path = shortest_path(graph(times), ("edge", 0), "answer")
    assert total == pytest.approx(11.35)
    assert [node for node, _ in path] == [
        *(("edge", 0), ("edge", 1), ("cloud", 1, 1), ("cloud", 1, 2), ("cloud", 1, 3), "answer")
    ]


def test_the_edge_alone_and_the_cloud_alone():
    times = by_hand()
    slow = Times(**{**vars(times), "sends": [[Send("input", 0, 1e6)]] * 3})
    assert (best(slow).cut, option(best(slow), 3)) == (3, "--partition 3")
    near = Times(**{**vars(times), "sends": [[Send("input", 0, 0.0)]] * 3})
    assert best(near, first=0).cut == 0
    assert best(near).cut == 1  # eex-stream runs a stage on the edge in any case
    with pytest.raises(ValueError, match="no path from a to z"):
        shortest_path({"a": [("b", 1.0, "")]}, "a", "z")
    with pytest.raises(ValueError, match="frames that continue from stage 1 must be sent"):
        plan(times, 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=200)
def test_the_shortest_path_against_all_cuts(seed, stages):
    rng = np.random.default_rng(seed)
    sends = [
        [Send(f"s{j}", int(rng.integers(0, k + 1)), float(rng.gamma(1, 30))) for j in range(int(rng.integers(1, 5)))]
        for k in range(stages)
    ]
    leave = rng.choice([0.0, 0.3, 0.7, 1.0], stages - 1)
    times = Times(rng.gamma(1, 10, stages), rng.gamma(1, 2, stages), rng.gamma(1, 5, stages), 0.5, leave, sends)
    for first in (0, 1):
        costs = {}
        for cut in range(first, stages + 1):
            for send in sends[cut] if cut < stages else [None]:
                total, here = 0.0, 1.0  # frame by frame, as it goes
                for k in range(cut):
                    total += here * (times.edge_ms[k] + times.exit_ms[k])
                    here *= 1 - leave[k] if k < stages - 1 else 0.0
                if send is not None:
                    total += here * (send.ms + times.cloud_ms[send.stage :].sum() + times.cloud_exit_ms)
                costs[cut, None if send is None else send.name] = total
        found = best(times, first)
        assert found.ms == pytest.approx(min(costs.values()))
        assert costs[found.cut, found.send or None] == pytest.approx(found.ms)
    if stages:
        least = {k: min(c for (cut, _), c in costs.items() if cut == k) for k in range(1, stages + 1)}
        np.testing.assert_allclose([p.ms for p in every_plan(times)[1:]], list(least.values()))


def test_shares_that_leave():
    confidence = np.array([[0.9, 0.1, 1], [0.1, 0.9, 1], [0.1, 0.1, 1], [0.8, 0.9, 1]])
    np.testing.assert_allclose(leaving(confidence, 0.8), [0.5, 0.5])
    np.testing.assert_allclose(leaving(confidence, 0.0), [1.0, 0.0])  # nobody comes to the second
    assert leaving(confidence[:, -1:], 0.8).size == 0
