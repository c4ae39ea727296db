"""The plain convolutional network of the local-exit paper: nine blocks of two convolutions each.

Only this paper uses it: `eex.models` knows it once `register` has been called, and `python -m
eex.experiments.papers.cnn` is `eex-worker` for models with this backbone.
"""

from torch import nn

from eex.models.network import BACKBONES

DOUBLED = (2, 4, 6)
"""Blocks that double the width and halve the map."""
BLOCKS = 9


def cnn(width: int = 64, stride: int = 1, channels: int = 3) -> list[nn.Module]:
    """The blocks of the network, to be cut anywhere between them.

    A block is twice a 3x3 convolution, batch norm and ReLU; before blocks 3, 5 and 7, which double the width, the
    map is averaged down to half its side. With `width` w and `stride` 1, shapes for 32x32 images are 2x (B, w, 32, 32),
    2x (B, 2w, 16, 16), 2x (B, 4w, 8, 8), 3x (B, 8w, 4, 4); at w = 64 the blocks cost 39.5, 75.5, 56.6, 75.5, 56.6,
    75.5, 56.6, 75.5 and 75.5 million multiply-adds, together 586.9.

    Parameters
    ----------
    width
        Channels of the first block.
    stride
        Stride of the first convolution: 2 halves all maps and quarters nearly all of the cost.
    channels
        Channels of the images.

    Raises
    ------
    ValueError
        If width or stride is below 1.

    References
    ----------
    Lee, Hong, Hong and Kim (2020), Performance analysis of local exit for distributed deep neural networks over cloud
    and edge computing, ETRI Journal 42(5): a local exit after each of eight blocks, one more block after the eighth.
    The widths are in a table that we do not have; these are the usual ones.
    """
    if width < 1 or stride < 1:
        raise ValueError(f"width and stride must be at least 1, got {width} and {stride}")
    blocks: list[nn.Module] = []
    inputs, outputs = channels, width
    for block in range(BLOCKS):
        pool: list[nn.Module] = []
        if block in DOUBLED:
            outputs = 2 * inputs
            pool = [nn.AvgPool2d(2)]
        first = _convolution(inputs, outputs, stride if block == 0 else 1)
        blocks.append(nn.Sequential(*pool, *first, *_convolution(outputs, outputs)))
        inputs = outputs
    return blocks


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def register() -> None:
    """Make the network known as the backbone "cnn", for `eex.models.network.make` and for saved models."""
    BACKBONES["cnn"] = cnn


if __name__ == "__main__":
    from eex.experiments.papers.nodes import stay_on, their_half
    from eex.stream.commands.worker import main

    stay_on(their_half("cloud"))
    register()
    main()
