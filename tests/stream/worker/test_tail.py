"""The rest of a network goes on where the edge stopped, and answers as the edge's own network does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.errors import OffloadError
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.wire.offload import InMemoryOffloader
from eex.stream.worker.tail import make_tail

CLASSES = tuple("abcd")


def entropy_net():
    torch.manual_seed(0)
    net = make("resnet", CLASSES, uniform=2, width=8).eval()
    return EarlyExitNet(list(net.stages), list(net.branches), replace(net.architecture, confidence="entropy")).eval()


def test_edge_and_worker_agree_on_confidence_by_entropy():
    net = optimised(entropy_net())
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
    engine.feed(Batch(images, [""] * 24, np.full(24, -1)))
    engine.drain()
    (rows,) = engine.take()
    assert rows.sent.all()
    np.testing.assert_allclose(rows.confidence, confidence, atol=1e-6)
    np.testing.assert_array_equal(rows.prediction, prediction)


def test_the_tail_of_a_network_goes_on_where_the_edge_stopped():
    torch.manual_seed(0)
    net = make("resnet", ["a", "b", "c"], shares=(0.2, 0.6), input_shape=(3, 16, 16), width=8).eval()
    rest = make_tail(net)
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        probabilities = net(torch.from_numpy(images))[-1].softmax(dim=1).numpy()
        features = net.stage(0, torch.from_numpy(images)).numpy()
    features.flags.writeable = False  # as off the wire
    for stage, x, tolerance in [(0, images, 1e-6), (1, features, 1e-6), (1, features.astype(np.float16), 1e-2)]:
        confidence, prediction = rest(stage, "pristine", x)
        np.testing.assert_allclose(confidence, probabilities.max(axis=1), atol=tolerance)
        np.testing.assert_array_equal(prediction, probabilities.argmax(axis=1))
    with pytest.raises(OffloadError, match=r"stage 1 takes features \(n, 8, 8, 8\), got \(3, 5\)"):
        rest(1, "pristine", np.zeros((3, 5), dtype=np.float32))
