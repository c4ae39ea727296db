"""What the README tells a newcomer to type works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
MODULES = {"eex-train": "eex.stream.commands.train", "eex-stream": "eex.stream.commands.stream"}


def section(title: str) -> str:
    text = (ROOT / "README.md").read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def run(command: str, folder: Path) -> None:
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", MODULES[name], *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_bring_your_own_network_and_images(tmp_path):
    text = section("Bring your own network and images")
    (tmp_path / "my_net.py").write_text(blocks(text, "python")[0])
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for k in range(40):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    train, stream = blocks(text, "sh")[0].strip().splitlines()
    train = train.replace("--epochs 10 --holdout 500", "--epochs 1 --holdout 20 --experts '' --batch 20")
    assert "--holdout 20" in train
    run(train, tmp_path)
    run(f"{stream} --frames 100 --distortion pristine", tmp_path)
    assert list((tmp_path / "runs").glob("*/adaptation.png"))


def test_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(section("In Python"), "python")[0].replace("frames=2000", "frames=64")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["summary"]["answered"] == 64


@pytest.mark.parametrize("distortion", re.findall(r'--distortion "([^"]+)"', section("Streams of your own")))
def test_schedules_are_readable(distortion):
    from eex.policies.core.schedule import parse_schedule

    assert parse_schedule(distortion).length > 0
