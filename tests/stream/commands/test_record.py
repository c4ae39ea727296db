"""`eex-record` as a user types it, and replay of what `eex-stream` did live."""

import io
import os
import pty
import select
import signal
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import ENVIRONMENT, PATIENCE_S, call, command, refused
from PIL import Image

from eex.models.card import SHIPPED, read_card
from eex.policies.core.replay import replay
from eex.policies.core.trace import read_trace
from eex.policies.registry import make_policy
from eex.stream.run.records import feedback_of, outcomes_of

pytestmark = pytest.mark.timeout(200)

SCHEDULE = "pristine:100, gaussian_blur@1:100, gaussian_noise@20+gaussian_blur@0.5:100"


def stream(out, *arguments):
    """The folder that an `eex-stream` run left."""
    options = ("--out", out, "--deadline-ms", 60_000, "--no-regret", "--no-pictures", "--quiet")
    done = call("stream", *options, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return max(Path(out).iterdir())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recorded trace, and what the command printed."""
    path = tmp_path_factory.mktemp("recorded") / "new" / "trace.arrow"
    done = call("record", "--distortion", SCHEDULE, "--batch", 50, "--seed", 3, "--out", path)
    return path, done


# ---- a trace and what is said of it


def test_a_trace_holds_every_exit_of_every_frame(recorded):
    path, done = recorded
    assert (done.returncode, done.stderr) == (0, "")
    trace = read_trace(path, classes=read_card(SHIPPED).architecture.classes)
    assert (len(trace), trace.edge_exits) == (300, 3)
    assert np.isfinite(trace.confidence).all()
    assert (trace.label >= 0).all()
    assert trace.correct[:100].mean() > 0.5
    names = ["pristine"] * 100 + ["gaussian_blur"] * 100 + ["gaussian_blur+gaussian_noise"] * 100
    assert trace.distortion.tolist() == names
    np.testing.assert_array_equal(trace.level, np.repeat([0.0, 1.0, 0.5], 100))
    np.testing.assert_array_equal(trace.segments, np.repeat([0, 1, 2], 100))
    np.testing.assert_allclose(trace.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert trace.experts == read_card(SHIPPED).architecture.experts
    assert len(trace.model) > 10
    assert [p.name for p in path.parent.iterdir()] == ["trace.arrow"]


def test_the_closing_line(recorded):
    path, done = recorded
    trace = read_trace(path)
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"{path}: 300 frames; accuracy exit 1 {100 * trace.correct[:, 0].mean():.1f} %, ")
    assert f"cloud {100 * trace.correct[:, -1].mean():.1f} %" in done.stdout
    assert "kB" in done.stdout


def test_quiet_and_images_that_cannot_be_used(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k, size in enumerate((32, 32, 32, 20)):
        pixels = np.random.default_rng(k).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    options = ("--source", folder, "--distortion", "pristine", "--frames", 3, "--no-shuffle", "--out", "t.arrow")
    done = call("record", *options, "--frames", 4, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 frames; exit 1, exit 2, exit 3, cloud; no labels; " in done.stdout
    assert done.stdout.endswith("; 1 image skipped\n")
    quiet = call("record", *options, "--quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert len(read_trace(tmp_path / "t.arrow")) == 3  # the other is replaced
    assert (read_trace(tmp_path / "t.arrow").label == -1).all()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_names_that_are_not_utf8(tmp_path, form):
    """Of the images, their classes, the source, and the file that is written."""
    name = os.fsdecode(b"caf\xe9")
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 20, 10)).save(data, "PNG")
    source = tmp_path / (name if form == "folder" else f"{name}.zip")
    if form == "folder":
        for folder in (name, "tea"):
            (source / folder).mkdir(parents=True)
            (source / folder / f"{name}.png").write_bytes(data.getvalue())
    else:
        with zipfile.ZipFile(source, "w") as archive:  # which knows no other names than code page 437's and UTF-8
            for folder in ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "tea"):
                archive.writestr(f"{folder}/1.png", data.getvalue())
    out = tmp_path / name / "traces" / f"{name}.arrow"
    done = call("record", "--source", source, "--distortion", "pristine", "--frames", 2, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_trace(out)) == 2


# ---- the live run and its trace


@pytest.mark.parametrize(
    ("policy", "batch", "kind", "more"),
    [
        ("ucb", 32, "adaee", ()),
        ("ucb", 5, "adaee", ("--gather", 24)),
        ("fixed:p_tar=0.7", 48, "adaee", ()),
        ("stop-curve", 32, "utility", ()),
    ],
    ids=["ucb-32", "ucb-5", "fixed-48", "stop-curve-32"],
)
def test_a_replayed_trace_makes_the_live_choices(tmp_path, cloud, policy, batch, kind, more):
    cost = 0.0 if kind == "adaee" else 0.02
    frames = ("--distortion", SCHEDULE, "--frames", 450, "--seed", 7, "--reward", kind, "--exit-cost", cost)
    run = stream(tmp_path / "runs", *cloud, "--policy", policy, "--batch", batch, *more, *frames)
    done = call("record", "--config", run / "config.json", "--batch", 64, "--out", tmp_path / "trace.arrow", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    trace, live = read_trace(tmp_path / "trace.arrow"), outcomes_of(run / "records")
    seen = ~np.isnan(live.confidence)
    assert seen[:, 0].all()
    assert 0 < seen[:, -1].sum() < 450
    np.testing.assert_allclose(live.confidence[seen], trace.confidence[seen], atol=1e-4)
    assert (live.prediction == trace.prediction)[seen].mean() > 0.99
    # how frames are batched changes the last digits: what the live run saw is taken for what it saw
    trace = replace(trace, confidence=np.where(seen, live.confidence, trace.confidence))
    again = replay(
        make_policy(policy, exits=3, seed=7), trace, 0.1, order="in-order", feedback=feedback_of(run / "records"),
        exit_cost=cost, kind=kind,
    )  # fmt: skip
    np.testing.assert_array_equal(again.arm[0], live.arm)
    np.testing.assert_array_equal(again.exit[0], live.exit)
    np.testing.assert_array_equal(again.offloaded[0], live.offloaded)
    np.testing.assert_allclose(again.reward[0], live.reward, atol=1e-12)


def test_another_model_s_answers_are_recorded_as_the_cloud_s(tmp_path):
    from eex.models.card import SHIPPED, load, save

    net = load(SHIPPED)
    for weights in net.branches[-1].parameters():
        weights.data.zero_()  # equally sure of all classes
    save(net, tmp_path / "other")
    own, other = tmp_path / "own.arrow", tmp_path / "other.arrow"
    for out, more in ((own, ()), (other, ("--answer-with", tmp_path / "other"))):
        done = call("record", "--frames", 60, "--distortion", "pristine", "--out", out, "--quiet", *more)
        assert (done.returncode, done.stderr) == (0, "")
    expected, found = read_trace(own), read_trace(other)
    np.testing.assert_array_equal(found.confidence[:, :-1], expected.confidence[:, :-1])
    np.testing.assert_allclose(found.confidence[:, -1], 0.1, atol=1e-6)


# ---- interrupted


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_what_was_there(tmp_path, number):
    (tmp_path / "trace.arrow").write_text("from before")
    screen, theirs = pty.openpty()
    process = subprocess.Popen(
        command("record", "--frames", 200_000, "--out", tmp_path / "trace.arrow"),
        stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT | {"TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, end = b"", time.monotonic() + PATIENCE_S

    def read():
        nonlocal shown
        try:
            if select.select([screen], [], [], 0.2)[0]:
                shown += os.read(screen, 65536)
                return True
        except OSError:  # closed at the other end
            pass
        return False

    try:
        while b"/200000" not in shown:  # frames done of all, on the progress bar
            read()
            assert process.poll() is None, shown
            assert time.monotonic() < end, shown
        process.send_signal(number)
        while process.poll() is None or read():
            read()
            assert time.monotonic() < end, shown
        assert process.wait(PATIENCE_S) == 130
        assert process.stdout.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(screen)
    assert b"interrupted" in shown
    assert b"Traceback" not in shown
    assert [p.name for p in tmp_path.iterdir()] == ["trace.arrow"]
    assert (tmp_path / "trace.arrow").read_text() == "from before"


# ---- what cannot be used

BAD = {
    "unknown distortion": (["--distortion", "gausian_blurr@1"], "did you mean 'gaussian_blur'"),
    "missing source": (["--source", "nowhere"], "no such source"),
    "no image is good": (["--source", "odd"], "no frame could be used"),
    "no card": (["--model", "nowhere"], "no such model card"),
    "missing network": (["--network", "nowhere:make"], "cannot be imported"),
    "batch 0": (["--batch", "0"], "--batch must be at least 1"),
    "negative frames": (["--frames", "-1"], "--frames must be at least 0"),
    "out is a folder": (["--out", "odd"], "cannot be written (--out)"),
    "out below a file": (["--out", "file/trace.arrow"], "cannot be written (--out)"),
    "out is too long": (["--out", "x" * 300], "cannot be written: File name too long (--out)"),
    "out is CSV": (["--out", "trace.csv"], "a trace is an Arrow file"),
    "out is packed CSV": (["--out", "trace.csv.gz"], "a trace is an Arrow file"),
    "out is Parquet": (["--out", "trace.parquet"], "a trace is an Arrow file"),
    "missing configuration": (["--config", "nowhere.json"], "cannot be read"),
    "broken configuration": (["--config", "file"], "not the configuration of a run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(tmp_path, case):
    (tmp_path / "odd").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "odd" / "0.png")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[case]
    refused(call("record", *arguments, cwd=tmp_path), message)
    assert sorted(tmp_path.rglob("*")) == before
