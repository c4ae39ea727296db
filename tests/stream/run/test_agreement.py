"""Whether the cloud's replies bear out the edge's confidence: sums and verdicts worked by hand, and a run's warning."""

from dataclasses import replace

import numpy as np
import pytest

from eex.policies.core.columns import blank
from eex.stream.config import StreamConfig
from eex.stream.run import runner
from eex.stream.run.agreement import SUMS, agreement, compared, warning
from eex.stream.run.display import bought
from eex.stream.run.tally import Tally

pytestmark = pytest.mark.timeout(120)


def rows(edge, cloud, differ, frames):
    """Offloaded frames of one confidence on the edge and one in the cloud, whose answers differ on the first few."""
    made = blank(frames, 2)
    made.confidence[:] = edge, cloud
    made.prediction[:] = 0
    made.prediction[:differ, 1] = 1
    return replace(
        made,
        frame=np.arange(frames),
        exit=np.ones(frames, int),
        latency_ms=np.ones(frames),
        overhead=np.ones(frames),
        edge_ms=np.ones(frames),
    )


def verdict(*made):
    return agreement(sum(compared(rows(*one)) for one in made))


@pytest.mark.parametrize(
    ("edge", "cloud", "differ", "frames", "overconfident"),
    [
        # 1 - 0.9 * 0.95 = 0.145: 14.5 expected, standard deviation 3.52, of which 3.7 are 13.03
        (0.9, 0.95, 28, 100, True),
        (0.9, 0.95, 27, 100, False),
        (0.9, 0.95, 28, 99, False),  # too few
        # 145 expected of 1,000, and 3.7 standard deviations are 41, less than 5 % of them
        (0.9, 0.95, 196, 1000, True),
        (0.9, 0.95, 194, 1000, False),
        # as often as two calibrated exits differ whose mistakes have nothing to do with each other
        (0.6, 0.7, 58, 100, False),
        (0.6, 0.7, 40, 100, False),
        (0.6, 0.7, 0, 100, False),
        # surer than the cloud
        (0.8, 0.7, 0, 100, True),
        (0.74, 0.7, 0, 100, False),
        (1.0, 1.0, 6, 100, True),
    ],
)
def test_verdicts_by_hand(edge, cloud, differ, frames, overconfident):
    found = verdict((edge, cloud, differ, frames))
    assert found["overconfident"] is overconfident
    assert found["replies"] == frames
    assert found["contradicted_share"] == pytest.approx(differ / frames)
    assert found["expected_at_most"] == pytest.approx(1 - edge * cloud)
    assert (found["edge_confidence"], found["cloud_confidence"]) == pytest.approx((edge, cloud))


def test_surer_by_chance():
    """50 frames 0.6 surer and 50 frames 0.5 less sure: 5 of 100, but one standard deviation is 5.5."""
    assert not verdict((0.9, 0.3, 0, 50), (0.4, 0.9, 0, 50))["overconfident"]


def test_only_replies_count_and_of_the_edge_the_last_exit_visited():
    made = blank(5, 3)
    made.confidence[:] = [
        [0.5, 0.6, 0.8],  # offloaded from the last edge exit
        [0.5, np.nan, 0.9],  # sent at once from the first
        [0.5, 0.6, np.nan],  # never replied to
        [0.9, np.nan, np.nan],  # answered on the edge
        [0.5, 0.6, np.nan],  # dropped
    ]
    made.prediction[:] = [[1, 2, 2], [1, -1, 2], [1, 2, -1], [1, -1, -1], [1, 2, -1]]
    sums = dict(zip(SUMS, compared(made), strict=True))
    assert sums == pytest.approx(
        {
            "replies": 2,
            "contradicted": 1,  # the second
            "edge": 0.6 + 0.5,
            "cloud": 0.8 + 0.9,
            "squares": 0.04 + 0.16,
            "expected": (1 - 0.48) + (1 - 0.45),
            "variance": 0.25 + 0.25,
        }
    )


def test_nothing_to_say():
    found = agreement(Tally(3).agreement)
    assert found == {
        "replies": 0,
        "edge_confidence": None,
        "cloud_confidence": None,
        "contradicted_share": None,
        "expected_at_most": None,
        "overconfident": False,
    }
    assert warning(found) == ""


def test_a_tally_adds_up_and_goes_on():
    whole, first, second = Tally(2), Tally(2), Tally(2)
    made = rows(0.9, 0.95, 28, 100)
    whole.add(made)
    first.add(made[np.arange(60)])
    second.load_state_dict(first.state_dict())
    second.add(made[np.arange(60, 100)])
    np.testing.assert_allclose(second.agreement, whole.agreement)
    older = whole.state_dict()
    del older["agreement"]
    second.load_state_dict(older)
    assert not second.agreement.any()


@pytest.mark.parametrize("sharper", [1.0, 4.0])
def test_a_run_of_an_overconfident_edge_warns(tmp_path, monkeypatch, sharper):
    load = runner.load_network

    def loaded(config):
        net = load(config)
        for temperature in net.temperature[:-1]:
            temperature.update({expert: t / sharper for expert, t in temperature.items()})
        return net

    monkeypatch.setattr(runner, "load_network", loaded)
    config = StreamConfig(
        policy="fixed:p_tar=1",
        frames=400,
        distortion="pristine",
        out=tmp_path,
        regret=False,
        backend="torch",
        deadline_ms=60_000,
    )
    summary = runner.run(config)
    warned = [line for line in bought(summary) if line.startswith("warning: the edge is overconfident: on ")]
    assert len(warned) == (sharper > 1)
    assert summary["agreement"]["overconfident"] == (sharper > 1)
