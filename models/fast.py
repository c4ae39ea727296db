"""A network in the form that only infers: norms folded into convolutions, kernels packed for the processor."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eex.models.branches import GlobalPool
from eex.models.comparing import check_same, probe_frames
from eex.models.network import EarlyExitNet
from eex.models.spectrum import FLOOR, SMALLEST_SIDE, DistortionClassifier, fourier
from eex.policies.core.errors import ModelError

_Singles = NDArray[np.float32]

PART_BYTES = 1 << 24
"""Bytes of the largest features between two layers, over all images that a stage takes at once on a processor. Larger
ones leave the cache, and come from memory that the system clears page by page: with 224x224 images, 32 at once, a 1x1
convolution of EfficientNet-Lite0 took four times as long per image as with 4."""
MOST_AT_ONCE = 32
"""Images that every stage takes at once on a processor where their features are small enough."""
MOST_IN_ONE_THREAD = 1 << 18
"""Multiply-adds of a product of matrices that numpy's BLAS certainly computes in the calling thread. Threads of its own
would fight torch's for the cores."""


def optimised(net: EarlyExitNet, dtype: torch.dtype | None = None) -> EarlyExitNet:
    """A copy of a network that gives the same answers sooner; it can no longer be trained or saved.

    Normalisation layers are folded into the convolutions before them, temperatures into the linear layers at the end of
    branches, tensors are channels last, and on the CPU convolutions run, together with the padding before and the ReLU
    after them, on kernels that oneDNN packs once, over as many images as fit into the cache. Layers that have hooks or
    parametrizations, or whose weights are read elsewhere, stay as they are. The copy is compared with the network on a
    few images.

    Parameters
    ----------
    net
        The network, on the device where it is to infer; it stays as it is.
    dtype
        Type of kernels and features; by default float32 on a processor, and on a GPU float16 where the answers are the
        same, or else float32. The distortion classifier stays in float32: its logarithms of spectra need the range.

    Raises
    ------
    ModelError
        If the network gives NaN, or its copy cannot run or answers otherwise.
    """
    if dtype is not None or net.mean.device.type == "cpu":
        return _checked(net, dtype or torch.float32)
    try:
        return _checked(net, torch.float16)
    except ModelError as error:
        fast = _checked(net, torch.float32)
        logging.getLogger(__name__).warning("the network runs in float32: %s", error)
        return fast


def _checked(net: EarlyExitNet, dtype: torch.dtype) -> EarlyExitNet:
    name = f"the network in its optimised form ({str(dtype).removeprefix('torch.')})"
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        fast = _converted(net, dtype)
        check_same(net, fast, name, dtype)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(f"{name} cannot run: {(str(error).splitlines() or [''])[0]}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    fast.counted = net.costs  # when somebody asks: counting loads much of torch
    return fast


def _converted(net: EarlyExitNet, dtype: torch.dtype) -> EarlyExitNet:
    fast = copy.deepcopy(net).eval().requires_grad_(False)
    for owner in (fast.stages, fast.branches):
        _fold(owner)
    _fold_temperatures(fast)
    on_cpu = net.mean.device.type == "cpu"
    if fast.classifier is not None:
        _fold(fast.classifier)
        if on_cpu and isinstance(fast.classifier, DistortionClassifier):
            fast.classifier = FewSmallImages(fast.classifier)
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in (fast.stages, fast.branches):
        part.to(dtype)
    fast.mean, fast.std = fast.mean.to(dtype), fast.std.to(dtype)
    if on_cpu and dtype == torch.float32 and _can_pack():
        _pack(fast)
    if on_cpu:
        _take_parts(fast, net)
    return fast


def _plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer does what its class does, and nothing else: no subclass, hooks or parametrizations."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is kind and not hooks and "forward" not in layer.__dict__


def _in_sequence(module: nn.Module) -> bool:
    """Whether a module calls its children one after another."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _folded(convolution: nn.Module, norm: nn.Module) -> nn.Conv2d | None:
    """A convolution that does what two layers do; None if they are not a convolution and a norm of fixed statistics."""
    if not (isinstance(convolution, nn.Conv2d) and _plain(convolution, nn.Conv2d)):
        return None
    if not (isinstance(norm, nn.BatchNorm2d) and _plain(norm, nn.BatchNorm2d)) or norm.running_mean is None:
        return None
    return fuse_conv_bn_eval(convolution, norm)


def _fold(module: nn.Module) -> None:
    """Fold each batch norm that follows a convolution in an `nn.Sequential` or a traced graph.

    The folded convolution is a new layer at the place of the old one, which other places may share.
    """
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            _fold_graph(child)
        else:
            _fold(child)
    if isinstance(module, nn.Sequential) and _in_sequence(module):
        for i in range(len(module) - 1):
            if (folded := _folded(module[i], module[i + 1])) is not None:
                module[i], module[i + 1] = folded, nn.Identity()


def _fold_graph(graph_module: torch.fx.GraphModule) -> None:
    """Fold each batch norm that follows a convolution; one that is called more than once would be folded per call."""
    nodes = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in nodes)
    read = {str(node.target).rpartition(".")[0] for node in graph_module.graph.nodes if node.op == "get_attr"}
    for node in nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        once = calls[id(convolution)] == calls[id(norm)] == 1 and str(before.target) not in read
        if once and (folded := _folded(convolution, norm)) is not None:
            graph_module.set_submodule(str(before.target), folded)
            modules[str(before.target)], calls[id(folded)] = folded, 1  # another norm may follow
            node.replace_all_uses_with(before)
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _fold_temperatures(net: EarlyExitNet) -> None:
    """Divide the last layers of branches by the temperatures: copies of them, because they may be shared."""
    for branches, temperature in zip(net.branches, net.temperature, strict=True):
        assert isinstance(branches, nn.ModuleDict)
        for expert, branch in branches.items():
            if not (_in_sequence(branch) and branch._modules) or branch._forward_hooks or branch._forward_pre_hooks:
                continue
            *others, last = branch._modules.values()
            if isinstance(last, nn.Linear) and _plain(last, nn.Linear) and temperature[expert] != 1.0:
                last = copy.deepcopy(last)
                last.weight.div_(temperature[expert])
                if last.bias is not None:
                    last.bias.div_(temperature[expert])
                branches[expert] = nn.Sequential(*(layer for layer in others if layer is not None), last)
                temperature[expert] = 1.0


def _convolve(*arguments: Any) -> Tensor:
    out: Tensor = torch.ops.mkldnn._convolution_pointwise.default(*arguments)
    return out


def _can_pack() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
"""Activations that oneDNN computes with the convolution before them: its names and numbers for them."""


class PackedConvolution(nn.Module):
    """A convolution, and the activation after it if there is one, on kernels packed once.

    oneDNN lays kernels out for one batch size. A single image needs another layout than several do (with the wrong one
    it takes up to ten times as long on two cores); from two images on, one layout serves all. Whoever looks at weights
    or settings sees those of the convolution.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        c = self.convolution = convolution
        self.activation = activation
        self.packed: dict[int, Tensor] = {}
        self.geometry = list(c.padding), list(c.stride), list(c.dilation), c.groups
        name, numbers = ("none", []) if activation is None else ACTIVATIONS[type(activation)]
        self.rest: tuple[Any, ...] = (*self.geometry, name, numbers, "")
        self.added = () if c.bias is None else (c.bias,)  # in a tuple, where torch's attributes do not slow it down

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("convolution"), name)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.dim() != 4:
            out: Tensor = self.convolution(x)
            return out if self.activation is None else self.activation(out)
        batch = 1 if x.shape[0] == 1 else 32
        if batch not in self.packed:
            shape = [batch, *x.shape[1:]]
            ops: Any = torch.ops.mkldnn
            self.packed[batch] = ops._reorder_convolution_weight(self.convolution.weight, *self.geometry, shape)
        bias = self.added[0] if self.added else None
        return _convolve(x, self.packed[batch], bias, *self.rest)


def _padded(pad: nn.ZeroPad2d, convolution: nn.Conv2d) -> nn.Conv2d:
    """A convolution that does what padding and a convolution do.

    Its own padding is equal on both sides. Where the padding is not, the kernel gets zeros on the side that needs less,
    which costs less than a padded copy of the features.
    """
    left, right, top, bottom = pad.padding
    around_y, around_x = (int(side) for side in convolution.padding)
    weight = convolution.weight
    zeros = max(0, right - left), max(0, left - right), max(0, bottom - top), max(0, top - bottom)
    weight = nn.functional.pad(weight.detach(), zeros)
    made = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (weight.shape[2], weight.shape[3]),
        convolution.stride,  # type: ignore[arg-type]
        (around_y + max(top, bottom), around_x + max(left, right)),
        convolution.dilation,  # type: ignore[arg-type]
        convolution.groups,
        bias=convolution.bias is not None,
    )
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), convolution.bias
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class PooledLinear(nn.Module):
    """Global average pooling and the linear layer after it, in numpy where that is quicker: between two stages, a
    branch took 220 µs for one image, and takes 170 so."""

    def __init__(self, pool: GlobalPool, linear: nn.Linear) -> None:
        super().__init__()
        self.pool, self.linear = pool, linear
        self.matrix = linear.weight.detach().numpy().T.copy()
        self.added = 0.0 if linear.bias is None else linear.bias.detach().numpy()

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        if x.dtype != torch.float32 or x.dim() != 4 or n * self.matrix.size > MOST_IN_ONE_THREAD:
            out: Tensor = self.linear(self.pool(x))
            return out
        means = x.permute(0, 2, 3, 1).numpy().reshape(n, -1, x.shape[1]).mean(axis=1)
        return torch.from_numpy(means @ self.matrix + self.added)


class Chain(nn.Sequential):
    """Layers one after another. Those without hooks are called without what `nn.Module` does for hooks, which takes as
    long as a small layer."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(*layers)
        self.calls: list[Callable[[Tensor], Tensor]] = []
        for layer in self:
            if isinstance(layer, Chain):
                self.calls += layer.calls
            elif not isinstance(layer, nn.Identity):
                self.calls.append(layer if layer._forward_hooks or layer._forward_pre_hooks else layer.forward)

    def forward(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x


def _pack(module: nn.Module) -> None:
    layers = [(n, m) for n, m in module._modules.items() if m is not None and not isinstance(m, nn.Identity)]
    for i, (name, layer) in enumerate(layers):  # a layer that stands in two places, twice
        following = layers[i + 1][1] if _in_sequence(module) and i + 1 < len(layers) else None
        if isinstance(layer, PackedConvolution | PooledLinear) or module._modules[name] is not layer:
            continue
        if isinstance(layer, nn.Conv2d) and _can_be_packed(layer):
            before = layers[i - 1][1] if _in_sequence(module) and i else None
            if isinstance(before, nn.ZeroPad2d) and _plain(before, nn.ZeroPad2d) and _pads(before, layer):
                layer = _padded(before, layer)
                module._modules[layers[i - 1][0]] = nn.Identity()
            fused = (
                following if any(following is not None and _plain(following, kind) for kind in ACTIVATIONS) else None
            )
            setattr(module, name, PackedConvolution(layer, fused))
            if fused is not None:
                setattr(module, layers[i + 1][0], nn.Identity())
        elif isinstance(layer, GlobalPool) and following is not None and _plain(following, nn.Linear):
            setattr(module, name, PooledLinear(layer, following))  # type: ignore[arg-type]
            setattr(module, layers[i + 1][0], nn.Identity())
        else:
            _pack(layer)
            if _plain(layer, nn.Sequential):
                setattr(module, name, Chain(layer))  # type: ignore[arg-type]


def _can_be_packed(layer: nn.Conv2d) -> bool:
    return _plain(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _pads(pad: nn.ZeroPad2d, convolution: nn.Conv2d) -> bool:
    """Whether a convolution is to do the padding, too: a larger kernel pays where each channel has its own."""
    left, right, top, bottom = pad.padding
    per_channel = convolution.groups == convolution.in_channels and convolution.dilation == (1, 1)
    return min(pad.padding) >= 0 and ((left == right and top == bottom) or per_channel)


class InParts(nn.Module):
    """A stage that takes a few images at a time, so that the features between its layers stay in the cache."""

    def __init__(self, stage: nn.Module, most: int) -> None:
        super().__init__()
        self.stage, self.most = stage, most

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] <= self.most:
            out: Tensor = self.stage(x)
            return out
        return torch.cat([self.stage(part) for part in torch.split(x, self.most)])


@torch.no_grad()
def _take_parts(fast: EarlyExitNet, net: EarlyExitNet) -> None:
    """Let the stages whose features are large take a few images at a time; `net` is the network as it was."""
    x = probe_frames(net.architecture)[:1]
    for i in range(net.exits):
        largest = 0

        def look(layer: nn.Module, given: Any, out: Any) -> None:
            nonlocal largest
            if isinstance(out, Tensor):
                largest = max(largest, out.nbytes)

        hooks = [layer.register_forward_hook(look) for layer in net.stages[i].modules()]
        try:
            x = net.stage(i, x)
        finally:
            for hook in hooks:
                hook.remove()
        if (most := max(1, PART_BYTES // max(1, largest))) < MOST_AT_ONCE:
            fast.stages[i] = InParts(fast.stages[i], most)


FEW = 8
"""Number of images up to which numpy is faster."""


class FewSmallImages(nn.Module):
    """A distortion classifier with the same answers, several times faster for a few small images on a processor.

    For a 32x32 image it is two dozen operations of next to no arithmetic, and torch takes 10 µs for each between two
    stages of a network, whose weights have just driven everything else out of the caches. numpy takes a few µs. The
    Fourier transform is two products of matrices here, a convolution one with the image's rows or patches, and pooling
    is folded into the linear layer. More images, and larger ones, are torch's.

    Parameters
    ----------
    classifier
        On the processor, its norms folded but for the first.
    """

    def __init__(self, classifier: DistortionClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.kinds = classifier.kinds
        self.plans: dict[tuple[int, int], _Plan | None] = {}  # None: better done by torch

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, kinds) for images (B, 3, H, W) in [0, 1]."""
        plan = None
        if images.dim() == 4 and images.shape[1] == 3 and 0 < len(images) <= FEW:
            height, width = images.shape[2:]
            if (height, width) not in self.plans:
                self.plans[height, width] = _plan(self.classifier, height, width)
            plan = self.plans[height, width]
        out: Tensor = self.classifier(images) if plan is None else torch.from_numpy(plan(images.float().numpy()))
        return out


class _Plan:
    """What `FewSmallImages` computes for images of one size."""

    def __init__(self, classifier: DistortionClassifier, height: int, width: int) -> None:
        self.height, self.bins = height, width // 2 + 1
        self.columns, self.rows = fourier(3, height, width)
        norm, *layers = classifier.features
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.scale = float(norm.weight / torch.sqrt(norm.running_var + norm.eps))
        self.shift = float(norm.bias - norm.running_mean * self.scale)
        self.largest = 2 * height * 3 * height * width  # multiply-adds of the largest product for one image
        self.layers: list[_Convolution] = []
        shape = (height, self.bins)
        for layer in layers:
            layer = layer.convolution if isinstance(layer, PackedConvolution) else layer
            if isinstance(layer, nn.Conv2d):
                self.layers.append(_Convolution(layer, *shape))
                shape = self.layers[-1].out
                self.largest = max(self.largest, self.layers[-1].macs)
        pooled = layers[-1](torch.eye(math.prod(shape)).view(-1, 1, *shape)).flatten(1)  # (cells, pooled cells)
        last = classifier.classifier
        weight = last.weight.view(len(last.weight), -1, pooled.shape[1])
        self.weight = torch.einsum("cp,kop->cok", pooled, weight).reshape(-1, len(last.weight)).numpy()
        self.bias = last.bias.numpy()

    def __call__(self, images: _Singles) -> _Singles:
        n = len(images)
        x = self.columns @ images.reshape(n, -1, images.shape[3])
        x = np.concatenate([x[:, : self.height], x[:, self.height :]], axis=2) @ self.rows
        x *= x
        x = x[..., : self.bins] + x[..., self.bins :]
        np.sqrt(x, out=x)
        x += FLOOR
        np.log(x, out=x)
        x *= self.scale
        x += self.shift
        x = x[..., None]
        for layer in self.layers:
            x = layer(x)
        out: _Singles = (x.reshape(n, 1, -1) @ self.weight)[:, 0] + self.bias
        return out


class _Convolution:
    """A convolution and the ReLU after it, (n, H, W, C) to (n, h, w, C'), as a product of matrices.

    Its left factor holds the patch of each cell; of one channel those would be copied in scraps, so there it holds
    whole rows, and the right one the kernel at each of their places, with zeros between.
    """

    def __init__(self, layer: nn.Conv2d, height: int, width: int) -> None:
        outputs, inputs, side, _ = layer.weight.shape
        assert layer.bias is not None
        self.bias = layer.bias.numpy()
        self.side, self.stride, self.padding = side, layer.stride[0], int(layer.padding[0])
        h, w = ((n + 2 * self.padding - side) // self.stride + 1 for n in (height, width))
        self.out = h, w
        weight = layer.weight.permute(2, 3, 1, 0).numpy()  # (side, side, C, C')
        self.by_row = inputs == 1
        if self.by_row:
            rows = np.zeros((side, width + 2 * self.padding, w, outputs), dtype=np.float32)
            for x in range(w):
                rows[:, x * self.stride : x * self.stride + side, x] = weight[:, :, 0]
            self.weight = rows.reshape(-1, w * outputs)
            self.bias = np.tile(self.bias, w)
        else:
            self.weight = np.ascontiguousarray(weight.reshape(-1, outputs))
        self.macs = self.weight.size * (h if self.by_row else h * w)

    def __call__(self, x: _Singles) -> _Singles:
        n, height, width, inputs = x.shape
        p, k, s, (h, w) = self.padding, self.side, self.stride, self.out
        padded = np.zeros((n, height + 2 * p, width + 2 * p, inputs), dtype=np.float32)
        padded[:, p : p + height, p : p + width] = x
        image, row, column, one = padded.strides
        if self.by_row:
            left = np.ndarray((n, h, len(self.weight)), np.float32, padded, 0, (image, s * row, one))
        else:
            left = np.ndarray((n, h, w, k, k * inputs), np.float32, padded, 0, (image, s * row, s * column, row, one))
        y: _Singles = left.reshape(n, -1, len(self.weight)) @ self.weight
        y += self.bias
        np.maximum(y, 0, out=y)
        return y.reshape(n, h, w, -1)


def _plan(classifier: DistortionClassifier, height: int, width: int) -> _Plan | None:
    if min(height, width) < SMALLEST_SIDE:
        return None  # torch raises the error
    plan = _Plan(classifier, height, width)
    return plan if plan.largest <= MOST_IN_ONE_THREAD else None
