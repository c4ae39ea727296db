"""The commands in a container: a user without a name or a home, a read-only file system, ASCII, no terminal, PID 1."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PATIENCE_S, Done, command

from eex.stream.worker.serve import READY

USER = "12345"  # is in no passwd file
ENTER = f"""
mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift &&
exec unshare --user --map-user={USER} --map-group={USER} "$@"
"""
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONCOERCECLOCALE": "0"}


def confined(out, *words):
    """What starts a program that can write to one folder and nowhere else."""
    return ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", ENTER, "sh", str(out), *words]


def run(out, name, *arguments) -> Done:
    return subprocess.run(
        confined(out, *command(name, *arguments)), env=ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE_S, start_new_session=True, check=False,
    )  # fmt: skip


@functools.cache
def possible() -> bool:
    """Whether this machine lets the tests confine a program."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "mount"))):
        return False
    program = "import eex.policies, os; assert os.getuid() == 12345; open('/tmp/eex-confined', 'w')"
    tried = subprocess.run(
        confined("/mnt", sys.executable, "-c", program), env=ENVIRONMENT, cwd="/", capture_output=True, text=True
    )
    return "Read-only file system: '/tmp/eex-confined'" in tried.stderr


@pytest.fixture
def out(tmp_path):
    if not possible():
        pytest.skip("needs root and namespaces")
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]


def test_a_run_leaves_its_results_and_only_pictures_may_lack(out):
    done = run(out, "stream", "--frames", 60, "--threads", 1, "--out", out, "--deadline-ms", 60_000)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.isascii()
    (folder,) = out.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["frames"], summary["unrecorded"], summary["worker_deaths"]) == (60, "", 0)
    names = {path.name for path in folder.iterdir()}
    assert {"summary.json", "curves.arrow", "config.json", "state.npz", "records"} <= names
    assert {"adaptation.png", "exits.png"} <= names or "no pictures were drawn" in done.stderr
    measured = run(out, "metrics", folder, "--json")
    assert (measured.returncode, "Traceback" in measured.stderr) == (0, False), measured.stderr
    assert (folder / "reliability.png").exists() or "was not drawn" in measured.stderr
    assert json.loads(measured.stdout)


def test_a_folder_that_is_read_only_is_one_line(out):
    done = run(out, "stream", "--frames", 20, "--threads", 1, "--worker", "none", "--out", "/var/runs")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: /var/runs: cannot write there (--out): Read-only")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["worker", "keys", "stream"])
def test_without_a_home_the_folder_of_keys_is_asked_for(out, name):
    arguments = {"worker": ["--bind", "tcp://127.0.0.1:*"], "keys": [], "stream": ["--worker", "tcp://127.0.0.1:9"]}
    done = run(out, name, *arguments[name])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "EEX_KEYS" in done.stderr
    made = run(out, "keys", out / "keys")
    assert (made.returncode, made.stderr) == (0, "")


def test_a_worker_serves_and_stops(out):
    words = command("worker", "--plain", "--bind", "tcp://127.0.0.1:*", "--threads", 1)
    with subprocess.Popen(
        confined(out, *words), env=ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline().startswith(READY), process.stderr.read()
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
