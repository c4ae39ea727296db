"""The same network for inference alone: norms folded into convolutions, kernels packed for the processor."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eex.models.network import EarlyExitNet

PACK_FROM = 8
"""Batches of at least so many images run on packed kernels; below, the plain ones are faster."""


def optimised(net: EarlyExitNet) -> EarlyExitNet:
    """A copy of a network that gives the same answers sooner; it can no longer be trained or saved.

    Normalisation layers are folded into the convolutions before them, tensors lie channels last, and on the CPU
    convolutions run, together with the ReLU behind them, on kernels that oneDNN packs once.
    """
    fast = copy.deepcopy(net).eval().requires_grad_(False)
    for owner in (fast.stages, fast.branches):
        _fold(owner)
    if fast.classifier is not None:
        _fold(fast.classifier)
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if net.mean.device.type == "cpu" and _can_pack():
        _pack(fast)
    return fast


def _fold(module: nn.Module) -> None:
    """Fold each batch norm that follows a convolution in an `nn.Sequential` or a traced graph."""
    for name, child in list(module.named_children()):
        if isinstance(child, torch.fx.GraphModule):
            with warnings.catch_warnings():  # the import itself uses torch.jit, which torch deprecates
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.fx.experimental.optimization import fuse

            setattr(module, name, fuse(child))
        else:
            _fold(child)
    if isinstance(module, nn.Sequential):
        layers = list(module)
        for i, (layer, following) in enumerate(zip(layers, layers[1:], strict=False)):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(layer, following)
                module[i + 1] = nn.Identity()
        kept = [layer for layer in module if not isinstance(layer, nn.Identity)]
        if len(kept) < len(layers):
            for key in list(module._modules):
                del module._modules[key]
            for i, layer in enumerate(kept):
                module.add_module(str(i), layer)


def _can_pack() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConvolution(nn.Module):
    """A convolution, and the ReLU behind it if there is one, on a kernel packed once for batches of any larger size."""

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.convolution, self.relu = convolution, relu
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        if len(x) < PACK_FROM or x.dtype != torch.float32:
            out: Tensor = c(x)
            return out.relu_() if self.relu else out
        ops: Any = torch.ops.mkldnn
        if self.packed is None:
            shape = [32, *x.shape[1:]]
            self.packed = ops._reorder_convolution_weight(c.weight, c.padding, c.stride, c.dilation, c.groups, shape)
        return ops._convolution_pointwise(  # type: ignore[no-any-return]
            x, self.packed, c.bias, c.padding, c.stride, c.dilation, c.groups, "relu" if self.relu else "none", [], ""
        )


def _pack(module: nn.Module) -> None:
    layers = list(module.named_children())
    skip = False
    for (name, layer), (next_name, following) in zip(layers, [*layers, ("", nn.Identity())][1:], strict=True):
        if skip:
            skip = False
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            skip = isinstance(module, nn.Sequential) and isinstance(following, nn.ReLU)
            setattr(module, name, PackedConvolution(layer, relu=skip))
            if skip:
                setattr(module, next_name, nn.Identity())
        else:
            _pack(layer)
