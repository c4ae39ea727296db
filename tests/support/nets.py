"""Networks whose numbers do not depend on how frames are batched, for tests of what runs them."""

import torch
from torch import nn

from eex.models.network import Architecture, EarlyExitNet

CLASSES = tuple("abcdefghij")
EXPERTS = ("pristine", "blur", "noise")


class Scramble(nn.Module):
    """Another ten pixels in [0, 1), number by number: each exit sees something new."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return torch.frac(x * self.factor + 0.1)


class Scale(nn.Module):
    """Ten pixels as logits, turned by some classes: experts disagree."""

    def __init__(self, factor, turn):
        super().__init__()
        self.factor, self.turn = factor, turn

    def forward(self, x):
        return torch.roll(x.flatten(1), self.turn, dims=1) * (self.factor + self.turn)


class PixelClassifier(nn.Module):
    """Picks the expert by the first pixel."""

    def forward(self, images):
        expert = (images[:, 0, 0, 0] * len(EXPERTS)).long()
        return nn.functional.one_hot(expert, len(EXPERTS)) * 3.0


def tiny_net(exits=4, experts=EXPERTS[:1], classifier=None, partition=0):
    architecture = Architecture(
        "custom",
        CLASSES,
        tuple(range(exits - 1)),
        ("custom",) * exits,
        experts=experts,
        partition=partition,
        input_shape=(10, 1, 1),
        mean=(0.0,) * 10,
        std=(1.0,) * 10,
    )
    stages = [Scramble(7.3 + i) for i in range(exits)]
    branches = [{e: Scale(9.0 + 4 * i, turn) for turn, e in enumerate(experts)} for i in range(exits)]
    net = EarlyExitNet(stages, branches, architecture).eval()
    net.classifier = classifier
    return net


def pictures(count, seed=0):
    return torch.rand(count, 10, 1, 1, generator=torch.Generator().manual_seed(seed))
