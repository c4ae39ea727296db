"""The same network for inference alone: norms folded into convolutions, kernels packed for the processor."""

import copy
import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eex.models.network import EarlyExitNet


def optimised(net: EarlyExitNet, dtype: torch.dtype | None = None) -> EarlyExitNet:
    """A copy of a network that gives the same answers sooner; it can no longer be trained or saved.

    Normalisation layers are folded into the convolutions before them, temperatures into the linear layers at the end of
    branches, tensors lie channels last, and on the CPU convolutions run, together with the ReLU behind them, on kernels
    that oneDNN packs once.

    Parameters
    ----------
    net
        On the device where it is to infer; it is left as it is.
    dtype
        Of kernels and features; by default float16 on a GPU, float32 on a processor. The distortion classifier stays in
        float32: its logarithms of spectra need the range.
    """
    fast = copy.deepcopy(net).eval().requires_grad_(False)
    for owner in (fast.stages, fast.branches):
        _fold(owner)
    _fold_temperatures(fast)
    if fast.classifier is not None:
        _fold(fast.classifier)
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    on_cpu = net.mean.device.type == "cpu"
    dtype = dtype or (torch.float32 if on_cpu else torch.float16)
    for part in (fast.stages, fast.branches):
        part.to(dtype)
    fast.mean, fast.std = fast.mean.to(dtype), fast.std.to(dtype)
    if on_cpu and dtype == torch.float32 and _can_pack():
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
        for i, (layer, following) in enumerate(pairwise(layers)):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(layer, following)
                module[i + 1] = nn.Identity()
        kept = [layer for layer in module if not isinstance(layer, nn.Identity)]
        if len(kept) < len(layers):
            for key in list(module._modules):
                del module._modules[key]
            for i, layer in enumerate(kept):
                module.add_module(str(i), layer)


def _fold_temperatures(net: EarlyExitNet) -> None:
    for branches, temperature in zip(net.branches, net.temperature, strict=True):
        assert isinstance(branches, nn.ModuleDict)
        for expert, branch in branches.items():
            last = branch[-1] if isinstance(branch, nn.Sequential) and len(branch) else None
            if isinstance(last, nn.Linear):
                last.weight.div_(temperature[expert])
                if last.bias is not None:
                    last.bias.div_(temperature[expert])
                temperature[expert] = 1.0


def _can_pack() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConvolution(nn.Module):
    """A convolution, and the ReLU behind it if there is one, on kernels packed once.

    oneDNN lays kernels out for one batch size; an image alone wants another layout than several do (with the wrong one
    it takes up to ten times as long on two cores); from two images on one layout serves."""

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.convolution, self.relu = convolution, relu
        self.packed: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        if x.dtype != torch.float32:
            out: Tensor = c(x)
            return out.relu_() if self.relu else out
        ops: Any = torch.ops.mkldnn
        batch = 1 if len(x) == 1 else 32
        if batch not in self.packed:
            shape = [batch, *x.shape[1:]]
            self.packed[batch] = ops._reorder_convolution_weight(
                c.weight, c.padding, c.stride, c.dilation, c.groups, shape
            )
        return ops._convolution_pointwise(  # type: ignore[no-any-return]
            x,
            self.packed[batch],
            c.bias,
            c.padding,
            c.stride,
            c.dilation,
            c.groups,
            "relu" if self.relu else "none",
            [],
            "",
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
