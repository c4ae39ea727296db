"""Training branches on a frozen backbone: the features at each exit are computed once and kept."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from eex.models.augmentation import augment, cut_out
from eex.models.fast import optimised
from eex.models.network import PRISTINE, EarlyExitNet
from eex.models.training import Distort, Progress, Recipe, Teacher, learning_rate, make_optimizer, several_per_channel
from eex.policies.core.errors import EexError

VIEWS = 4
"""Versions of each image, augmented and distorted otherwise, whose features are kept."""
MIXED = 0.4
"""Concentration of the beta distribution from which it is drawn how two images are mixed (Zhang et al. 2018)."""
MOST_BYTES = 8 << 30
"""Bytes of features that are kept at once, at most."""
AT_ONCE = 128
LARGE = 128 * 128
"""Pixels of an image from which on it pays to bring the backbone into the form that only infers."""
_HALF = 65504.0  # the largest number of float16, in which features are kept


def fit_frozen(
    net: EarlyExitNet,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    expert: str = PRISTINE,
    distort: Distort | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    teacher: Teacher | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[dict[str, Any]]:
    """Train one expert's branches, the final exit's included, in place; the stages stay as they are.

    One exit after the other is trained on the features of `VIEWS` versions of each image. The backbone runs over these
    once, however many epochs there are. Branches learn mixtures of two images' features and targets, so that they are
    neither right nor sure only on the images that they were trained on.

    Parameters
    ----------
    net, images, labels, expert, distort, validation, report
        As in `eex.models.training.fit`.
    teacher
        As there. The final exit of the first expert then stays as it is, too: it is the one that teaches.
    recipe
        Of its settings, method, loss weights, patience and precision do not apply.

    Returns
    -------
    list of dict
        One row per exit and epoch: phase, epoch, loss, seconds, and with validation images validation_loss and accuracy
        of this exit.

    Raises
    ------
    EexError
        If the features of all images take too much memory, or the loss is no number.

    References
    ----------
    Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: beyond empirical risk minimization, ICLR; of features, Verma et
    al. (2019), Manifold mixup, ICML.
    """
    net.eval()
    device = net.mean.device
    fast = optimised(net) if images.dim() == 4 and images.shape[2] * images.shape[3] >= LARGE else net
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = [_seen(images, labels, recipe, distort, teacher, generator) for _ in range(VIEWS)]
    views, targets = [x for x, _ in drawn], torch.stack([y for _, y in drawn])
    stays = net.exits - 1 if teacher is not None and expert == net.experts[0] else net.exits
    held = None if validation is None else _held_out(validation[0], distort)
    history: list[dict[str, Any]] = []
    for i in range(net.exits):
        views = [_after(fast, i, x) for x in views]
        held = None if held is None else _after(fast, i, held)
        if i < stays:
            history += _fit_exit(net, i, torch.stack(views), targets, recipe, expert, generator, report)
        if i < stays and held is not None and validation is not None:
            with torch.no_grad():
                parts = [net.logits(i, expert, x.to(device).float()).cpu() for x in torch.split(held, AT_ONCE)]
            logits, right = torch.cat(parts), validation[1]
            history[-1]["validation_loss"] = float(cross_entropy(logits, right))
            history[-1]["accuracy"] = [float((logits.argmax(1) == right).float().mean())]
    return history


def _seen(
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    distort: Distort | None,
    teacher: Teacher | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One version of each image, uint8 (N, C, H, W), and what is to be learned of it: its label (N,), or the teacher's
    probabilities (N, K)."""
    parts, targets = [], []
    for part in torch.split(images, AT_ONCE):
        x = augment(part, recipe.shift, recipe.flip, generator).float() / 255
        x = cut_out(x, recipe.cutout, generator)
        if teacher is not None:
            targets.append(teacher(x).cpu())
        if distort is not None:
            chosen = torch.rand(len(x), generator=generator) < recipe.distorted_share
            x = torch.where(chosen[:, None, None, None], distort(x, generator), x)
        parts.append((x * 255).round().to(torch.uint8))
    return torch.cat(parts), torch.cat(targets) if targets else labels


def _held_out(images: Tensor, distort: Distort | None) -> Tensor:
    if distort is None:
        return images
    generator = torch.Generator().manual_seed(1)
    return torch.cat(
        [(distort(p.float() / 255, generator) * 255).round().to(torch.uint8) for p in torch.split(images, AT_ONCE)]
    )


@torch.no_grad()
def _after(net: EarlyExitNet, i: int, x: Tensor) -> Tensor:
    """Features after stage i, float16 on the CPU, from those before it; before stage 0 they are uint8 images."""
    kept: Tensor | None = None
    for start in range(0, len(x), AT_ONCE):
        part = x[start : start + AT_ONCE].to(net.mean.device).float()
        part = part / 255 if i == 0 else part
        if part.dim() == 4:
            part = part.contiguous(memory_format=torch.channels_last)
        out = net.stage(i, part).float().clamp(-_HALF, _HALF).half().cpu()
        if kept is None:
            shape = (len(x), *out.shape[1:])
            if (needed := 2 * VIEWS * math.prod(shape)) > MOST_BYTES:
                raise EexError(
                    f"the features of {len(x):,} images at exit {i + 1} take {needed / 2**30:.1f} GiB, more than "
                    f"{MOST_BYTES / 2**30:g}: take smaller or fewer images, or --stage-lr 0 in place of --freeze"
                )
            kept = torch.empty(shape, dtype=torch.float16)
        kept[start : start + len(out)] = out
    assert kept is not None
    return kept


def _fit_exit(
    net: EarlyExitNet,
    i: int,
    features: Tensor,
    targets: Tensor,
    recipe: Recipe,
    expert: str,
    generator: torch.Generator,
    report: Callable[[Progress], None],
) -> list[dict[str, Any]]:
    """Train the branch at exit i on features (views, N, ...) of images; targets are classes (views, N), or their
    probabilities (views, N, K)."""
    if targets.dim() == 2:
        targets = one_hot(targets, len(net.classes)).float()
    drawn = np.random.default_rng(recipe.seed)  # torch's beta distribution takes no generator
    branch, device = net.branches[i][expert], net.mean.device  # type: ignore[index]
    branch.train()
    optimizer = make_optimizer(net, [branch], recipe)
    count, batch, rows = targets.shape[1], min(recipe.batch, targets.shape[1]), []
    steps, phase = count // batch, f"exit {i + 1}"
    rate = learning_rate(recipe, steps * recipe.epochs)
    for epoch in range(recipe.epochs):
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(count, generator=generator)
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            view = torch.randint(len(features), (batch,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * steps + step)
            x, y = features[view, index].to(device).float(), targets[view, index].to(device)
            share, other = drawn.beta(MIXED, MIXED), torch.randperm(batch, generator=generator).to(device)
            x, y = share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]
            with several_per_channel():
                loss = cross_entropy(net.logits(i, expert, x).float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
            if not math.isfinite(total):
                raise EexError(
                    f"the loss at exit {i + 1} is {total} in epoch {epoch + 1}: lower the learning rate (--lr)"
                )
            speed = (step + 1) * batch / (time.perf_counter() - started)
            report(Progress(phase, epoch, recipe.epochs, step + 1, steps, total / (step + 1), speed))
        rows.append({"phase": phase, "epoch": epoch, "loss": total / steps, "seconds": time.perf_counter() - started})
    branch.eval()
    return rows
