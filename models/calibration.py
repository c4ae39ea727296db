"""Temperature scaling of each exit, and how far confidence is from accuracy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from eex.models.network import EarlyExitNet
from eex.models.training import Distort, all_logits
from eex.policies.errors import EexError

COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""The temperature that makes logits most likely to have given these labels.

    The negative log-likelihood is convex in :math:`\beta = 1/T`, with the slope

    .. math:: \frac{1}{N} \sum_n \Big( \sum_k p_{nk}(\beta) z_{nk} - z_{n y_n} \Big),

    so its one zero is found by bisection in :math:`\log \beta`.

    Parameters
    ----------
    logits, labels
        As trained, (N, K), and classes (N,); of images that the network was not trained on.

    Returns
    -------
    float
        In [0.05, 20]: at 0.05 every image is classified correctly, so that no temperature is cold enough.

    Raises
    ------
    EexError
        If there are no logits, or not one label in 0…K-1 for each.

    Examples
    --------
    An image out of four is wrong, so the confidence ought to be 3/4: logits 5 apart, divided by 5 / ln 3.

    >>> logits = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)
    4.551

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, section 4.2.
    """
    if logits.dim() != 2 or not len(logits) or tuple(labels.shape) != (len(logits),):
        raise EexError(f"expected logits (N, K) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise EexError(f"labels must lie in 0…{logits.shape[1] - 1}, got {int(labels.min())}…{int(labels.max())}")
    if not bool(logits.isfinite().all()):
        raise EexError("logits must be finite")
    z = logits.double()
    of_label = z.gather(1, labels[:, None].long()).mean()
    low, high = -math.log(HOTTEST), -math.log(COLDEST)  # of log β
    for _ in range(50):
        middle = (low + high) / 2
        beta = math.exp(middle)
        slope = float((log_softmax(z * beta, dim=1).exp() * z).sum(1).mean() - of_label)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return min(max(math.exp(-(low + high) / 2), COLDEST), HOTTEST)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin of confidence, shape (bins,) each.

    Attributes
    ----------
    edges
        Between the bins, (bins + 1,); bin m holds confidences in (edges[m], edges[m + 1]], the first one 0 as well.
    counts
        Images in each bin.
    confidence, accuracy
        Means over the bin's images, NaN where it holds none.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> Reliability:
    """Sort images into bins of equal width by their confidence.

    Parameters
    ----------
    confidence
        In [0, 1], (N,).
    correct
        Whether each image was classified correctly, (N,).
    bins
        Number of bins.

    Raises
    ------
    EexError
        If shapes differ, nothing is given, a confidence leaves [0, 1] or there is no bin.

    Examples
    --------
    >>> found = reliability(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([False, False, True]), bins=2)
    >>> found.counts.tolist(), found.confidence.tolist(), found.accuracy.tolist()
    ([1, 2], [0.25, 0.875], [0.0, 0.5])
    """
    if confidence.dim() != 1 or confidence.shape != correct.shape or not len(confidence):
        raise EexError(
            f"expected a confidence (N,) and whether it was correct (N,), "
            f"got {tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    if bins < 1:
        raise EexError(f"bins must be at least 1, got {bins}")
    values = confidence.detach().double().cpu()
    if not bool(((values >= 0) & (values <= 1 + 1e-6)).all()):  # a float32 softmax may end a rounding above 1
        raise EexError(f"confidence must lie in [0, 1], got {float(values.min())}…{float(values.max())}")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = torch.bucketize(values, edges[1:-1])
    counts = torch.bincount(index, minlength=bins)
    return Reliability(
        edges,
        counts,
        torch.bincount(index, weights=values, minlength=bins) / counts,  # 0 / 0 is NaN
        torch.bincount(index, weights=correct.cpu().double(), minlength=bins) / counts,
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of confidence, weighted by their images, in [0, 1].

    Parameters and errors are those of `reliability`.

    Examples
    --------
    >>> round(expected_calibration_error(torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([1, 1, 1, 0]), bins=2), 3)
    0.0
    >>> round(expected_calibration_error(torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([1, 1, 1, 0]), bins=4), 3)
    0.1

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, eq. 3.
    """
    found = reliability(confidence, correct, bins)
    gap = (found.confidence - found.accuracy).abs().nan_to_num(0)
    return float((gap * found.counts).sum() / found.counts.sum())


def calibrate(
    net: EarlyExitNet, images: Tensor, labels: Tensor, expert: str, distort: Distort | None = None
) -> list[tuple[float, float]]:
    """Set the temperature of every exit of one expert.

    Parameters
    ----------
    net
        Its `temperature[i][expert]` is set for every exit i.
    images, labels
        Held-out uint8 images (N, C, H, W) and classes (N,).
    expert
        Whose branches are calibrated.
    distort
        Applied to all images: what the expert is for.

    Returns
    -------
    list of (float, float)
        Expected calibration error of each exit on these images, at temperature 1 and at the one that was set.

    Raises
    ------
    EexError
        If the network has no such expert, or images and labels do not fit.
    """
    if expert not in net.experts:
        raise EexError(f"the network has no expert '{expert}', expected one of {', '.join(net.experts)}")
    if not len(images):
        raise EexError("calibration needs at least one image")
    errors = []
    for i, logits in enumerate(all_logits(net, images, expert=expert, distort=distort)):
        temperature = fit_temperature(logits, labels)
        net.temperature[i][expert] = temperature
        errors.append((_error_at(logits, labels, 1.0), _error_at(logits, labels, temperature)))
    return errors


def _error_at(logits: Tensor, labels: Tensor, temperature: float) -> float:
    confidence, prediction = (logits / temperature).softmax(1).max(1)
    return expected_calibration_error(confidence, prediction == labels)
