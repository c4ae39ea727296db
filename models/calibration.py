"""Temperature scaling of each exit."""

import math

from torch import Tensor
from torch.nn.functional import log_softmax

from eex.models.network import EarlyExitNet
from eex.models.training import Distort, all_logits
from eex.policies.core.errors import EexError
from eex.policies.core.metrics import expected_calibration_error

COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""The temperature that makes logits most likely to have given these labels.

    The negative log-likelihood is convex in :math:`\beta = 1/T`, with the slope

    .. math:: \frac{1}{N} \sum_n \Big( \sum_k p_{nk}(\beta) z_{nk} - z_{n y_n} \Big),

    so its one zero is found by bisection in :math:`\log \beta`.

    Parameters
    ----------
    logits, labels
        Logits as trained, (N, K), and classes (N,), of images that the network was not trained on; or the classes'
        probabilities (N, K), which the temperature brings the softmax nearest to.

    Returns
    -------
    float
        In [0.05, 20]. It is 0.05 where every image is classified correctly, so that no temperature is low enough.

    Raises
    ------
    EexError
        If there are no logits, or not one label in 0…K-1 for each.

    Examples
    --------
    An image out of four is wrong, so the confidence ought to be 3/4: logits 5 apart, divided by 5 / ln 3.

    >>> import torch
    >>> logits = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)
    4.551

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, section 4.2.
    """
    soft = labels.dim() == 2 and labels.shape == logits.shape
    if logits.dim() != 2 or not len(logits) or not (soft or tuple(labels.shape) == (len(logits),)):
        raise EexError(f"expected logits (N, K) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if not soft and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        raise EexError(f"labels must lie in 0…{logits.shape[1] - 1}, got {int(labels.min())}…{int(labels.max())}")
    if not bool(logits.isfinite().all()):
        raise EexError("logits must be finite")
    z = logits.double()
    of_label = (z * labels).sum(1).mean() if soft else z.gather(1, labels[:, None].long()).mean()
    low, high = -math.log(HOTTEST), -math.log(COLDEST)  # of log β
    for _ in range(50):
        middle = (low + high) / 2
        beta = math.exp(middle)
        slope = float((log_softmax(z * beta, dim=1).exp() * z).sum(1).mean() - of_label)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return min(max(math.exp(-(low + high) / 2), COLDEST), HOTTEST)


def calibrate(
    net: EarlyExitNet, images: Tensor, labels: Tensor, expert: str, distort: Distort | None = None
) -> list[tuple[float, float]]:
    """Set the temperature of every exit of one expert.

    Parameters
    ----------
    net
        Network whose `temperature[i][expert]` is set for every exit i.
    images, labels
        Held-out uint8 images (N, C, H, W) and classes (N,), or the probabilities of the classes (N, K).
    expert
        Whose branches are calibrated.
    distort
        The distortion that the expert is for; applied to all images.

    Returns
    -------
    list of (float, float)
        Expected calibration error of each exit on these images, at temperature 1 and at the one that was set; of
        probabilities, against the most probable classes.

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
    classes = labels if labels.dim() == 1 else labels.argmax(1)
    for i, logits in enumerate(all_logits(net, images, expert=expert, distort=distort)):
        temperature = fit_temperature(logits, labels)
        net.temperature[i][expert] = temperature
        errors.append((_error_at(net, logits, classes, 1.0), _error_at(net, logits, classes, temperature)))
    return errors


def _error_at(net: EarlyExitNet, logits: Tensor, labels: Tensor, temperature: float) -> float:
    confidence, prediction = net.confident(logits / temperature)
    return expected_calibration_error(confidence.cpu().numpy(), (prediction == labels).cpu().numpy())
