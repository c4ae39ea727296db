"""Trainings in processes of their own make the same networks as one after the other, and end with their parent."""

import dataclasses
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eex.experiments.papers.__main__ import Run, run
from eex.experiments.papers.paper import Work, script
from eex.experiments.papers.side_by_side import left, train_side_by_side
from eex.policies.core.errors import EexError

pytestmark = [pytest.mark.process, pytest.mark.paper]
LIMIT_S = 300


def networks(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((folder / "work").glob("*.safetensors"))}


def test_what_each_training_builds_on(tmp_path):
    structures = ("fc", "multi_fc", "pool_fc", "conv_fc", "conv_pool_fc", "multi_conv")
    found = left("strategies", Work(tmp_path), script("strategies").RECIPES["quick"])
    assert found.pop("joint") == ()
    assert {name: list(needs) for name, needs in found.items()} == {
        **{name: [] for name in ("branch-wise", "two-stage", "distillation", "hybrid", "all-places", "placed-2-3-5")},
        **{f"structure-{s}": ["two-stage"] for s in structures},
    }
    chain = left("expert-branches", Work(tmp_path), script("expert-branches").RECIPES["quick"])
    assert [(name, list(needs)) for name, needs in chain.items()] == [
        ("pristine", []),
        ("gaussian_blur", ["pristine"]),
        ("gaussian_noise", ["gaussian_blur"]),
        ("mixture", ["gaussian_noise"]),
    ]
    assert not list(tmp_path.iterdir())


def test_what_builds_on_others_comes_after_them_and_all_are_the_same(tmp_path):
    paper, recipe, work = script("strategies"), script("strategies").RECIPES["quick"], Work(tmp_path, threads=1)
    (tmp_path / "work").mkdir()
    paper.networks(work, recipe)
    before = networks(tmp_path)
    for name in ("two-stage", "structure-fc", "joint"):
        (tmp_path / "work" / f"{name}.safetensors").unlink()
    train_side_by_side("strategies", work, recipe, 2)
    assert networks(tmp_path) == before
    assert not left("strategies", work, recipe)


def test_each_seed_has_its_networks_and_each_training_one_bar(tmp_path):
    bars = []

    def bar(name):
        bars.append(name)
        return lambda progress: None

    recipe = script("calibration").RECIPES["quick"]
    recipe = dataclasses.replace(recipe, seeds=2, networks=("one branch",), epochs=1)
    train_side_by_side("calibration", Work(tmp_path, threads=1, bars=bar), recipe, 2)
    assert sorted(bars) == ["one-branch", "one-branch, seed-1"]
    first, second = (load_file(tmp_path / at / "work" / "one-branch.safetensors") for at in ("", "seed-1"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_ends_the_others_and_is_told(tmp_path):
    def kill() -> None:
        until = time.monotonic() + LIMIT_S
        while not (children := multiprocessing.active_children()) and time.monotonic() < until:
            time.sleep(0.05)
        children[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(EexError, match=r"the process of this training ended by signal 9; .* fewer --jobs"):
        run(Run("deex", quick=True, out=tmp_path / "run", jobs=2, quiet=True))
    killer.join()
    assert not multiprocessing.active_children()


def test_what_is_wrong_with_a_training_is_told(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "full.checkpoint").write_bytes(b"damaged")
    with pytest.raises(EexError, match=r"^full: .*full\.checkpoint: not a training checkpoint"):
        train_side_by_side("deex", Work(tmp_path, threads=1), script("deex").RECIPES["quick"], 3)
    assert not multiprocessing.active_children()


def test_an_interrupted_run_leaves_no_process_and_goes_on(tmp_path):
    typed = [sys.executable, "-m", "eex.experiments.papers", "calibration", "--quick", "--jobs", "2", "--threads", "1"]
    typed += ["--out", str(tmp_path)]
    with subprocess.Popen(typed, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        stuck = threading.Timer(LIMIT_S, process.kill)
        stuck.start()
        while process.poll() is None and not list((tmp_path / "work").glob("*.checkpoint")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()  # ends when the last process that holds it does
        assert process.wait() == 130
        stuck.cancel()
    assert "interrupted" in rest
    assert "Traceback" not in rest
    resumed = []

    def bar(name):
        return lambda progress: resumed.append(name) if progress.resumed else None

    work = Work(tmp_path, threads=1, bars=bar)
    train_side_by_side("calibration", work, script("calibration").RECIPES["quick"], 2)
    assert resumed
    assert {"one-branch", "two-branches"} <= networks(tmp_path).keys()
