"""Where to cut a network, found from the shapes and costs of its layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import fx, nn

from eex.models.branches import place_by_share
from eex.models.comparing import probe_images
from eex.models.cutting import check_norms, crossed_by, cut_between, describe, evaluated, has_class_token, input_of
from eex.models.network import Architecture, EarlyExitNet
from eex.models.tracing import Graph, Values, device_of, fixed, trace, values
from eex.policies.core.errors import EexError, ModelError

SHARES = (0.15, 0.35, 0.6)
"""Shares of the cost at which "auto" places side branches, where the network can be cut there."""
APART = 0.05
"""Least share of the cost between two exits that "auto" places."""
NAMED = 0.3
"""Parts that cannot be cut are named from this share of the cost on."""


Crossing = dict[fx.Node, fx.Node | None]
"""For each node, another whose value crosses a cut after it."""


@dataclass(frozen=True)
class Place:
    """A place where one tensor crosses, so that a network can be cut there.

    Attributes
    ----------
    node
        Name of the value that crosses, in the network's graph.
    layer
        The layer that returns it, or where it is computed, for people.
    shape
        Shape of one image's features in the network, without the batch axis.
    share
        Share of the network's cost up to here.
    kind
        "map" (C, H, W), or with channels last; "tokens" (N, C), "class token" (N, C) with one before the others, or
        "flat" (C,).
    """

    node: str
    layer: str
    shape: tuple[int, ...]
    share: float
    kind: str


@dataclass(frozen=True)
class Survey:
    """A network's graph, and where it can be cut.

    Attributes
    ----------
    places
        In order, one for each amount of work done; the last one ends the backbone.
    uncut
        Sentences on the larger parts that cannot be cut, with the layer and the reason.
    """

    graph: Graph
    found: Values
    places: tuple[Place, ...]
    uncut: tuple[str, ...]


def survey(module: nn.Module, input_shape: tuple[int, int, int], by: Literal["macs", "time"] = "macs") -> Survey:
    """Find where a network can be cut.

    Places are where one tensor is all that later layers need, with images on its first axis. Of places with the same
    work before them, such as after a convolution, its norm and its activation, the last is taken, but rather after a
    whole block than inside the next.

    Parameters
    ----------
    module
        Takes images (B, C, H, W), and has defaults for its other arguments.
    by
        What cost is: multiply-adds, or the time measured on this machine.

    Raises
    ------
    EexError
        If the network cannot be had as a graph, cannot take images of this shape, or has no such place.
    """
    check_norms(module)
    with evaluated(module):
        x = probe_images(input_shape)[:2].to(device_of(module))
        graph = trace(module, (), x)
        found = values(graph, input_shape, by)
    total = sum(found.cost.values())
    if not total:
        raise EexError("the network has no layer with multiply-adds, so there is nothing to place exits by (--exits)")
    free, crossing, logits = fixed(graph.nodes, found.known), crossed_by(graph, found), graph.logits
    done, at = 0.0, {}
    groups: dict[float, Place] = {}
    weights = _weighing(graph)
    left = sum(node in weights for node in graph.nodes)
    for node in graph.nodes:
        if node is logits:
            break
        done += found.cost.get(node, 0.0)
        at[node] = done
        left -= node in weights
        shape = found.shapes.get(node)
        if shape is None or node in free or crossing[node] or not done or not left or not 1 <= len(shape) <= 3:
            continue  # the final exit needs a layer of its own
        rank = done if by == "macs" else round(200 * done / total)
        place = Place(node.name, _layer(graph, node), shape, done / total, _kind(graph, found, node, shape))
        if rank not in groups or _better(place, groups[rank]):
            groups[rank] = place
    places = _until_the_head([*groups.values()])
    if not places:
        why = _blocked(graph, found, crossing, at, 0.0, 1.0) or "it is one operation"
        raise EexError(f"the network cannot be cut anywhere: {why}")
    return Survey(graph, found, tuple(places), tuple(_uncut(graph, found, crossing, at, places)))


def _better(place: Place, earlier: Place) -> bool:
    """Whether to take a place rather than an earlier one with the same work before it."""
    if (place.kind == "flat") != (earlier.kind == "flat"):
        return earlier.kind == "flat"  # a branch makes more of a map or of tokens than of their mean
    return place.layer.count(".") <= earlier.layer.count(".")  # after a whole block rather than inside the next


def _weighing(graph: Graph) -> set[fx.Node]:
    """The nodes that use parameters."""
    layers = dict(graph.root.named_modules(remove_duplicate=False))
    found = set()
    for node in graph.nodes:
        if node.op == "call_module":
            layer = layers[str(node.target)]
            if next(layer.parameters(), None) is not None:
                found.add(node)
        elif node.op.startswith("call_") and any(n.op == "get_attr" for n in node.all_input_nodes):
            found.add(node)
    return found


def _layer(graph: Graph, node: fx.Node) -> str:
    if node in graph.layers:
        return graph.layers[node]
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"{paths[-1]} ({node.name})" if paths else node.name


def _kind(graph: Graph, found: Values, node: fx.Node, shape: tuple[int, ...]) -> str:
    if len(shape) == 1 or shape[1:] == (1, 1):
        return "flat"
    if len(shape) == 3:
        return "map"
    return "class token" if has_class_token(graph, node, found) else "tokens"


def _until_the_head(places: Sequence[Place]) -> list[Place]:
    """Places up to the last map or tokens: flat features after it belong to the final exit."""
    last = max((i for i, place in enumerate(places) if place.kind != "flat"), default=len(places) - 1)
    return list(places[: last + 1])


def _uncut(
    graph: Graph, found: Values, crossing: Crossing, at: dict[fx.Node, float], places: Sequence[Place]
) -> list[str]:
    """Sentences on the parts between places, and before the first, that are large and more than one operation."""
    start, sentences = 0.0, []
    for place in places:
        if place.share - start >= NAMED and (why := _blocked(graph, found, crossing, at, start, place.share)):
            part = f"{100 * start:.0f} and {100 * place.share:.0f} % of the work"
            sentences.append(f"no cut lies between {part}, before '{place.layer}': {why}")
        start = place.share
    return sentences


def _blocked(
    graph: Graph, found: Values, crossing: Crossing, at: dict[fx.Node, float], start: float, stop: float
) -> str:
    """Why no cut lies between two shares of the work; empty if it is one operation of torch's own."""
    total = sum(found.cost.values())
    inside = [node for node, done in at.items() if start < done / total <= stop]
    if not inside:
        return ""
    costly = max(inside, key=lambda node: found.cost.get(node, 0.0))
    if costly.op == "call_module" and str(costly.target) in graph.whole:
        why = graph.whole[str(costly.target)]
        return f"layer '{costly.target}' is kept whole, because torch.fx cannot trace it: {why}"
    node = next((crossing[n] for n in inside if crossing[n] and at[n] / total < stop), None)
    if node is None:
        return ""
    user = list(node.users)[-1]
    used = f"layer '{user.target}'" if user.op == "call_module" else f"'{user.name}'"
    return f"{describe(node)} is used again by {used}, so that more than one tensor crosses"


def choose(found: Survey, exits: int | Literal["auto"] = "auto", shares: Sequence[float] = ()) -> list[Place]:
    """Where the exits go, the final one included.

    Parameters
    ----------
    exits
        Their number; "auto" takes up to four, where the network can be cut near `SHARES` of its cost.
    shares
        Shares of the cost at which the side branches are wanted; by default, equal parts.

    Raises
    ------
    EexError
        If there are not as many places, or shares do not rise within (0, 1) or are not one per side branch.
    """
    *before, last = found.places
    costs = [b - a for a, b in pairwise([0.0, *(place.share for place in found.places)])]
    if exits == "auto":
        chosen: list[Place] = []
        for share in shares or SHARES:
            near = min(before, key=lambda place: abs(place.share - share), default=None)
            if near and last.share - near.share >= APART and all(near.share - p.share >= APART for p in chosen):
                chosen.append(near)
        return [*chosen, last]
    if exits < 2:
        raise EexError(f"--exits must be at least 2, the final exit included, got {exits}")
    if exits - 1 > len(before):
        reason = f"; {found.uncut[0]}" if found.uncut else ""
        names = ", ".join(f"'{place.layer}'" for place in found.places)
        raise EexError(
            f"--exits {exits}: the network can be cut at {len(found.places)} places only, after {names}{reason}"
        )
    wanted = list(shares) or [(k + 1) / exits for k in range(exits - 1)]
    if len(wanted) != exits - 1:
        raise EexError(f"--exits {exits} needs {exits - 1} shares, one per side branch, got {len(wanted)}")
    try:
        placed = place_by_share(costs, wanted)
    except ValueError as error:
        raise EexError(str(error)) from None
    return [*(found.places[i] for i in placed), last]


def auto_cut(
    module: nn.Module,
    classes: Sequence[str],
    *,
    input_shape: tuple[int, int, int],
    exits: int | Literal["auto"] = "auto",
    shares: Sequence[float] = (),
    by: Literal["macs", "time"] = "macs",
    structure: str = "conv_fc",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    partition: int = 0,
    report: Callable[[list[str]], None] = lambda lines: None,
) -> EarlyExitNet:
    """An early-exit network from any image classifier, cut at places that are found.

    Parameters
    ----------
    module, classes, input_shape, structure, mean, std, partition
        As `eex.models.cutting.cut` takes them. The structure applies to maps; tokens get a branch on their mean and,
        if there is one, the class token.
    exits, shares
        As in `choose`.
    by
        What cost is: multiply-adds, or the time measured on this machine.
    report
        Called with the lines of a table of the exits, before anything is cut.

    Raises
    ------
    EexError, ValueError
        As `survey`, `choose` and `eex.models.cutting.cut`.

    Examples
    --------
    >>> layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)]
    >>> own = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    >>> net = auto_cut(own, ["cat", "dog"], input_shape=(3, 32, 32), exits=2)
    >>> net.architecture.options
    {'cut': ['_3', '_4']}
    """
    found = survey(module, input_shape, by)
    chosen = choose(found, exits, shares)
    report(table(found, chosen, structure))
    return _cut_at(
        module,
        found.graph,
        found.found,
        [place.node for place in chosen],
        classes,
        input_shape=input_shape,
        structure=structure,
        mean=mean,
        std=std,
        partition=partition,
    )


def cut_again(module: nn.Module, architecture: Architecture) -> EarlyExitNet:
    """The network that `auto_cut` made of a module, cut at the same places.

    Raises
    ------
    ModelError
        If the architecture is of another network, or the module is no longer the one that was cut.
    """
    names = architecture.options.get("cut")
    if not isinstance(names, list | tuple) or not names:
        raise ModelError(
            "its function returns a network that is not cut, but the model's was cut by its own code; "
            "return what eex.models.cut returns"
        )
    with evaluated(module):
        x = probe_images(architecture.input_shape)[:2].to(device_of(module))
        graph = trace(module, (), x)
        found = values(graph, architecture.input_shape, by="")
    crossing = crossed_by(graph, found)
    nodes = {node.name: node for node in graph.nodes}
    for name in names:
        if name not in nodes or crossing[nodes[name]]:
            raise ModelError(f"the network was cut after '{name}', which is not there any more: its code has changed")
    return _cut_at(
        module,
        graph,
        found,
        list(names),
        architecture.classes,
        input_shape=architecture.input_shape,
        structure=architecture.structures[0] if len(names) > 1 else "conv_fc",
        mean=architecture.mean,
        std=architecture.std,
        partition=architecture.partition,
    )


def _cut_at(
    module: nn.Module, graph: Graph, found: Values, names: list[str], classes: Sequence[str], **given: Any
) -> EarlyExitNet:
    nodes = {node.name: node for node in graph.nodes}
    ends = [input_of(graph), *(nodes[name] for name in names), graph.logits]
    layers = [_layer(graph, nodes[name]) for name in names]
    return cut_between(module, graph, ends, layers, found, classes, options={"cut": names}, **given)


def table(found: Survey, chosen: Sequence[Place], structure: str) -> list[str]:
    """Where a network is cut, for people: one line per exit, and what cannot be cut."""
    heads = {"map": structure, "tokens": "mean of the tokens", "class token": "class token and mean", "flat": "linear"}
    rows = [("exit", "after", "features", "KiB", "work before it", "branch")]
    for number, place in enumerate(chosen):
        shape = " x ".join(map(str, place.shape))
        size = f"{4 * math.prod(place.shape) / 1024:.1f}"
        head = "the network's own" if place is chosen[-1] else heads[place.kind]
        rows.append((str(number + 1), place.layer, shape, size, f"{100 * place.share:.1f} %", head))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found.graph.exported:
        lines.append(
            f"torch.fx cannot trace the network, so it is exported, with its dropout off and the statistics of its "
            f"norms kept: {found.graph.exported}"
        )
    return [*lines, *found.uncut]
