"""A training of a moment: 8x8 images of three classes, a narrow network, and reports that end it half way."""

import torch
from torch import Tensor

from eex.models.network import EarlyExitNet, make
from eex.models.training import Progress, Recipe

SHAPE = (3, 8, 8)


def tiny_data(count: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images whose class is their brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 150, (count, *SHAPE), generator=generator)
    images[torch.arange(count), labels] += 80
    return images.to(torch.uint8), labels


def tiny_network(expert: str = "") -> EarlyExitNet:
    torch.manual_seed(0)
    net = make("resnet", "abc", after=[0, 2], width=8, structure="pool_fc", input_shape=SHAPE)
    if expert:
        net.add_expert(expert)
    return net


def tiny_recipe(method: str = "joint", **changes) -> Recipe:
    return Recipe(
        **{"method": method, "epochs": 3, "batch": 24, "lr": 0.05, "shift": 1, "precision": "fp32", **changes}
    )


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def weights(net: EarlyExitNet) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items() if k.startswith(prefix))


class Killed(Exception):
    pass


def killer(phase: str, epoch: int):
    """A report that ends a run in the middle of an epoch."""

    def report(progress: Progress) -> None:
        if (progress.phase, progress.epoch, progress.step) == (phase, epoch, 2):
            raise Killed

    return report
