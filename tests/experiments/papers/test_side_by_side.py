"""Trainings in processes of their own make the same networks as one after the other, and end with their parent."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import pytest

from eex.experiments.papers.__main__ import Run, run
from eex.experiments.papers.paper import Work, script
from eex.experiments.papers.side_by_side import left, train_side_by_side
from eex.policies.core.errors import EexError

pytestmark = [pytest.mark.process, pytest.mark.paper]


def networks(work: Work) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((work.out / "work").glob("*.safetensors"))}


def test_what_builds_on_others_comes_after_them_and_all_are_the_same(tmp_path):
    paper, recipe, work = script("strategies"), script("strategies").RECIPES["quick"], Work(tmp_path, threads=1)
    (tmp_path / "work").mkdir()
    assert {t.name: list(t.needs) for t in left("strategies", work, recipe)} | {"joint": []} == {
        **{name: [] for name in ("joint", "branch-wise", "two-stage", "distillation", "hybrid", "all-places")},
        **{t.name: [] for t in left("strategies", work, recipe) if t.name.startswith("placed-")},
        **{f"structure-{s}": ["two-stage"] for s in paper.STRUCTURES},  # type: ignore[attr-defined]
    }
    paper.networks(work, recipe)
    before = networks(work)
    for name in ("two-stage", "structure-fc", "joint"):
        (tmp_path / "work" / f"{name}.safetensors").unlink()
    train_side_by_side("strategies", work, recipe, 2)
    assert networks(work) == before
    assert not left("strategies", work, recipe)


def test_a_killed_training_ends_the_others_and_is_told(tmp_path):
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.05)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EexError, match=r"the process of its training ended \(SIGKILL\).*fewer --jobs"):
        run(Run("deex", quick=True, out=tmp_path / "run", jobs=2, quiet=True))
    killer.join()
    assert not multiprocessing.active_children()


def test_an_interrupted_run_leaves_no_process_and_goes_on(tmp_path):
    typed = [sys.executable, "-m", "eex.experiments.papers", "calibration", "--quick", "--jobs", "2", "--threads", "1"]
    with subprocess.Popen([*typed, "--out", tmp_path], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        stuck = threading.Timer(300, process.kill)
        stuck.start()
        for line in process.stderr:
            if "epoch 1/2" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()  # ends when the last process that holds it does
        assert process.wait() == 130
        stuck.cancel()
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert list((tmp_path / "work").glob("*.checkpoint"))
    work = Work(tmp_path, threads=1)
    train_side_by_side("calibration", work, script("calibration").RECIPES["quick"], 2)
    assert {"one-branch.safetensors", "two-branches.safetensors"} <= networks(work).keys()
