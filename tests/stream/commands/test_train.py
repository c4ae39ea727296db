"""`eex-train` as a user types it: on tiny images, killed and started again, with a network of one's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ENVIRONMENT, PATIENCE_S, call, command, refused
from PIL import Image

from eex.models.card import load, read_card
from eex.policies.core.files import alone_in
from eex.stream.run.records import read_records

pytestmark = pytest.mark.timeout(200)

OWN = """
from torch import nn

from eex.models import cut


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def network():
    return cut(Small(), ["first", "second"], ["dark", "light"], input_shape=(3, 16, 16), structure="pool_fc")


def broken():
    return "small"


def plain(classes):
    layers = Small()
    layers.head = nn.Linear(8, classes)
    return layers


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x, mask=None):
        return self.head(self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def tokens():
    return Tokens()
"""


def train(*arguments, cwd=None, run=call):
    done = run("train", "--threads", 1, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def draw_images(folder, size, count=40, tests=10, light=100):
    """Two classes that a network can tell apart, unless `light` is 0: dark and light noise."""
    rng = np.random.default_rng(0)
    for split, many in (("train", count), ("test", tests)):
        for label, low in (("dark", 0), ("light", light)):
            (folder / split / label).mkdir(parents=True)
            for k in range(many):
                pixels = rng.integers(low, low + 156, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{k:03d}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with images of 16x16 and the user's module."""
    folder = tmp_path_factory.mktemp("home")
    draw_images(folder / "images", 16)
    (folder / "my_net.py").write_text(OWN)
    return folder


TINY = ("--network", "my_net:network", "--data", "images", "--holdout", 10, "--batch", 10, "--lr", 0.02)


@pytest.fixture(scope="module")
def trained(home):
    """A whole training: backbone, experts, classifier; what it printed, and its card."""
    arguments = (*TINY, "--epochs", 3, "--expert-epochs", 1, "--classifier-epochs", 1, "--out", "model")
    done = train(*arguments, cwd=home)
    return done, read_card(home / "model")


def test_card_says_what_was_trained(trained, home):
    _, card = trained
    experts = ("pristine", "gaussian_blur", "gaussian_noise")
    assert card.architecture.classes == ("dark", "light")
    assert card.architecture.experts == card.classifier == experts
    assert [set(t) for t in card.temperatures] == [set(experts)] * 2
    assert card.training["epochs"] == 3
    assert card.training["data"] == "images"
    assert len(card.training["history"]) == 3 + 2 * 1
    assert set(card.training["validation_ece"]) == set(experts)
    assert card.costs["stage_macs"] == [8 * 27 * 64, 8 * 72 * 16]
    assert card.costs["feature_bytes"] == [4 * 8 * 64, 4 * 8 * 16]
    assert all(macs > 0 for macs in card.costs["branch_macs"])


def test_card_says_how_well_it_does(trained):
    _, card = trained
    measured = card.measured
    assert measured["images"] == 20
    kinds = {(row["distortion"], row["level"]) for row in measured["exits"]}
    assert len(kinds) == 1 + 4 + 5
    assert len(measured["exits"]) == 2 * (1 + 2 * 4 + 2 * 5)  # a row an exit, for the pristine and the own expert
    for row in measured["exits"]:
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["ece_before"] <= 1
        assert 0 <= row["ece_after"] <= 1
    assert set(measured["classifier"]) == {"pristine", "gaussian_blur", "gaussian_noise"}
    shares = [row["macs_share"] for row in measured["thresholds"]]
    assert shares == sorted(shares)  # a higher threshold costs more


def test_screen_shows_accuracy_by_exit(trained):
    done, card = trained
    assert done.stdout.count("\n") > len(card.measured["exits"])
    assert "gaussian_noise" in done.stdout
    assert "Traceback" not in done.stderr
    assert "validation" in done.stderr


def test_trained_network_of_ones_own_streams(trained, home):
    done = call(
        "stream", "--network", "my_net:network", "--model", "model", "--source", "images", "--frames", 60,
        "--threads", 1,
        "--distortion", "pristine:30, gaussian_noise@20:30", "--policy", "fixed:p_tar=0.9", "--deadline-ms", 60_000,
        "--json", "--out", "runs", cwd=home,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert (summary["frames"], summary["answered"], summary["fallbacks"]) == (60, 60, 0)
    assert 0 <= summary["accuracy"] <= 1
    assert read_records(home / summary["folder"] / "records")["frame"].to_pylist() == list(range(60))


@pytest.mark.process
@pytest.mark.parametrize(("function", "exits"), [("plain", 2), ("tokens", 3)])
def test_a_network_that_is_not_cut_is_cut_trained_and_offloaded(home, tmp_path, function, exits):
    given = ("--network", f"my_net:{function}")
    few = ("--holdout", 10, "--batch", 10, "--lr", 0.02, "--epochs", 1, "--experts", "", "--no-measure")
    draw_images(tmp_path / "alike", 16, light=0)  # no exit is certain of them
    images, mean = ("--data", tmp_path / "alike"), ("--mean", 0.5, 0.5, 0.5)
    done = train(*given, "--exits", exits, *images, *few, *mean, "--out", tmp_path, cwd=home)
    assert "work before it" in done.stderr  # the table
    architecture = read_card(tmp_path).architecture
    assert len(architecture.options["cut"]) == len(architecture.structures) == exits
    assert architecture.mean == (0.5, 0.5, 0.5)
    done = call(
        "stream", *given, "--model", tmp_path, "--source", tmp_path / "alike", "--frames", 20,
        "--threads", 1, "--policy", "fixed:p_tar=1", "--partition", 1, "--deadline-ms", 60_000, "--json",
        "--out", tmp_path / "runs", cwd=home,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert (summary["answered"], summary["fallbacks"], summary["offloaded_share"]) == (20, 0, 1.0)


def test_what_does_not_fit_the_images_is_said_before_the_training(home, tmp_path):
    refused(
        call("train", *TINY, "--shift", 16, "--out", tmp_path / "a", cwd=home), "--shift must be less than the side"
    )
    refused(
        call("train", *TINY, "--cutout", 1000, "--out", tmp_path / "a", cwd=home), "--cutout must be less than the side"
    )
    draw_images(tmp_path / "small", 8, tests=0)
    done = call("train", "--data", tmp_path / "small", "--holdout", 10, "--out", tmp_path / "a")
    refused(done, 'experts take 16 or more: train without them (--experts "")')
    assert not (tmp_path / "a").exists()
    draw_images(tmp_path / "images", 16)
    for path in (tmp_path / "images" / "test").rglob("*.png"):
        Image.new("RGB", (24, 24)).save(path)
    done = call("train", "--data", tmp_path / "images", "--holdout", 10, "--out", tmp_path / "b")
    refused(done, "none of its 20 test images can be used; the first, ")
    assert not (tmp_path / "b" / "training").exists()


def test_a_frozen_backbone_keeps_its_weights(home, tmp_path):
    few = (*TINY, "--epochs", 2, "--experts", "gaussian_noise@10..30", "--expert-epochs", 1, "--classifier-epochs", 1)
    train(*few, "--freeze", "--no-measure", "--quiet", "--out", tmp_path, cwd=home)
    net = load(tmp_path, net=own_network(home))
    torch.manual_seed(0)
    first = own_network(home).state_dict()
    stages = {name: value for name, value in net.state_dict().items() if name.startswith("stages.")}
    assert all(torch.allclose(first[name].float(), value.float(), atol=1e-3) for name, value in stages.items())
    assert {row["phase"] for row in read_card(tmp_path).training["history"]} == {"exit 1", "exit 2"}


def test_the_backbone_is_trained_on_a_mixture(home, tmp_path):
    few = (*TINY, "--epochs", 1, "--experts", "", "--no-measure", "--quiet")
    train(*few, "--out", tmp_path / "without", cwd=home)
    train(*few, "--mix", "gaussian_noise@40..45", "--mix-share", 1, "--out", tmp_path / "with", cwd=home)
    without, mixed = (read_card(tmp_path / name) for name in ("without", "with"))
    assert (without.training["mix"], mixed.training["mix"]) == ("", "gaussian_noise@40..45")
    assert without.sha256 != mixed.sha256
    refused(
        call("train", *few, "--mix", "gaussian_blur@1..2", "--out", tmp_path / "with", cwd=home)
    )  # its checkpoint is of another mixture


def test_network_of_ones_own_must_be_named(trained, home):
    refused(call("stream", "--model", "model", "--source", "images", "--worker", "none", cwd=home))


def test_saved_model_answers_as_its_card_says(trained, home, monkeypatch):
    from eex.stream.frames.sources import load_all, open_source
    from eex.stream.network import make_network
    from eex.stream.training.measuring import measure

    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    net = load(Path("model"), net=make_network("my_net:network"))
    pixels, labels, _ = load_all(open_source("images", split="test"))
    again = measure(net, torch.from_numpy(pixels), torch.from_numpy(labels))
    for row, theirs in zip(again["exits"], trained[1].measured["exits"], strict=True):
        assert row["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.051)  # weights are stored in float16
        assert row["confidence"] == pytest.approx(theirs["confidence"], abs=0.01)


LONGER = (
    *TINY, "--epochs", 4, "--experts", "gaussian_blur@0.4..2.5", "--expert-epochs", 4, "--classifier-epochs", 1,
    "--no-measure", "--quiet", "--threads", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(home):
    train(*LONGER, "--out", "whole", cwd=home)
    return read_card(home / "whole")


@pytest.mark.process
@pytest.mark.parametrize("checkpoint", ["pristine", "gaussian_blur"])
def test_killed_training_ends_with_the_same_weights(home, tmp_path, uninterrupted, checkpoint):
    process = subprocess.Popen(command("train", *LONGER, "--out", tmp_path), env=ENVIRONMENT, cwd=home)
    end = time.monotonic() + PATIENCE_S
    while not (tmp_path / "training" / f"{checkpoint}.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "card.json").exists()
    done = train(*LONGER, "--out", tmp_path, cwd=home)
    assert (done.stdout, done.stderr) == ("", "")  # --quiet
    card = read_card(tmp_path)
    assert card.sha256 == uninterrupted.sha256
    assert card.temperatures == uninterrupted.temperatures


def test_training_goes_on_from_models_and_from_their_mean(trained, home):
    plain = ("--experts", "", "--no-measure")
    train(*TINY, *plain, "--start", "model", "--epochs", 1, "--out", "further", cwd=home)
    train(*TINY, *plain, "--start", "model", "further", "--epochs", 0, "--out", "mean", cwd=home)
    weights = [load(home / name, net=own_network(home)).state_dict() for name in ("model", "further", "mean")]
    name = "stages.1.second.0.weight"
    first, second, mean = (w[name] for w in weights)
    assert not torch.equal(first, second)
    torch.testing.assert_close(mean, (first + second) / 2, atol=1e-3, rtol=1e-2)
    assert len(read_card(home / "mean").training["start"]) == 2


def own_network(home):
    names = {}
    exec(compile(OWN, "my_net.py", "exec"), names)
    return names["network"]()


def test_experts_of_another_backbone_are_refused(home, tmp_path):
    """An expert's checkpoint holds the backbone it was trained on: it must not come back under a new one."""
    out = ("--out", tmp_path / "model", "--expert-epochs", 1, "--classifier-epochs", 1, "--no-measure")
    train(*TINY, *out, "--epochs", 1, cwd=home)
    (tmp_path / "model" / "training" / "pristine.safetensors").unlink()
    again = call("train", "--threads", 1, *TINY, *out, "--epochs", 2, cwd=home)
    assert again.returncode == 2
    assert "gaussian_blur.safetensors" in again.stderr
    assert "other settings" in again.stderr


SHORT = (*TINY, "--epochs", 2, "--experts", "", "--no-measure", "--out", "model")


@pytest.fixture
def again(tmp_path, monkeypatch):
    """A folder of its own with images, the user's modules and a finished training, to change and repeat."""
    monkeypatch.delitem(sys.modules, "my_net", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a change within the same second would go unnoticed
    draw_images(tmp_path / "images", 16, count=20, tests=0)
    own = OWN.replace("from eex.models import cut", "from eex.models import cut\nfrom my_parts import activation")
    (tmp_path / "my_net.py").write_text(own.replace("nn.ReLU()", "activation()"))
    (tmp_path / "my_parts.py").write_text("from torch.nn import ReLU as activation\n")
    train(*SHORT, cwd=tmp_path)
    return tmp_path


def test_training_says_what_it_goes_on_from(again):
    done = train(*SHORT, cwd=again)
    assert "pristine: goes on from its checkpoint: joint, after epoch 2 of 2" in done.stderr
    assert "epoch 1/2" not in done.stderr


def test_a_folder_has_one_training_at_a_time(again):
    with alone_in(again / "model"):
        done = call("train", "--threads", 1, *SHORT, cwd=again)
    assert done.returncode == 2
    assert "model: another process is writing there; wait for its end, or stop it" in done.stderr


def relabel(home):
    for name in ("dark", "light"):
        (home / "images" / "train" / name).rename(home / name)
    (home / "dark").rename(home / "images" / "train" / "light")
    (home / "light").rename(home / "images" / "train" / "dark")


def redraw(home):
    Image.new("RGB", (16, 16)).save(home / "images" / "train" / "dark" / "000.png")


def reprogram(home):
    (home / "my_parts.py").write_text("from torch.nn import GELU as activation\n")  # the weights stay the same


@pytest.mark.parametrize(
    ("change", "message"),
    [(relabel, "other images or labels"), (redraw, "other images or labels"), (reprogram, "other code of the network")],
)
def test_checkpoints_of_other_data_or_code_are_refused(again, change, message):
    change(again)
    refused(call("train", *SHORT, cwd=again), message)


# ---- networks with habits

HABITS = """
import torch
from torch import nn

from eex.models import cut


def block(a, b, stride):
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class Tied(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.stem, self.tied, self.end = block(channels, 8, 2), block(8, 8, 1), block(8, 8, 2)
        self.gate, self.head = nn.Identity(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.tied(self.tied(self.stem(x)))
        return self.head(self.end(x).mean((2, 3)))


class Across(Tied):
    def forward(self, x):
        x = self.gate(self.tied(self.stem(x)))
        return self.head(self.end(self.tied(x)).mean((2, 3)))


class First(Tied):
    def forward(self, x):
        return super().forward(x.to(next(self.parameters()).dtype))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.mix, self.act, self.head = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.act(self.mix(self.norm(self.patch(x).permute(0, 2, 3, 1))))
        return self.head(x.mean((1, 2)))


def of(net, after, channels=3):
    return cut(net, after, ["dark", "light"], input_shape=(channels, 16, 16))


def tied():
    return of(Tied(), ["stem", "end"])


def across():
    return of(Across(), ["gate", "end"])


def first():
    return of(First(), ["stem", "end"])


def last():
    return of(Last(), ["norm", "act"])


def grey():
    return of(Tied(1), ["stem", "end"], 1)


def four():
    return of(Tied(4), ["stem", "end"], 4)


def batches():
    raise RuntimeError("Error(s) in loading state_dict for Tied:\\n\\tUnexpected key(s): module.head.weight")
"""


@pytest.fixture(scope="module")
def habits(home):
    (home / "habits.py").write_text(HABITS)
    return home


@pytest.mark.parametrize("name", ["tied", "across", "first", "last", "grey"])
def test_networks_with_habits_train_and_stream_as_measured(habits, name):
    quick = ("--data", "images", "--holdout", 10, "--batch", 10, "--epochs", 2, "--classifier-epochs", 1)
    experts = ("--experts", "gaussian_noise@4..45" if name == "grey" else "", "--expert-epochs", 1)
    train("--network", f"habits:{name}", *quick, *experts, "--lr", 0.05, "--out", f"of-{name}", cwd=habits)
    measured = read_card(habits / f"of-{name}").measured["exits"]
    for worker in (("--worker", "none"), ()) if name == "grey" else (("--worker", "none"),):
        done = call(
            "stream", "--network", f"habits:{name}", "--model", f"of-{name}", "--source", "images", *worker,
            "--policy", "fixed:p_tar=1", "--no-shuffle", "--deadline-ms", 60_000, "--json", "--out", "by-habit",
            cwd=habits,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        streamed = [row["accuracy"] for row in json.loads(done.stdout)["by_exit"]]
        assert streamed == pytest.approx([row["accuracy"] for row in measured[:2]])


def test_networks_that_cannot_be_used_are_refused(habits, tmp_path):
    data = ("--data", "images", "--out", tmp_path / "model")
    refused(call("train", "--network", "habits:four", *data, cwd=habits), "takes images of 4 channels, (4, 16, 16)")
    done = call("train", "--network", "habits:batches", *data, cwd=habits)
    refused(done, "--network habits:batches: the function raised RuntimeError: Error(s)")
    assert "read them by eex.models.read_state" in done.stderr
    (tmp_path / "net.pth").write_bytes(b"")
    refused(
        call("stream", "--model", tmp_path / "net.pth", "--worker", "none"), "net.pth: is a file; expected a folder"
    )
    assert not (tmp_path / "model").exists()


# ---- what the images are


def made(folder, *names, count=8):
    """Images in folders, by which they differ."""
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (20 * k, i, 0)).save(folder / name / f"{i}.png")
    return folder


QUICK = ("--width", 8, "--epochs", 1, "--experts", "", "--holdout", 0.25, "--batch", 4, "--after", 0)


def test_classes_are_counted_and_what_is_left_out_is_said(tmp_path):
    images = made(tmp_path / "images", "Train/cat", "Train/dog", "valid/cat", "Test/dog", "Test/emu")
    Image.new("RGB", (8, 8)).save(images / "Train" / "stray.png")
    (images / "Train" / "cat" / "notes.txt").write_text("hello")
    (images / "Train" / "dog" / "broken.png").write_bytes(b"no image")
    done = train("--data", images, "--out", tmp_path / "model", *QUICK)
    assert "16 images of 2 classes to train on: cat 8, dog 8" in done.stderr
    assert re.search(r"only \d+ images are held out to calibrate confidences by, which may end far off", done.stderr)
    assert "1 file was not read: 1 .txt" in done.stderr
    assert "1 images are left out, because they are in no class's folder" in done.stderr
    assert "skipped Train/dog/broken.png: not a readable image" in done.stderr
    assert "not among the training images, and so not learnt: emu" in done.stderr
    assert "8 test images have no label that was trained, and are left out" in done.stderr
    assert "final exit, undistorted, by class (test images): dog" in done.stdout
    card = read_card(tmp_path / "model")
    assert card.architecture.classes == ("cat", "dog")
    assert card.measured["images"] == 8
    assert [(row["class"], row["images"]) for row in card.measured["classes"]] == [("dog", 8)]


@pytest.mark.parametrize("test", ["test", "test/unknown"])
def test_an_unlabelled_test_part_claims_nothing(tmp_path, test):
    images = made(tmp_path / "images", "train/cat", "train/dog", test)
    done = train("--data", images, "--out", tmp_path / "model", *QUICK)
    assert "has no labels: the model will not be measured" in done.stderr
    assert "accuracy" not in done.stdout
    assert read_card(tmp_path / "model").measured == {}


def test_names_that_are_not_utf8_can_be_trained(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    images = made(tmp_path / name, f"train/{name}", "train/tea", f"test/{name}")
    model = tmp_path / name / "model"
    train("--data", images, "--out", model, *QUICK)
    card = read_card(model)
    assert card.architecture.classes == ("caf\\xe9", "tea")
    assert card.training["data"] == "caf\\xe9"
    assert load(model).fingerprint
    assert train("--data", images, "--out", model, *QUICK).returncode == 0  # from its checkpoints


def test_transparent_icons_differ(tmp_path):
    for name, mask in (("ring", 0), ("disc", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            icon = Image.new("RGBA", (8, 8), (0, 0, 0, mask))  # black, its shape in the alpha channel
            icon.putpixel((i % 8, i // 8), (0, 0, 0, 255))
            icon.save(tmp_path / "images" / name / f"{i}.png")
    train("--data", tmp_path / "images", "--out", tmp_path / "model", *QUICK[:2], "--epochs", 6, *QUICK[4:])
    assert read_card(tmp_path / "model").training["validation_accuracy"][-1] == 1


WRONG = {
    "a single class": (["train/images"], {}, "at least two classes"),
    "a class of pictures that cannot be read": (["cat", "dog"], {"owl/1.heic": b"x"}, "owl can be read (1 .heic)"),
    "a class without a usable image": (["cat", "dog"], {"owl/1.png": b"x"}, "owl can be used; the first, owl/1.png"),
}


@pytest.mark.parametrize("case", WRONG)
def test_classes_do_not_vanish(tmp_path, case):
    folders, files, message = WRONG[case]
    made(tmp_path / "images", *folders)
    for name, data in files.items():
        (tmp_path / "images" / name).parent.mkdir()
        (tmp_path / "images" / name).write_bytes(data)
    refused(call("train", "--data", tmp_path / "images", "--out", tmp_path / "model", *QUICK), message)
    assert not (tmp_path / "model").exists()


def test_checkpoints_of_other_settings_are_refused(trained, home):
    refused(call("train", *TINY, "--epochs", 4, "--out", "model", cwd=home))


def test_backbone_by_name_trains_without_a_test_split(home, tmp_path):
    shutil.copytree(home / "images" / "train", tmp_path / "images" / "train")
    done = train(
        "--data", tmp_path / "images", "--out", tmp_path / "model", "--width", 8, "--epochs", 1, "--experts", "",
        "--holdout", 10, "--batch", 10, "--after", 0, 1,
    )  # fmt: skip
    card = read_card(tmp_path / "model")
    assert card.architecture.input_shape == (3, 16, 16)
    assert card.architecture.backbone == "resnet"
    assert card.classifier == ()
    assert card.measured == {}
    assert "will not be measured" in done.stderr


BAD = {
    "missing data": (["--data", "nowhere"], "no such source"),
    "no labels": (["--data", "images/train/dark"], "labelled images"),
    "unknown expert": (["--experts", "blur@1..2"], "gaussian_blur"),
    "expert without range": (["--experts", "gaussian_blur"], "lowest..highest"),
    "expert with a falling range": (["--experts", "gaussian_blur@2..1"], "rising range"),
    "expert beyond the levels": (["--experts", "gaussian_blur@1..1e9"], "gaussian_blur"),
    "everything held out": (["--holdout", "80"], "--holdout must be between 1 and 79"),
    "part of an image held out": (["--holdout", "2.5"], "--holdout must be a whole number, or a share below 1"),
    "nothing held out": (["--holdout", "0"], "--holdout must be between 1 and 79"),
    "no epochs": (["--epochs", "0"], "--epochs 0 needs --start"),
    "no expert epochs": (["--expert-epochs", "0"], "epochs must be at least 1"),
    "negative threads": (["--threads", "-1"], "--threads must lie in [0, 1024]"),
    "negative seed": (["--seed", "-1"], "--seed must be at least 0"),
    "weights of other exits": (["--loss-weights", "1", "2", "3"], "--loss-weights must name 2 exits"),
    "not a cut network": (["--network", "my_net:broken"], "must return a torch.nn.Module"),
    "no such function": (["--network", "my_net:nothing"], "cannot be imported"),
    "out is a file": (["--out", "my_net.py"], "my_net.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(home, case):
    arguments, message = BAD[case]
    refused(call("train", *TINY, "--out", "bad", "--epochs", 1, "--experts", "", *arguments, cwd=home), message)
    assert not (home / "bad").exists()


def test_confidence_by_entropy(trained, home):
    """A trained model gets another confidence without training; edge and worker take it from the card."""
    options = ("--epochs", 0, "--start", "model", "--experts", "", "--confidence", "entropy", "--out", "model-entropy")
    train(*TINY, *options, cwd=home)
    card = read_card(home / "model-entropy")
    assert card.architecture.confidence == "entropy"
    assert "confidence" not in card.training
    done = call(
        "stream", "--network", "my_net:network", "--model", "model-entropy", "--source", "images", "--frames", 20,
        "--distortion", "pristine", "--policy", "fixed:p_tar=1", "--out", "by-entropy", "--json", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = read_records(next((home / "by-entropy").iterdir()) / "records")
    for e in (1, 2):
        confidence = np.array([c for c in table[f"confidence_{e}"].to_pylist() if c is not None])
        assert len(confidence)
        assert confidence.min() < 0.5  # of two classes the top probability is never less
