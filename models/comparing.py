"""Whether a form of a network that is to run answers as the network itself does."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eex.models.architecture import Architecture, Network
from eex.policies.core.errors import ModelError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
"""How far logits may be off, as a share of the largest."""
ROUNDING = 1e-5
"""How far logits may be off where all of them are nearly 0."""


def probe_images(shape: Sequence[int]) -> Tensor:
    """Three images (3, C, H, W) in [0, 1] that differ in every respect: noise, a gradient, and nearly black."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, *shape, generator=generator)
    gradient = torch.linspace(0, 1, math.prod(shape)).reshape(tuple(shape))
    return torch.stack([noise[0], 0.8 * gradient + 0.2 * noise[1], 0.05 * noise[2]])


def probe_frames(architecture: Architecture) -> Tensor:
    """Three frames as a network takes them: `probe_images`, or texts (3, T) of ids drawn from its vocabulary."""
    shape = architecture.input_shape
    if architecture.takes_images:
        return probe_images(shape)
    ids = torch.randint(
        int(architecture.options.get("vocabulary", 2)), (3, *shape), generator=torch.Generator().manual_seed(0)
    )
    return ids.float()


def check_same(net: Network, form: Network, name: str, dtype: torch.dtype = torch.float32) -> None:
    """Raise `ModelError` if a form of a network answers a few frames in another way than the network does.

    Compared are the calibrated logits of every exit and expert, and those of the distortion classifier, for several
    frames and for a single one. A network that answers the same frames differently each time cannot be compared; a
    warning says so.

    Parameters
    ----------
    name
        Of the form, for the error.
    dtype
        Type that the form computes in.
    """
    frames = probe_frames(net.architecture)
    expected = _answers(net, frames)
    for where, logits in expected.items():
        if bool(logits.isnan().any()):
            raise ModelError(f"the model gives NaN at {where}: its weights are damaged, or its training failed")
    again = _answers(net, frames)
    if any(problem(logits, again[where]) for where, logits in expected.items()):
        logging.getLogger(__name__).warning(
            "the network answers the same frames differently each time (is a dropout always on?): whether %s answers "
            "as it does cannot be checked",
            name,
        )
        return
    for few in (frames, frames[:1]):
        expected, found = _answers(net, few), _answers(form, few)
        for where, logits in expected.items():
            if wrong := problem(logits, found[where], TOLERANCE.get(dtype, 1e-3)):
                raise ModelError(
                    f"{name} does not answer as the network itself does: at {where}, {wrong}; a layer may depend on "
                    "more than its input, or be called in an unusual way"
                )


def problem(expected: Tensor, found: Tensor, tolerance: float = 1e-3) -> str:
    """How logits differ from those expected, in words; empty if they do not, but for rounding."""
    if expected.shape != found.shape:
        return f"logits have the shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    expected, found = expected.double().cpu(), found.double().cpu()
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return "some logits are NaN or infinite"
    if not bool(finite.any()):
        return ""
    off = float((expected - found)[finite].abs().max())
    largest = float(expected[finite].abs().max())
    return f"logits up to {largest:.3g} are off by {off:.3g}" if off > tolerance * largest + ROUNDING else ""


@torch.no_grad()
def _answers(net: Network, images: Tensor) -> dict[str, Tensor]:
    """Calibrated logits of every exit and expert, and of the classifier, by where they come from."""
    found = {}

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(values) if isinstance(values, np.ndarray) else values

    x = net.array(images.numpy())
    if net.classifier is not None:
        found["the distortion classifier"] = tensor(net.classifier(x))
    for i in range(net.exits):
        x = net.stage(i, x)
        for expert in net.experts:
            where = f"exit {i + 1}" + f", expert {expert}" * (expert != net.experts[0])
            found[where] = tensor(net.branch(i, expert, x))
    return found
