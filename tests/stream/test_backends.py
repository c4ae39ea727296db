"""The shipped model on every backend: the same routes through the engine, the same answers within 1e-4."""

import numpy as np
import pytest
import torch
from exporting import export

from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.frames.frames import FrameConfig
from eex.stream.frames.sources import load_all, open_source
from eex.stream.network import load_network

BACKENDS = ("torch", "onnx", "onnx, spinning")
FRAMES = 192


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The network of each backend."""
    folder = tmp_path_factory.mktemp("exported")
    export(None, folder)
    configs = (
        FrameConfig(device="cpu"),
        FrameConfig(model=folder, backend="onnx", device="cpu"),
        FrameConfig(model=folder, backend="onnx", device="cpu", spin=True),
    )
    return dict(zip(BACKENDS, map(load_network, configs), strict=True))


@pytest.fixture(scope="module")
def sample():
    images, labels, _ = load_all(open_source("sample"))
    some = np.random.default_rng(0).permutation(len(images))[:FRAMES]
    return images[some].astype(np.float32) / 255, labels[some]


def play(net, sample, policy, batch):
    images, labels = sample
    driver = Driver(net, make_policy(policy, exits=net.edge_exits), clock=lambda: 1.0)
    for start in range(0, FRAMES, batch):
        part = slice(start, start + batch)
        driver.feed(Batch(net.array(images[part]), ["frame"] * batch, labels[part]))
    driver.drain()
    rows = list(driver.take())
    names = ("exit", "answer", "expert", "arm", "confidence", "reward")
    return {name: np.concatenate([getattr(piece, name) for piece in rows]) for name in names}


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("policy", ["fixed", "ucb", "gain-curve"])
def test_every_backend_routes_alike(nets, sample, policy, batch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        played = {backend: play(net, sample, policy, batch) for backend, net in nets.items()}
    finally:
        torch.set_num_threads(threads)
    expected = played.pop("torch")
    assert len(set(expected["exit"].tolist())) > 1
    for found in played.values():
        for name in ("exit", "answer", "expert", "arm"):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-4)
        np.testing.assert_allclose(found["reward"], expected["reward"], atol=1e-4)
