"""AlexNet for 32x32 images, as B-AlexNet uses it, in blocks that can be cut apart."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def alexnet(channels: int = 3) -> list[nn.Module]:
    """The blocks of AlexNet for 32x32 images: five convolutions and the two wide linear layers.

    Feature maps: (B, 32, 16, 16), (B, 64, 8, 8), (B, 96, 8, 8), (B, 96, 8, 8), (B, 64, 4, 4), then (B, 256), (B, 128).

    References
    ----------
    Teerapittayanon, McDanel and Kung (2016), BranchyNet: fast inference via early exiting, ICPR: B-AlexNet on
    CIFAR-10 (5x5 convolutions with local response normalisation, then three 3x3 ones).
    """
    return [
        nn.Sequential(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), LocalNorm()),
        nn.Sequential(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), LocalNorm()),
        nn.Sequential(nn.Conv2d(64, 96, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5)),
    ]


class LocalNorm(nn.Module):
    """Local response normalisation over three neighbouring channels, (B, C, H, W).

    What `nn.LocalResponseNorm(3, 5e-5, 0.75)` computes, on the processor in a quarter of its time, which would be
    half of a training step of this network.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # neighbouring channels lie side by side
        squares = x * x
        near = squares + pad(squares[..., 1:], (0, 1)) + pad(squares[..., :-1], (1, 0))
        root = torch.rsqrt(1 + 5e-5 / 3 * near)
        return (x * root * root.sqrt()).permute(0, 3, 1, 2)  # divided by the power of 3/4


class Flatten(nn.Module):
    """(B, C, H, W) to (B, C·H·W), whatever the memory format."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous().flatten(1)
