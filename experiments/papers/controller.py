"""A learned exit controller: the probability that an exit's answer is right, from the exit's logits."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from eex.policies.core.errors import EexError

MOST = 10
"""How many of the highest softmax probabilities are features."""


def exit_features(logits: Tensor) -> Tensor:
    """Features of each exit and image, (exits, N, F), from logits (exits, N, K).

    The highest softmax probabilities in falling order (at most `MOST`), the normalised entropy of all, the margin of
    the first over the second, and a column for each exit that is 1 at that exit.
    """
    exits, count, classes = logits.shape
    p = torch.softmax(logits.float(), dim=2)
    top = p.sort(dim=2, descending=True).values[..., :MOST]
    entropy = torch.special.entr(p).sum(dim=2, keepdim=True) / math.log(max(2, classes))
    margin = top[..., :1] - top[..., 1:2]
    number = torch.eye(exits, device=p.device)[:, None].expand(exits, count, exits)
    return torch.cat([top, entropy, margin, number], dim=2)


class ExitController(nn.Module):
    """Probability that an exit's answer is right, from `exit_features`.

    Parameters
    ----------
    features
        Number of features.
    hidden
        Hidden units; 0 is logistic regression.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, hidden: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        layers = [nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(features, 1)]
        self.layers = nn.Sequential(*layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one visit to an exit."""
        return sum(m.in_features * m.out_features for m in self.layers if isinstance(m, nn.Linear))

    def odds(self, features: Tensor) -> Tensor:
        """Log-odds (...) of features (..., F)."""
        out: Tensor = self.layers((features - self.mean) / self.std)
        return out[..., 0]

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Probability of being right, (exits, N), from logits (exits, N, K) of as many exits as it was trained for."""
        return torch.sigmoid(self.odds(exit_features(logits)))


def descend(module: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, decay: float = 1e-3) -> None:
    """So many steps of AdamW on a module's weights, its rate falling along a cosine from `lr`."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def fit_controller(
    logits: Tensor, labels: Tensor, *, hidden: int = 32, steps: int = 400, decay: float = 1e-3, seed: int = 0
) -> ExitController:
    """Train a controller to tell right answers from wrong ones.

    Parameters
    ----------
    logits, labels
        Logits of the side branches (exits, N, K) and classes (N,) of images that the network was not trained on.
    hidden
        Hidden units; 0 is logistic regression.
    steps, decay
        Steps of AdamW over all images at once, and the weight decay.

    Raises
    ------
    EexError
        If there are no images, or not one label for each.

    Examples
    --------
    The only exit is right when it is confident:

    >>> logits = torch.tensor([[[4.0, 0.0], [0.1, 0.0]]]).repeat(1, 50, 1)
    >>> right = fit_controller(logits, torch.tensor([0, 1]).repeat(50), hidden=0)(logits)[0]
    >>> bool(right[0] > 0.9), bool(right[1] < 0.1)
    (True, True)
    """
    if logits.dim() != 3 or not logits.shape[1] or tuple(labels.shape) != (logits.shape[1],):
        raise EexError(
            f"expected logits (exits, N, K) and labels (N,), got {tuple(logits.shape)}, {tuple(labels.shape)}"
        )
    features = exit_features(logits).flatten(0, 1)
    right = (logits.argmax(dim=2) == labels).float().flatten()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        controller = ExitController(features.shape[1], hidden)
    controller.mean.copy_(features.mean(dim=0))
    controller.std.copy_(features.std(dim=0).clamp(min=1e-3))
    descend(controller, lambda: binary_cross_entropy_with_logits(controller.odds(features), right), steps, 0.02, decay)
    return controller.eval()
