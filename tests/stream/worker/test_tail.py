"""The rest of a network goes on where the edge stopped, and answers as the edge's own network does."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, SIDE, architecture

from eex.models.card import read_card, save
from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.models.placing import auto_cut
from eex.models.spectrum import DistortionClassifier
from eex.models.tracing import logits_of
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.errors import OffloadError
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.encoding import Encoding, decode, encode, pixels
from eex.stream.wire.offload import InMemoryOffloader
from eex.stream.worker.embedded import EmbeddedWorker
from eex.stream.worker.tail import Models, answering, load_models, make_tail

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


# ---- another model that answers images


def two_models(order="abcd", side=48):
    """The edge's model, and an answerer of the same classes in another order, for larger images."""
    torch.manual_seed(0)
    net = make("resnet", CLASSES, uniform=2, width=8).eval()
    torch.manual_seed(1)
    answerer = make("resnet", tuple(order), uniform=1, width=16, input_shape=(3, side, side)).eval()
    answerer.temperature[-1]["pristine"] = 0.5
    return net, answerer


@pytest.mark.parametrize("side", [32, 48])
def test_images_are_answered_by_the_other_model_and_features_by_the_rest_of_the_edges(side):
    net, answerer = two_models("dcba", side)
    tail = answering(make_tail(net), net, answerer)
    images = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        seen = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        expected = (answerer(seen)[-1] / 0.5).softmax(1).max(1)
        features = net.stage(0, images).numpy()
    confidence, prediction = tail(0, "pristine", images.numpy())
    np.testing.assert_allclose(confidence, expected.values, atol=1e-5)
    assert [CLASSES[i] for i in prediction] == [answerer.classes[i] for i in expected.indices]
    for theirs, ours in zip(tail(1, "pristine", features), make_tail(net)(1, "pristine", features), strict=True):
        np.testing.assert_array_equal(theirs, ours)


def test_an_answerer_with_experts_selects_its_own():
    net, answerer = two_models(side=32)
    answerer.add_expert("gaussian_blur")
    with torch.no_grad():
        answerer.branches[-1]["gaussian_blur"][-1].bias.add_(torch.tensor([0.0, 9.0, 0.0, 0.0]))

    class Bright(torch.nn.Module):
        def forward(self, x):
            bright = (x.mean((1, 2, 3)) > 0.5).float()
            return torch.stack([1 - bright, bright], 1)

    answerer.classifier = Bright()
    images = torch.cat([torch.rand(3, 3, 32, 32) / 4, 1 - torch.rand(2, 3, 32, 32) / 4])
    _, prediction = answering(make_tail(net), net, answerer)(0, "gaussian_noise", images.numpy())
    assert (prediction[3:] == 1).all()
    with torch.inference_mode():
        np.testing.assert_array_equal(prediction[:3], answerer(images[:3])[-1].argmax(1))
        answerer.abstain_below = 0.8  # it is 73 % sure of each
        _, prediction = answering(make_tail(net), net, answerer)(0, "gaussian_noise", images.numpy())
        np.testing.assert_array_equal(prediction, answerer(images)[-1].argmax(1))


def test_an_answerer_of_other_classes_is_refused():
    net, answerer = two_models("abce")
    with pytest.raises(OffloadError, match=r"its classes are not those of the model .*only one of the two knows d, e"):
        answering(make_tail(net), net, answerer)
    torch.manual_seed(0)
    grey = make("resnet", CLASSES, uniform=1, width=8, input_shape=(1, 32, 32))
    with pytest.raises(OffloadError, match="takes images of 1 channels, the edge's model of 3"):
        answering(make_tail(net), net, grey)
    text = make("transformer", CLASSES, uniform=1, structure="pool_fc", input_shape=(8,), vocabulary=9, blocks=2)
    with pytest.raises(OffloadError, match=r"takes frames of shape \(8,\), the edge's model of"):
        answering(make_tail(net), net, text)


def test_the_welcome_names_the_pair(tmp_path):
    net, answerer = two_models()
    answerer.add_expert("gaussian_blur")
    answerer.classifier = DistortionClassifier(answerer.experts)
    save(net, tmp_path / "edge")
    save(answerer, tmp_path / "answerer")
    loaded = load_models(Models((tmp_path / "edge",), answer_with=tmp_path / "answerer"))
    (welcome,) = loaded.welcomes
    assert (welcome.model, welcome.answerer) == (net.fingerprint, answerer.fingerprint)
    confidence, _ = loaded.tails[welcome.model](0, "pristine", np.zeros((2, 3, 32, 32), dtype=np.float32))
    assert confidence.shape == (2,)
    assert read_card(tmp_path / "answerer").classifier == ("pristine", "gaussian_blur")


@pytest.mark.process
@pytest.mark.timeout(120)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_process_answers_images_with_the_other_model(tmp_path, processes):
    net, answerer = two_models("dcba", 32)
    save(net, tmp_path / "edge", half=False)
    save(answerer, tmp_path / "answerer", half=False)
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        features, other, own = net.stage(0, images), answerer(images)[-1].argmax(1), net(images)[-1].argmax(1)
    with (
        EmbeddedWorker(
            [tmp_path / "edge"], threads=1, processes=processes, answer_with=tmp_path / "answerer"
        ) as worker,
        contextlib.closing(ZmqOffloader(worker.endpoint(60), net.fingerprint, 60_000, keys=worker.keys)) as offloader,
    ):
        assert offloader.connect(60).answerer == answerer.fingerprint
        offloader.submit(1, 0, "pristine", encode(pixels(images.numpy()), Encoding("input")))
        offloader.submit(2, 1, "pristine", features.numpy())
        replies = {}
        while len(replies) < 2:
            replies |= {reply.id: reply for reply in offloader.poll(60_000)}
        assert [CLASSES[i] for i in replies[1].prediction] == [answerer.classes[i] for i in other]
        np.testing.assert_array_equal(replies[2].prediction, own)
        assert offloader.report()["workers"][0]["answerers"] == [answerer.fingerprint]


@pytest.mark.process
@pytest.mark.timeout(120)
def test_a_worker_with_an_answerer_of_other_classes_does_not_start(tmp_path):
    net, answerer = two_models("abce")
    save(net, tmp_path / "edge")
    save(answerer, tmp_path / "answerer")
    with (
        EmbeddedWorker([tmp_path / "edge"], threads=1, answer_with=tmp_path / "answerer") as worker,
        pytest.raises(OffloadError, match="its classes are not those of the model"),
    ):
        worker.endpoint(60)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_cut_automatically_goes_on_where_the_edge_stopped(name):
    module = architecture(name)
    net = optimised(auto_cut(module, "abcde", input_shape=(3, SIDE, SIDE), exits=3))
    x = torch.rand(4, 3, SIDE, SIDE)
    with torch.inference_mode():
        features = x
        for i in range(net.partition):
            features = net.stage(i, features)
        whole = torch.softmax(logits_of(module(x)), 1)
    sent = encode(features.numpy())
    arrived = decode(sent.dtype, sent.shape, sent.codec, sent.arrays)
    confidence, prediction = make_tail(net)(net.partition, "pristine", arrived)
    np.testing.assert_allclose(confidence, whole.max(1).values, rtol=1e-4, atol=1e-5)
    assert prediction.tolist() == whole.argmax(1).tolist()
