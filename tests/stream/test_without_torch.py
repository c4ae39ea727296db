"""An exported model streams, offloads, learns and records in a process that has none of the heavy libraries.

No finder of modules finds them there, as if they were not installed.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ENVIRONMENT, start
from PIL import Image

from eex.models.card import save
from eex.models.export import export
from eex.models.network import make
from eex.models.spectrum import DistortionClassifier
from eex.stream.run.records import read_records
from eex.stream.worker.embedded import READY

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

HEAVY = (
    *("torch", "scipy", "river", "pandas", "matplotlib", "stable_baselines3", "gymnasium", "safetensors", "onnx"),
    "pyarrow",
)
WITHOUT = f"""
import importlib, sys
class Finder:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {HEAVY!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Finder, sys.meta_path)
name = sys.argv.pop(1)
sys.argv[0] = "eex-" + name
importlib.import_module("eex.stream.commands." + name).main()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The weights, the model as exported, and a folder of images."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("edge")
    weights, exported, images = root / "weights", root / "exported", root / "images"
    net = make("resnet", ["a", "b", "c"], shares=[0.5], width=8, input_shape=(3, 16, 16))
    net.add_expert("gaussian_blur")
    net.classifier = DistortionClassifier(("pristine", "gaussian_blur"))
    weights.mkdir()
    save(net.eval(), weights)
    export(weights, exported)
    images.mkdir()
    pixels = np.random.default_rng(0)
    for k in range(12):
        Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(images / f"{k}.png")
    return weights, exported, images


@pytest.fixture
def worker(folders):
    """Where a worker with torch listens."""
    process = start("worker", folders[0], "--plain", "--bind", "tcp://127.0.0.1:*")
    try:
        line = process.stdout.readline()
        assert line.startswith(READY), process.stderr.read()
        yield line.removeprefix(READY).split()[0]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def without(*arguments):
    """What a command comes to without the heavy libraries."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=ENVIRONMENT,
    )


def test_a_stream_offloads_learns_and_records(folders, worker, tmp_path):
    _, exported, images = folders
    distortion = "pristine:20, gaussian_blur@1:20, gaussian_noise@20:20"
    arguments = ("--model", exported, "--source", images, "--distortion", distortion, "--batch", 4, "--require-worker")
    done = without(
        "stream", *arguments, "--worker", worker, "--plain", "--policy", "gain-curve", "--out", tmp_path, "--json",
        "--send", "int8+zstd",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 60
    assert summary["offloaded_share"] > summary["fallbacks"] == 0
    (folder,) = tmp_path.iterdir()
    records = read_records(folder)
    assert len(records) == 60
    assert done.stderr.splitlines() == [
        f"warning: {folder}: no pictures were drawn: pandas is not installed; pip install 'eex[all]'"
    ]


def test_a_live_stream(folders, worker, tmp_path):
    _, exported, images = folders
    state = tmp_path / "state"
    done = without(
        *("live", "--source", f"door={images}/0.png", "--model", exported, "--worker", worker, "--plain"),
        *("--records", tmp_path / "records", "--state", state, "--policy", "ucb", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert answer["stream"] == "door"
    assert answer["label"] in "abc"
    assert state.exists()


@pytest.mark.parametrize("command", ["stream", "live"])
def test_what_needs_torch_says_so_in_one_line(folders, command):
    weights, exported, images = folders
    for arguments, message in (
        (("--model", weights, "--worker", "none"), "running its weights needs torch: pip install 'eex[torch]'"),
        (("--model", exported, "--worker", "embedded"), "an embedded worker needs torch: pip install 'eex[torch]'"),
    ):
        done = without(command, "--source", images, *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line


def test_a_resumption_names_what_a_loss_of_power_cut(folders, tmp_path):
    _, exported, images = folders
    arguments = (
        "--model",
        exported,
        "--source",
        images,
        "--worker",
        "none",
        "--frames",
        60,
        "--no-regret",
        "--batch",
        20,
    )
    done = without("stream", *arguments, "--commit", 20, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    part = folder / "records" / "part-00001.arrows"
    part.write_bytes(part.read_bytes()[:-300])
    done = without("stream", "--resume", folder)
    said = [line for line in done.stderr.splitlines() if "the part was cut off" in line]
    assert said == [f"warning: {part}: the part was cut off: frames 20…39 are missing"]
    assert "Traceback" not in done.stderr


def test_reading_records_says_what_it_needs(folders, tmp_path):
    _, exported, images = folders
    without("stream", "--model", exported, "--source", images, "--worker", "none", "--out", tmp_path, "--no-regret")
    (folder,) = tmp_path.iterdir()
    done = without("metrics", folder)
    assert (done.returncode, done.stderr) == (2, "error: this needs pyarrow: pip install 'eex[records]'\n")
