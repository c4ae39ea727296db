"""The graph of a module, by torch.fx or, where that cannot trace it, by torch.export; and what its nodes compute."""

import contextlib
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx, nn

from eex.models.comparing import probe_images
from eex.policies.core.errors import EexError

RANDOM = {"rand", "randn", "randint", "rand_like", "randn_like", "randperm", "bernoulli", "dropout", "multinomial"}
"""Functions whose value is another one each time."""


@dataclass
class Graph:
    """A module as a list of operations.

    Attributes
    ----------
    root
        Owns the layers and parameters that the nodes name: the module, or its exported form.
    nodes
        The operations, in order. The first takes the images, the last returns the logits.
    returned
        What the layers that were asked for return, by name: one value for each call.
    layers
        Name of the outermost layer that returns a value, for values that a layer returns.
    whole
        Layers that torch.fx cannot trace and that are kept whole, with the reason.
    exported
        Why the module was exported instead of traced; empty if it was traced.
    """

    root: nn.Module
    nodes: list[fx.Node]
    returned: dict[str, list[Any]] = field(default_factory=dict)
    layers: dict[fx.Node, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    exported: str = ""

    @property
    def logits(self) -> Any:
        """The value that the module returns."""
        return self.nodes[-1].args[0]


class Batch(NamedTuple):
    """A number that is `times` the number of images."""

    times: int


@dataclass(frozen=True)
class Values:
    """What the nodes of a graph compute for images of one size.

    Attributes
    ----------
    shapes
        Of tensors whose first axis is the batch, without that axis.
    known
        Values that need no tensor to be had again: numbers, `Batch`, tuples of these, and the type or the device of
        tensors. What is worked out from the number of images is not among them: it is worked out again (`fixed`).
    cost
        Multiply-adds of each node for one image, or its seconds for two.
    """

    shapes: dict[fx.Node, tuple[int, ...]]
    known: dict[fx.Node, Any]
    cost: dict[fx.Node, float]


class _Tracer(fx.Tracer):
    """Traces a module and notes what its layers return.

    Parameters
    ----------
    names
        First names of the layers that are looked into, with all layers around them.
    look
        Whether parameters and buffers that `forward` looks at are traced: their type and device may be others when the
        network runs. Not every module can be traced so.
    whole
        Layers that are not looked into.
    """

    def __init__(self, names: Sequence[str], look: bool, whole: Mapping[str, str]) -> None:
        super().__init__()
        self.names, self.whole = names, whole
        self.look = self.proxy_buffer_attributes = look
        self.returned: dict[str, list[Any]] = {name: [] for name in names}
        self.layers: dict[fx.Node, str] = {}
        self.failed = ""  # the innermost layer that raised

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if any(name.startswith(module_qualified_name + ".") for name in self.names):
            return False  # a cut lies inside
        if module_qualified_name in self.whole:
            return True
        if isinstance(m, nn.TransformerEncoder):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if isinstance(m, nn.TransformerEncoder) and len(args) == 1 and not kwargs and name not in self.whole:
            forward = _encode(m)  # its own looks at its input
        try:
            out = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or name
            raise
        if name in self.returned:
            self.returned[name].append(out)
        if isinstance(out, fx.Proxy):
            self.layers[out.node] = name
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

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The module's own images, and the defaults of whatever else its forward takes."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return fn, [self._default(a) if i > 1 else a for i, a in enumerate(args)]

    def _default(self, argument: Any) -> Any:
        """The default of an argument after the images, in place of its proxy; a proxy if it has none."""
        if not isinstance(argument, fx.Proxy) or argument.node.op != "placeholder" or not argument.node.args:
            return argument
        default = argument.node.args[0]
        argument.node.graph.erase_node(argument.node)
        return default


def _encode(encoder: nn.TransformerEncoder) -> Any:
    def forward(x: Any) -> Any:
        for layer in encoder.layers:
            x = layer(x)
        return x if encoder.norm is None else encoder.norm(x)

    return forward


def trace(module: nn.Module, names: Sequence[str] = (), x: Tensor | None = None) -> Graph:
    """The graph of a module in evaluation mode.

    Layers that torch.fx cannot trace are kept whole. If it is the module's own `forward` that cannot be traced, the
    module is exported, provided that there are images to export it with.

    Parameters
    ----------
    names
        Layers whose returned values are asked for.
    x
        Two images (2, C, H, W).

    Raises
    ------
    EexError
        If the module cannot be had as a graph, or takes or returns something else than one tensor.
    """
    whole: dict[str, str] = {}
    while True:
        reason = ""
        for look in (True, False):
            tracer = _Tracer(names, look, whole)
            try:
                nodes = tracer.traced(module)
            except Exception as error:  # whatever the user's code raises when it is handed a proxy
                reason, failed, cause = first_line(error), tracer.failed, error
                continue
            nodes = [n for n in nodes if n.op != "placeholder" or n.users or not str(n.target).startswith("*")]
            _check(nodes)
            return Graph(module, nodes, tracer.returned, tracer.layers, whole)
        if failed and failed not in whole:
            whole[failed] = reason
        elif x is None:
            raise EexError(f"torch.fx cannot trace the module: {reason}") from cause
        else:
            return _exported(module, x, reason)


def _check(nodes: Sequence[fx.Node]) -> None:
    inputs = [n for n in nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        raise EexError(
            f"forward must take the images alone, got {[str(n.target) for n in inputs]}; "
            "give the other arguments defaults, or wrap the module"
        )
    last = nodes[-1].args[0]
    if isinstance(last, Mapping) and isinstance(last.get("logits"), fx.Node):
        nodes[-1].args = (last := last["logits"],)
    if not isinstance(last, fx.Node):
        raise EexError(f"the module must return its logits alone, got a {type(last).__name__}")


def _exported(module: nn.Module, x: Tensor, reason: str) -> Graph:
    """The graph of a module by torch.export: of aten operations, without dropout, with norms as they infer."""
    try:
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        root = program.module()
    except Exception as error:  # anything, from the user's code or from torch
        raise EexError(
            f"neither torch.fx nor torch.export can trace the module: {reason}; {first_line(error)}"
        ) from error
    assert isinstance(root, fx.GraphModule)
    for node in list(root.graph.nodes):
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            root.graph.erase_node(node)
    nodes = list(root.graph.nodes)
    returned = nodes[-1].args[0]
    if isinstance(returned, list | tuple) and len([n for n in returned if isinstance(n, fx.Node)]) == 1:
        (only,) = (n for n in returned if isinstance(n, fx.Node))
        nodes[-1].args = (only,)
    _check(nodes)
    return Graph(root, nodes, layers=_exported_layers(nodes), exported=reason)


def _exported_layers(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """The outermost layer whose last operation a node is."""
    found: dict[fx.Node, str] = {}
    paths = [[str(path) for path, _ in (n.meta.get("nn_module_stack") or {}).values() if path] for n in nodes]
    for node, here, after in zip(nodes, paths, [*paths[1:], []], strict=True):
        left = [path for path in here if path not in after]
        if left:
            found[node] = left[0]
    return found


def fixed(nodes: Sequence[fx.Node], known: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """Nodes that depend on parameters, buffers and known values alone, and so can be had on both sides of a cut."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node in known or node.op in ("placeholder", "output"):
            continue
        given = node.all_input_nodes
        made = node.op == "call_function" and str(getattr(node.target, "__name__", "")).split(".")[0] not in RANDOM
        computed = (node.op == "call_method" or made) and (given or made)
        if node.op == "get_attr" or (computed and all(n in found or n in known for n in given)):
            found.add(node)
    return found


@torch.no_grad()
def values(graph: Graph, input_shape: Sequence[int], by: str = "macs") -> Values:
    """Run a graph on two images and on three, and note what each node gives and costs.

    Parameters
    ----------
    by
        "macs" counts multiply-adds, "time" measures; "" does neither.

    Raises
    ------
    EexError
        If it cannot take images of this shape.
    """
    x = probe_images(input_shape).to(device_of(graph.root))
    two, three = _Runner(graph, by == "macs"), _Runner(graph, False)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole encoder in one operation, which is not counted
    try:
        two.run(x[:2].clone())
        three.run(x.clone())
        cost = {node: n / 2 for node, n in two.cost.items()}
        if by == "time":
            runs = [_Runner(graph, False) for _ in range(3)]
            for run in runs:
                run.run(x[:2].clone())
            cost = {node: min(run.seconds[node] for run in runs) for node in two.seconds}
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise EexError(f"the module cannot take images of shape {tuple(input_shape)}: {first_line(error)}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    known: dict[fx.Node, Any] = {}
    reckoned: set[fx.Node] = set()  # numbers made of that of the images, such as half of it: two runs do not show how
    for node, a in two.seen.items():
        b = three.seen[node]
        if isinstance(a, torch.Size) and node in two.tensors:
            if len(a) and len(b) and (a[0], b[0]) == (2, 3) and a[1:] == b[1:]:
                shapes[node] = tuple(a[1:])
        elif any(isinstance(known.get(n), Batch) or n in reckoned for n in node.all_input_nodes):
            reckoned.add(node)
        elif (value := _known(a, b)) is not None:
            known[node] = value
    return Values(shapes, known, cost)


def _known(two: Any, three: Any) -> Any:
    """What a value is for any number of images, from that for two and for three; None if this does not show it."""
    if isinstance(two, tuple | list) and isinstance(three, tuple | list) and len(two) == len(three):
        parts = tuple(_known(a, b) for a, b in zip(two, three, strict=True))
        return None if None in parts else parts
    if isinstance(two, torch.device | torch.dtype):
        return type(two)
    if not isinstance(two, int | float | str) or type(two) is not type(three):
        return None
    if two == three:
        return two
    if isinstance(two, int) and two % 2 == 0 and 3 * two == 2 * three:
        return Batch(two // 2)
    return None


def known_value(known: Any, graph: fx.Graph, features: fx.Node) -> Any:
    """A known value, in a graph that takes features."""
    if isinstance(known, Batch):
        size = graph.call_method("size", (features, 0))
        return size if known.times == 1 else graph.call_function(operator.mul, (size, known.times))
    if isinstance(known, tuple):
        return tuple(known_value(part, graph, features) for part in known)
    if known in (torch.device, torch.dtype):
        return graph.call_function(getattr, (features, known.__name__))
    return known


class _Runner(fx.Interpreter):
    """Runs a graph and notes shapes, plain values, and cost by node."""

    def __init__(self, graph: Graph, count: bool) -> None:
        self._count = count
        copied = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            new[node] = copied.node_copy(node, lambda n: new[n])
        super().__init__(fx.GraphModule(graph.root, copied))
        self._old = {n: o for o, n in new.items()}
        self.seen: dict[fx.Node, Any] = {}
        self.tensors: set[fx.Node] = set()
        self.cost: dict[fx.Node, float] = {}
        self.seconds: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False) if self._count and n.op.startswith("call") else None
        started = time.perf_counter()
        with contextlib.nullcontext() if counter is None else counter:
            out = super().run_node(n)
        node = self._old[n]
        self.seconds[node] = time.perf_counter() - started
        self.cost[node] = 0.0 if counter is None else counter.get_total_flops() / 2
        if isinstance(out, Tensor):
            self.tensors.add(node)
        self.seen[node] = out.shape if isinstance(out, Tensor) else out
        return out


def logits_of(returned: Any) -> Any:
    """The logits that a network returned, by themselves or, as networks of transformers do, among other values."""
    if isinstance(returned, Mapping):
        return returned.get("logits")
    return getattr(returned, "logits", returned)


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def first_line(error: Exception) -> str:
    """The message of an error, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
