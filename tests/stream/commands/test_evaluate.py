"""`eex-evaluate` as a user types it, on runs that `eex-stream` made."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused

from eex.policies.core.references import fixed_reward
from eex.policies.core.trace import read_trace
from eex.stream.run.records import outcomes_of

pytestmark = pytest.mark.timeout(200)

SCHEDULE = "pristine:100, gaussian_blur@1:100, gaussian_noise@20+gaussian_blur@0.5:100"


def stream(out, *arguments):
    """The folder that an `eex-stream` run left."""
    options = ("--out", out, "--deadline-ms", 60_000, "--no-regret", "--no-pictures", "--quiet")
    done = call("stream", *options, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return max(Path(out).iterdir())


@pytest.fixture(scope="module")
def random_run(tmp_path_factory, cloud):
    options = ("--policy", "random", "--distortion", SCHEDULE, "--frames", 900)
    return stream(tmp_path_factory.mktemp("runs"), *cloud, *options)


def test_estimates_from_a_live_log(random_run, tmp_path):
    done = call("evaluate", random_run, "--thresholds", "0.5,0.75,1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["run"] == pytest.approx(np.nanmean(outcomes_of(random_run / "records").reward))
    assert [row["thresholds"] for row in found["rows"]] == [[0.5] * 3, [0.75] * 3, [1.0] * 3]
    done = call("record", "--config", random_run / "config.json", "--out", tmp_path / "t.arrow", "--quiet")
    assert done.returncode == 0
    confidence = read_trace(tmp_path / "t.arrow").confidence
    priced = json.loads((random_run / "records" / "priced.json").read_text())
    exit_cost = np.array([float(cost) for cost in priced["exit_cost"].split(",")])
    supported = [row for row in found["rows"] if not row["problem"]]
    assert supported
    for row in supported:
        truth = fixed_reward(confidence, 0.1, row["thresholds"][0], exit_cost, 0.0, "utility").mean()
        for name in ("dr", "snips", "ips"):
            assert abs(row[name]["mean"] - truth) < 5 * row[name]["se"]


def test_the_table_of_estimates(random_run):
    done = call("evaluate", random_run / "records", "--thresholds", "0.9, 0.9/0.8/0.7, 1", "--overhead", 0.2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.9/0.8/0.7" in done.stdout
    assert done.stdout.count("±") >= 3
    assert all(len(line) <= 100 for line in done.stdout.splitlines()[:-2])


def test_a_log_without_propensities_says_so(tmp_path):
    run = stream(
        tmp_path,
        "--worker",
        "none",
        "--policy",
        "fixed:p_tar=0.6",
        "--frames",
        60,
        "--reward",
        "adaee",
        "--exit-cost",
        0,
    )
    done = call("evaluate", run, "--thresholds", "0.05,0.9")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.9: no " in done.stdout
    rows = json.loads(call("evaluate", run, "--thresholds", "0.05,0.9", "--json").stdout)["rows"]
    assert rows[0]["dr"]["mean"] == 0.0
    assert rows[0]["problem"] is None
    assert rows[1]["dr"] is None
    assert rows[1]["problem"].startswith("no ")


def test_several_runs_one_after_another(random_run):
    alone = call("evaluate", random_run, "--thresholds", "0.5", "--json").stdout
    done = call("evaluate", random_run, random_run / "records", "--thresholds", "0.5", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == json.loads(alone)
    assert first["rows"] == second["rows"]
    assert [first["folder"], second["folder"]] == [str(random_run), str(random_run / "records")]
    done = call("evaluate", random_run, random_run, "--thresholds", "0.5")
    assert done.stdout.count("the run itself") == 2
    assert done.stdout.count(f"{random_run}:\nestimated reward") == 2


def test_a_folder_whose_name_is_not_utf8(random_run, tmp_path):
    run = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(random_run, run)
    done = call("evaluate", run, "--thresholds", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    there = json.loads(call("evaluate", random_run, "--thresholds", "0.5", "--json").stdout)
    assert json.loads(done.stdout) == there | {"folder": str(run)}
    assert "caf\\udce9" in json.dumps(str(run))
    done = call("metrics", run, "--json")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the folder of at least one run"),
        (("nowhere",), "no records here"),
        ((".", "--thresholds", "0.5,half"), "'half' is not a threshold"),
    ],
)
def test_what_evaluate_refuses(tmp_path, arguments, message):
    refused(call("evaluate", *arguments, cwd=tmp_path), message)


def test_thresholds_that_do_not_fit_the_run(random_run):
    refused(call("evaluate", random_run, "--thresholds", "0.5/0.6"), "one for each of 3 edge exits")
    refused(call("evaluate", random_run, "--thresholds", "1.5"), "must lie in [0, 1]")
