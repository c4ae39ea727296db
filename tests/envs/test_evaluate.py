"""What an agent is measured on, and how."""

from dataclasses import replace

import numpy as np
import pytest

from eex.envs.evaluate import held_out, play, score
from eex.policies.core.errors import EexError
from eex.policies.core.references import fixed_rewards

pytestmark = pytest.mark.timeout(120)


def test_held_out_frames_are_the_last_of_each_segment(make_trace):
    trace = make_trace(frames=300)
    kept, late = held_out(trace)
    assert (len(kept), len(late)) == (240, 60)
    assert np.bincount(late.segments).tolist() == [20, 20, 20]
    np.testing.assert_array_equal(late.confidence[:20], trace.confidence[80:100])


def test_score_of_a_fixed_threshold_by_hand(make_trace):
    trace = make_trace()
    reward, regret = play("fixed:p_tar=0.6", trace, (0.1, 0.3), None)
    for row, overhead in enumerate((0.1, 0.3)):
        earned = fixed_rewards(trace.confidence, overhead, np.linspace(0, 1, 51).round(2))
        best = sum(earned[trace.segments == k].sum(axis=0).max() for k in range(3))
        assert reward[row].sum() == pytest.approx(earned[:, 30].sum())
        assert regret[row].sum() == pytest.approx(best - earned[:, 30].sum())
    both = score("fixed:p_tar=0.6", trace, (0.1,), None, rounds=200, switch=(20, 50), seeds=2)
    assert both[1] >= 0


def test_what_a_fixed_threshold_scores_under_the_utility(make_trace):
    trace = make_trace()
    reward, _ = play("fixed:p_tar=0.6", trace, (0.1,), None, exit_cost=0.05, kind="utility")
    earned = fixed_rewards(trace.confidence, 0.1, np.array([0.6]), 0.05, "utility")
    np.testing.assert_allclose(reward[0], earned[:, 0])
    schedule = {"rounds": 200, "switch": (20, 50), "seeds": 2}
    plain, utility = (
        score("fixed:p_tar=0.6", trace, (0.1,), None, **schedule, kind=k)[0] for k in ("adaee", "utility")
    )
    assert utility > plain + 100  # confidences of answers, on top


def test_what_a_fixed_threshold_scores_under_accuracy(make_trace):
    trace = make_trace()
    reward, regret = play("fixed:p_tar=0.6", trace, (0.1,), None, exit_cost=0.05, kind="accuracy")
    right = trace.correct
    edge = trace.confidence[:, :-1] >= 0.6
    leaves = np.where(edge.any(axis=1), edge.argmax(axis=1), trace.edge_exits)
    sure = np.where(trace.confidence[:, -1] >= 0.6, trace.edge_exits, trace.confidence.argmax(axis=1))
    by = np.where(leaves < trace.edge_exits, leaves, sure)
    paid = 0.1 * (leaves == trace.edge_exits) + 0.05 * np.minimum(leaves, trace.edge_exits - 1)
    np.testing.assert_allclose(reward[0], right[np.arange(len(trace)), by] - paid)
    assert (np.array([regret[0][trace.segments == k].sum() for k in range(3)]) >= -1e-9).all()
    always = play("fixed:p_tar=0", trace, (0.1,), None, exit_cost=0.05, kind="accuracy")  # one of the thresholds
    assert always[0].sum() + always[1].sum() == pytest.approx(reward.sum() + regret.sum())


def test_what_cannot_be_scored(make_trace):
    trace = make_trace()
    for change, says in (({"seeds": 0}, "seeds must be"), ({"rounds": 0}, "rounds must be at least 1, got 0")):
        with pytest.raises(EexError, match=says):
            score("ucb", trace, (0.1,), None, **{"rounds": 20, "switch": (5, 9), "seeds": 1} | change)
    with pytest.raises(EexError, match="reward 'accuracy' needs a trace with labels: 300 of 300"):
        play("ucb", replace(make_trace(frames=300), label=np.full(300, -1)), (0.1,), None, kind="accuracy")
