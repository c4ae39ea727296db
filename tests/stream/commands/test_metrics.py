"""`eex-metrics` on runs that `eex-stream` made, and on frames worked by hand."""

import json
import shutil

import numpy as np
import pytest
from commands import call, play, refused
from PIL import Image

from eex.policies.core.base import Outcomes
from eex.policies.core.errors import EexError
from eex.stream.run.report import measure

pytestmark = pytest.mark.timeout(200)


def stream(out, *arguments):
    done = call("stream", "--policy", "fixed", "--threads", 1, "--out", out, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def reports(*arguments):
    done = call("metrics", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["runs"]


# ---- real runs


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """No worker, and hopeless frames dropped: the summary of a run with dropped and fallback frames."""
    schedule = "pristine:150, gaussian_blur@2:150"
    out = tmp_path_factory.mktemp("labelled")
    return stream(out, "--worker", "none", "--drop-below", 0.4, "--frames", 300, "--distortion", schedule)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "images").mkdir()
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
    return stream(folder, "--worker", "none", "--source", folder / "images", "--frames", 40, "--distortion", "pristine")


def test_it_tells_what_the_summary_tells(labelled, unlabelled):
    told, other = reports(labelled["folder"], unlabelled["folder"], "--batch", 50, "--p-tar", "0,1", "--t-tar-ms", "0")
    assert told["frames"] == labelled["frames"] == 300
    assert told["dropped"] == labelled["dropped"] > 0
    assert told["fallbacks"] > 0
    assert told["accuracy"] == pytest.approx(labelled["accuracy"])
    assert told["device_probability"] == 1  # nothing else is there to answer
    assert told["batches"] == (300 - told["dropped"]) // 50
    assert [row["outage"] for row in told["outage"]] == [0, 1]
    assert [row["missed"] for row in told["missed"]] == [1, 1]
    first = told["exits"][0]
    assert first["seen"] == 300 - told["dropped"]
    assert 0 < first["ece"] < 1
    assert sum(row["share"] for row in told["exits"]) == pytest.approx(1)
    assert sum(row["frames"] for row in told["bins"] if row["exit"] == 1) == first["seen"]
    assert any("dropped" in note for note in told["notes"])
    assert any("fell back" in note for note in told["notes"])
    assert other["accuracy"] is None
    assert (other["labelled"], other["batches"], other["outage"], other["bins"]) == (0, 0, [], [])
    assert other["exits"][0]["share"] > 0
    assert "no frame has a label" in other["notes"][0]


@pytest.mark.process
def test_what_a_person_sees(labelled, unlabelled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled["folder"], run)
    done = play("metrics", run, unlabelled["folder"])
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{run}: 300 frames, accuracy" in done.stdout
    assert "exit 1" in done.stdout
    assert "make no batch of 512" in done.stdout
    assert "no frame has a label" in done.stdout
    with Image.open(run / "reliability.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the folder of a run"),
        (["nowhere"], "no records here"),
        (["nowhere", "--p-tar", "0.5,2"], "--p-tar must lie in [0, 1]"),
        (["nowhere", "--p-tar", "high"], "--p-tar takes comma-separated numbers"),
        (["nowhere", "--t-tar-ms", "nan"], "--t-tar-ms must be at least 0"),
        (["nowhere", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message, tmp_path):
    refused(call("metrics", *arguments, cwd=tmp_path), message)


# ---- by hand


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
    told = measure(FRAMES, LABELS, [0.5, 0.6], [2.0, 60.0], batch=2, bins=1)
    assert (told.frames, told.labelled, told.dropped, told.fallbacks) == (6, 4, 1, 1)
    assert told.accuracy == 3 / 4
    assert told.device_probability == 3 / 5
    assert told.latency_ms == pytest.approx(121 / 5)
    first, cloud = told.exits
    assert (first["seen"], first["share"], first["accuracy"]) == (4, 3 / 5, 1 / 2)  # it was wrong of the third frame
    assert first["confidence"] == pytest.approx(0.65)
    assert first["ece"] == pytest.approx(0.15)
    assert first["accuracy_answered"] == pytest.approx(2 / 3)
    assert (cloud["seen"], cloud["share"], cloud["accuracy"]) == (1, 2 / 5, 1.0)
    # frames 1, 2: the device right once of twice, in 2 ms; frames 3, 6: right once of once on the device, in 55 ms
    assert told.batches == 2
    assert [row["outage"] for row in told.outage] == [0, 1 / 2]
    assert [(row["p_tar"], row["t_tar_ms"], row["missed"]) for row in told.missed] == [
        (0.5, 2, 1 / 2),
        (0.5, 60, 0),
        (0.6, 2, 1),
        (0.6, 60, 1 / 2),
    ]
    assert len(told.notes) == 3


def test_nobody_answered():
    nobody = outcomes([-1] * 6, np.full((6, 2), NONE), np.full((6, 2), -1), [False] * 6)
    with pytest.raises(EexError, match="no frame of this run was answered"):
        measure(nobody, LABELS, [0.5], [1.0])
