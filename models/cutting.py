"""Cut a user's own network into stages at named layers."""

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from eex.models.arrays import laid_out
from eex.models.branches import make_branch, token_branch
from eex.models.comparing import probe_images, problem
from eex.models.layout import channels_last
from eex.models.network import CUSTOM, PRISTINE, Architecture, EarlyExitNet
from eex.models.tracing import Graph, Values, device_of, first_line, fixed, known_value, logits_of, trace, values
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
        One value may cross each cut: cut after a residual block, not inside it. It is (B, C, H, W), (B, C), or tokens
        (B, N, C), whose branches see their mean and, if there is one, the class token. Feature maps whose channels lie
        last, (B, H, W, C), are recognised by what changes with the size of the images, or else by the layers beside the
        cut; they cross it as (B, C, H, W).
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
    _per_channel(mean, std, input_shape[0])
    names = _names(module, after)
    check_norms(module)
    with evaluated(module):
        graph = trace(module, names)
        found = values(graph, input_shape, by="")
        ends = _ends(graph, after, names, found)
    return cut_between(
        module,
        graph,
        ends,
        after,
        found,
        classes,
        input_shape=input_shape,
        structure=structure,
        mean=mean,
        std=std,
        partition=partition,
    )


def _per_channel(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, by default 0 and 1."""
    mean, std = tuple(mean) or (0.0,) * channels, tuple(std) or (1.0,) * channels
    if not len(mean) == len(std) == channels:
        raise EexError(f"mean and std must name {channels} channels each, got {list(mean)} and {list(std)}")
    if not all(math.isfinite(m) and 0 < s < math.inf for m, s in zip(mean, std, strict=True)):
        raise EexError(f"mean must be finite, and std more than 0, got {list(mean)} and {list(std)}")
    return mean, std


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the `with` block; each layer's own mode after it."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def cut_between(
    module: nn.Module,
    graph: Graph,
    ends: Sequence[fx.Node],
    names: Sequence[str],
    found: Values,
    classes: Sequence[str],
    *,
    input_shape: tuple[int, int, int],
    structure: str = "conv_fc",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    partition: int = 0,
    options: Mapping[str, Any] | None = None,
) -> EarlyExitNet:
    """An early-exit network from a graph and the values between which its pieces lie.

    Parameters
    ----------
    graph, found
        Of the module, and what its nodes compute.
    ends
        The input, one value for each exit, and the logits; one value alone may cross each of them.
    names
        Of the exits, for errors.
    options
        For the architecture.

    Raises
    ------
    EexError, ValueError
        As `cut`.
    """
    mean, std = _per_channel(mean, std, input_shape[0])
    with evaluated(module):
        parts = _parts(graph, ends, found.known)
        shapes = _shapes(graph.root, parts, names, input_shape, len(classes))
        last = channels_last(graph.root, parts, ends[1:-1], shapes, input_shape)
        if any(last):
            parts = _parts(graph, ends, found.known, last)
            shapes = _shapes(graph.root, parts, names, input_shape, len(classes))
        _check_same(module, parts, input_shape)
    branches: list[dict[str, nn.Module]] = []
    for shape, end in zip(shapes[:-1], ends[1:], strict=False):
        if len(shape) == 2:
            branch = token_branch(structure, shape, len(classes), has_class_token(graph, end, found))
        else:
            branch = make_branch(structure, shape, len(classes))
        branches.append({PRISTINE: branch})
    branches.append({PRISTINE: parts[-1]})
    architecture = Architecture(
        CUSTOM,
        tuple(classes),
        tuple(range(len(names) - 1)),  # of the stages: a user's own module has no blocks
        (structure,) * (len(names) - 1) + (CUSTOM,),
        partition=partition,
        input_shape=input_shape,
        mean=mean,
        std=std,
        options=dict(options or {}),
    )
    modes = [(m, m.training) for m in module.modules()]
    net = EarlyExitNet(parts[:-1], branches, architecture)
    net.to(device_of(module))
    net.train(module.training)
    for part, mode in modes:
        part.training = mode
    return net


def has_class_token(graph: Graph, end: fx.Node, found: Values) -> bool:
    """Whether the tokens (B, N, C) that a node gives begin with one that is learned: a class token."""
    free = fixed(graph.nodes, found.known)
    for node in graph.nodes[: graph.nodes.index(end) + 1]:
        name = str(getattr(node.target, "__name__", "")).split(".")[0]
        if name in ("cat", "concat", "concatenate") and len(found.shapes.get(node, ())) == 2 and node.args:
            parts = node.args[0]
            if isinstance(parts, list | tuple) and parts and parts[0] in free:
                return True
    return False


def _names(module: nn.Module, after: Sequence[str]) -> list[str]:
    """The first name of each layer that is named; a module may have several."""
    names = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if name}
    first = {layer: name for name, layer in reversed(names.items())}
    if isinstance(after, str):
        raise EexError(f"layers to cut after are named in a list, [{after!r}], got the text {after!r}")
    if not after:
        raise EexError("name at least one layer to cut after")
    for name in after:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the first ones are {[*names][:8]}"
            raise EexError(f"the module has no layer '{name}'; {hint}")
    return [first[names[name]] for name in after]


def check_norms(module: nn.Module) -> None:
    """Raise `EexError` if a layer computes its weights in a hook, as older functions of torch do."""
    for name, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            kind = type(hook).__module__.removeprefix("torch.nn.utils.")
            if kind in ("weight_norm", "spectral_norm"):
                raise EexError(
                    f"layer '{name}' has a torch.nn.utils.{kind}, which cannot be copied; "
                    f"use torch.nn.utils.parametrizations.{kind} instead"
                )


def _ends(graph: Graph, after: Sequence[str], names: Sequence[str], found: Values) -> list[fx.Node]:
    """The values between which pieces lie: the input, the named layers' outputs, the logits."""
    nodes = graph.nodes
    place = {node: i for i, node in enumerate(nodes)}
    ends = [input_of(graph)]
    for name, first in zip(after, names, strict=True):
        end = _end(name, first, graph)
        if place[end] <= place[ends[-1]]:
            before = f"'{after[len(ends) - 2]}'" if len(ends) > 1 else "the input"
            raise EexError(f"name the layers in order of execution: '{name}' does not come after {before}")
        ends.append(end)
    if place[graph.logits] <= place[ends[-1]]:
        raise EexError(f"nothing follows '{after[-1]}': the final exit consists of the layers after the last cut")
    crossing = crossed_by(graph, found)
    for name, end in zip(after, ends[1:], strict=True):
        if node := crossing[end]:
            raise EexError(
                f"cannot cut after '{name}': {describe(node)} is used after it, too; "
                "cut where one value is passed on, such as after a whole residual block"
            )
    return [*ends, graph.logits]


def input_of(graph: Graph) -> fx.Node:
    """The node that takes the images."""
    return next(n for n in graph.nodes if n.op == "placeholder")


def crossed_by(graph: Graph, found: Values) -> dict[fx.Node, fx.Node | None]:
    """For each node, another one before it whose value is used after it, so that no cut can be there; or None."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    free = fixed(graph.nodes, found.known)
    used: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node not in free and node not in found.known:
            used[node] = max((place[user] for user in node.users if user not in found.known), default=-1)
    crossing: dict[fx.Node, fx.Node | None] = {}
    live: list[fx.Node] = []
    for i, node in enumerate(graph.nodes):
        live = [n for n in live if used[n] > i]
        crossing[node] = live[0] if live else None
        if node in used:
            live.append(node)
    return crossing


def _end(name: str, first: str, graph: Graph) -> fx.Node:
    """The one value that a named layer returned; `first` is the first name of the layer."""
    same = "" if name == first else f" (it is the same module as '{first}')"
    returned = graph.returned[first]
    if not returned:
        for layer, reason in graph.whole.items():
            if first.startswith(layer + "."):
                raise EexError(f"cannot cut after '{name}': torch.fx cannot trace layer '{layer}' around it: {reason}")
        raise EexError(f"layer '{name}'{same} is not reached by the module's forward")
    if len(returned) > 1:
        raise EexError(f"layer '{name}'{same} is used {len(returned)} times: cut after a layer that is used once")
    if not isinstance(returned[0], fx.Proxy):
        raise EexError(f"layer '{name}' must return one tensor, got a {type(returned[0]).__name__}")
    return returned[0].node


def _parts(
    graph: Graph, ends: Sequence[fx.Node], known: Mapping[fx.Node, Any], last: Sequence[bool] = ()
) -> list[fx.GraphModule]:
    """The module in pieces that follow each other: up to each end, and the rest.

    Parameters
    ----------
    known
        Values that need no tensor to be had again.
    last
        For each cut, whether the channels of what crosses it lie last in the module.
    """
    last = [False, *(last or [False] * (len(ends) - 2)), False]
    free, nodes, parts = fixed(graph.nodes, known), graph.nodes, []
    for (start, end), (before, behind) in zip(pairwise(ends), pairwise(last), strict=True):
        piece = nodes[nodes.index(start) + 1 : nodes.index(end) + 1]
        parts.append(_piece(graph.root, piece, start, end, free, known, before, behind))
    return parts


def describe(node: fx.Node) -> str:
    """What a node is, for people."""
    if node.op == "placeholder":
        return "the module's input"
    if node.op == "call_module":
        return f"the output of layer '{node.target}'"
    stack = node.meta.get("nn_module_stack") or {}
    where = next(reversed(stack.values()), "") if stack else ""
    where = str(where[0]) if isinstance(where, tuple) else ""
    return f"the output of '{node.name}' in layer '{where}'" if where else f"the output of '{node.name}' in forward"


def _piece(
    root: nn.Module,
    nodes: Sequence[fx.Node],
    start: fx.Node,
    end: fx.Node,
    free: set[fx.Node],
    known: Mapping[fx.Node, Any],
    enters_last: bool,
    leaves_last: bool,
) -> fx.GraphModule:
    """The nodes between two values of a graph as a module of their own, with the same parameters.

    Parameters
    ----------
    free
        Nodes that can be computed anew.
    known
        Values that need no tensor to be had again.
    enters_last, leaves_last
        Whether the channels lie last in the module where the piece begins and ends. It takes and returns (B, C, H, W).
    """
    graph = fx.Graph()
    x = graph.placeholder("x")
    copied: dict[fx.Node, Any] = {start: graph.call_method("permute", (x, 0, 2, 3, 1)) if enters_last else x}

    def copy_of(node: fx.Node) -> Any:
        if node not in copied:
            if node in known and not all(used in copied for used in node.all_input_nodes):
                copied[node] = known_value(known[node], graph, x)  # what it is computed from stands before the cut
                return copied[node]
            for used in node.all_input_nodes:
                if used in free or used in known:  # it may stand before the cut
                    copy_of(used)
            copied[node] = graph.node_copy(node, lambda n: copied[n])
            if node not in free and node.target in ("view", torch.ops.aten.view.default):
                # features are trained channels last, which view refuses
                copied[node].target = "reshape" if node.target == "view" else torch.ops.aten.reshape.default
        return copied[node]

    for node in nodes:
        if node not in free:
            copy_of(node)
    out = copy_of(end)
    graph.output(graph.call_method("permute", (out, 0, 3, 1, 2)) if leaves_last else out)
    return fx.GraphModule(root, graph)


@torch.no_grad()
def _shapes(
    module: nn.Module, parts: Sequence[fx.GraphModule], after: Sequence[str], input_shape: Sequence[int], classes: int
) -> list[tuple[int, ...]]:
    """Run two black images through the parts, and check and return the shape of one image's features after each."""
    x: Any = torch.zeros(2, *input_shape, device=device_of(module))
    shapes = []
    for name, part in zip(after, parts, strict=False):
        x = _run(part, x, input_shape)
        if not isinstance(x, Tensor) or x.dim() not in (2, 3, 4) or len(x) != 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise EexError(
                f"layer '{name}' must give features (B, C, H, W), tokens (B, N, C) or (B, C), got {got} for 2 images"
            )
        shapes.append(tuple(x.shape[1:]))
    x = _run(parts[-1], x, input_shape)
    if not isinstance(x, Tensor) or tuple(x.shape) != (2, classes):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise EexError(f"the module must return logits (B, {classes}), one for each class, got {got} for 2 images")
    return shapes


def _run(part: fx.GraphModule, x: Tensor, input_shape: Sequence[int]) -> Any:
    version = x._version
    try:
        out = part.forward(x)  # called, a GraphModule prints what it raises
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EexError(f"the module cannot take images of shape {tuple(input_shape)}: {first_line(error)}") from error
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
    images = probe_images(input_shape).to(device_of(module))
    expected, again = logits_of(module(images.clone())), logits_of(module(images.clone()))
    if problem(expected, again):
        return
    for x in (images, laid_out(images)):  # it streams with its channels last
        for part in parts:
            x = _run(part, x, input_shape)
        if wrong := problem(expected, x):
            raise EexError(
                f"the module does not answer as torch.fx traces it: {wrong}; "
                "its forward may have hooks, change a view in place, or depend on more than its input"
            )
