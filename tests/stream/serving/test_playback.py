"""A played stream on the live page: the schedule, and regret as it grows."""

import contextlib
import json
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from livenet import three_exits
from playing import played

from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.ucb import UCB
from eex.policies.core.references import best_fixed
from eex.policies.core.schedule import parse_schedule
from eex.stream.config import StreamConfig
from eex.stream.run import play, run
from eex.stream.run.play import GRID
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.playback import PIECES, POINTS, Playback, Regret
from eex.stream.serving.run import page_of_run

pytestmark = pytest.mark.timeout(120)

SCHEDULE = "pristine:100,gaussian_blur@1..2:60"


def playback(schedule=SCHEDULE, total=320, **options):
    config = StreamConfig(policy="ucb", worker="none", **options)
    return Playback(config, three_exits(), parse_schedule(schedule), total, 0.1, 0.0, True)


def test_regret_is_exact_where_every_exit_of_all_frames_is_known():
    viewer = playback(reward="adaee")
    confidence, tally = played(viewer, "fixed", Fixed(0.5, exits=2))
    shown = viewer.summary()["played"]
    best = best_fixed(confidence, 0.1, GRID)[1].sum()
    frames, low, regret, high = shown["regret"]["fixed"][-1]
    assert (frames, shown["sampled"]["fixed"]) == (320, 320)
    assert regret == pytest.approx(best - tally.reward, abs=0.51)  # the cloud here is not the network's own
    assert low <= regret <= high
    assert [point[0] for point in shown["regret"]["fixed"]] == list(range(32, 321, 32))


def test_an_estimate_from_some_frames_covers_the_truth():
    rng = np.random.default_rng(1)
    confidence = rng.random((20_000, 3))
    own = np.where(rng.random(20_000) < 0.5, 0.05, np.nan)  # what teaches nothing earned nothing
    regret = Regret()
    for first in range(0, 20_000, 100):
        if first % 1000 == 0:
            regret.sample(first, confidence[first : first + 100], 0.1)
        regret.finished(np.arange(first, first + 100), own[first : first + 100])
    regret.mark()
    truth = best_fixed(confidence, 0.1, GRID)[1].sum() - np.nansum(own)
    frames, low, middle, high = regret.points[-1]
    assert (frames, regret.sampled) == (20_000, 2000)
    assert abs(middle - truth) < 3 * (high - low) / 2
    assert high - low > 1


def test_curves_are_bounded():
    regret = Regret()
    regret.sample(0, np.full((5000, 2), 0.5), 0.1)
    for k in range(5000):
        regret.finished(np.array([k]), np.zeros(1))
        regret.mark()
    assert len(regret.points) <= POINTS
    assert regret.points[-1][0] == 5000
    assert regret.points[0][0] < 100


def test_the_schedule_is_shown_and_bounded():
    shown = playback().summary()["played"]
    assert [piece[2] for piece in shown["pieces"]] == ["pristine", "gaussian_blur@1..2"] * 2
    assert shown["pieces"][-1][:2] == [260, 320]
    many = playback("500x(pristine:1,gaussian_blur@1:1)", 10**9).summary()["played"]["pieces"]
    assert 1 <= len(many) <= PIECES
    assert (many[0][0], many[-1][1]) == (0, 10**9)
    assert playback(total=0).summary()["played"]["pieces"] == []


def test_each_policy_is_a_stream_with_a_learner():
    viewer = playback()
    played(viewer, "ucb", UCB([0.2, 0.8], exits=2), 2)
    viewer._copied = -1e9
    played(viewer, "fixed", Fixed(0.5, exits=2), 1)
    summary = viewer.summary()
    assert [(row["stream"], row["frames"]) for row in summary["streams"]] == [("ucb", 64), ("fixed", 32)]
    assert viewer.learner("ucb").first == 32  # a second has not passed since
    assert viewer.learner("fixed").policy is not viewer.learner("fixed").policy


def test_the_page_of_a_run_is_served_to_this_machine():
    said, frames = [], SimpleNamespace(schedule=parse_schedule(SCHEDULE), total=320, live=False)
    config, net = StreamConfig(policy="ucb", worker="none"), three_exits()
    with page_of_run(ServeConfig(port=0), said.append)(config, net, frames, 0.0) as viewer:
        played(viewer, "ucb", UCB([0.2, 0.8], exits=2))
        url = said[0].split()[-1]
        with urllib.request.urlopen(url + "v1/live", timeout=20) as events:
            assert next(events) == b"event: all\n"
            given = json.loads(next(events)[6:])
        assert given["stream"]["name"] == "ucb"
        assert given["stream"]["learned"]["arms"]["played"]
        assert given["played"]["frame"] == 320
        with urllib.request.urlopen(url, timeout=20) as page:
            assert b"page.js" in page.read()


def test_a_run_is_watched_and_its_results_are_the_same(tmp_path, monkeypatch):
    viewers = []

    @contextlib.contextmanager
    def view(config, net, frames, exit_cost):
        viewers.append(Playback(config, net, frames.schedule, frames.total, 0.1, exit_cost, True))
        yield viewers[0]

    monkeypatch.setattr(play, "SHOW_S", 0.0)  # every batch is looked at
    config = StreamConfig(frames=960, policy="ucb", worker="none", partition=4, overhead=0.1, out=tmp_path)
    summary = run(config, view=view)
    shown = viewers[0].summary()
    assert shown["frames"] == summary["frames"] == 960
    assert shown["accuracy"] == summary["accuracy"]
    assert shown["played"]["sampled"]["ucb"] == 960
    assert shown["played"]["regret"]["ucb"][-1][2] == pytest.approx(summary["regret_best_arm"], abs=1e-3)
