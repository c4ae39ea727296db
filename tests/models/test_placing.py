"""Networks cut automatically: where, with which branches, and that they answer as the whole does."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, CLASSES, SIDE, architecture
from exporting import export
from torch import Tensor, nn

from eex.models.card import load, save
from eex.models.fast import optimised
from eex.models.network import EarlyExitNet
from eex.models.onnx import load_onnx
from eex.models.placing import auto_cut, choose, cut_again, survey
from eex.models.tracing import logits_of
from eex.models.training import Recipe, fit
from eex.policies.core.errors import EexError, ModelError
from eex.stream.wire.encoding import decode, encode
from eex.stream.worker.tail import make_tail

SHAPE = (3, SIDE, SIDE)
NAMES = tuple("abcde")


def cut_up(name: str, **options) -> tuple[nn.Module, EarlyExitNet, list[str]]:
    module, lines = architecture(name), []
    return module, auto_cut(module, NAMES, input_shape=SHAPE, report=lines.extend, **options), lines


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cut_answers_as_the_whole_does(name):
    module, net, _ = cut_up(name)
    assert net.exits >= 3
    fast = optimised(net)
    with torch.inference_mode():
        for count in (1, 5):  # not the number of images that it was traced with
            x = torch.rand(count, *SHAPE)
            whole = logits_of(module(x))
            assert whole.shape == (count, CLASSES)
            torch.testing.assert_close(net(x)[-1], whole, rtol=1e-5, atol=1e-5)
            for a, b in zip(net(x), fast(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "shufflenet", "swin", "deit", "deciding"])
def test_the_cut_is_made_again_from_its_card(name, tmp_path):
    _, net, _ = cut_up(name, exits=3)
    save(net, tmp_path, half=False)
    torch.manual_seed(1)
    again = load(tmp_path, net=cut_again(ARCHITECTURES[name]().eval(), net.architecture))
    x = torch.rand(4, *SHAPE)
    with torch.inference_mode():
        for a, b in zip(net(x), again(x), strict=True):
            torch.testing.assert_close(a, b)


QUICKLY_EXPORTED = ("convnext", "vit")
"""Architectures whose export every run of the tests tries; the exporter takes seconds for each."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICKLY_EXPORTED else pytest.mark.soak) for name in ARCHITECTURES],
)
def test_the_cut_is_exported_and_offloaded(name, tmp_path):
    pytest.importorskip("onnxscript")
    module, net, _ = cut_up(name, exits=3)
    save(net, tmp_path, half=False)
    export(tmp_path, tmp_path, cut_again(ARCHITECTURES[name]().eval(), net.architecture))
    onnx = load_onnx(tmp_path)
    with torch.inference_mode():
        for count in (1, 5):  # not the number of images that it was exported with
            x = torch.rand(count, *SHAPE)
            features, exits = x.numpy(), net(x)
            for i, exit in enumerate(exits):
                features = onnx.stage(i, features)
                np.testing.assert_allclose(onnx.branch(i, "pristine", features), exit, rtol=1e-4, atol=1e-4)
                if i + 1 == onnx.partition:  # the edge runs the files, the worker the network
                    sent = encode(features)
            whole = logits_of(module(x)).softmax(1)
            arrived = decode(sent.dtype, sent.shape, sent.codec, sent.arrays)
            confidence, prediction = make_tail(net)(onnx.partition, "pristine", arrived)
            np.testing.assert_allclose(confidence, whole.max(1).values, rtol=1e-4, atol=1e-5)
            assert prediction.tolist() == whole.argmax(1).tolist()


@pytest.mark.parametrize("name", ["resnet", "vit", "swin", "deciding"])
def test_the_cut_trains(name):
    _, net, _ = cut_up(name, exits=3)
    before = [p.detach().clone() for p in net.parameters()]
    images = torch.randint(0, 256, (16, *SHAPE), dtype=torch.uint8)
    fit(net, images, torch.arange(16) % CLASSES, Recipe(epochs=1, batch=8, lr=0.05))
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert sum(changed) > 0.8 * len(changed)


# ---- where


def test_exits_go_where_the_work_is():
    _, net, lines = cut_up("resnet", exits=3)
    costs = net.costs()
    before = costs.stage_macs[0] / costs.whole
    assert before == pytest.approx(1 / 3, abs=0.15)
    assert len(lines) == 1 + 3
    assert lines[0].split() == ["exit", "after", "features", "KiB", "work", "before", "it", "branch"]
    assert f"{100 * before:.1f} %" in lines[1]
    assert lines[-1].endswith("the network's own")


def test_shares_are_the_users():
    found = survey(architecture("vit"), SHAPE)
    near = choose(found, 3, (0.3, 0.8))
    assert [p.share for p in near[:-1]] == pytest.approx([0.3, 0.8], abs=0.1)
    with pytest.raises(EexError, match="--exits 3 needs 2 shares, one per side branch, got 1"):
        choose(found, 3, (0.3,))
    with pytest.raises(EexError, match="shares must rise"):
        choose(found, 3, (0.8, 0.3))


def test_places_by_time_are_those_by_cost():
    module = architecture("resnet")
    by_time = {place.node for place in survey(module, SHAPE, "time").places}
    assert by_time & {place.node for place in survey(module, SHAPE).places}
    assert auto_cut(module, NAMES, input_shape=SHAPE, by="time", exits=3).exits == 3


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vgg", {"map"}),
        ("swin", {"map"}),
        ("vit", {"class token"}),
        ("deit", {"class token"}),
        ("deciding", {"class token", "tokens"}),
        ("vit_without_class_token", {"tokens"}),
        ("mixer", {"tokens"}),
    ],
)
def test_heads_follow_the_shape_of_the_features(name, kinds):
    assert {place.kind for place in survey(architecture(name), SHAPE).places} <= kinds


@pytest.mark.parametrize(("name", "width"), [("vit", 32), ("deit", 32), ("mixer", 16)])
def test_a_branch_sees_the_class_token_and_the_mean(name, width):
    _, net, _ = cut_up(name)
    pool, norm, _ = net.branches[0]["pristine"]
    assert norm.normalized_shape == (width,)
    tokens = torch.rand(2, 17, 16)
    expected = [tokens[:, 0], tokens.mean(1)] if width == 32 else [tokens.mean(1)]
    torch.testing.assert_close(pool(tokens), torch.cat(expected, 1))


def test_a_branch_takes_channels_that_lie_last_as_a_map():
    _, net, _ = cut_up("swin")
    assert [b["pristine"][1].in_channels for b in list(net.branches)[:-1]] == [8, 8, 16]


# ---- what cannot be cut


class Long(nn.Module):
    """A skip connection over everything but the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Whole(nn.Module):
    """All its work is in a layer that looks at its images."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner, self.fc = module, nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(x))


class Looking(Long):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Many(Long):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [super().forward(x), x]


def test_what_cannot_be_cut_is_named_with_the_reason():
    found = survey(Long(), SHAPE)
    assert [place.layer for place in found.places] == ["stem", "add"]
    (line,) = found.uncut
    assert "no cut lies between 16 and 100 % of the work" in line
    assert "the output of layer 'stem' is used again by 'add', so that more than one tensor crosses" in line
    with pytest.raises(EexError, match=r"--exits 4: the network can be cut at 2 places only, after 'stem', 'add'; no "):
        choose(found, 4)


def test_a_layer_that_cannot_be_traced_is_named_with_the_reason():
    found = survey(Whole(Looking()), SHAPE)
    assert found.graph.whole.keys() == {"inner"}
    assert "layer 'inner' is kept whole, because torch.fx cannot trace it: symbolically traced" in found.uncut[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Many, "must return its logits alone, got a immutable_list"),
        (Looking, r"neither torch\.fx nor torch\.export can trace the module: symbolically traced"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)), "cannot be cut anywhere: it is one operation"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)), "no layer with multiply-adds"),
        (lambda: nn.Sequential(*architecture("vgg").children()), "cannot take images of shape"),
    ],
)
def test_each_mistake_gives_one_clear_line(make, message):
    with pytest.raises(EexError, match=message) as caught:
        auto_cut(make(), NAMES, input_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_other_classes_and_numbers_of_exits_are_refused():
    with pytest.raises(EexError, match=r"must return logits \(B, 2\), one for each class, got \(2, 5\)"):
        auto_cut(architecture("resnet"), ["a", "b"], input_shape=SHAPE)
    with pytest.raises(EexError, match="--exits must be at least 2"):
        auto_cut(architecture("resnet"), NAMES, input_shape=SHAPE, exits=1)


def test_a_network_whose_code_has_changed_is_refused():
    _, net, _ = cut_up("resnet", exits=3)
    with pytest.raises(ModelError, match=r"was cut after '.*', which is not there any more: its code has changed"):
        cut_again(architecture("vit"), net.architecture)


# ---- networks of the libraries, where they are installed


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224", "regnetx_002"]
)
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    check(timm.create_model(name, num_classes=CLASSES))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "vit_b_32"])
def test_networks_of_torchvision(name):
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    check(models.get_model(name, num_classes=CLASSES))


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "Swin"])
def test_networks_of_transformers(kind):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES)
    check(getattr(transformers, f"{kind}ForImageClassification")(config))


def check(module: nn.Module) -> None:
    """A network for 224 pixels answers as the whole does."""
    module.eval()
    net = auto_cut(module, NAMES, input_shape=(3, 224, 224), exits=3)
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(net(x)[-1], logits_of(module(x)), rtol=1e-5, atol=1e-5)
