"""Cut a user's own network into stages at named layers."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from eex.models.branches import make_branch
from eex.models.comparing import probe_images, problem
from eex.models.layout import channels_last
from eex.models.network import CUSTOM, PRISTINE, Architecture, EarlyExitNet
from eex.policies.core.errors import EexError


def cut(
    module: nn.Module,
    after: Sequence[str],
    classes: Sequence[str],
    *,
    input_shape: tuple[int, int, int],
    structure: str = "conv_fc",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    partition: int = 0,
) -> EarlyExitNet:
    """An early-exit network from any module that torch.fx can trace.

    Each stage is the part of the module up to and including a named layer; what follows the last named layer is the
    final exit's branch, with its weights. The other exits get new side branches. Parameters are shared with the module,
    not copied.

    The module is traced in evaluation mode: what its `forward` does only while training (a functional dropout with
    `training=self.training`) is left out of the stages. Layers such as `nn.Dropout` are kept.

    Parameters
    ----------
    module
        Takes images (B, C, H, W), normalised with `mean` and `std`, and returns logits (B, K).
    after
        Names of layers, as in `named_modules()`, in order of execution: one per exit, the last one ends the backbone.
        One value may cross each cut: cut after a residual block, not inside it. It is (B, C, H, W) or (B, C). Feature
        maps whose channels lie last, (B, H, W, C), are recognised by what changes with the size of the images, or else
        by the layers beside the cut; they cross it as (B, C, H, W).
    classes
        Class names, in the order of the logits, (K,).
    input_shape
        Shape of one image, (C, H, W). eex's commands and sessions give RGB images to a network of 3 channels, and grey
        ones to a network of 1.
    structure
        Structure of the new side branches; a name in `eex.models.branches.BRANCHES`.
    mean, std
        Per channel; the first stage normalises images in [0, 1] with them before the module sees them. By default, 0
        and 1.
    partition
        Stages that run on the edge; 0 stands for all but the last.

    Raises
    ------
    EexError
        If a name is unknown, not reached, used more than once or out of order; if a second value crosses a cut; if
        torch.fx cannot trace the module, or what it traces answers otherwise; if a layer cannot be copied; or if
        images, features or logits have other shapes.
    ValueError
        If the branch structure is unknown, or the partition point lies outside the network.

    Examples
    --------
    >>> own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(12544, 2))
    >>> net = cut(own, ["1", "2"], ["cat", "dog"], input_shape=(3, 32, 32))
    >>> [tuple(logits.shape) for logits in net(torch.zeros(5, 3, 32, 32))]
    [(5, 2), (5, 2)]
    >>> cut(own, ["1", "22"], ["cat", "dog"], input_shape=(3, 32, 32))
    Traceback (most recent call last):
    eex.policies.core.errors.EexError: the module has no layer '22'; did you mean '2'?
    """
    mean, std = mean or (0.0,) * input_shape[0], std or (1.0,) * input_shape[0]
    if not len(mean) == len(std) == input_shape[0]:
        raise EexError(f"mean and std must name {input_shape[0]} channels each, got {list(mean)} and {list(std)}")
    names = _names(module, after)
    _check_norms(module)
    modes = [(m, m.training) for m in module.modules()]
    was_training = module.training
    module.eval()
    try:
        nodes, ends = _traced(module, after, names)
        parts = _parts(module, nodes, ends)
        shapes = _shapes(module, parts, after, input_shape, len(classes))
        last = channels_last(module, parts, ends[1:-1], shapes, input_shape)
        if any(last):
            parts = _parts(module, nodes, ends, last)
            shapes = _shapes(module, parts, after, input_shape, len(classes))
        _check_same(module, parts, input_shape)
    finally:
        for part, mode in modes:
            part.training = mode
    branches: list[dict[str, nn.Module]] = [
        {PRISTINE: make_branch(structure, shape, len(classes))} for shape in shapes[:-1]
    ]
    branches.append({PRISTINE: parts[-1]})
    architecture = Architecture(
        CUSTOM,
        tuple(classes),
        tuple(range(len(after) - 1)),  # of the stages: a user's own module has no blocks
        (structure,) * (len(after) - 1) + (CUSTOM,),
        partition=partition,
        input_shape=input_shape,
        mean=tuple(mean),
        std=tuple(std),
    )
    net = EarlyExitNet(parts[:-1], branches, architecture)
    net.to(_device(module))
    net.train(was_training)
    for part, mode in modes:
        part.training = mode
    return net


def _names(module: nn.Module, after: Sequence[str]) -> list[str]:
    """The first name of each layer that is named; a module may have several."""
    names = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if name}
    first = {layer: name for name, layer in reversed(names.items())}
    if not after:
        raise EexError("name at least one layer to cut after")
    for name in after:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the first ones are {[*names][:8]}"
            raise EexError(f"the module has no layer '{name}'; {hint}")
    return [first[names[name]] for name in after]


def _check_norms(module: nn.Module) -> None:
    """Raise `EexError` if a layer computes its weights in a hook, as older functions of torch do."""
    for name, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            kind = type(hook).__module__.removeprefix("torch.nn.utils.")
            if kind in ("weight_norm", "spectral_norm"):
                raise EexError(
                    f"layer '{name}' has a torch.nn.utils.{kind}, which cannot be copied; "
                    f"use torch.nn.utils.parametrizations.{kind} instead"
                )


class _Tracer(fx.Tracer):
    """Traces a module and notes what the named layers return.

    Parameters
    ----------
    names
        First names of the layers.
    look
        Whether parameters and buffers that `forward` looks at are traced: their type and device may be others when the
        network runs. Not every module can be traced so.
    """

    def __init__(self, names: Sequence[str], look: bool) -> None:
        super().__init__()
        self.names = names
        self.look = self.proxy_buffer_attributes = look
        self.returned: dict[str, list[Any]] = {name: [] for name in names}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if any(name.startswith(module_qualified_name + ".") for name in self.names):
            return False  # a cut lies inside
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        if name in self.returned:
            self.returned[name].append(out)
        return out

    def traced(self, module: nn.Module) -> list[fx.Node]:
        """The nodes of a module's graph."""
        if not self.look:
            return list(self.trace(module).nodes)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        proxies: dict[str, fx.Proxy] = {}

        def parameters(self_: nn.Module, recurse: bool = True) -> Iterator[Any]:
            for _, parameter in self_.named_parameters(recurse=recurse):
                name = names.get(id(parameter))
                if name is not None and name not in proxies:
                    proxies[name] = self.create_proxy("get_attr", name, (), {})
                yield parameter if name is None else proxies[name]

        with mock.patch.object(nn.Module, "parameters", parameters):
            return list(self.trace(module).nodes)


def _trace(module: nn.Module, names: Sequence[str]) -> tuple[list[fx.Node], dict[str, list[Any]]]:
    """The nodes of a module's graph, and what the layers of some names return there."""
    tracer = _Tracer(names, look=True)
    with contextlib.suppress(Exception):  # it decides by what it sees of its parameters
        return tracer.traced(module), tracer.returned
    tracer = _Tracer(names, look=False)
    try:
        return tracer.traced(module), tracer.returned
    except Exception as error:  # whatever the user's code raises when it is handed a proxy
        raise EexError(f"torch.fx cannot trace the module: {_first_line(error)}") from error


def _traced(module: nn.Module, after: Sequence[str], names: Sequence[str]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes of a module's graph, and those among them between which pieces lie: its input, the named layers'
    outputs, its output."""
    nodes, returned = _trace(module, names)
    inputs = [n for n in nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        raise EexError(f"forward must take the images alone, got {[str(n.target) for n in inputs]}; wrap the module")
    place = {node: i for i, node in enumerate(nodes)}
    ends = [inputs[0]]
    for name, first in zip(after, names, strict=True):
        end = _end(name, first, returned[first])
        if place[end] <= place[ends[-1]]:
            before = f"'{after[len(ends) - 2]}'" if len(ends) > 1 else "the input"
            raise EexError(f"name the layers in order of execution: '{name}' does not come after {before}")
        ends.append(end)
    last = nodes[-1].args[0]
    if not isinstance(last, fx.Node):
        raise EexError(f"the module must return its logits alone, got a {type(last).__name__}")
    if place[last] <= place[ends[-1]]:
        raise EexError(f"nothing follows '{after[-1]}': the final exit consists of the layers after the last cut")
    fixed = _fixed(nodes)
    for name, end in zip(after, ends[1:], strict=True):
        for node in nodes[: place[end]]:
            if node not in fixed and any(place[user] > place[end] for user in node.users):
                raise EexError(
                    f"cannot cut after '{name}': {_describe(node)} is used after it, too; "
                    "cut where one value is passed on, such as after a whole residual block"
                )
    return nodes, [*ends, last]


def _fixed(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on parameters and buffers alone, and so can be had on both sides of a cut."""
    found: set[fx.Node] = set()
    for node in nodes:
        computed = node.op in ("call_function", "call_method") and node.all_input_nodes
        if node.op == "get_attr" or (computed and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _end(name: str, first: str, returned: Sequence[Any]) -> fx.Node:
    """The one value that a named layer returned; `first` is the first name of the layer."""
    same = "" if name == first else f" (it is the same module as '{first}')"
    if not returned:
        raise EexError(f"layer '{name}'{same} is not reached by the module's forward")
    if len(returned) > 1:
        raise EexError(f"layer '{name}'{same} is used {len(returned)} times: cut after a layer that is used once")
    if not isinstance(returned[0], fx.Proxy):
        raise EexError(f"layer '{name}' must return one tensor, got a {type(returned[0]).__name__}")
    return returned[0].node


def _parts(
    module: nn.Module, nodes: Sequence[fx.Node], ends: Sequence[fx.Node], last: Sequence[bool] = ()
) -> list[fx.GraphModule]:
    """The module in pieces that follow each other: up to each named layer, and the rest.

    Parameters
    ----------
    last
        For each cut, whether the channels of what crosses it lie last in the module.
    """
    last = [False, *(last or [False] * (len(ends) - 2)), False]
    fixed, parts = _fixed(nodes), []
    for (start, end), (before, behind) in zip(pairwise(ends), pairwise(last), strict=True):
        piece = nodes[nodes.index(start) + 1 : nodes.index(end) + 1]
        parts.append(_piece(module, piece, start, end, fixed, before, behind))
    return parts


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the module's input"
    if node.op == "call_module":
        return f"the output of layer '{node.target}'"
    stack = node.meta.get("nn_module_stack") or {}
    where = next(reversed(stack), "")
    return f"the output of '{node.name}' in layer '{where}'" if where else f"the output of '{node.name}' in forward"


def _piece(
    module: nn.Module,
    nodes: Sequence[fx.Node],
    start: fx.Node,
    end: fx.Node,
    fixed: set[fx.Node],
    enters_last: bool,
    leaves_last: bool,
) -> fx.GraphModule:
    """The nodes between two values of a graph as a module of their own, with the same parameters.

    Parameters
    ----------
    fixed
        Nodes that can be computed anew.
    enters_last, leaves_last
        Whether the channels lie last in the module where the piece begins and ends. It takes and returns (B, C, H, W).
    """
    graph = fx.Graph()
    x = graph.placeholder("x")
    copied = {start: graph.call_method("permute", (x, 0, 2, 3, 1)) if enters_last else x}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copied:
            for used in node.all_input_nodes:
                if used in fixed:  # it may stand before the cut
                    copy_of(used)
            copied[node] = graph.node_copy(node, lambda n: copied[n])
            if node.op == "call_method" and node.target == "view" and node not in fixed:
                copied[node].target = "reshape"  # features are trained channels last, which view refuses
        return copied[node]

    for node in nodes:
        if node not in fixed:
            copy_of(node)
    out = copy_of(end)
    graph.output(graph.call_method("permute", (out, 0, 3, 1, 2)) if leaves_last else out)
    return fx.GraphModule(module, graph)


@torch.no_grad()
def _shapes(
    module: nn.Module, parts: Sequence[fx.GraphModule], after: Sequence[str], input_shape: Sequence[int], classes: int
) -> list[tuple[int, ...]]:
    """Run two black images through the parts, and check and return the shape of one image's features after each."""
    x: Any = torch.zeros(2, *input_shape, device=_device(module))
    shapes = []
    for name, part in zip(after, parts, strict=False):
        x = _run(part, x, input_shape)
        if not isinstance(x, Tensor) or x.dim() not in (2, 4) or len(x) != 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise EexError(f"layer '{name}' must give features (B, C, H, W) or (B, C), got {got} for 2 images")
        shapes.append(tuple(x.shape[1:]))
    x = _run(parts[-1], x, input_shape)
    if not isinstance(x, Tensor) or tuple(x.shape) != (2, classes):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise EexError(f"the module must return logits (B, {classes}), one for each class, got {got} for 2 images")
    return shapes


def _run(part: fx.GraphModule, x: Tensor, input_shape: Sequence[int]) -> Any:
    version = x._version
    try:
        out = part(x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EexError(f"the module cannot take images of shape {tuple(input_shape)}: {_first_line(error)}") from error
    if x._version != version:  # it begins in place, and would change features that a side branch has seen
        incoming = next(iter(part.graph.nodes))
        with part.graph.inserting_after(incoming):
            own = part.graph.call_method("clone", (incoming,))
        incoming.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
        part.recompile()
    return out


@torch.no_grad()
def _check_same(module: nn.Module, parts: Sequence[fx.GraphModule], input_shape: tuple[int, int, int]) -> None:
    """Raise `EexError` if the pieces do not answer as the module does."""
    images = probe_images(input_shape).to(_device(module))
    expected, again, x = module(images.clone()), module(images.clone()), images
    for part in parts:
        x = part(x)
    if not problem(expected, again) and (wrong := problem(expected, x)):
        raise EexError(
            f"the module does not answer as torch.fx traces it: {wrong}; "
            "its forward may have hooks, or depend on more than its input"
        )


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
