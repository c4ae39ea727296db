"""What an exit's confidence is: by hand, in the card, and the same on edge and worker."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eex.models.card import CARD, SHIPPED, load, read_card, save
from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.policies.algorithms.fixed import Fixed
from eex.stream.driver import Driver
from eex.stream.engine import Batch
from eex.stream.groups import every_exit
from eex.stream.wire.offload import InMemoryOffloader
from eex.stream.worker.tail import make_tail

CLASSES = tuple("abcd")
SHIPPED_FINGERPRINT = "f62f3ed2a3e49588"  # edges and workers of earlier versions know it by this


def small_net(confidence="top"):
    torch.manual_seed(0)
    net = make("resnet", CLASSES, uniform=2, width=8).eval()
    return EarlyExitNet(list(net.stages), list(net.branches), replace(net.architecture, confidence=confidence)).eval()


@pytest.mark.parametrize(
    ("confidence", "expected"), [("top", [0.25, 1.0, 0.5, 0.5]), ("entropy", [0.0, 1.0, 0.5, 0.25])]
)
def test_by_hand(confidence, expected):
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0]])
    told, prediction = small_net(confidence).confident(p.double().log())  # 0 bits … 2 bits of 2
    np.testing.assert_allclose(told, expected, atol=1e-12)
    assert prediction.tolist()[1] == 2
    assert prediction.tolist()[3] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_entropy_lies_in_0_to_1_whatever_the_logits(dtype):
    net = small_net("entropy")
    for scale in (0.0, 1e-4, 1.0, 100.0, 1e4):
        told, _ = net.confident(scale * torch.randn(500, 7).to(dtype))
        assert told.dtype == torch.float32
        assert told.min() >= 0
        assert told.max() <= 1
    assert net.confident(torch.zeros(1, 1))[0].tolist() == [1.0]  # one class alone is certain


def test_an_unknown_confidence():
    with pytest.raises(ValueError, match="confidence must be 'top' or 'entropy', got 'margin'"):
        small_net("margin")


def test_save_and_load(tmp_path):
    plain, net = small_net(), small_net("entropy")
    save(plain, tmp_path / "top")
    save(net, tmp_path / "entropy")
    assert "confidence" not in json.loads((tmp_path / "top" / CARD).read_text())["architecture"]
    assert json.loads((tmp_path / "entropy" / CARD).read_text())["architecture"]["confidence"] == "entropy"
    again = load(tmp_path / "entropy")
    assert again.architecture.confidence == read_card(tmp_path / "entropy").architecture.confidence == "entropy"
    assert load(tmp_path / "top").architecture.confidence == "top"
    assert again.fingerprint == net.fingerprint != plain.fingerprint
    own = load(tmp_path / "entropy", net=small_net())  # a network of one's own is made without knowing
    assert own.architecture.confidence == "entropy"


def test_the_shipped_model_is_what_it_was():
    told = load().fingerprint
    assert told == SHIPPED_FINGERPRINT
    assert "confidence" not in json.loads((SHIPPED / CARD).read_text())["architecture"]


def test_edge_and_worker_agree():
    net = optimised(small_net("entropy"))
    images = torch.rand(24, 3, 32, 32)
    confidence, prediction, _ = every_exit(net, images)
    x = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for i in range(net.exits):
            x = net.stage(i, x)
            p = net.branch(i, "pristine", x).softmax(dim=1).numpy().astype(float)
            expected = 1 + (p * np.log(p)).sum(axis=1) / math.log(len(CLASSES))
            np.testing.assert_allclose(confidence[:, i], expected, atol=1e-6)
    engine = Driver(net, Fixed(1.0, exits=2), InMemoryOffloader(make_tail(net)))
    engine.feed(Batch(images, [""] * 24, np.full(24, -1), np.zeros((24, 2))))
    engine.drain()
    (rows,) = engine.take()
    assert rows.sent.all()
    np.testing.assert_allclose(rows.confidence, confidence, atol=1e-6)
    np.testing.assert_array_equal(rows.prediction, prediction)
