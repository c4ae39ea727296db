"""The Python on pages runs as it stands there, on fewer frames, and so do the tutorials' commands that train."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generate import COMMANDS, columns_table
from PIL import Image

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def execute(code: str, page: str, names: dict[str, object] | None = None) -> dict[str, object]:
    names = {} if names is None else names
    exec(compile(code, page, "exec"), names)
    return names


def run(command: str, folder: Path) -> None:
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", COMMANDS[name].partition(":")[0], *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.soak
@pytest.mark.process
def test_own_network(here):
    (here / "my_net.py").write_text(blocks("docs/own-network.md", "python")[0])
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            folder = here / "pets" / split / name
            folder.mkdir(parents=True)
            for k in range(40):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    train, stream = blocks("docs/own-network.md", "sh")[0].strip().splitlines()
    train = train.replace("--epochs 10", "--epochs 1 --experts '' --batch 20")
    assert "--epochs 1 " in train
    run(train, here)
    run(f"{stream} --frames 100 --distortion pristine", here)
    assert list((here / "runs").glob("*/adaptation.png"))


def test_own_policy(here, capsys):
    policy, use, check = blocks("docs/own-policy.md", "python")
    (here / "my_policy.py").write_text(policy)
    names = execute(use, "own-policy.md")
    execute(check, "own-policy.md", names)
    assert np.isfinite(names["played"].reward).all()
    assert float(capsys.readouterr().out) > 0  # it earns something


@pytest.mark.process
def test_in_python(here):
    names: dict[str, object] = {}
    first, *rest = blocks("docs/python.md", "python")
    execute(first.replace("frames=2000", "frames=64"), "python.md", names)
    assert names["summary"]["answered"] == 64
    for block in rest:
        execute(block.replace(":1000", ":32"), "python.md", names)
    assert len(names["frames"]) == 64
    assert len(names["logits"]) == names["net"].exits


@pytest.mark.process
def test_records(here, capsys):
    (code,) = blocks("docs/records.md", "python")
    columns = execute(code.replace("frames=2000", "frames=64"), "records.md")["table"].column_names
    table = columns_table()
    described = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert {re.sub(r"_\d+$", "_1", name) for name in columns} == described


def test_training_an_agent(here):
    from eex.policies.core.trace import Trace, write_trace
    from eex.policies.registry import make_policy

    rng = np.random.default_rng(0)
    confidence, answers = rng.uniform(0.1, 1.0, (3000, 4)), np.zeros((3000, 4), dtype=np.int64)
    write_trace(Path("drift.arrow"), Trace(confidence, answers, answers[:, 0], ("cat", "dog")))
    code, own = blocks("docs/training-an-agent.md", "python")
    names = execute(code.replace("num_envs=1024", "num_envs=4"), "training-an-agent.md")
    observation, _ = names["env"].reset(seed=0)
    assert len(observation) == len(names["env"].unwrapped.names)
    assert len(names["envs"].reset(seed=0)[0]) == 4
    execute(own.replace("num_envs=64", "num_envs=2").replace("100_000", "64"), "training-an-agent.md")
    assert make_policy("rl:model=my-own-agent", exits=3).agent.card.stack == 4
