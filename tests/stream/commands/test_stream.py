"""`eex-stream` as a user types it: what it prints, leaves behind, and survives."""

import contextlib
import hashlib
import io
import itertools
import json
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from commands import PATIENCE_S, call, finish, play, refused, start
from PIL import Image

from eex.models.card import CARD, SHIPPED, WEIGHTS
from eex.stream import driver
from eex.stream.run.pictures import read_curves
from eex.stream.run.records import read_records
from eex.stream.wire.keys import make_keys
from eex.stream.worker.serve import READY

pytestmark = pytest.mark.timeout(200)

SCHEDULE = "pristine:100, gaussian_blur@1:100, gaussian_noise@20:100"


def stream(out, *arguments, run=call, pictures=False):
    """The summary of an `eex-stream --json` that went well; it draws pictures, which take long, if asked."""
    undrawn = () if pictures else ("--no-pictures",)
    done = run("stream", "--threads", 1, "--out", out, "--deadline-ms", 60_000, "--json", *undrawn, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def wait_for(condition, process):
    """Poll until something holds while a process runs."""
    end = time.monotonic() + PATIENCE_S
    while not (held := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return held


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def records_of(run):
    return read_records(Path(run) / "records")


def outcome(summary):
    """What is the same each time where nothing is learnt."""
    return {key: summary[key] for key in ("frames", "accuracy", "exit_shares", "offloaded_share", "bytes_offloaded")}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def worker(*arguments):
    """A running `eex-worker`; yields its process and where it listens."""
    process = start("worker", "--plain", "--bind", "tcp://127.0.0.1:*", "--threads", 1, *arguments)
    try:
        line = process.stdout.readline()
        assert line.startswith(READY), (line, process.stderr.read() if process.poll() is not None else "")
        yield process, line.removeprefix(READY).strip()
    finally:
        process.kill()
        process.communicate()


def draw_images(folder, count, size=32, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")


# ---- runs that several tests look at


@pytest.fixture(scope="module")
def ucb(tmp_path_factory):
    """A run that starts a worker and draws its pictures."""
    out = tmp_path_factory.mktemp("ucb")
    return stream(out, "--policy", "ucb", "--frames", 300, "--distortion", SCHEDULE, pictures=True)


@pytest.fixture(scope="module", autouse=True)
def _ids_of_one_length():
    """Message ids count on through a process, and take more bytes as they grow: here each takes as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_IDS", itertools.count(100_000))
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory, cloud):
    """A person's run with rivals: what it came to, and the summary."""
    out = tmp_path_factory.mktemp("compared")
    done = call(
        "stream", "--policy", "fixed", "--compare", "fixed,fixed:p_tar=0.95", "--frames", 200, "--threads", 1,
        "--deadline-ms", 60_000, "--distortion", SCHEDULE, "--out", out, *cloud,
    )  # fmt: skip
    return done, json.loads(next(out.glob("*/summary.json")).read_text())


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    return stream(tmp_path_factory.mktemp("offline"), "--worker", "none", "--frames", 100)


# ---- a run and what it leaves


def test_json_summary_accounts_for_every_frame(ucb):
    assert ucb["frames"] == ucb["answered"] == 300
    assert (ucb["fallbacks"], ucb["skipped"], ucb["interrupted"]) == (0, 0, False)
    assert 0 < ucb["accuracy"] <= 1
    assert ucb["frames_per_second"] > 0
    assert sum(ucb["exit_shares"].values()) == pytest.approx(1)
    assert list(ucb["exit_shares"]) == ["exit 1", "exit 2", "exit 3", "cloud"]
    assert ucb["offloaded_share"] == ucb["exit_shares"]["cloud"]
    assert (ucb["bytes_offloaded"] > 0) == (ucb["offloaded_share"] > 0)
    assert np.isfinite(ucb["mean_reward"])
    assert [row["policy"] for row in ucb["policies"]] == ["ucb"]
    assert {row["distortion"] for row in ucb["by_exit"]} == {"pristine", "gaussian_blur", "gaussian_noise"}


def test_run_folder_holds_what_the_summary_tells(ucb):
    folder = Path(ucb["folder"])
    assert json.loads((folder / "summary.json").read_text()) == ucb
    config = json.loads((folder / "config.json").read_text())
    assert (config["policy"], config["frames"], config["distortion"]) == ("ucb", 300, SCHEDULE)
    records = records_of(folder)
    assert records["frame"].to_pylist() == list(range(300))
    assert np.mean(records["correct"].to_numpy()) == pytest.approx(ucb["accuracy"])
    assert np.mean(records["exit"].to_numpy() == 4) == pytest.approx(ucb["offloaded_share"])
    assert np.mean(records["reward"].to_numpy()) == pytest.approx(ucb["mean_reward"], abs=1e-6)
    assert np.flatnonzero(records["gaussian_blur"].to_numpy() > 0).tolist() == list(range(100, 200))
    curves = read_curves(folder / "curves.arrow")
    assert set(curves["policy"]) == {"ucb", "hindsight"}
    frames = curves[(curves["policy"] == "ucb") & (curves["quantity"] == "frames")]
    assert frames["value"].sum() == 300


@pytest.mark.parametrize("name", ["adaptation.png", "regret.png", "exits.png"])
def test_pictures_are_images(ucb, name):
    with Image.open(Path(ucb["folder"]) / name) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_compared_policies_see_the_same_frames(compared):
    done, summary = compared
    assert done.returncode == 0
    assert [row["policy"] for row in summary["policies"]] == ["fixed", "fixed (2)", "fixed:p_tar=0.95"]
    assert {row["frames"] for row in summary["policies"]} == {200}
    first, again, strict = summary["policies"]
    assert outcome(first) == outcome(again)  # the same seed, the same policy
    assert strict["offloaded_share"] >= first["offloaded_share"]


def test_summary_screen_fits_80_columns(compared):
    done, summary = compared
    lines = done.stdout.splitlines()
    table = lines[: lines.index("")]
    assert all(len(line) <= 80 and "…" not in line for line in table)
    assert table[1].split()[-4:] == ["fixed", "fixed", "(2)", "p_tar=0.95"]
    labels = {line.partition("   ")[0].strip() for line in table}
    assert {"accuracy", "reward per frame", "offloaded", "MB sent", "frames/s", "regret, oracle"} <= labels
    assert done.stdout.count("fixed against fixed") == 2
    assert "in hindsight the best fixed threshold was" in done.stdout
    assert lines[-2] == f"records, summary and pictures: {summary['folder']}"
    assert lines[-1] == f"in one file to send: eex-report {summary['folder']}"
    assert done.stderr.count("\n") == 4  # a line a policy, and hindsight


def test_policies_that_answer_nothing_are_shown_beside_others(tmp_path):
    options = ("--distortion", "gaussian_blur@6:40", "--worker", "none", "--drop-below", 1, "--no-regret")
    rivals = ("--policy", "fixed", "--policy-option", "p_tar=0.5", "--compare", "fixed:p_tar=1")
    done = call("stream", *options, *rivals, "--no-pictures", "--out", tmp_path)
    assert (done.returncode, "answered at exit 1" in done.stdout) == (0, True)
    (path,) = tmp_path.glob("*/summary.json")
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["policies"][1]
    assert (row["accuracy"], row["latency_ms"]) == (None, {"p50": None, "p99": None})


def test_again_from_its_configuration(compared, tmp_path):
    _, summary = compared
    config = Path(summary["folder"]) / "config.json"
    again = stream(tmp_path, "--config", config, "--compare", "")
    assert outcome(again) == outcome(summary["policies"][0])
    before, after = (json.loads((Path(run["folder"]) / "config.json").read_text()) for run in (summary, again))
    differing = {key for key in before if before[key] != after[key]}
    assert differing == {"out", "compare", "pictures"}
    theirs, ours = (records_of(run["folder"]) for run in (summary, again))
    for column in ("name", "exit", "answer", "confidence_1", "gaussian_noise"):
        assert theirs[column] == ours[column]


def test_options_in_a_configuration_survive(tmp_path):
    first = stream(
        tmp_path, "--policy", "fixed", "--policy-option", "p_tar=0.5", "--frames", 40, "--worker", "none",
        "--no-regret", "--model", SHIPPED,
    )  # fmt: skip
    config = Path(first["folder"]) / "config.json"
    again = stream(tmp_path, "--config", config)
    assert (Path(again["folder"]) / "config.json").read_text() == config.read_text()
    assert outcome(again) == outcome(first)
    assert again["policy"] == "fixed:p_tar=0.5"
    assert stream(tmp_path, "--config", config, "--policy-option", "p_tar=0.9")["policy"] == "fixed:p_tar=0.9"
    assert stream(tmp_path, "--config", config, "--policy", "ucb")["policy"] == "ucb"
    assert set(records_of(again["folder"])["exit_at_1"].to_pylist()) == {0.5}


def test_quiet_prints_nothing(tmp_path):
    done = call(
        "stream",
        "--quiet",
        "--frames",
        40,
        "--threads",
        1,
        "--worker",
        "none",
        "--no-regret",
        "--no-pictures",
        "--out",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(next(tmp_path.glob("*/summary.json")).read_text())["frames"] == 40


def test_list_policies():
    done = call("stream", "--list-policies")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("fixed", "ucb", "deex", "p_tar"):
        assert word in done.stdout


# ---- the cloud worker


def test_without_worker_the_edge_answers(offline):
    assert offline["frames"] == offline["answered"] == 100
    assert offline["exit_shares"]["cloud"] == 0
    assert offline["bytes_offloaded"] == 0
    records = records_of(offline["folder"])
    assert offline["fallbacks"] == sum(records["fallback"].to_pylist()) == sum(records["offloaded"].to_pylist()) > 0
    assert not any(records["sent"].to_pylist())


def test_dropped_frames_are_accounted_for(tmp_path, cloud):
    summary = stream(
        tmp_path, *cloud, "--policy", "fixed", "--frames", 300, "--distortion", SCHEDULE, "--drop-below", 0.5
    )
    assert summary["frames"] == 300 == summary["answered"] + summary["dropped"]
    assert 0 < summary["dropped"] < 300 * summary["offloaded_share"] + summary["dropped"]
    assert sum(summary["exit_shares"].values()) + summary["dropped_share"] == pytest.approx(1)
    assert summary["bytes_not_sent"] == round(summary["dropped"] * summary["bytes_per_offloaded_frame"])
    assert summary["regret_oracle"] > 0
    table = records_of(summary["folder"]).to_pandas()
    dropped = table["dropped"]
    assert dropped.sum() == summary["dropped"]
    assert (table.loc[dropped, "confidence_3"] < 0.5).all()
    assert (table.loc[table["sent"], "confidence_3"] >= 0.5).all()
    assert table.loc[dropped, ["exit", "answer", "correct", "reward", "confidence_4"]].isna().all(axis=None)
    assert summary["accuracy"] == pytest.approx(table.loc[~dropped, "correct"].astype(bool).mean())
    config = Path(summary["folder"]) / "config.json"
    options = (
        "--out",
        tmp_path / "again",
        "--threads",
        1,
        "--no-regret",
        "--no-pictures",
        "--compare",
        "fixed:p_tar=0",
    )
    done = call("stream", "--config", config, *options)
    assert (done.returncode, done.stderr.count("\n")) == (0, 2)
    assert f"+{100 * summary['dropped_share']:.1f} points of frames dropped" in " ".join(done.stdout.split())
    assert f"{summary['dropped']} frames were dropped without an answer" in " ".join(done.stdout.split())
    refused(call("evaluate", summary["folder"]), f"{summary['dropped']} frames were dropped (--drop-below)")


@pytest.mark.process
def test_worker_of_its_own(tmp_path):
    options = ("--policy", "fixed", "--frames", 200, "--distortion", SCHEDULE, "--no-regret")
    embedded = stream(tmp_path, *options, "--answer-with", "own", run=play)
    with worker() as (process, endpoint):
        summary = stream(tmp_path, *options, "--worker", endpoint, "--plain", run=play)
        assert summary["answered"] == 200
        assert summary["fallbacks"] == 0
        assert outcome(summary) == outcome(embedded)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.process
def test_worker_killed_in_mid_stream(tmp_path):
    with worker() as (process, endpoint):
        command = start(
            "stream", "--worker", endpoint, "--plain", "--policy", "fixed:p_tar=1", "--frames", 2000,
            "--deadline-ms", 500, "--threads", 1, "--no-regret", "--json", "--out", tmp_path,
        )  # fmt: skip
        wait_for(lambda: any(p.stat().st_size for p in tmp_path.glob("*/records/part-*")), command)
        process.kill()
        done = finish(command)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["frames"] == summary["answered"] == 2000
    assert 0 < summary["fallbacks"] < 2000
    assert records_of(summary["folder"])["frame"].to_pylist() == list(range(2000))


@pytest.mark.process
def test_worker_with_another_model(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(SHIPPED, other)
    card = json.loads((other / CARD).read_text())
    card["temperatures"][0]["pristine"] = 3.5
    (other / CARD).write_text(json.dumps(card))
    with worker(other) as (_, endpoint):
        done = call("stream", "--worker", endpoint, "--plain", "--frames", 20, "--out", tmp_path / "runs")
    refused(done, "the worker has model")
    assert not (tmp_path / "runs").exists()


def test_nobody_listens(tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    common = ["--worker", endpoint, "--plain", "--frames", 20, "--out", tmp_path / "runs"]
    refused(call("stream", "--require-worker", *common), "no eex-worker answered")
    assert not (tmp_path / "runs").exists()
    options = ("--policy", "fixed", "--policy-option", "p_tar=1", "--no-regret", "--no-pictures", "--json")
    done = call("stream", *options, *common)
    assert done.returncode == 0, done.stderr
    assert "frames are answered on the edge until a worker can be reached" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == summary["answered"] == 20
    assert summary["fallbacks"] > 0


@pytest.mark.process
def test_a_worker_that_comes_later_is_picked_up(tmp_path):
    """The stream starts while the worker does not answer; from when it does, frames are offloaded."""
    with worker() as (cloud, endpoint):
        cloud.send_signal(signal.SIGSTOP)
        options = ("--worker", endpoint, "--plain", "--policy", "fixed:p_tar=1", "--no-regret", "--json")
        edge = start("stream", *options, "--threads", 1, "--frames", 3000, "--commit", 500, "--out", tmp_path)
        try:
            assert "frames are answered on the edge until a worker can be reached" in edge.stderr.readline()
            wait_for(lambda: list(tmp_path.glob("*/records/part-*")), edge)
            cloud.send_signal(signal.SIGCONT)
            done = finish(edge)
        finally:
            edge.kill()
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == summary["answered"] == 3000
    fallbacks = np.array(records_of(summary["folder"])["fallback"])
    assert fallbacks[:400].mean() > 0.9  # a few are sure even at a threshold of 1
    assert not fallbacks[-400:].any()


@pytest.mark.parametrize("deadline", ["inf", "nan", "0", "1e12"])
def test_deadlines_out_of_range(tmp_path, deadline):
    done = call("stream", "--deadline-ms", deadline, "--frames", 20, "--out", tmp_path / "runs")
    refused(done, "--deadline-ms must be more than 0 and at most")


# ---- Ctrl-C


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_is_summed_up(tmp_path, number):
    process = start(
        "stream", "--frames", 200_000, "--threads", 1, "--out", tmp_path, "--policy", "fixed", "--deadline-ms", 2000
    )
    wait_for(lambda: any(p.stat().st_size for p in tmp_path.glob("*/records/part-*")), process)
    embedded = children(process.pid)
    assert len(embedded) == 1
    process.send_signal(number)
    started = time.monotonic()
    done = finish(process)
    assert time.monotonic() - started < 30  # a few seconds on an idle machine
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stdout
    assert not Path(f"/proc/{embedded[0]}").exists()
    folder = next(tmp_path.iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert 0 < summary["frames"] == summary["answered"] < 200_000
    assert records_of(folder)["frame"].to_pylist() == list(range(summary["frames"]))


@pytest.mark.process
def test_killed_run_leaves_readable_records_and_no_worker(tmp_path):
    process = start("stream", "--frames", 200_000, "--threads", 1, "--out", tmp_path, "--policy", "fixed", "--json")
    records = wait_for(lambda: [p for p in tmp_path.glob("*/records/*") if p.stat().st_size > 100_000], process)
    embedded = children(process.pid)
    process.kill()
    finish(process)
    frames = read_records(records[0].parent)["frame"].to_pylist()
    assert len(frames) > 0
    assert frames == list(range(len(frames)))
    end = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{embedded[0]}").exists():
        if Path(f"/proc/{embedded[0]}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended; whoever adopted it has not looked yet
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- what cannot be used


BAD = {
    "unknown policy": (["--policy", "ucbb"], "did you mean 'ucb'"),
    "unknown policy option": (["--policy", "ucb", "--policy-option", "p_tar=1"], "no option 'p_tar'"),
    "policy option without value": (["--policy", "ucb", "--policy-option", "c"], "name=value"),
    "threshold outside its range": (["--policy", "fixed", "--policy-option", "p_tar=1.5"], "[0, 1]"),
    "rival's threshold": (["--compare", "fixed:p_tar=-1"], "[0, 1]"),
    "unknown distortion": (["--distortion", "gausian_blurr@1"], "did you mean 'gaussian_blur'"),
    "malformed schedule": (["--distortion", "3x(pristine:100"], "')'"),
    "empty folder": (["--source", "empty"], "no images"),
    "missing source": (["--source", "nowhere"], "no such source"),
    "no image is good": (["--source", "odd"], "no frame could be used"),
    "no card": (["--model", "nocard"], "no such model card"),
    "broken card": (["--model", "broken"], "not a model card"),
    "another card": (["--model", "othercard"], "does not match its card"),
    "truncated weights": (["--model", "truncated"], "does not match its card"),
    "truncated weights with their hash": (["--model", "truncated-sha"], "weights"),
    "no weights": (["--model", "noweights"], "missing"),
    "out in a file": (["--out", "file"], "--out"),
    "out below a file": (["--out", "file/x"], "--out"),
    "overhead": (["--overhead", "2"], "--overhead must lie in [0, 1]"),
    "no wish": (["--aim", "be quick"], "--aim: 'be quick' is no wish that eex knows; write"),
    "two wishes of one thing": (["--aim", "offload <= 5 %", "--aim", "offload <= 0.1"], "are of the same thing"),
    "overhead not a number": (["--overhead", "nan"], "--overhead must lie in [0, 1]"),
    "batch 0": (["--batch", "0"], "--batch must be at least 1"),
    "negative seed": (["--seed", "-1"], "--seed must be at least 0"),
    "negative threads": (["--threads", "-1"], "--threads must lie in [0, 1024]"),
    "drop-below": (["--drop-below", "1.5"], "--drop-below must lie in [0, 1]"),
    "deadline 0": (["--deadline-ms", "0"], "--deadline-ms must be more than 0"),
    "commit": (["--commit", "-1"], "--commit must be at least 0"),
    "a link to no worker": (["--link", "paris"], "--link goes with a worker, got --worker none"),
    "no worker, which is required": (["--require-worker"], "--require-worker goes with a worker"),
    "two configurations": (["--config", "batch0.json", "--resume", "runs"], "--config and --resume exclude each other"),
    "missing configuration": (["--config", "nowhere.json"], "cannot be read"),
    "broken configuration": (["--config", "broken.json"], "not the configuration of a run"),
    "configuration out of range": (["--config", "batch0.json"], "--batch must be at least 1"),
    "missing network": (["--network", "nowhere:make"], "cannot be imported"),
    "worker without protocol": (["--worker", "localhost:5555"], "tcp://host:port"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of things that cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    draw_images(folder / "odd", 3, size=20)
    for name in ("nocard", "broken", "othercard", "truncated", "truncated-sha", "noweights"):
        shutil.copytree(SHIPPED, folder / name)
    card = json.loads((SHIPPED / CARD).read_text())
    half = (SHIPPED / WEIGHTS).read_bytes()[:1_000_000]
    (folder / "nocard" / CARD).unlink()
    (folder / "noweights" / WEIGHTS).unlink()
    (folder / "broken" / CARD).write_text('{"format": 1, "name":')
    (folder / "othercard" / CARD).write_text(json.dumps(card | {"sha256": "0" * 64}))
    (folder / "truncated" / WEIGHTS).write_bytes(half)
    (folder / "truncated-sha" / WEIGHTS).write_bytes(half)
    (folder / "truncated-sha" / CARD).write_text(json.dumps(card | {"sha256": hashlib.sha256(half).hexdigest()}))
    (folder / "file").write_text("")
    (folder / "broken.json").write_text('{"policy": ')
    (folder / "batch0.json").write_text('{"batch": 0}')
    return folder


def try_stream(run, arguments, cwd):
    common = ["--worker", "none"]
    if "--config" not in arguments:
        common += ["--frames", 20, "--out", "runs", "--no-regret"]
    return run("stream", *common, *arguments, cwd=cwd)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(bad, case):
    arguments, message = BAD[case]
    refused(try_stream(call, arguments, bad), message)


def test_a_refusal_in_a_process_of_its_own(bad):
    arguments, message = BAD["broken card"]
    refused(try_stream(play, arguments, bad), message)


def test_bad_images_are_skipped_and_named(tmp_path):
    images = tmp_path / "images"
    draw_images(images, 20)
    draw_images(tmp_path / "odd", 1, size=31)
    (tmp_path / "odd" / "000.png").rename(images / "odd.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(whole, "PNG")
    (images / "cut.png").write_bytes(whole.getvalue()[:1000])
    np.save(images / "nans.npy", np.full((32, 32, 3), np.nan, dtype=np.float32))
    done = call(
        "stream", "--source", images, "--distortion", "pristine", "--worker", "none", "--threads", 1,
        "--out", tmp_path / "runs", "--frames", 20, "--no-pictures",
    )  # fmt: skip
    assert done.returncode == 0
    assert "dropped" not in done.stdout
    assert "\nrecords and summary: " in done.stdout
    assert not list(tmp_path.glob("runs/*/*.png"))
    summary = json.loads(next((tmp_path / "runs").glob("*/summary.json")).read_text())
    assert (summary["frames"], summary["answered"], summary["skipped"]) == (20, 20, 3)
    assert summary["accuracy"] is None
    names = {"odd.png", "cut.png", "nans.npy"}
    assert {line.partition(":")[0] for line in summary["skipped_images"]} == names
    text = " ".join(done.stdout.split())
    assert all(name in text for name in names)
    assert sorted(records_of(summary["folder"])["name"].to_pylist()) == [f"{k:03d}.png" for k in range(20)]


# ---- configurations and resumptions


def test_an_option_that_the_run_had_may_be_said_again(tmp_path):
    first = stream(tmp_path, "--worker", "none", "--frames", 40, "--no-regret")
    again = stream(tmp_path, "--resume", first["folder"], "--no-regret")
    assert again["frames"] == first["frames"]
    config = Path(first["folder"]) / "config.json"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(config.read_text()) | {"frames": 12}))
    assert stream(tmp_path, "--config", other, "--config", config, "--partition", 2)["frames"] == 40  # the last counts
    for flags in (["--no-regret"], ["--regret"], ["--no-resize"]):
        assert stream(tmp_path, "--config", config, "--frames", 20, *flags)["frames"] == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "a\0b"}, "holds a NUL"),
        ({"out": "a\0b"}, "holds a NUL"),
        ({"model": "a\ud800b"}, "half a surrogate pair"),
        ({"seed": [[]]}, "not the configuration of a run"),
        ({"seed": 2**40}, "--seed must be at most 4294967295"),
        ({"frmes": 10}, "not the configuration of a run: it has 'frmes', which is no option of eex-stream"),
        ({"frames": 10**16}, "--frames must be at most 1,000,000,000,000,000"),
        ({"frames": 10**400}, "not the configuration of a run"),
        ({"policy_option": [[[[]]]]}, "not the configuration of a run"),
    ],
)
def test_a_configuration_of_impossible_values_is_refused_in_one_line(offline, tmp_path, changes, message):
    config = json.loads((Path(offline["folder"]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    refused(call("stream", "--config", tmp_path / "config.json"), message)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"source":' * 250 + "1" + "}" * 250])
def test_a_configuration_that_is_nested_too_deeply(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(call("stream", "--config", tmp_path / "config.json"), "nested deeper than 200 levels")


def test_a_key_that_does_not_decode_is_refused_in_one_line(tmp_path):
    make_keys(tmp_path)
    (tmp_path / "worker.pub").write_text("#" * 40)
    refused(call("stream", "--worker", "tcp://127.0.0.1:9", "--keys", tmp_path), "worker.pub: not a key")
    (tmp_path / "worker.key").write_text("#" * 40)
    refused(call("worker", "--keys", tmp_path), "worker.key: not a key")


@pytest.mark.process
def test_another_model_answers_images(tmp_path):
    fingerprint = answerer_without_a_clue(tmp_path / "other")
    options = ("--frames", 40, "--policy", "fixed:p_tar=1,1,1,0", "--distortion", "pristine:40")
    summary = stream(tmp_path, "--answer-with", tmp_path / "other", *options)
    assert summary["send"] == {"encoding": "input", "why": "another model answers images", "candidates": []}
    assert summary["fallbacks"] == 0
    assert summary["link"]["workers"][0]["answerers"] == [fingerprint]
    last = summary["by_exit"][-1]  # hindsight asks the same model
    assert (last["exit"], last["confidence"]) == (4, pytest.approx(0.1))
    assert summary["accuracy"] < 0.3
    with worker("--answer-with", tmp_path / "other") as (_, endpoint):
        done = play(
            "stream", "--worker", endpoint, "--plain", "--send", "input", *options, "--out", tmp_path, "--no-pictures"
        )
    assert done.returncode == 0
    assert f"regret is not known: the worker answered with a model that is not here, {fingerprint}" in done.stderr
    assert "regret" not in done.stdout


def answerer_without_a_clue(folder):
    """Save a model of the shipped one's classes whose final exit is equally sure of all; returns its fingerprint."""
    from eex.models.card import SHIPPED, load, save

    net = load(SHIPPED)
    for weights in net.branches[-1].parameters():
        weights.data.zero_()
    save(net, folder)
    return net.fingerprint
