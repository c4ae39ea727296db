"""The same answers, trainings and messages with the network on a GPU; skipped where there is none."""

import dataclasses

import numpy as np
import pytest
import torch

from eex.models.card import load
from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.models.spectrum import DistortionClassifier, fit_classifier, recall
from eex.models.training import Recipe, all_logits, evaluate, fit
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.errors import EexError
from eex.policies.core.schedule import KINDS
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.frames.distortions import distort, random_distortion, random_mixture
from eex.stream.frames.sources import load_all, open_source
from eex.stream.groups import every_exit
from eex.stream.network import pick_device
from eex.stream.planning.measure import candidates, stage_times
from eex.stream.wire.encoding import ENCODINGS
from eex.stream.wire.offload import InMemoryOffloader
from eex.stream.worker.embedded import EmbeddedWorker
from eex.stream.worker.tail import make_tail

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

FRAMES = 256
ROUNDING = 2 / FRAMES
"""Share of frames that float16 may answer, or send, otherwise: those within its rounding of a threshold."""


@pytest.fixture(scope="module")
def sample():
    """Shipped test images, a third of them blurred and a third noisy, as floats on the CPU; labels; levels."""
    pixels, labels, _ = load_all(open_source("sample"))
    images, levels = (
        torch.from_numpy(pixels[:FRAMES]).float() / 255,
        torch.zeros(FRAMES, len(KINDS), dtype=torch.float64),
    )
    levels[::3, KINDS.index("gaussian_blur")], levels[1::3, KINDS.index("gaussian_noise")] = 1.0, 20.0
    return distort(images, levels, torch.arange(FRAMES), 0), labels[:FRAMES], levels.numpy()


def shipped(device: str, dtype: torch.dtype | None = None) -> EarlyExitNet:
    return optimised(load(None, device), dtype)


def play(net, sample, offloader=None, batch=32, **options):
    """Columns of the sample's frames, as the engine routes them at a fixed threshold."""
    images, labels, levels = sample
    driver = Driver(net, Fixed(p_tar=0.8, exits=net.edge_exits), offloader, **options)
    for at in range(0, FRAMES, batch):
        here = slice(at, at + batch)
        driver.feed(Batch(images[here].to(net.mean.device), ["frame"] * batch, labels[here], levels[here]))
    driver.drain()
    rows = list(driver.take())
    return {f.name: np.concatenate([getattr(r, f.name) for r in rows]) for f in dataclasses.fields(rows[0])}


def assert_alike(found, reference, share):
    """But for this share of the frames, the same expert, exit and answer; confidences near where both know one."""
    for column in ("expert", "exit", "answer"):
        assert (found[column] != reference[column]).mean() <= share, column
    both = np.isfinite(found["confidence"]) & np.isfinite(reference["confidence"])
    both &= (found["expert"] == reference["expert"])[:, None]
    assert np.abs(found["confidence"] - reference["confidence"])[both].max() < 0.03


@pytest.mark.parametrize("batch", [1, 32])
def test_half_precision_routes_as_the_processor_does(sample, batch):
    found = play(shipped("cuda"), sample, batch=batch)
    assert_alike(found, play(shipped("cpu"), sample), ROUNDING)


def test_single_precision_is_the_processors_but_for_rounding(sample):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = play(shipped("cuda", torch.float32), sample)
    reference = play(shipped("cpu"), sample)
    assert_alike(found, reference, 1 / FRAMES)
    both = np.isfinite(found["confidence"]) & np.isfinite(reference["confidence"])
    assert np.median(np.abs(found["confidence"] - reference["confidence"])[both]) < 1e-4


def test_gathering_on_a_gpu(sample):
    assert_alike(play(shipped("cuda"), sample, gather=64), play(shipped("cpu"), sample), ROUNDING)


@pytest.mark.parametrize("send", [None, *ENCODINGS], ids=str)
@pytest.mark.parametrize("cloud", ["cpu", "cuda"])
def test_frames_reach_a_worker_in_every_encoding(sample, send, cloud):
    net = shipped("cuda")
    offloader = InMemoryOffloader(make_tail(shipped(cloud)))
    found = play(net, sample, offloader, send=send)
    assert found["sent"].any()
    assert not found["fallback"].any()
    # 8 bits move a few final answers; where a frame stops they do not change
    reference = play(shipped("cpu"), sample, InMemoryOffloader(make_tail(shipped("cpu"))), send=send)
    assert_alike(found, reference, 2 * ROUNDING)


def test_a_worker_of_its_own_computes_on_the_gpu():
    net = load(None, "cuda")
    with EmbeddedWorker(device="cuda") as worker:
        from eex.stream.wire.client import ZmqOffloader

        offloader = ZmqOffloader(worker.endpoint(), net.fingerprint, 30_000, keys=worker.keys)
        offloader.connect()
        try:
            images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
            assert offloader.submit(1, 0, net.experts[0], images)
            (reply,) = offloader.poll(30_000)
        finally:
            offloader.close()
    assert not reply.failed
    expected, _ = make_tail(shipped("cpu"))(0, net.experts[0], images)
    np.testing.assert_allclose(reply.confidence, expected, atol=0.03)


def test_all_exits_and_what_they_take(sample):
    net, images = shipped("cuda"), sample[0][:32].cuda()
    confidence, _, probabilities = every_exit(net, images)
    there, _, odds = every_exit(shipped("cpu"), images.cpu())
    np.testing.assert_allclose(confidence, there, atol=0.03)
    np.testing.assert_allclose(probabilities, odds, atol=0.03)
    stage_ms, exit_ms = stage_times(net, images, at_once=8)
    assert (stage_ms > 0).all()
    assert (exit_ms > 0).all()
    assert {c.encoding for c in candidates(net, images, net.partition)} == set(ENCODINGS)


# ---- training


def few(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 3, 32, 32, generator=drawn) * 0.5 + labels.view(-1, 1, 1, 1) / 6
    return (images * 255).to(torch.uint8), labels


@pytest.mark.parametrize(("method", "optimizer"), [("joint", "sgd"), ("distillation", "adam"), ("two-stage", "sgd")])
def test_a_killed_training_goes_on(method, optimizer, tmp_path):
    images, labels = few()
    lr = 0.05 if optimizer == "sgd" else 0.01
    recipe = Recipe(method=method, epochs=4, batch=32, optimizer=optimizer, lr=lr, cutout=4, patience=4)
    torch.manual_seed(0)
    net = make("resnet", ["a", "b", "c"], shares=(0.3, 0.6), width=8).to("cuda")
    before = evaluate(net, images, labels)

    def kill(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    settings = {"validation": (images, labels), "checkpoint": tmp_path / "state.safetensors"}
    with pytest.raises(KeyboardInterrupt):
        fit(net, images, labels, recipe, report=kill, **settings)
    net = make("resnet", ["a", "b", "c"], shares=(0.3, 0.6), width=8).to("cuda")
    history = fit(net, images, labels, recipe, **settings)
    assert len(history) == 4 * (2 if method == "two-stage" else 1)
    assert net.mean.is_cuda
    after = evaluate(net, images, labels)
    assert all(a < b for a, b in zip(after.loss, before.loss, strict=True))


def test_an_expert_learns_from_images_that_are_distorted_on_the_gpu():
    images, labels = few()
    torch.manual_seed(0)
    net = make("resnet", ["a", "b", "c"], shares=(0.3, 0.6), width=8)
    net.add_expert("spoiled")
    mixture, devices = random_mixture({"gaussian_blur": (1, 2), "gaussian_noise": (10, 20)}, 1.0), set()

    def spoil(x, generator):
        devices.add(x.device.type)
        return mixture(x, generator)

    here = all_logits(net, images, expert="spoiled", distort=mixture)
    before = evaluate(net.to("cuda"), images, labels, expert="spoiled", distort=spoil)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.testing.assert_close(all_logits(net, images, expert="spoiled", distort=spoil), here, atol=1e-3, rtol=0)
    recipe = Recipe("expert", 6, batch=32, lr=0.05, distorted_share=1.0)
    fit(net, images, labels, recipe, expert="spoiled", distort=spoil)
    after = evaluate(net, images, labels, expert="spoiled", distort=spoil)
    assert all(a < b for a, b in zip(after.loss, before.loss, strict=True))
    assert devices == {"cuda"}


def test_the_distortion_classifier_learns_on_the_gpu():
    images, _ = few()
    distorts = {"gaussian_noise": random_distortion("gaussian_noise", 30, 45)}
    classifier = DistortionClassifier(("pristine", "gaussian_noise")).to("cuda")
    history = fit_classifier(classifier, images, distorts, epochs=2, batch=32)
    assert np.isfinite([row["loss"] for row in history]).all()
    assert set(recall(classifier, images, distorts)) == {"pristine", "gaussian_noise"}
    assert classifier.luma.is_cuda


# ---- devices


def test_devices_by_number():
    assert pick_device("auto") == "cuda"
    assert pick_device("cuda:0") == "cuda:0"
    with pytest.raises(EexError, match="counted from cuda:0"):
        pick_device("cuda:99")
