"""What is measured of a finished model, against counting by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eex.models.architecture import Preprocessing
from eex.models.card import read_card, save
from eex.models.network import make
from eex.models.training import all_logits
from eex.policies.core.errors import EexError
from eex.stream.training import measuring
from eex.stream.training.data import read_data
from eex.stream.training.measuring import THRESHOLDS, by_exit, by_threshold, measure, samples_of
from eex.stream.training.options import TrainConfig


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = make("resnet", "abc", uniform=1, width=8, input_shape=(3, 16, 16)).eval()
    net.add_expert("gaussian_blur")
    net.temperature[0]["pristine"] = 0.2
    return net


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 3, (60,), generator=generator)


def test_rows_of_exits(net, data):
    found = measure(net, *data)
    assert found["images"] == 60
    assert found["classifier"] == {}
    kinds = [(row["distortion"], row["level"], row["expert"], row["exit"]) for row in found["exits"]]
    blurred = [
        ("gaussian_blur", level, expert, exit)
        for level in (0.5, 1.0, 1.5, 2.0)
        for expert in ("pristine", "gaussian_blur")
        for exit in (1, 2)
    ]
    assert kinds == [("pristine", 0.0, "pristine", 1), ("pristine", 0.0, "pristine", 2), *blurred]
    logits = all_logits(net, data[0])
    first = found["exits"][0]
    by_hand = by_exit(net, logits, data[1], "pristine")[0]
    assert {key: first[key] for key in by_hand} == pytest.approx(by_hand, abs=1e-4)
    assert first["accuracy"] == pytest.approx(float((logits[0].argmax(1) == data[1]).double().mean()))
    scaled = (logits[0].double() / 0.2).softmax(1).max(1).values
    assert first["confidence"] == pytest.approx(float(scaled.mean()))


def test_the_form_that_streams_is_measured(net, data, monkeypatch):
    from eex.models import fast

    packed = []
    monkeypatch.setattr(fast, "_pack", packed.append)
    measure(net, *data)
    assert len(packed) == 1


def test_thresholds_frame_by_frame(net, data):
    images, labels = data
    logits = all_logits(net, images)
    costs = net.costs()
    confidence = [net.confident(out.double() / net.temperature[e]["pristine"])[0] for e, out in enumerate(logits)]
    for row, threshold in zip(by_threshold(net, logits, labels), THRESHOLDS, strict=True):
        right, spent, early = [], [], 0
        for n, label in enumerate(labels):
            exit = 0 if confidence[0][n] >= threshold else 1
            right.append(bool(logits[exit][n].argmax() == label))
            spent.append(costs.of_exit(exit))
            early += exit == 0
        assert row["threshold"] == threshold
        assert row["accuracy"] == pytest.approx(np.mean(right))
        assert row["macs_share"] == pytest.approx(np.mean(spent) / costs.whole)
        assert row["left_early"] == pytest.approx(early / 60)


def test_thresholds_compare_with_the_networks_own_confidence(net, data):
    other = make("resnet", "abc", uniform=1, width=8, input_shape=(3, 16, 16)).eval()
    other.architecture = replace(other.architecture, confidence="entropy")
    rows = by_threshold(other, all_logits(other, data[0]), data[1])
    for e, row in enumerate(by_exit(other, all_logits(other, data[0]), data[1], "pristine")):
        assert row["confidence"] == pytest.approx(
            float(other.confident(all_logits(other, data[0])[e].double())[0].mean())
        )
        assert row["confidence"] < 0.2
    assert rows[0]["left_early"] == 0  # nearly equal probabilities: the top one is about 1/3, their entropy nearly 1


def test_a_split_is_distorted_and_classified_in_parts(net, data, monkeypatch):
    whole, most = measure(net, *data), []
    logits_of = measuring.all_logits
    monkeypatch.setattr(measuring, "AT_ONCE", 25)
    monkeypatch.setattr(measuring, "all_logits", lambda *a, **k: most.append(len(a[1])) or logits_of(*a, **k))
    parts = measure(net, *data)
    assert max(most) == 25
    for row, expected in zip(parts["exits"], whole["exits"], strict=True):
        assert row == pytest.approx(expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{k:02d}.png")
    return folder


def saved(folder, **training):
    """The card of a model that was trained with a crop, and what else is given."""
    net = make("resnet", ["cat", "dog"], uniform=1, width=8, input_shape=(3, 16, 16)).eval()
    net.architecture = replace(net.architecture, preprocessing=Preprocessing(0.5, "bicubic"))
    save(net, folder, training=training)
    return read_card(folder)


def test_int8_is_measured_on_what_its_training_held_out_and_saw(folder, tmp_path):
    card = saved(tmp_path, holdout=0.2, truncated="refuse")
    trained = read_data(
        TrainConfig(str(folder), Path(), size=16, crop=0.5, interpolation="bicubic", holdout=0.2, measure=False), None
    )
    samples = samples_of(str(folder), card)
    assert np.array_equal((samples.held["pristine"] * 255).round(), trained.images[trained.held])
    assert samples.labels.tolist() == trained.labels[trained.held].tolist()


def test_int8_by_other_images_than_its_training(folder, tmp_path):
    for k in range(20, 80):
        for name in ("cat", "dog"):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (k, k, k)).save(tmp_path / "images" / name / f"{k}.png")
    card = saved(tmp_path / "model", holdout=2500)
    assert len(samples_of(str(tmp_path / "images"), card).labels) == 6  # the usual share
    with pytest.raises(EexError, match="'training' is not as eex-train writes it"):
        samples_of(str(folder), saved(tmp_path / "model", holdout="some"))
