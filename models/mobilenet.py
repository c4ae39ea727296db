"""MobileNetV2, in blocks that can be cut apart; published torchvision state dicts load by name."""

from torch import Tensor, nn

# expansion, output channels, repeats, stride of the first (Sandler et al. 2018, Table 2)
SETTINGS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project; with a shortcut where the shape is kept.

    The submodule is called `conv`, and numbered as torchvision numbers it, so that its state dicts load.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(inputs, hidden, 1)]
        layers += [
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x) if self.shortcut else self.conv(x)
        return out


def mobilenet_v2(small_images: bool = False) -> list[nn.Module]:
    """The 19 blocks of MobileNetV2 at width 1: the stem, 17 inverted residuals, the last 1x1 convolution.

    Parameters
    ----------
    small_images
        For images of about 32x32: the stem and the first strided block keep their resolution (stride 1), as is
        usual on CIFAR-10. The weights have the same shapes either way.

    References
    ----------
    Sandler, Howard, Zhu, Zhmoginov and Chen (2018), MobileNetV2: inverted residuals and linear bottlenecks, CVPR.
    """
    blocks: list[nn.Module] = [_convolution(3, 32, 3, 1 if small_images else 2)]
    inputs = 32
    for expansion, outputs, repeats, first_stride in SETTINGS:
        for k in range(repeats):
            stride = first_stride if k == 0 else 1
            if small_images and outputs == 24:
                stride = 1
            blocks.append(InvertedResidual(inputs, outputs, stride, expansion))
            inputs = outputs
    blocks.append(_convolution(inputs, 1280, 1))
    return blocks
