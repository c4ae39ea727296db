"""What is measured of a finished model, against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eex.models.network import make
from eex.models.training import all_logits
from eex.stream.training.measuring import THRESHOLDS, by_exit, by_threshold, measure


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
    assert rows[0]["left_early"] == 0  # nearly equal probabilities: the top one is about 1/3, their entropy nearly 1
