"""`eex-metrics` on runs that `eex-stream` made."""

import json
import shutil

import numpy as np
import pytest
from commands import call, refused
from livenet import Cloud, images, three_exits
from PIL import Image

from eex.policies.core.errors import EexError
from eex.stream.live.session import Session
from eex.stream.run.records import outcomes_of

pytestmark = pytest.mark.timeout(200)


def stream(out, *arguments):
    done = call("stream", "--policy", "fixed", "--threads", 1, "--no-pictures", "--out", out, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def reports(*arguments):
    done = call("metrics", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["runs"]


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


def test_the_report_agrees_with_the_summary(labelled, unlabelled):
    found, other = reports(labelled["folder"], unlabelled["folder"], "--batch", 50, "--p-tar", "0,1", "--t-tar-ms", "0")
    assert found["frames"] == labelled["frames"] == 300
    assert found["dropped"] == labelled["dropped"] > 0
    assert found["fallbacks"] > 0
    assert found["accuracy"] == pytest.approx(labelled["accuracy"])
    assert found["device_probability"] == 1  # nothing else is there to answer
    assert found["batches"] == (300 - found["dropped"]) // 50
    assert [row["outage"] for row in found["outage"]] == [0, 1]
    assert [row["missed"] for row in found["missed"]] == [1, 1]
    first = found["exits"][0]
    assert first["seen"] == 300 - found["dropped"]
    assert 0 < first["ece"] < 1
    assert sum(row["share"] for row in found["exits"]) == pytest.approx(1)
    assert sum(row["frames"] for row in found["bins"] if row["exit"] == 1) == first["seen"]
    assert any("dropped" in note for note in found["notes"])
    assert any("fell back" in note for note in found["notes"])
    assert other["accuracy"] is None
    assert (other["labelled"], other["batches"], other["outage"], other["bins"]) == (0, 0, [], [])
    assert other["exits"][0]["share"] > 0
    assert "no frame has a label" in other["notes"][0]


def test_records_of_several_streams_and_sessions(tmp_path):
    for _ in range(2):
        with Session(net=three_exits(), offloader=Cloud(), worker="none", records=tmp_path) as session:
            for image in images(3):
                for stream in ("door", "yard"):
                    session.answer(image, stream)
    assert reports(tmp_path, "--batch", 4)[0]["frames"] == 12
    assert call("evaluate", tmp_path, "--thresholds", "0.5").returncode == 0
    with pytest.raises(EexError, match="not those of one whole run"):
        outcomes_of(tmp_path)


def test_what_a_person_sees(labelled, unlabelled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled["folder"], run)
    done = call("metrics", run, unlabelled["folder"])
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
        ([], "give the folder of at least one run"),
        (["nowhere"], "no records here"),
        (["nowhere", "--p-tar", "0.5,2"], "--p-tar must lie in [0, 1]"),
        (["nowhere", "--p-tar", "high"], "--p-tar takes comma-separated numbers"),
        (["nowhere", "--t-tar-ms", "nan"], "--t-tar-ms must be at least 0"),
        (["nowhere", "--t-tar-ms", "inf"], "--t-tar-ms must be at least 0 and finite"),
        (["nowhere", "--bins", "1000000"], "--bins must be at most 1000, got 1000000"),
        (["nowhere", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message, tmp_path):
    refused(call("metrics", *arguments, cwd=tmp_path), message)
