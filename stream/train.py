"""`eex-train`: train a network, calibrate it, add experts and the distortion classifier, write weights and card."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from eex.models.network import make
from eex.models.training import Progress, Recipe, fit
from eex.stream.sources import load_all, open_source


@dataclass
class Train:
    data: str
    out: Path
    backbone: str = "resnet"
    shares: tuple[float, ...] = (0.15, 0.35, 0.6)
    holdout: int = 2500
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=20, loss_weights=(0.4, 0.4, 0.5, 1.0)))


def main() -> None:
    torch.set_num_threads(2)
    a = Train(sys.argv[1], Path(sys.argv[2]))
    source = open_source(a.data, split="train")
    images, labels, _ = load_all(source)
    order = torch.from_numpy(np.random.default_rng(a.recipe.seed).permutation(len(images)))
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    held, kept = order[: a.holdout], order[a.holdout :]
    torch.manual_seed(a.recipe.seed)
    net = make(a.backbone, source.classes, shares=a.shares)
    print(net.costs(), net.architecture)
    def report(p: Progress) -> None:
        if p.step % 50 == 0 or p.accuracy:
            print(p, flush=True)
    fit(net, images[kept], labels[kept], a.recipe, validation=(images[held], labels[held]), checkpoint=a.out / "pristine.safetensors", report=report)


if __name__ == "__main__":
    main()
