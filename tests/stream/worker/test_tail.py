"""The tail of a network on a worker answers as the edge's own network does."""

import math
from dataclasses import replace

import numpy as np
import torch

from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.policies.algorithms.fixed import Fixed
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
    engine.feed(Batch(images, [""] * 24, np.full(24, -1), np.zeros((24, 2))))
    engine.drain()
    (rows,) = engine.take()
    assert rows.sent.all()
    np.testing.assert_allclose(rows.confidence, confidence, atol=1e-6)
    np.testing.assert_array_equal(rows.prediction, prediction)
