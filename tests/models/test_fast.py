"""The form that infers fast answers as the network does, and its classifier as the classifier does."""

import numpy as np
import pytest
import torch
from torch import nn

import eex.models.fast as fast_module
from eex.models.branches import GlobalPool
from eex.models.cutting import cut
from eex.models.fast import optimised
from eex.models.network import Architecture, EarlyExitNet, make
from eex.models.spectrum import DistortionClassifier
from eex.policies.core.errors import EexError, ModelError


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


@pytest.mark.parametrize("shape", [(1, 3, 15, 32), (1, 2, 32, 32), (3, 32, 32)])
def test_a_fast_classifier_refuses_the_same(shape):
    net = make("resnet", "ab", uniform=1, width=8)
    net.classifier = DistortionClassifier()
    with pytest.raises(EexError, match="expected images"):
        optimised(net.eval()).classifier(torch.zeros(shape))


def test_its_costs_are_those_of_the_network_it_was_made_of():
    from eex.stream.engine import exit_cost_of

    net = make("alexnet", "abc", uniform=3, input_shape=(3, 32, 32))
    costs, fast = net.costs(), optimised(net)
    assert fast.costs() == costs
    work = (np.array(costs.stage_macs) + costs.branch_macs)[1 : fast.edge_exits]
    np.testing.assert_allclose(exit_cost_of("auto:0.04", fast), 0.04 * work / work.mean())


def test_half_precision_keeps_the_answers():
    net = make("resnet", "abcdefghij", uniform=2, width=16).eval()
    x = torch.rand(32, 3, 32, 32)
    with torch.inference_mode():
        half, full = optimised(net, torch.bfloat16)(x), net(x)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


def other_norms(module):
    """Norms that differ from fresh ones, so that one that is left out or folded twice shows."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.1, 0.3)
    return module


def conv(inputs=8, outputs=8):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def called_twice():
    layer, norm, act = conv(), nn.BatchNorm2d(8), nn.ReLU()
    return [layer, norm, act, layer, norm, act]


def norm_of_two():
    norm = nn.BatchNorm2d(8)
    return [conv(), norm, nn.ReLU(), conv(), norm, nn.ReLU()]


def two_norms():
    return [conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()]


def norms_of_one():
    layer = conv()
    return [layer, nn.BatchNorm2d(8), nn.ReLU(), layer, nn.BatchNorm2d(8)]


def pool_of_two():
    pool = nn.AvgPool2d(3, 1, 1)  # between the second convolution and its ReLU
    return [conv(), pool, conv(), pool, nn.ReLU()]


def same_weights():
    first, second = conv(), conv()
    second.weight = first.weight
    return [first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8)]


def parametrized():
    return [nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(8), nn.ReLU()]


def spectral():
    return [nn.utils.parametrizations.spectral_norm(conv()), nn.BatchNorm2d(8), nn.ReLU()]


def hooked():
    layers = [conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.ReLU()]
    for layer in (layers[0], layers[4]):
        layer.register_forward_hook(lambda layer, given, x: x * 3)
    layers[3].register_forward_pre_hook(lambda layer, given: (given[0] + 1,))
    return layers


def statistics_of_the_batch():
    return [conv(), nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.ReLU()]


class Standardised(nn.Conv2d):
    """Of another class: it standardises its kernels."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def of_another_class():
    return [Standardised(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]


class Twofold(nn.Sequential):
    """Of another class: it calls its layers in an order of its own, by number."""

    def forward(self, x):
        return self[3](self[2](x)) + self[1](self[0](x)) * self[0].weight.mean() + self[0].bias.sum()


def in_an_order_of_its_own():
    return [Twofold(conv(), nn.BatchNorm2d(8), conv(), nn.BatchNorm2d(8)), nn.ReLU()]


class Layers(nn.Module):
    """A module that calls layers one after another, opaque or traced."""

    def __init__(self, layers):
        super().__init__()
        self.stem, self.layers, self.end = conv(3), nn.ModuleList(layers), nn.Identity()
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.end(x).mean((2, 3)))


HABITS = [
    *(called_twice, norm_of_two, two_norms, norms_of_one, pool_of_two, same_weights, parametrized, spectral, hooked),
    *(statistics_of_the_batch, of_another_class, in_an_order_of_its_own),
]


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("form", ["plain", "opaque", "traced", "traced sequence"])
def test_layers_with_habits_answer_alike(habit, form):
    torch.manual_seed(0)
    layers = other_norms(nn.ModuleList(habit()))
    if form == "traced":
        net = cut(Layers(layers), ["end"], "ab", input_shape=(3, 16, 16))
    elif form == "traced sequence":
        whole = nn.Sequential(conv(3), *layers, nn.Identity(), nn.Flatten(), nn.Linear(8 * 256, 2))
        net = cut(whole, [str(len(layers) + 1)], "ab", input_shape=(3, 16, 16))
    else:
        stage = nn.Sequential(conv(3), *layers) if form == "plain" else Layers(layers)
        architecture = Architecture("custom", ("a", "b"), (), ("custom",), input_shape=(3, 16, 16))
        branch = nn.Sequential(nn.Flatten(), nn.Linear(8 * 256, 2)) if form == "plain" else nn.Identity()
        net = EarlyExitNet([stage], [{"pristine": branch}], architecture)
    net.eval()
    x = torch.rand(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x), rtol=1e-3, atol=1e-4)


def test_a_layer_that_branches_share_gets_each_temperature_once():
    net = make("resnet", "ab", uniform=1, width=8, structure="pool_fc")
    net.branches[1]["pristine"] = net.branches[0]["pristine"] = nn.Sequential(GlobalPool(), nn.LazyLinear(2))
    net.stages[1] = nn.Identity()
    net.temperature = [{"pristine": 2.0}, {"pristine": 3.0}]
    x = torch.rand(4, 3, 32, 32)
    net.eval()(x)
    fast = optimised(net)
    with torch.inference_mode():
        for i in (0, 1):
            features = net.stage(0, x)
            torch.testing.assert_close(fast.branch(i, "pristine", features), net.branch(i, "pristine", features))


class Looks(nn.Module):
    """Looks at its weights: their type, their device, and how its layers are set."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.stem, self.norm, self.act, self.head = conv(3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.stem(self.look(self, x)))
        return self.head(self.act(x).mean((2, 3)).to(next(self.parameters()).dtype))


LOOKS = {
    "type": lambda net, x: x.type(net.stem.weight.dtype),
    "first parameter": lambda net, x: x.to(next(net.parameters()).dtype),
    "device": lambda net, x: x.to(net.stem.weight.device),
    "device of the first parameter": lambda net, x: x.to(next(net.parameters()).device),
    "weight": lambda net, x: x.to(net.stem.weight),
    "bias": lambda net, x: x.to(net.stem.bias.dtype) + net.stem.bias.mean(),
    "channels": lambda net, x: x * net.stem.in_channels + net.stem.stride[0],
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_network_that_looks_at_its_weights(look, traced, dtype):
    module = other_norms(Looks(LOOKS[look]))
    if traced:
        net = cut(module, ["norm", "act"], "ab", input_shape=(3, 16, 16))
    else:
        architecture = Architecture("custom", ("a", "b"), (), ("custom",), input_shape=(3, 16, 16))
        net = EarlyExitNet([module], [{"pristine": nn.Identity()}], architecture)
    fast = optimised(net.eval(), dtype)
    x = torch.rand(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x)[-1].float(), net(x)[-1], rtol=0.1, atol=0.1)


# ---- what does not answer alike


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.flatten(1)[:, :2])  # its training=True is the default


class Broken(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] * float("nan")


class Wide(nn.Module):
    """Runs in float32 only."""

    def forward(self, x):
        return nn.functional.linear(x.flatten(1)[:, :2], torch.eye(2))


def one_branch(branch):
    architecture = Architecture("custom", ("a", "b"), (), ("custom",), input_shape=(3, 16, 16))
    return EarlyExitNet([conv(3)], [{"pristine": branch}], architecture).eval()


def test_another_answer_is_refused(monkeypatch):
    monkeypatch.setattr(fast_module, "_fold_temperatures", lambda net: net.branches[0]["pristine"][1].weight.mul_(2))
    with pytest.raises(
        ModelError, match=r"in its optimised form \(float32\) does not answer .*: at exit 1, logits up to"
    ):
        optimised(one_branch(nn.Sequential(nn.Flatten(), nn.Linear(2048, 2))))


def test_what_gives_nan_or_cannot_run_is_refused():
    with pytest.raises(ModelError, match="the model gives NaN at exit 1"):
        optimised(one_branch(Broken()))
    with pytest.raises(ModelError, match=r"in its optimised form \(bfloat16\) cannot run: "):
        optimised(one_branch(Wide()), torch.bfloat16)


def test_what_answers_differently_each_time_cannot_be_compared(caplog):
    optimised(one_branch(Dropping()))
    assert "answers the same frames differently each time" in caplog.text


class Tied(torch.nn.Module):
    """One convolution and norm, called three times within a stage."""

    def __init__(self):
        super().__init__()
        self.stem, self.tied = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.end, self.head = torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.norm(self.tied(x)).relu()
        return self.head(self.end(x).mean((2, 3)))


def test_a_layer_called_more_than_once_is_not_folded_per_call():
    net = cut(Tied(), ["end"], "ab", input_shape=(3, 32, 32))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.1, 0.3)
    net.eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 2, 1, 2), (2, 0, 0, 3)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU])
def test_padding_and_activation_become_part_of_the_convolution(padding, activation):
    torch.manual_seed(0)
    kernel = 1 + max(padding) if max(padding) > 1 else 3
    own = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ZeroPad2d(padding),
        nn.Conv2d(8, 8, kernel, 2, groups=8, padding=1),
        nn.BatchNorm2d(8),
        activation(),
        nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(8, 8, 3, dilation=2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    net = cut(own, ["0", "5"], "ab", input_shape=(3, 16, 16)).eval()
    fast = optimised(net)
    for count in (1, 5):
        x = 10 * torch.rand(count, 3, 16, 16)
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-4)


def test_large_features_are_computed_for_a_few_images_at_a_time(monkeypatch):
    net = make("efficientnet_lite0", "abc", after=[4, 9], structure="pool_fc", input_shape=(3, 64, 64)).eval()
    monkeypatch.setattr(fast_module, "PART_BYTES", 2 * 96 * 33 * 33 * 4)  # two images' largest features
    fast, seen = optimised(net), []
    assert fast.stages[0].most == 2
    fast.stages[0].stage.register_forward_hook(lambda layer, given, out: seen.append(len(out)))  # type: ignore[operator]
    x = torch.rand(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-3, atol=1e-4)
    assert seen == [2, 2, 1]


def test_small_images_are_computed_together():
    assert not any(hasattr(stage, "most") for stage in optimised(make("resnet", "ab", uniform=3).eval()).stages)
