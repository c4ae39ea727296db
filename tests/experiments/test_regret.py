"""`eex-regret` as a user types it; regrets worked by hand; sweeps that are cut, killed and put on other machines."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call
from commands import refused as refused_at_once
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.experiments import plotting
from eex.experiments import regret as command
from eex.experiments import sweep as sweeping
from eex.experiments.bench.policies import synthetic_trace
from eex.experiments.plotting import read_curves
from eex.experiments.regret import RegretConfig, compare, fingerprint, rounds_to_best
from eex.experiments.sweep import Part, Sweep, checkpoints, parts_left, play
from eex.policies.core.errors import EexError
from eex.policies.core.files import alone_in
from eex.policies.core.link import parse_link
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace, write_trace
from eex.policies.registry import POLICIES, make_policy

pytestmark = pytest.mark.timeout(240)

EEX_REGRET = [str(Path(sys.executable).parent / "eex-regret")]
NO_THREADS = os.environ | {"OMP_NUM_THREADS": "1"}

HEADER = (
    ",target,id,conf_branch_1,infered_class_branches_1,correct_branch_1,"
    "conf_branch_2,infered_class_branches_2,correct_branch_2\n"
)
CSV = (
    HEADER
    + """0,3.0,1.0,0.8,3.0,1.0,0.99,3.0,1.0
1,1.0,2.0,0.4,2.0,0.0,0.90,1.0,1.0
2,0.0,3.0,0.6,0.0,1.0,0.70,0.0,1.0
"""
)


def type_in(*arguments, code=0):
    """Run the command in a process of its own; what it printed."""
    done = subprocess.run(
        [*EEX_REGRET, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False, env=NO_THREADS
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def by_hand():
    """Two stretches of two frames. Gains of offloading: 0.7, 0.3; 0.1, 0."""
    return Trace(
        confidence=np.array([[0.2, 0.9], [0.6, 0.9], [0.3, 0.4], [0.9, 0.9]]),
        prediction=np.array([[1, 0], [0, 0], [1, 1], [1, 1]]),
        label=np.array([0, 0, 1, 1]),
        classes=("cat", "dog"),
        distortion=np.array(["pristine", "pristine", "blur", "blur"]),
        level=np.array([0.0, 0.0, 1.0, 1.0]),
    )


def with_two_edge_exits(frames):
    """Without labels."""
    one = synthetic_trace(frames)
    return Trace(
        confidence=np.column_stack([one.confidence[:, 0] * 0.8, one.confidence]),
        prediction=one.prediction[:, [0, 0, 1]],
        label=np.full(frames, -1),
        classes=one.classes,
    )


@pytest.fixture
def trace(tmp_path):
    write_trace(tmp_path / "tiny.arrow", synthetic_trace(200))
    return tmp_path / "tiny.arrow"


@pytest.fixture
def undrawn(monkeypatch):
    """Comparisons draw no pictures, which take longer than they do."""
    monkeypatch.setattr(plotting, "draw_regret", lambda folder: [])


def small(trace, out, **more):
    options = {"policies": "ucb,fixed", "overheads": "0.1,0.3", "rounds": 60, "runs": 4, "processes": 1} | more
    return RegretConfig(trace=(trace,), out=out, **options)


# ---- as a user types it


def test_table_folder_and_pictures(trace, tmp_path):
    said = type_in(
        *("--trace", trace, "--policies", "ucb,fixed:p_tar=0.9", "--overheads", "0.1,0.3"),
        *("--rounds", 100, "--runs", 3, "--out", tmp_path / "out"),
    )
    for word in ("tiny", "overhead 0.1", "overhead 0.3", "fixed:p_tar=0.9", "oracle", "accuracy", "sum over"):
        assert word in said
    assert "[bold]" not in said
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        *("config.json", "summary.json", "curves.arrow", "regret_best_arm.pdf", "regret_best_arm.png"),
        *("regret_oracle.pdf", "regret_oracle.png"),
    }
    rows = read_curves(tmp_path / "out")
    assert list(rows["round"].unique()) == checkpoints(100).tolist()
    assert len(rows) == 2 * 2 * 3 * len(checkpoints(100))


@pytest.mark.usefixtures("undrawn")
def test_json_alone_on_stdout_and_again_from_the_folder(trace, tmp_path):
    arguments = (
        *("--trace", trace, "--policies", "ucb,fixed", "--overheads", "0.1"),
        *("--rounds", "80", "--runs", "3", "--json", "--out", tmp_path / "out", "--processes", "1"),
    )
    said = json.loads(call("regret", *arguments).stdout, parse_constant=pytest.fail)  # no NaN
    assert [(row["trace"], row["policy"], row["overhead"]) for row in said["rows"]] == [
        ("tiny", "ucb", 0.1),
        ("tiny", "fixed", 0.1),
    ]
    for name in ("best_arm", "best_per_exit", "oracle", "dynamic"):
        assert said["rows"][0][f"regret_{name}"] >= 0
        assert said["rows"][0][f"regret_{name}_ci95"] >= 0
    assert 0 <= said["rows"][0]["offloaded_share"] <= 1
    assert 0 <= said["rows"][0]["accuracy"] <= 1
    offloads, row = 0.1 * said["rows"][0]["offloaded_share"], said["rows"][0]
    assert (row["paid"], row["accuracy_less_costs"]) == pytest.approx((offloads, row["accuracy"] - offloads))
    assert "rounds_to_best" in said["rows"][0]
    assert said["sums"][0]["ratio_to_ucb"] == 1
    assert said == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert said == json.loads(call("regret", *arguments).stdout)  # nothing is left to play


@pytest.mark.usefixtures("undrawn")
def test_a_csv_of_adaees_authors_and_quiet(tmp_path):
    (tmp_path / "theirs.csv").write_text(CSV)
    out = tmp_path / "out"
    arguments = ("--policies", "fixed", "--overheads", "0.1", "--rounds", 20, "--runs", 2, "--processes", 1)
    assert call("regret", "--trace", tmp_path / "theirs.csv", *arguments, "--quiet", "--out", out).stdout == ""
    assert set(read_curves(out)["trace"]) == {"theirs"}


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_finds_its_folder_again(trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small(trace, None, rounds=20)
    assert compare(config)["folder"] == compare(config)["folder"]
    assert compare(small(trace, None, rounds=21))["folder"] != compare(config)["folder"]


def test_pictures_are_drawn_anew_from_saved_rows_alone(trace, tmp_path):
    compare(small(trace, tmp_path / "out"))
    pictures = [*(tmp_path / "out").glob("*.png"), *(tmp_path / "out").glob("*.pdf")]
    for path in (trace, *pictures):
        path.unlink()
    said = call("regret", "--redraw", tmp_path / "out").stdout
    assert sorted(said.split()) == sorted(str(path) for path in pictures)
    assert all(path.stat().st_size > 1000 for path in pictures)
    refused_at_once(call("regret", "--redraw", tmp_path), "curves.arrow: cannot be read")


def test_the_command_starts_without_heavy_libraries():
    forbidden = "torch zmq pandas pyarrow matplotlib river gymnasium stable_baselines3 ray scipy"
    program = f"import sys; import eex.experiments.regret; print(set({forbidden!r}.split()) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "set()"


# ---- numbers


@pytest.mark.usefixtures("undrawn")
def test_regrets_by_hand(tmp_path):
    write_trace(tmp_path / "hand.arrow", by_hand())
    summary = compare(
        RegretConfig(
            trace=(tmp_path / "hand.arrow",),
            policies="fixed:p_tar=0,fixed:p_tar=0.5,fixed:p_tar=1",
            overheads="0.1",
            rounds=4,
            runs=1,
            order="in-order",
            grid="0 0.5 1",
            processes=1,
            out=tmp_path / "out",
        )
    )
    # threshold 0 earns 0, 0 | 0, 0; threshold 0.5 earns 0.6, 0 | 0, 0; threshold 1 earns 0.6, 0.2 | 0, -0.1
    rows = {row["policy"]: row for row in summary["rows"]}
    for policy, best, dynamic, oracle, offloaded, accuracy in (
        ("fixed:p_tar=0", 0.7, 0.8, 0.8, 0.0, 0.75),
        ("fixed:p_tar=0.5", 0.1, 0.2, 0.2, 0.5, 1.0),
        ("fixed:p_tar=1", 0.0, 0.1, 0.1, 1.0, 1.0),
    ):
        row = rows[policy]
        names = ("regret_best_arm", "regret_dynamic", "regret_oracle", "offloaded_share", "accuracy")
        expected = (best, dynamic, oracle, offloaded, accuracy)
        np.testing.assert_allclose([row[name] for name in names], expected, atol=1e-9)
        assert row["regret_best_per_exit"] == row["regret_best_arm"]
        assert row["regret_best_arm_ci95"] is None
    assert summary["hindsight"][0]["threshold"] == 1
    np.testing.assert_allclose(summary["hindsight"][0]["reward"], 0.7 / 4)
    curves = read_curves(tmp_path / "out").query("policy == 'fixed:p_tar=0'")
    assert curves["round"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(curves["regret_dynamic"], [0.6, 0.8, 0.8, 0.8])
    # arms drawn evenly would earn 0.4, 0.2 / 3, 0, -0.1 / 3
    np.testing.assert_allclose(curves["regret_even"], [0.4, 0.4 + 0.2 / 3, 0.4 + 0.2 / 3, 0.4 + 0.1 / 3])


@pytest.mark.usefixtures("undrawn")
def test_intervals_over_runs_by_hand(trace, tmp_path):
    summary = compare(small(trace, tmp_path / "out", runs=3))
    rows = read_curves(tmp_path / "out").query("policy == 'ucb' and round == 60")
    finals = rows[rows["overhead"] == 0.1]["regret_best_arm"].to_numpy()
    row = summary["rows"][0]
    np.testing.assert_allclose(row["regret_best_arm"], finals.mean())
    np.testing.assert_allclose(row["regret_best_arm_ci95"], 4.302653 * finals.std(ddof=1) / 3**0.5, rtol=1e-6)
    both = rows.groupby("run")["regret_best_arm"].sum()
    np.testing.assert_allclose(summary["sums"][0]["regret_best_arm"], both.mean())
    fixed = next(r for r in summary["rows"] if r["policy"] == "fixed" and r["overhead"] == 0.1)
    np.testing.assert_allclose(fixed["ratio_to_ucb"], fixed["regret_best_arm"] / row["regret_best_arm"])


def test_rounds_until_near_the_best_arm():
    at = np.arange(10, 1001, 10)

    def curves(lost, even=1.0):  # cumulative; drawing evenly loses `even` a round
        runs = [pd.DataFrame({"run": r, "round": at, "regret_best_arm": lost + d}) for r, d in ((0, 0.0), (1, 0.0))]
        rows = pd.concat(runs)
        rows["regret_even"] = rows["regret_best_arm"] - even * rows["round"]  # against what drawing evenly earns
        return rows

    assert rounds_to_best(curves(0.0 * at)) == 0
    assert rounds_to_best(curves(0.04 * at)) == 0
    assert rounds_to_best(curves(0.06 * at)) is None
    assert rounds_to_best(curves(np.minimum(at, 300.0))) == 300  # loses like drawing evenly up to there, nothing then
    assert rounds_to_best(curves(np.minimum(at, 300.0) + np.maximum(at - 950, 0))) is None  # and again at the end
    assert rounds_to_best(curves(np.minimum(at, 300.0) * 0.5, even=0.5)) == 300


@pytest.mark.parametrize("policy", [*POLICIES, "drift:detector=page-hinkley@ucb"])
def test_every_policy_plays_the_same_however_the_sweep_is_cut(policy):
    both = Sweep((0.1, 0.3), 40, 3, "resampled", 2, None, 0.0, 5, (0.0, 0.5, 1.0))
    one = Sweep((0.3,), 40, 3, "resampled", 2, None, 0.0, 5, (0.0, 0.5, 1.0))
    trace = with_two_edge_exits(50)
    whole = pd.DataFrame(play(both, Part(0, 0, policy, 0, 3), trace))
    cut = [pd.DataFrame(play(both, Part(0, 0, policy, *ends), trace)) for ends in ((0, 1), (1, 3))]
    keys = ["overhead", "run", "round"]
    pd.testing.assert_frame_equal(
        whole.sort_values(keys, ignore_index=True), pd.concat(cut).sort_values(keys, ignore_index=True)
    )
    alone = pd.DataFrame(play(one, Part(0, 0, policy, 0, 3), trace))
    pd.testing.assert_frame_equal(whole[whole["overhead"] == 0.3].reset_index(drop=True), alone)


@pytest.mark.usefixtures("undrawn")
def test_an_exit_cost_per_exit(tmp_path):
    write_trace(tmp_path / "three.arrow", with_two_edge_exits(100))
    played = compare(small(tmp_path / "three.arrow", tmp_path / "out", exit_cost="0.03"))
    assert played["hindsight"][0]["exit_cost"] == [0.03]
    with pytest.raises(EexError, match="--exit-cost has 2 prices; expected 1, or 1 for 2 edge exits: three"):
        compare(small(tmp_path / "three.arrow", tmp_path / "more", exit_cost="0.01,0.03"))
    with pytest.raises(EexError, match="--exit-cost 'auto' needs the times"):
        compare(small(tmp_path / "three.arrow", tmp_path / "auto", exit_cost="auto"))


def test_several_exits_and_an_exit_cost(tmp_path):
    write_trace(tmp_path / "three.arrow", with_two_edge_exits(100))
    row = compare(small(tmp_path / "three.arrow", tmp_path / "out", exit_cost=0.02))["rows"][0]
    assert row["regret_best_per_exit"] > row["regret_best_arm"]  # one more freedom: never less
    assert row["accuracy"] is None
    assert (tmp_path / "out" / "regret_best_per_exit.png").exists()


def test_late_feedback_through_a_link_and_in_segments(tmp_path):
    write_trace(tmp_path / "hand.arrow", by_hand())
    out = tmp_path / "out"
    summary = compare(
        small(tmp_path / "hand.arrow", out, link="12:20, down:10, jitter=5", order="segments", grid="0 1")
    )
    assert summary["rows"][0]["regret_dynamic"] >= summary["rows"][0]["regret_best_arm"]
    assert (out / "regret_dynamic.png").exists()


# ---- cut, killed, elsewhere


@settings(max_examples=60)
@given(
    runs=st.integers(1, 12),
    processes=st.integers(1, 9),
    done=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 11)), max_size=12),
)
def test_parts_are_what_is_missing(tmp_path_factory, runs, processes, done):
    folder = tmp_path_factory.mktemp("parts")
    done = {(policy, run) for policy, run in done if run < runs}
    for policy, run in done:
        (folder / Part(0, policy, "", run, run + 1).name).touch()
    sweep = Sweep((0.1,), 10, runs, "resampled", 0, None, 0.0, 0, (0.5,))
    left = [
        (part.policy, run)
        for part in parts_left(folder, ["ucb", "fixed"], 1, sweep, processes)
        for run in range(part.first, part.last)
    ]
    assert len(left) == len(set(left))
    assert set(left) | done == {(policy, run) for policy in range(2) for run in range(runs)}
    assert not set(left) & done


def long_enough(trace, out, processes):
    return (
        *("--trace", trace, "--policies", "ucb,fixed", "--overheads", "0.1", "--rounds", 6000, "--runs", 12),
        *("--seed", 3, "--quiet", "--processes", processes, "--out", out),
    )


def stopped_after_the_first_part(trace, out, number):
    """Start a sweep, send it a signal once it has written something; its process, and those it had started."""
    arguments = [*EEX_REGRET, *map(str, long_enough(trace, out, 2))]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=NO_THREADS)
    end = time.monotonic() + 100
    while not list(out.glob("parts/*.arrow")):
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.002)
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    children = listed.read_text().split() if listed.exists() else []
    running.send_signal(number)
    running.wait(60)
    return running, children


@pytest.mark.soak
@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_stopped_sweep_goes_on_where_it_was(trace, tmp_path, number):
    out = tmp_path / "out"
    running, children = stopped_after_the_first_part(trace, out, number)
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert running.stderr.read() == "interrupted; the same command goes on where it was\n"
    running.stderr.close()
    end = time.monotonic() + 30
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes() for child in children
    ):
        assert time.monotonic() < end, "processes of the sweep outlive it"
        time.sleep(0.1)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("parts/*.arrow")}
    assert 0 < len(finished) < 8
    assert not (out / "curves.arrow").exists()
    type_in(*long_enough(trace, out, 1))  # with another number of processes
    type_in(*long_enough(trace, tmp_path / "uninterrupted", 2))
    assert (out / "curves.arrow").read_bytes() == (tmp_path / "uninterrupted" / "curves.arrow").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_finished_parts_are_not_played_again(trace, tmp_path, monkeypatch):
    played = []

    def some(sweep, part, *rest):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append((part.policy, part.first))
        return play(sweep, part, *rest)

    monkeypatch.setattr(sweeping, "play", some)
    with pytest.raises(KeyboardInterrupt):
        compare(small(trace, tmp_path / "out"))
    monkeypatch.setattr(
        sweeping,
        "play",
        lambda sweep, part, *rest: played.append((part.policy, part.first)) or play(sweep, part, *rest),
    )
    shown = []
    compare(small(trace, tmp_path / "out"), lambda done, total: shown.append((done, total)))
    assert len(played) == len(set(played)) == 4
    assert shown[0] == (2 * 2 * 2 * 60, 2 * 4 * 2 * 60)
    assert shown[-1][0] == shown[-1][1]


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_another_comparison_is_refused(trace, tmp_path):
    out = tmp_path / "out"
    compare(small(trace, out))
    with pytest.raises(ValueError, match="another comparison, which differs in rounds, seed"):
        compare(small(trace, out, rounds=61, seed=1))
    write_trace(trace, synthetic_trace(201))
    with pytest.raises(ValueError, match="differs in traces"):
        compare(small(trace, out))
    with pytest.raises(ValueError, match="holds other files"):
        compare(small(trace, tmp_path))
    with pytest.raises(ValueError, match="cannot write there"):
        compare(small(trace, trace / "below"))


def test_a_folder_has_one_comparison_at_a_time(trace, tmp_path):
    with alone_in(tmp_path / "out"), pytest.raises(EexError, match="another process is writing there"):
        compare(small(trace, tmp_path / "out"))


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="eex[ray] is not installed")
def test_ray_gives_the_same_numbers(trace, tmp_path):
    arguments = ("--trace", trace, "--policies", "ucb,fixed", "--rounds", "50", "--runs", "5", "--quiet")
    type_in(*arguments, "--processes", "2", "--out", tmp_path / "ray", "--ray")
    type_in(*arguments, "--processes", "1", "--out", tmp_path / "here")
    assert (tmp_path / "ray" / "curves.arrow").read_bytes() == (tmp_path / "here" / "curves.arrow").read_bytes()


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="eex[ray] is not installed")
def test_a_ray_cluster_that_is_lost(trace, tmp_path, monkeypatch):
    import ray

    def lost(*arguments, **options):
        raise ray.exceptions.LocalRayletDiedError

    monkeypatch.setattr(ray, "wait", lost)
    with pytest.raises(EexError, match=r"--ray: the cluster was lost: .* died.*; the same command goes on"):
        compare(small(trace, tmp_path / "out", ray=()))


def test_no_ray_and_no_cluster(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Ray is not installed; pip install 'eex\[ray\]'"):
        compare(small(trace, tmp_path / "out", ray=()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    with pytest.raises(ValueError, match=r"--ray 127.0.0.1:1: nothing answers there: Connection refused"):
        compare(small(trace, tmp_path / "out", ray=("127.0.0.1:1",)))
    assert not (tmp_path / "out").exists()


# ---- bad input


def csv_with(old, new):
    assert old in CSV
    return CSV.replace(old, new)


BAD_TRACES = {
    "missing column": (csv_with("correct_branch_2", "right"), "column correct_branch_2 is missing"),
    "no such layout": ("a,b\n1,2\n", "columns of no layout that is known"),
    "outside": (csv_with("0.99", "1.7"), r"confidence must lie in \[0, 1\]: frame 0 \(of 3\) has 1.7"),
    "negative": (csv_with("0.4,", "-0.4,"), r"confidence must lie in \[0, 1\]: frame 1"),
    "nan": (csv_with("0.70", "nan"), r"confidence must lie in \[0, 1\]: frame 2 \(of 3\) has nan"),
    "no rows": (HEADER, "has no rows"),
    "empty": ("", "is empty"),
    "text": (csv_with("0.99", "high"), "row 1: conf_branch_2 must be a number, got 'high'"),
}


def refused(monkeypatch, capsys, *arguments):
    """The one line with which the command ends."""
    monkeypatch.setattr(sys, "argv", ["eex-regret", *map(str, arguments)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            command.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("name", BAD_TRACES)
def test_bad_traces_are_told_in_one_line(name, tmp_path, monkeypatch, capsys):
    text, expected = BAD_TRACES[name]
    (tmp_path / "bad.csv").write_text(text)
    said = refused(monkeypatch, capsys, "--trace", tmp_path / "bad.csv", "--out", tmp_path / "out")
    assert re.search(expected, said), said
    assert "bad.csv" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policies", "ucb,ubc"], "unknown policy 'ubc' (did you mean 'ucb'?)"),
        (["--policies", "ucb,ucb:d=1"], "has no option 'd'"),
        (["--policies", "ucb:c=much"], "option c must be a number, got 'much'"),
        (["--policies", "ucb:c=-1"], "c must be 0 or more"),
        (["--policies", "broken_plugin:Policy"], "broken_plugin"),
        (["--policies", "no_such_plugin:Policy"], "no_such_plugin"),
        (["--overheads", "0.1,1.5"], "--overheads must be comma-separated numbers in [0, 1], got '0.1,1.5'"),
        (["--overheads", "cheap"], "--overheads must be comma-separated numbers"),
        (["--overheads", ""], "--overheads must be comma-separated numbers"),
        (["--grid", "0.5 nan"], "--grid must be comma-separated numbers"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--runs", "-1"], "--runs must be at least 1, got -1"),
        (["--delay", "-1"], "--delay must be at least 0"),
        (["--exit-cost", "2"], "--exit-cost must lie in [0, 1]"),
        (["--link", "soon"], "neither MS:FRAMES"),
        (["--link", "12:30", "--delay", "3"], "--delay and --link exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_told_before_any_work(arguments, expected, trace, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_plugin.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert expected in refused(monkeypatch, capsys, "--trace", trace, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_missing_traces(tmp_path, monkeypatch, capsys):
    assert "name at least one trace: --trace FILE" in refused(monkeypatch, capsys, "--policies", "ucb")
    assert "cannot be read: No such file" in refused(monkeypatch, capsys, "--trace", tmp_path / "gone.arrow")


# ---- what a finished comparison was made of


def test_fingerprints_cover_agents_wrapped_plug_ins_and_what_they_import(tmp_path, monkeypatch):
    (tmp_path / "fp_help.py").write_text("STEP = 0.1\n")
    (tmp_path / "fp_mine.py").write_text(
        "import fp_help\nfrom eex.policies.algorithms.fixed import Fixed\n\n\nclass Mine(Fixed):\n    pass\n"
    )
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "weights").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["drift@fp_mine:Mine"]
    made = [make_policy(text) for text in texts]
    options = [f"rl:model={tmp_path / 'agent'}"]

    def now():
        return fingerprint(made, texts), fingerprint([], options), fingerprint([], ["ucb"])

    plug_in, agent, own = now()
    assert now() == (plug_in, agent, own)
    (tmp_path / "fp_help.py").write_text("STEP = 0.2\n")
    assert now()[0] != plug_in
    assert now()[1:] == (agent, own)
    (tmp_path / "agent" / "weights").write_bytes(b"2")
    assert now()[1] != agent
    assert now()[2] == own


def test_a_policy_without_a_file_is_never_resumed():
    scope = {"__name__": "nowhere"}
    exec("from eex.policies.algorithms.fixed import Fixed\nclass Mine(Fixed): pass", scope)
    made = [scope["Mine"]()]
    assert fingerprint(made, ["x"]) != fingerprint(made, ["x"])


@pytest.mark.usefixtures("undrawn")
def test_copies_of_one_path_have_no_interval(trace, tmp_path):
    config = RegretConfig(trace=(trace,), policies="fixed", order="in-order", runs=3, rounds=20, out=tmp_path / "r")
    assert all(row["regret_best_arm_ci95"] is None for row in compare(dataclasses.replace(config, processes=1))["rows"])


WRITTEN = {
    "late_plugin.py": """
from eex.policies.algorithms.fixed import Fixed

class P(Fixed):
    def choose(self, context):
        import late_pack.inner
        return super().choose(context)
""",
    "late_pack/__init__.py": "",
    "late_pack/inner.py": "from . import deeper\nimport not_there\n",
    "late_pack/deeper.py": "from .deepest import VALUE\n",
    "late_pack/deepest.py": "VALUE = 1\n",
    "late_unrelated.py": "",
}


@pytest.fixture
def late_plugin(tmp_path, monkeypatch):
    (tmp_path / "late_pack").mkdir()
    for name, text in WRITTEN.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("late_")]:
        del sys.modules[name]


@pytest.mark.parametrize("wrapper", ["", "drift@", "safe@"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_sweep_is_not_resumed_once_any_of_it_has_changed(late_plugin, name, wrapper):
    text = f"{wrapper}late_plugin:P"
    before = fingerprint([make_policy(text, exits=1)], [text])
    (late_plugin / name).write_text(WRITTEN[name] + "# changed")
    assert (fingerprint([make_policy(text, exits=1)], [text]) == before) == (name == "late_unrelated.py")


# ---- wishes


@pytest.mark.usefixtures("undrawn")
def test_wishes_are_kept_in_a_comparison(tmp_path):
    path = tmp_path / "two.arrow"
    write_trace(path, with_two_edge_exits(2000))
    config = RegretConfig(
        trace=(path,),
        policies="stop-curve,fixed,aim:wish=p50 <= 3 ms@gain-curve",
        overheads="0.05",
        rounds=2000,
        runs=3,
        aim=("offload <= 10 %", "mean latency <= 9 ms"),
        exit_ms="1, 2, 50",
        out=tmp_path / "out",
        processes=1,
    )
    rows = {row["policy"]: row for row in compare(config)["rows"]}
    first, second = rows["stop-curve"]["aims"]
    assert (first["wish"], first["limit"], first["kept_share"]) == ("offload <= 10 %", 0.1, 1.0)
    assert first["came_to"] == pytest.approx(rows["stop-curve"]["offloaded_share"])
    assert (second["wish"], second["kept_share"]) == ("mean latency <= 9 ms", 1.0)
    assert second["came_to"] == pytest.approx(rows["stop-curve"]["latency_ms"])
    assert rows["fixed"]["aims"][0]["kept_share"] == 0  # it heeds no price: played as it is
    assert rows["fixed"]["differs"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aim": ("be quick",)}, "--aim: 'be quick' is no wish"),
        ({"aim": ("mean latency <= 8 ms",)}, "the trace two holds no times; say when each exit answers, --exit-ms"),
        ({"policies": "aim:wish=p99 <= 8 ms@stop-curve"}, "'p99 <= 8 ms': the trace two holds no times"),
        ({"aim": ("offload <= 5 %",), "policies": "fixed,ucb"}, "--aim: none of fixed, ucb heeds prices"),
        ({"exit_ms": "1,2"}, "--exit-ms: two: the exits' times must be 3 numbers of milliseconds"),
        ({"exit_ms": "1,2,-3"}, "--exit-ms must be comma-separated milliseconds"),
        ({"exit_ms": "1,2,soon"}, "--exit-ms must be comma-separated milliseconds"),
    ],
)
def test_wishes_that_cannot_be_played_are_refused_before_anything_is(tmp_path, options, message):
    path = tmp_path / "two.arrow"
    write_trace(path, with_two_edge_exits(20))
    config = RegretConfig(**{"trace": (path,), "policies": "stop-curve", "out": tmp_path / "out"} | options)
    with pytest.raises(EexError, match=re.escape(message)):
        compare(config)
    assert not (tmp_path / "out").exists()


def test_latencies_are_those_of_the_trace_or_given():
    trace = dataclasses.replace(
        by_hand(), seconds=np.array([[0.001, 0.01], [0.002, 0.02], [0.003, 0.03], [0.004, 0.04]])
    )
    timed = replay(make_policy("fixed:p_tar=0.5"), trace, 0.1, order="in-order")
    np.testing.assert_allclose(timed.latency_ms, [[10, 2, 30, 4]])
    given = replay(
        make_policy("fixed:p_tar=0.5"), trace, 0.1, order="in-order", exit_ms=(1, 5), link=parse_link("30:10")
    )
    np.testing.assert_allclose(given.latency_ms, [[35, 1, 35, 1]])


def test_an_option_that_is_too_long_for_a_name_is_no_file():
    text = "ucb:grid=" + " ".join(f"{k / 100:g}" for k in range(101))
    assert fingerprint([make_policy(text, exits=1)], [text]) == fingerprint([make_policy("ucb", exits=1)], ["ucb"])
