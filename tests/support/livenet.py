"""A network of images in three channels, and a cloud that answers when it is let: for tests of live sessions."""

import numpy as np
from nets import CLASSES, Scale, Scramble

from eex.models.network import Architecture, EarlyExitNet
from eex.stream.wire.offload import InMemoryOffloader

SHAPE = (2, 2, 3)


class TenLogits(Scale):
    def forward(self, x):
        return super().forward(x)[:, :10]


def three_exits():
    """Two edge exits and one in the cloud, over twelve pixels."""
    architecture = Architecture(
        "custom",
        CLASSES,
        (0, 1),
        ("custom",) * 3,
        experts=("pristine",),
        input_shape=(3, 2, 2),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    stages = [Scramble(7.3 + i) for i in range(3)]
    return EarlyExitNet(stages, [{"pristine": TenLogits(9.0 + 4 * i, 0)} for i in range(3)], architecture).eval()


class Cloud(InMemoryOffloader):
    """Answers with class 7, when it is let."""

    deadline_ms = 1000.0

    def __init__(self, **options):
        super().__init__(
            lambda stage, expert, x: (np.full(len(x), 0.99), np.full(len(x), 7)), **{"window": 99} | options
        )


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
