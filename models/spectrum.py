"""The distortion classifier, which recognises from an image's Fourier spectrum what kind of distortion it suffers."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eex.models.network import PRISTINE
from eex.models.training import Distort, Progress
from eex.policies.core.errors import EexError

LUMA = (0.299, 0.587, 0.114)
SMALLEST_SIDE = 16
FLOOR = 1e-3
"""Added to magnitudes before the logarithm: below the 8-bit rounding of an image, 1 / 255 / sqrt(12), they mean
nothing."""


ABSTAINED = 0.03
"""Share of held-out images of a kind that the classifier may abstain from: chance leaves it below 5 % on others."""
AT_ONCE = 250
"""Images classified at once."""


def fourier(channels: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The transform of `DistortionClassifier.spectrum` as two matrices, for where products are faster than an FFT.

    Returns
    -------
    columns
        (2 H, C H). With an image as (C H, W) it gives the grey image's transformed columns: real parts (H, W), above
        imaginary ones.
    rows
        (2 W, 2 bins), bins = W/2 + 1. What `columns` gives, with its imaginary parts moved to the right of the real
        ones, (H, 2 W), times this is the spectrum, (H, 2 bins): real parts, then imaginary ones.
    """
    angle = -2 * np.pi / height * np.outer(np.fft.fftshift(np.arange(height)), np.arange(height))
    parts = np.concatenate([np.cos(angle), np.sin(angle)]) / np.sqrt(height * width)
    columns = np.hstack([weight * parts for weight in (LUMA if channels == 3 else (1.0,))])
    angle = -2 * np.pi / width * np.outer(np.arange(width), np.arange(width // 2 + 1))
    cos, sin = np.cos(angle), np.sin(angle)
    return columns.astype(np.float32), np.block([[cos, sin], [-sin, cos]]).astype(np.float32)


class DistortionClassifier(nn.Module):
    """A small convolutional network on the logarithm of an image's Fourier magnitudes.

    Blur empties the high frequencies and noise fills them, whatever the image shows. A real image's spectrum is
    symmetric, so only half of it is computed, (H, W/2 + 1), with vertical frequency 0 moved to the middle row. Three
    strided convolutions and a pooling that keeps coarse frequency bands apart cost 0.39 million multiply-adds for a
    32x32 image, with 21,805 parameters for three kinds.

    Parameters
    ----------
    kinds
        Names of the kinds, "pristine" among them, in the order of the logits.

    Raises
    ------
    EexError
        If there are fewer than two kinds, one is named twice or "pristine" is missing.

    Examples
    --------
    >>> classifier = DistortionClassifier(["pristine", "gaussian_blur", "gaussian_noise"])
    >>> classifier(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 3])

    References
    ----------
    Pacheco, Oliveira and Couto (2021), Early-exit deep neural networks for distorted images, section IV-B, after Liu et
    al. (2020), CollabAR: edge-assisted collaborative image recognition for mobile augmented reality, IPSN.
    """

    luma: Tensor

    def __init__(self, kinds: Sequence[str] = (PRISTINE, "gaussian_blur", "gaussian_noise")) -> None:
        super().__init__()
        if len(kinds) < 2 or len(set(kinds)) != len(kinds) or PRISTINE not in kinds:
            raise EexError(f"kinds must name two or more, each once and '{PRISTINE}' among them, got {list(kinds)}")
        self.kinds = tuple(kinds)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.features = nn.Sequential(
            nn.BatchNorm2d(1),  # brings the spectrum to mean 0 and spread 1
            *_convolution(1, 16),
            *_convolution(16, 32),
            *_convolution(32, 52),
            nn.AdaptiveAvgPool2d((4, 3)),
        )
        self.classifier = nn.Linear(52 * 4 * 3, len(self.kinds))

    def spectrum(self, images: Tensor) -> Tensor:
        """Log-magnitudes of the greyscale images' Fourier transform: (B, 1, H, W/2 + 1).

        Images are (B, 3, H, W), or grey (B, 1, H, W), in [0, 1].
        """
        grey = images if images.shape[1] == 1 else (images * self.luma).sum(dim=1, keepdim=True)
        magnitude = torch.fft.rfft2(grey, norm="ortho").abs()
        shifted: Tensor = torch.fft.fftshift((magnitude + FLOOR).log(), dim=-2)
        return shifted

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, kinds) for images (B, 3, H, W), or grey ones (B, 1, H, W), in [0, 1], of any size from 16x16."""
        if images.dim() != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST_SIDE:
            raise EexError(f"expected images (B, 3, H, W) of at least 16x16 pixels, got {tuple(images.shape)}")
        out: Tensor = self.classifier(self.features(self.spectrum(images)).flatten(1))
        return out


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def fit_classifier(
    classifier: DistortionClassifier,
    images: Tensor,
    distorts: Mapping[str, Distort],
    *,
    epochs: int = 5,
    batch: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[dict[str, Any]]:
    """Train a distortion classifier in place, on images that get a random kind anew in each epoch.

    Parameters
    ----------
    classifier
        The classifier, on the device to train on.
    images
        Pristine uint8 images (N, 3, H, W), or grey ones (N, 1, H, W).
    distorts
        What distorts images to each kind but "pristine".
    epochs, batch, lr
        Passes over the images, images per step, peak learning rate of Adam (cosine schedule).
    seed
        Seed of the order, the kinds and the distortions.
    report
        Called after every step and every epoch; `accuracy` is over the epoch's own images, while it was learning.

    Returns
    -------
    list of dict
        One row per epoch: epoch, loss, accuracy, seconds.

    Raises
    ------
    EexError
        If the distortions are not those of the classifier's kinds, or the images are not uint8 (N, 3, H, W).
    """
    _check(classifier, images, distorts)
    if epochs < 1 or batch < 1 or lr <= 0:
        raise EexError(f"epochs and batch must be at least 1 and lr positive, got {epochs}, {batch} and {lr}")
    device = classifier.luma.device
    batch = min(batch, len(images))
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)
    history: list[dict[str, Any]] = []
    classifier.train()
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        started, total, right = time.perf_counter(), 0.0, 0
        for step in range(steps):
            x = images[order[step * batch : (step + 1) * batch]].to(device).float() / 255
            kind = torch.randint(len(classifier.kinds), (len(x),), generator=generator)
            x = _distorted(x, kind, classifier.kinds, distorts, generator)
            logits = classifier(x)
            loss = cross_entropy(logits, kind.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            right += int((logits.detach().argmax(1).cpu() == kind).sum())
            speed = (step + 1) * batch / (time.perf_counter() - started)
            report(Progress("distortion classifier", epoch, epochs, step + 1, steps, total / (step + 1), speed))
        accuracy = right / (steps * batch)
        row = {"epoch": epoch, "loss": total / steps, "accuracy": accuracy, "seconds": time.perf_counter() - started}
        history.append(row)
        report(
            Progress("distortion classifier", epoch, epochs, steps, steps, total / steps, speed, accuracy=(accuracy,))
        )
    classifier.eval()
    return history


def fit_abstention(
    classifier: DistortionClassifier, images: Tensor, distorts: Mapping[str, Distort], seed: int = 1
) -> float:
    """The top probability below which the classifier had better abstain, in [0, 1].

    It is the largest that at most `ABSTAINED` of the images of any kind fall below; of the distorted ones, only those
    that are recognised count. So few pristine images are called unknown, and recall hardly falls. Distortions that no
    expert is for fall below more often: the classifier is less sure of them.

    Parameters
    ----------
    classifier, images, distorts, seed
        As for `fit_classifier`; held-out images.

    Raises
    ------
    EexError
        As `recall`.

    References
    ----------
    Hendrycks and Gimpel (2017), A baseline for detecting misclassified and out-of-distribution examples in neural
    networks, ICLR.
    """
    bounds = []
    for k, (kind, logits) in enumerate(_logits_by_kind(classifier, images, distorts, seed)):
        top, found = logits.double().softmax(1).max(1)
        bounds.append(top if kind == PRISTINE else torch.where(found == k, top, 1.0))
    return min(float(top.sort().values[int(ABSTAINED * len(top))]) for top in bounds)


def recall(
    classifier: DistortionClassifier,
    images: Tensor,
    distorts: Mapping[str, Distort],
    seed: int = 1,
    abstain_below: float = 0.0,
) -> dict[str, float]:
    """Share of images, in [0, 1], whose kind is recognised, for each kind that all of them are distorted to.

    Parameters
    ----------
    classifier, images, distorts, seed
        As for `fit_classifier`; held-out images.
    abstain_below
        Top probability below which an image is not recognised.

    Raises
    ------
    EexError
        If the distortions are not those of the classifier's kinds, or the images are not uint8 (N, 3, H, W).
    """
    found: dict[str, float] = {}
    for k, (kind, logits) in enumerate(_logits_by_kind(classifier, images, distorts, seed)):
        top, taken_for = logits.double().softmax(1).max(1)
        found[kind] = float(((taken_for == k) & (top >= abstain_below)).double().mean())
    return found


@torch.inference_mode()
def _logits_by_kind(
    classifier: DistortionClassifier, images: Tensor, distorts: Mapping[str, Distort], seed: int
) -> list[tuple[str, Tensor]]:
    """Logits (N, kinds) of the images, for each kind that all of them are distorted to."""
    _check(classifier, images, distorts)
    modes = [(m, m.training) for m in classifier.modules()]
    classifier.eval()
    found = []
    for k, name in enumerate(classifier.kinds):
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for part in torch.split(images, AT_ONCE):
            kind = torch.full((len(part),), k)
            part = part.to(classifier.luma.device).float() / 255
            parts.append(classifier(_distorted(part, kind, classifier.kinds, distorts, generator)).cpu())
        found.append((name, torch.cat(parts)))
    for module, mode in modes:
        module.training = mode
    return found


def _distorted(
    x: Tensor, kind: Tensor, kinds: Sequence[str], distorts: Mapping[str, Distort], generator: torch.Generator
) -> Tensor:
    """Images (B, C, H, W) in [0, 1], each distorted to its kind (B,)."""
    x = x.clone()
    for k, name in enumerate(kinds):
        of_kind = (kind == k).nonzero()[:, 0].to(x.device)
        if name != PRISTINE and len(of_kind):
            x[of_kind] = distorts[name](x[of_kind], generator)
    return x


def _check(classifier: DistortionClassifier, images: Tensor, distorts: Mapping[str, Distort]) -> None:
    wanted = set(classifier.kinds) - {PRISTINE}
    if set(distorts) != wanted:
        raise EexError(f"distorts must hold {sorted(wanted)}, got {sorted(distorts)}")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise EexError(f"expected uint8 images (N, 3, H, W), got {images.dtype} of {tuple(images.shape)}")
