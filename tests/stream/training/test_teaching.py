"""`eex-train --teach`: exits for a network that has none, from images without labels."""

import sys

import numpy as np
import pytest
import torch
from clips import clip
from commands import call, refused
from PIL import Image

from eex.models.card import load, read_card
from eex.models.training import taught, teacher_of
from eex.stream.network import make_network

pytestmark = pytest.mark.timeout(200)

LIGHT = """
import torch
from torch import nn


class Light(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            for weight in self.parameters():
                weight.abs_()
            middle = self.features(torch.full((1, 3, 16, 16), 0.5)).sum()
            self.head.weight[0], self.head.weight[1] = -9 / middle, 9 / middle
            self.head.bias[0], self.head.bias[1] = 9, -9

    def features(self, x):
        return self.third(self.second(self.first(x))).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def network():
    return Light().eval()


def sized(classes):
    return network()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Frames of a camera, one like the other but for their light, without labels; and the user's trained network."""
    folder, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    (folder / "frames").mkdir()
    for k in range(160):
        low = int(rng.integers(0, 156))
        Image.fromarray(rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)).save(folder / "frames" / f"{k}.png")
    (folder / "light_net.py").write_text(LIGHT)
    return folder


TEACH = ("--teach", "--network", "light_net:network", "--exits", 3, "--threads", 1, "--batch", 20, "--holdout", 40)
FEW = (*TEACH, "--data", "frames", "--epochs", 12, "--lr", 0.05, "--experts", "")


def whole(home, monkeypatch):
    """What the user's network answers to the frames."""
    monkeypatch.chdir(home)
    monkeypatch.delitem(sys.modules, "light_net", raising=False)
    images = [np.asarray(Image.open(path)) for path in sorted((home / "frames").iterdir())]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    from eex.stream.network import make_module

    with torch.no_grad():
        return x, make_module("light_net:network")(x.float() / 255).softmax(1)


@pytest.mark.parametrize("freeze", [("--freeze",), ()], ids=["frozen", "free"])
def test_exits_agree_with_the_network_that_taught_them(home, tmp_path, monkeypatch, freeze):
    done = call("train", *FEW, *freeze, "--classes", "dark, light", "--out", tmp_path, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "160 images to learn from, whatever their labels" in done.stderr
    assert "has no test split: agreement is measured on the held-out images" in done.stderr
    assert "agreement with the final exit as it was" in done.stdout
    assert "accuracy" not in done.stdout
    card = read_card(tmp_path)
    assert card.architecture.classes == ("dark", "light")
    assert min(card.training["validation_agreement"]) >= 0.85
    assert "validation_accuracy" not in card.training
    rows = card.measured["exits"]
    assert [row["exit"] for row in rows] == [1, 2, 3]
    assert all(set(row) == {"distortion", "level", "expert", "exit", "agreement", "confidence"} for row in rows)
    assert any(row["agreement"] for row in card.training["history"])
    images, expected = whole(home, monkeypatch)
    net = load(tmp_path, net=make_network("light_net:network", tmp_path))
    found = taught(teacher_of(net), images)
    assert float((found - expected).abs().max()) < (0.02 if freeze else 0.3)
    if freeze:
        assert card.temperatures[-1]["pristine"] == pytest.approx(1.0, abs=0.01)  # as sure as it was
        assert rows[-1]["agreement"] == 1.0


def test_experts_learn_what_the_network_answers_to_the_images_before_they_are_distorted(home, tmp_path):
    noise = (
        "--experts",
        "gaussian_noise@40..45",
        "--expert-epochs",
        10,
        "--classifier-epochs",
        1,
        "--freeze",
        "--quiet",
    )
    done = call("train", *FEW[:-2], *noise, "--expert-lr", 0.05, "--out", tmp_path, cwd=home)
    assert (done.returncode, done.stdout) == (0, "")
    card = read_card(tmp_path)
    assert card.architecture.classes == ("0", "1")  # nothing names them
    noisy = [row for row in card.measured["exits"] if row["expert"] == "gaussian_noise" and row["level"] == 40]
    assert min(row["agreement"] for row in noisy) > 0.75


def test_a_video_teaches_too(home, tmp_path):
    video = clip(tmp_path / "street.mp4", frames=60)
    options = ("--data", video, "--size", 16, "--holdout", 12, "--epochs", 1, "--experts", "", "--freeze", "--quiet")
    done = call("train", *TEACH, *options, "--out", tmp_path / "model", cwd=home)
    assert done.returncode == 0, done.stderr
    assert read_card(tmp_path / "model").measured["images"] == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--teach",), "--teach needs a network that knows the classes already: --network or --start"),
        (("--network", "light_net:network", "--classes", "a,b"), "--classes goes with --teach"),
        ((*TEACH, "--classes", "a,b,c"), "--classes: names 3 classes, but the network's are 2 of them"),
        ((*TEACH, "--classes", "a,a"), "--classes: 'a' is named twice"),
        (("--teach", "--network", "light_net:sized"), "takes the number of classes; name them (--classes)"),
    ],
)
def test_what_cannot_teach(home, tmp_path, options, said):
    refused(call("train", *options, "--data", "frames", "--out", tmp_path / "model", cwd=home), said)
    assert not (tmp_path / "model").exists()
