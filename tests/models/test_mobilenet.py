"""MobileNetV2: shapes and cost against the paper, and torchvision's state dict by its names."""

import pytest
import torch

from eex.models.mobilenet import mobilenet_v2
from eex.models.network import EarlyExitNet, feature_shapes, load_torchvision_mobilenet, make

THOUSAND = tuple(map(str, range(1000)))


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


def test_half_a_classifier_is_left_out():
    state = torchvision_state()
    del state["classifier.1.bias"]
    net = mobilenet()
    load_torchvision_mobilenet(net, state)
    assert not torch.equal(net.branches[-1]["pristine"][1].weight, state["classifier.1.weight"])


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
