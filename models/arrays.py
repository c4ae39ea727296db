"""What the engine does with arrays besides running the network, for numpy's and torch's alike. Imports no torch.

Tensors are recognised by not being numpy's; torch is imported only where there is one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(x: Any) -> NDArray[Any]:
    """A contiguous array of numpy's, of the type that it has; bfloat16, which numpy lacks, in single precision."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x)
    if str(x.dtype) == "torch.bfloat16":
        x = x.float()
    values: NDArray[Any] = x.contiguous().cpu().numpy()
    return values


def on_cpu(x: Any) -> bool:
    """Whether reading an array takes no transfer."""
    return isinstance(x, np.ndarray) or x.device.type == "cpu"


def joined(parts: Sequence[Any]) -> Any:
    """Arrays (n, ...) one after the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def rows_of(x: Any, rows: NDArray[Any]) -> Any:
    """Some rows of an array. Torch's maps (B, C, H, W) are copied as they lie, channels last: that is faster."""
    if isinstance(x, np.ndarray):
        return x[rows]
    import torch

    index = torch.from_numpy(rows).to(x.device)
    if x.dim() != 4:
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def choose_experts(
    logits: NDArray[Any], abstain_below: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """What a distortion classifier's logits (B, experts) say.

    Parameters
    ----------
    abstain_below
        Largest probability below which the distortion is unknown: the first expert, pristine, is chosen then.

    Returns
    -------
    experts
        The expert to run for each image, (B,).
    named
        What its distortion is called, (B,): that expert, or the number of experts where it is unknown.
    probabilities
        Of each expert's distortion, (B, experts).
    """
    logits = logits.astype(float)
    if len(logits) == 1:  # in few operations: each takes as long as a small layer
        expert = logits[0].argmax()
        odds = np.exp(logits - logits[0, expert])
        odds /= np.add.reduce(odds[0])
        experts = np.array([expert])
        if odds[0, expert] >= abstain_below:
            return experts, experts, odds
        return np.zeros_like(experts), np.full_like(experts, logits.shape[1]), odds
    odds = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
    odds /= np.add.reduce(odds, axis=1, keepdims=True)
    experts = logits.argmax(axis=1)
    unknown = np.maximum.reduce(odds, axis=1) < abstain_below
    if not unknown.any():
        return experts, experts, odds
    return np.where(unknown, 0, experts), np.where(unknown, logits.shape[1], experts), odds


def laid_out(x: Any) -> Any:
    """Frames as the first stage takes them fastest: torch's images (B, C, H, W) with their channels last."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x)
    if x.dim() != 4:
        return x.contiguous()
    import torch

    return x.contiguous(memory_format=torch.channels_last)


def like(x: Any, values: NDArray[Any]) -> Any:
    """A numpy array as one of x's kind, on its device."""
    if isinstance(x, np.ndarray):
        return values
    import torch

    return torch.from_numpy(values).to(x.device)
