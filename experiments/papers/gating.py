"""Where to place side branches, learned: a gate at every candidate place, opened where stopping pays."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eex.experiments.papers.controller import descend
from eex.models.network import EarlyExitNet


class Gates(nn.Module):
    """A gate at each candidate place: from its features, averaged over the map, the probability to stop there.

    Parameters
    ----------
    channels
        Channels of the features at each place.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(c, 1) for c in channels])
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Probability to stop at each gate, (N, places), from features (N, C_i) at each place."""
        return torch.sigmoid(torch.cat([g(x) for g, x in zip(self.layers, pooled, strict=True)], dim=1))


def stop_shares(opened: Tensor) -> Tensor:
    """Probability to stop at each place, and last at the final exit: (N, places + 1) from gates (N, places).

    Examples
    --------
    >>> stop_shares(torch.tensor([[0.5, 0.5]]))
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    passed = torch.cumprod(1 - opened, dim=1)
    before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
    return torch.cat([opened * before, passed[:, -1:]], dim=1)


@torch.inference_mode()
def pooled_features(net: EarlyExitNet, images: Tensor, batch: int = 250) -> list[Tensor]:
    """Features after each stage but the last, averaged over the map, (N, C_i), of uint8 images (N, C, H, W)."""
    parts = []
    for start in range(0, len(images), batch):
        x = images[start : start + batch].to(net.mean.device).float() / 255
        found = []
        for i in range(net.exits - 1):
            x = net.stage(i, x)
            found.append((x.mean(dim=(2, 3)) if x.dim() == 4 else x).cpu())
        parts.append(found)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def fit_gates(pooled: Sequence[Tensor], losses: Tensor, costs: Tensor, price: float, steps: int = 300) -> Gates:
    r"""Train the gates of a network that has a side branch at every candidate place, on images it was not trained on.

    With :math:`p_{ni}` the probability that image n stops at place i (`stop_shares`), they minimise

    .. math:: \frac{1}{N} \sum_n \sum_i p_{ni} \, (\ell_{ni} + \lambda\, c_i)

    Parameters
    ----------
    pooled
        Features at each place, (N, C_i) each.
    losses
        Cross-entropy :math:`\ell` of each exit, the final one last, (N, places + 1).
    costs
        :math:`c`, the cost of stopping there as a share of the whole network, (places + 1,).
    price
        :math:`\lambda`, the price of the whole network's work in units of cross-entropy.
    steps
        Steps of AdamW, with a weight decay of 1e-3, each over all images.
    """
    middle, spread = [x.mean(0) for x in pooled], [x.std(0).clamp(min=1e-3) for x in pooled]
    # clones, because tensors from inference mode cannot be trained on
    scaled = [((x - m) / s).clone() for x, m, s in zip(pooled, middle, spread, strict=True)]
    gates = Gates([x.shape[1] for x in scaled])
    paid = losses.clone() + price * costs
    descend(gates, lambda: (stop_shares(gates(scaled)) * paid).sum(dim=1).mean(), steps, lr=0.05)
    with torch.no_grad():  # from scaled features to plain ones
        for layer, m, s in zip(gates.layers, middle, spread, strict=True):
            assert isinstance(layer, nn.Linear)
            layer.weight.div_(s)
            layer.bias.sub_(layer.weight[0] @ m)
    return gates.eval()
