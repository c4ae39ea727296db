"""Side branches by name, and where to place them along a backbone."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

MAP_SIDE = 8
"""Side of the feature map, in cells, that a convolutional branch works on: larger maps are averaged down to it
first, so that a branch at an early exit, where maps are large, costs a small part of its stage."""


class ShrinkTo(nn.Module):
    """Average a feature map down to at most `side` x `side` cells: (B, C, H, W) to (B, C, h, w)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height <= self.side and width <= self.side:
            return x
        if height % self.side == 0 and width % self.side == 0:
            return nn.functional.avg_pool2d(x, (height // self.side, width // self.side))
        return nn.functional.adaptive_avg_pool2d(x, (min(height, self.side), min(width, self.side)))


class GlobalPool(nn.Module):
    """Mean over the feature map: (B, C, H, W) to (B, C); flat features pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if x.dim() == 4 else x


def pool_fc(shape: Sequence[int], classes: int) -> nn.Module:
    """Global average pooling and one linear layer: the cheapest branch."""
    return nn.Sequential(GlobalPool(), nn.Linear(shape[0], classes))


def conv_fc(shape: Sequence[int], classes: int) -> nn.Module:
    """A 3x3 convolution with 128 outputs on a small map, global average pooling, one linear layer."""
    if len(shape) != 3:
        return multi_fc(shape, classes)
    stride = 2 if min(shape[1:]) >= MAP_SIDE else 1
    return nn.Sequential(
        ShrinkTo(MAP_SIDE),
        nn.Conv2d(shape[0], 128, 3, stride, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        GlobalPool(),
        nn.Linear(128, classes),
    )


def multi_fc(shape: Sequence[int], classes: int) -> nn.Module:
    """Global average pooling and two linear layers, 128 wide between them."""
    return nn.Sequential(GlobalPool(), nn.Linear(shape[0], 128), nn.ReLU(), nn.Linear(128, classes))


def fc(shape: Sequence[int], classes: int) -> nn.Module:
    """One linear layer on the whole feature map: the most weights at an early exit."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def multi_conv(shape: Sequence[int], classes: int) -> nn.Module:
    """Two 3x3 convolutions with 128 outputs on a small map, global average pooling, one linear layer."""
    if len(shape) != 3:
        return multi_fc(shape, classes)
    stride = 2 if min(shape[1:]) >= MAP_SIDE else 1
    return nn.Sequential(
        ShrinkTo(MAP_SIDE),
        nn.Conv2d(shape[0], 128, 3, stride, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, 1, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        GlobalPool(),
        nn.Linear(128, classes),
    )


def norm_conv(shape: Sequence[int], classes: int) -> nn.Module:
    """Normalised features, then two 3x3 convolutions with 128 outputs at full resolution of a small map: for a backbone
    that stays frozen, whose early features are of any scale and far from the answer."""
    if len(shape) != 3:
        return multi_fc(shape, classes)
    return nn.Sequential(
        ShrinkTo(_even_side(shape)),
        nn.BatchNorm2d(shape[0]),
        nn.Conv2d(shape[0], 128, 3, 1, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, 1, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        GlobalPool(),
        nn.Dropout(0.3),
        nn.Linear(128, classes),
    )


def squeeze_conv(shape: Sequence[int], classes: int) -> nn.Module:
    """Normalised features, squeezed to 64 channels, then a 3x3 convolution with 128 outputs at half the resolution of a
    small map: what `norm_conv` is for, at an eighth of the multiply-adds."""
    if len(shape) != 3:
        return multi_fc(shape, classes)
    return nn.Sequential(
        ShrinkTo(_even_side(shape)),
        nn.BatchNorm2d(shape[0]),
        nn.Conv2d(shape[0], 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        GlobalPool(),
        nn.Dropout(0.3),
        nn.Linear(128, classes),
    )


def _even_side(shape: Sequence[int]) -> int:
    """The side, in cells, to which a map (C, H, W) is averaged down: one that divides both of its own, where possible,
    because the mean of unequal parts is slow."""
    return next((side for side in (8, 7, 6, 5) if shape[1] % side == 0 and shape[2] % side == 0), MAP_SIDE)


def conv_pool_fc(shape: Sequence[int], classes: int) -> nn.Module:
    """A 3x3 convolution, max pooling to a map of 2x2 cells at most, two linear layers, 128 wide between them."""
    if len(shape) != 3:
        return multi_fc(shape, classes)
    cells = tuple(min(2, side) for side in shape[1:])
    return nn.Sequential(
        ShrinkTo(MAP_SIDE),
        nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(cells),
        nn.Flatten(),
        nn.Linear(64 * math.prod(cells), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


BRANCHES: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "pool_fc": pool_fc,
    "conv_fc": conv_fc,
    "multi_fc": multi_fc,
    "fc": fc,
    "multi_conv": multi_conv,
    "conv_pool_fc": conv_pool_fc,
    "norm_conv": norm_conv,
    "squeeze_conv": squeeze_conv,
}
"""Branch structures by name: from the features' shape (C, H, W) or (C,) and the number of classes to a module."""


def make_branch(structure: str, shape: Sequence[int], classes: int) -> nn.Module:
    """A side branch of a named structure for maps (C, H, W), vectors (C,) or tokens (N, C), the first a class token.

    Raises
    ------
    ValueError
        If no structure has this name.
    """
    if structure not in BRANCHES:
        raise ValueError(f"unknown branch structure '{structure}', expected one of {', '.join(BRANCHES)}")
    return BRANCHES[structure](shape, classes) if len(shape) != 2 else token_branch(structure, shape, classes, True)


class TokenPool(nn.Module):
    """Mean over the tokens, after the first of them if that is a class token: (B, N, C) to (B, C) or (B, 2 C)."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1)
        return torch.cat([x[:, 0], mean], dim=1) if self.class_token else mean


def token_branch(structure: str, shape: Sequence[int], classes: int, class_token: bool) -> nn.Module:
    """A side branch of a named structure for tokens (B, N, C): their mean, normalised, takes the place of a map.

    Parameters
    ----------
    shape
        (N, C).
    class_token
        Whether the first token stands for the whole frame.

    Raises
    ------
    ValueError
        If no structure has this name.
    """
    width = shape[1] * (2 if class_token else 1)
    return nn.Sequential(TokenPool(class_token), nn.LayerNorm(width), make_branch(structure, (width,), classes))


def place_by_share(costs: Sequence[float], shares: Sequence[float]) -> list[int]:
    """After which blocks to put side branches so that each comes nearest to its share of the cost.

    Parameters
    ----------
    costs
        Multiply-adds of each block of the backbone, in order.
    shares
        Wanted shares of the total cost before each side branch, rising, in (0, 1).

    Returns
    -------
    list of int
        Block indices, rising, none the last block and none twice.

    Raises
    ------
    ValueError
        If the shares do not rise within (0, 1), or there are too few blocks.

    Examples
    --------
    >>> place_by_share([10, 10, 20, 40, 20], [0.2, 0.4])
    [1, 2]
    """
    wanted = list(shares)
    if any(not 0 < s < 1 for s in wanted) or any(a >= b for a, b in pairwise(wanted)):
        raise ValueError(f"shares must rise within (0, 1), got {wanted}")
    if len(wanted) > len(costs) - 1:
        raise ValueError(f"{len(wanted)} side branches need at least {len(wanted) + 1} blocks, got {len(costs)}")
    done = torch.tensor(list(costs), dtype=torch.float64).cumsum(0)
    done = done / done[-1]
    placed: list[int] = []
    for k, share in enumerate(wanted):
        first = placed[-1] + 1 if placed else 0
        last = len(costs) - 1 - (len(wanted) - k)  # leave a block for each that follows, and one for the end
        placed.append(min(range(first, last + 1), key=lambda i: abs(float(done[i]) - share)))
    return placed


def place_uniformly(blocks: int, count: int) -> list[int]:
    """After which blocks to put `count` side branches at equal distances, counted in blocks.

    Examples
    --------
    >>> place_uniformly(8, 3)
    [1, 3, 5]
    """
    return place_by_share([1.0] * blocks, [(k + 1) / (count + 1) for k in range(count)])
