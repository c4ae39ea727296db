"""Backbones: shapes and costs against the papers, and torchvision's state dict by its names."""

import pytest
import torch

from eex.models.alexnet import LocalNorm, alexnet
from eex.models.cnn import cnn
from eex.models.fast import optimised
from eex.models.mobilenet import mobilenet_v2
from eex.models.network import (
    Architecture,
    EarlyExitNet,
    assemble,
    feature_shapes,
    load_torchvision_mobilenet,
    make,
    remake,
)
from eex.models.resnet import resnet
from eex.models.spectrum import DistortionClassifier
from eex.policies.core.errors import EexError

THOUSAND = tuple(map(str, range(1000)))


def test_resnet_shapes():
    shapes = feature_shapes(resnet(width=16), (3, 32, 32))
    assert shapes == [(8, 32, 32), *[(16, 16, 16)] * 2, *[(32, 8, 8)] * 2, *[(64, 4, 4)] * 2]
    with pytest.raises(ValueError, match="width must be a positive multiple of 8, got 12"):
        resnet(width=12)


def test_resnet_cost():
    net = make("resnet", "ab", after=range(6), structure="pool_fc")
    in_millions = [round(m / 1e6, 1) for m in net.costs().stage_macs]
    assert in_millions == [0.9, 4.7, 9.4, 18.9, 18.9, 18.9, 18.9]


def test_alexnet_shapes():
    shapes = feature_shapes(alexnet(), (3, 32, 32))
    assert shapes == [(32, 16, 16), (64, 8, 8), (96, 8, 8), (96, 8, 8), (64, 4, 4), (256,), (128,)]


def test_cnn_shapes_and_cost():
    shapes = feature_shapes(cnn(width=4), (3, 32, 32))
    assert shapes == [*[(4, 32, 32)] * 2, *[(8, 16, 16)] * 2, *[(16, 8, 8)] * 2, *[(32, 4, 4)] * 3]
    assert feature_shapes(cnn(width=4, stride=2), (3, 32, 32))[-1] == (32, 2, 2)
    net = make("cnn", "ab", after=range(8), structure="pool_fc")
    in_millions = [round(m / 1e6, 1) for m in net.costs().stage_macs]
    assert in_millions == [39.5, 75.5, 56.6, 75.5, 56.6, 75.5, 56.6, 75.5, 75.5]
    with pytest.raises(ValueError, match="width and stride must be at least 1, got 16 and 0"):
        cnn(width=16, stride=0)


def test_alexnets_norm_is_torchs():
    x = 30 * torch.randn(2, 5, 4, 3)
    expected = torch.nn.LocalResponseNorm(3, 5e-5, 0.75)(x)
    torch.testing.assert_close(LocalNorm()(x), expected)
    features_last = x.contiguous(memory_format=torch.channels_last)
    assert LocalNorm()(features_last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(LocalNorm()(x[:, :1]), torch.nn.LocalResponseNorm(3, 5e-5, 0.75)(x[:, :1]))


@pytest.mark.parametrize(
    ("small_images", "size", "sides"), [(True, 32, (32, 32, 16, 8, 4)), (False, 64, (32, 16, 8, 4, 2))]
)
def test_mobilenet_shapes(small_images, size, sides):
    a, b, c, d, e = sides
    shapes = feature_shapes(mobilenet_v2(small_images), (3, size, size))
    channels = [32, 16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320, 1280]
    side = [a, a, b, b, *[c] * 3, *[d] * 7, *[e] * 5]
    assert shapes == [(n, s, s) for n, s in zip(channels, side, strict=True)]


def mobilenet(**changes) -> EarlyExitNet:
    arguments = {"shares": [0.3, 0.6], "structure": "pool_fc", "input_shape": (3, 224, 224), **changes}
    return make("mobilenet_v2", THOUSAND, **arguments)


def test_mobilenet_is_torchvisions_in_size_and_cost():
    net = mobilenet()
    backbone = sum(p.numel() for p in net.stages.parameters())
    assert backbone + sum(p.numel() for p in net.branches[-1].parameters()) == 3_504_872
    assert net.costs().whole == pytest.approx(300.8e6, rel=0.01)  # Sandler et al., Table 4: 300 M


def torchvision_state() -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names, worked out from the paper's Table 2; each tensor has its own values."""
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.full(shape, 0.5 + len(state) / 1000)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{part}", channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def unit(name: str, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        put(f"{name}.0.weight", outputs, inputs // groups, kernel, kernel)
        norm(f"{name}.1", outputs)

    unit("features.0", 3, 32, 3)
    block, inputs = 1, 32
    table = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    for expansion, outputs, repeats in table:
        for _ in range(repeats):
            name, hidden, k = f"features.{block}.conv", inputs * expansion, 0
            if expansion > 1:
                unit(f"{name}.0", inputs, hidden, 1)
                k = 1
            unit(f"{name}.{k}", hidden, hidden, 3, groups=hidden)
            put(f"{name}.{k + 1}.weight", outputs, hidden, 1, 1)
            norm(f"{name}.{k + 2}", outputs)
            block, inputs = block + 1, outputs
    unit("features.18", 320, 1280, 1)
    put("classifier.1.weight", 1000, 1280)
    put("classifier.1.bias", 1000)
    return state


def test_loads_torchvisions_state_dict():
    state = torchvision_state()
    assert sum(v.numel() for k, v in state.items() if "running" not in k and "num_b" not in k) == 3_504_872
    net = mobilenet()
    load_torchvision_mobilenet(net, state)
    blocks = [b for s in net.stages for b in s.children()]
    loaded = {f"features.{i}.{k}": v for i, b in enumerate(blocks) for k, v in b.state_dict().items()}
    loaded |= {f"classifier.{k}": v for k, v in net.branches[-1]["pristine"].state_dict().items()}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def test_classifier_is_left_out_where_it_does_not_fit():
    net = mobilenet(final_structure="conv_fc")
    before = {k: v.clone() for k, v in net.branches[-1].state_dict().items()}
    load_torchvision_mobilenet(net, torchvision_state())
    assert all(torch.equal(v, before[k]) for k, v in net.branches[-1].state_dict().items())


@pytest.mark.parametrize("change", ["missing", "shape", "empty"])
def test_a_wrong_state_dict_gives_one_clear_line(change):
    state = torchvision_state()
    match change:
        case "missing":
            del state["features.3.conv.3.running_var"]
        case "shape":
            state["features.3.conv.2.weight"] = torch.zeros(1)
        case "empty":
            state = {}
    block = 0 if change == "empty" else 3
    with pytest.raises(ValueError, match=f"block {block} of mobilenet_v2 does not fit the state dict") as caught:
        load_torchvision_mobilenet(mobilenet(), state)
    assert "\n" not in str(caught.value)


def test_only_mobilenet_takes_mobilenets_weights():
    with pytest.raises(ValueError, match="expected a mobilenet_v2 backbone, got alexnet"):
        load_torchvision_mobilenet(make("alexnet", "ab", uniform=1), {})


def test_costs_by_hand():
    net = make("alexnet", "abcd", after=[0, 4], structure="pool_fc")
    costs = net.costs()
    first = 32 * 32 * 32 * 75
    middle = 16 * 16 * 64 * 25 * 32 + 64 * 9 * (64 * 96 + 96 * 96 + 96 * 64)
    assert costs.stage_macs == (first, middle, 1024 * 256 + 256 * 128)
    assert costs.branch_macs == (32 * 4, 64 * 4, 128 * 4)
    assert costs.feature_bytes == (4 * 32 * 256, 4 * 64 * 16, 4 * 128)
    assert costs.of_exit(1) == first + middle + 96 * 4
    assert costs.whole == first + middle + 1024 * 256 + 256 * 128 + 128 * 4


def test_costs_leave_the_modes_alone():
    net = make("resnet", "ab", uniform=1, width=8).eval()
    net.branches[0].train()
    net.costs()
    assert not net.stages[0].training
    assert all(m.training for m in net.branches[0].modules())


def test_forward_is_stage_then_branch_and_temperature_divides():
    net = make("resnet", "abc", uniform=2, width=8).eval()
    x = torch.rand(2, 3, 32, 32)
    outputs = net(x)
    features = net.stage(1, net.stage(0, x))
    assert torch.equal(outputs[1], net.logits(1, "pristine", features))
    net.temperature[1]["pristine"] = 2.0
    assert torch.equal(net.branch(1, "pristine", features), outputs[1] / 2)


@pytest.mark.parametrize("backbone", ["resnet", "alexnet", "mobilenet_v2"])
@pytest.mark.parametrize("batch", [1, 16])
def test_folded_and_packed_for_inference_they_answer_alike(backbone, batch):
    net = make(backbone, "abc", uniform=2, input_shape=(3, 32, 32))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # norms that differ from fresh ones
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    net.eval()
    x = torch.rand(batch, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8, 9])
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (17, 33), (48, 20), (64, 64)])
def test_a_fast_classifier_says_the_same(batch, size):
    torch.manual_seed(1)
    net = make("resnet", "ab", uniform=1, width=8)
    net.classifier = DistortionClassifier()
    for module in net.classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    fast = optimised(net.eval())
    for images in (torch.rand(batch, 3, *size), torch.zeros(batch, 3, *size)):
        for x in (images, images.contiguous(memory_format=torch.channels_last)):
            with torch.inference_mode():
                torch.testing.assert_close(fast.classifier(x), net.classifier(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 15, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_a_fast_classifier_refuses_the_same(shape):
    net = make("resnet", "ab", uniform=1, width=8)
    net.classifier = DistortionClassifier()
    with pytest.raises(EexError, match="expected images"):
        optimised(net.eval()).classifier(torch.zeros(shape))


def test_half_precision_keeps_the_answers():
    net = make("resnet", "abcdefghij", uniform=2, width=16).eval()
    x = torch.rand(32, 3, 32, 32)
    with torch.inference_mode():
        half, full = optimised(net, torch.bfloat16)(x), net(x)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


def test_experts_start_as_copies():
    net = make("resnet", "abc", uniform=1, width=8).eval()
    net.add_expert("gaussian_blur")
    assert net.experts == net.architecture.experts == ("pristine", "gaussian_blur")
    x = torch.rand(2, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(net(x), net(x, "gaussian_blur"), strict=True))
    assert not {id(p) for b in net.branches for p in b["pristine"].parameters()} & {
        id(p) for b in net.branches for p in b["gaussian_blur"].parameters()
    }
    with pytest.raises(ValueError, match="has an expert 'gaussian_blur' already"):
        net.add_expert("gaussian_blur")
    again = remake(net.architecture)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_placement_arguments():
    with pytest.raises(ValueError, match="unknown backbone 'vgg', expected one of resnet"):
        make("vgg", "ab", uniform=1)
    with pytest.raises(ValueError, match="place the side branches by one of"):
        make("resnet", "ab", uniform=1, after=[0])
    with pytest.raises(ValueError, match=r"rising blocks among 0…5, got \[2, 1\]"):
        make("resnet", "ab", after=[2, 1])
    with pytest.raises(ValueError, match=r"rising blocks among 0…5, got \[6\]"):
        make("resnet", "ab", after=[6])
    with pytest.raises(ValueError, match="2 exits need as many structures"):
        assemble(resnet(8), Architecture("resnet", ("a", "b"), (1,), ("pool_fc",)))
    with pytest.raises(ValueError, match=r"partition point must lie in 1…2, got 3"):
        make("resnet", "ab", after=[1], partition=3)
