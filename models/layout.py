"""Which axis of the features at a cut holds the channels."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

CHANNELS_FIRST = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.PixelShuffle, nn.Upsample),
)
"""Layers that take the second of four axes for the channels."""
CHANNELS_FIRST_CALLS = {"conv2d", "batch_norm", "group_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
"""The same, as functions."""


@torch.no_grad()
def channels_last(
    module: nn.Module,
    parts: Sequence[fx.GraphModule],
    ends: Sequence[fx.Node],
    shapes: Sequence[tuple[int, ...]],
    input_shape: Sequence[int],
) -> list[bool]:
    """Whether the channels of the features lie last, (B, H, W, C), at each cut.

    Sides of the map change with the size of the images, channels do not. Where other sizes cannot be tried, the layers
    around the cut show which axis they take for the channels.
    """
    channels, height, width = input_shape
    x: Any = torch.zeros(2, channels, 2 * height, 2 * width, device=next((p.device for p in module.parameters()), None))
    layers = dict(module.named_modules(remove_duplicate=False))
    found = []
    for part, end, shape in zip(parts, ends, shapes, strict=False):
        axis = None
        with contextlib.suppress(Exception):  # it may take images of one size only
            x = None if x is None else part.forward(x)  # called, a GraphModule prints what it raises
        if isinstance(x, Tensor) and x.dim() == len(shape) + 1 == 4:
            changed = [a != b for a, b in zip(shape, x.shape[1:], strict=True)]
            axis = 1 if changed == [False, True, True] else 3 if changed == [True, True, False] else None
        else:
            x = None
        if len(shape) == 3 and axis is None:
            axis = next(filter(None, (_taken_as(user, layers) for user in end.users)), None) or _axis(end, layers)
        found.append(axis == 3)
    return found


def _taken_as(node: fx.Node, layers: Mapping[str, nn.Module]) -> int | None:
    """The axis of four that an operation takes for the channels: 1 or 3; None if it does not matter to it."""
    if node.op == "call_module":
        layer = layers[str(node.target)]
        if isinstance(layer, CHANNELS_FIRST):
            return 1
        one = isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1
        return 3 if one or isinstance(layer, nn.Linear) else None
    name = getattr(node.target, "__name__", "").split(".")[0]  # of torch.export, "conv2d.default"
    return 1 if name in CHANNELS_FIRST_CALLS else 3 if name in ("linear", "layer_norm") else None


def _axis(node: fx.Node, layers: Mapping[str, nn.Module]) -> int | None:
    """The axis of the channels in a value (B, ?, ?, ?), by the operations that made it; None if they do not show it."""
    moves: list[list[int]] = []
    while (axis := 1 if node.op == "placeholder" else _taken_as(node, layers)) is None:
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "").split(".")[0]
        if name in ("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze") or not node.all_input_nodes:
            return None
        if name in ("permute", "transpose", "swapaxes"):
            rest = node.args[1:] or tuple(node.kwargs.values())
            given: Any = rest[0] if isinstance(rest[0], tuple | list) else rest
            if not all(isinstance(number, int) for number in given):
                return None
            order = [number % 4 for number in given]
            if name != "permute":
                a, b = order
                order = [b if k == a else a if k == b else k for k in range(4)]
            moves.append(order)
        node = node.all_input_nodes[0]
    for order in reversed(moves):
        axis = order.index(axis)
    return axis
