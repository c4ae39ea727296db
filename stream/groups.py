"""Groups of frames that go through the same stage together, and the answers of the exits to them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import Network
from eex.models.arrays import choose_experts, joined, laid_out, on_cpu, rows_of, to_numpy
from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.routing import leave
from eex.stream.wire.offload import Answers

LONGEST_GATHER = 8
"""Most micro-batches that a group of frames waits for others before its stage runs."""
Pixels = NDArray[np.uint8] | None
"""Images (n, C, H, W), if they are offloaded instead of features."""


@dataclass
class Group:
    """Frames that go to the same stage, sorted by expert.

    Attributes
    ----------
    features
        Input of the stage, (n, ...).
    slots, experts
        Slot and expert of each frame, (n,).
    pixels
        The images, if they are offloaded instead of features.
    waited
        Micro-batches that entered while the group waited.
    """

    features: Any
    slots: Ints
    experts: Ints
    pixels: Pixels = None
    waited: int = 0

    def some(self, chosen: Bools) -> "Group":
        """The chosen frames, (n,)."""
        rows = np.flatnonzero(chosen)
        pixels = None if self.pixels is None else self.pixels[rows]
        return Group(rows_of(self.features, rows), self.slots[rows], self.experts[rows], pixels)


def merged(groups: list[Group]) -> Group:
    """Merge several groups into one."""
    if len(groups) == 1:
        return groups[0]
    parts = [(e, group, slice(a, b)) for group in groups for e, a, b in runs(group.experts)]
    parts.sort(key=lambda part: part[0])
    pixels = [g.pixels[rows] for _, g, rows in parts if g.pixels is not None]
    return Group(
        joined([g.features[rows] for _, g, rows in parts]),
        np.concatenate([g.slots[rows] for _, g, rows in parts]),
        np.concatenate([g.experts[rows] for _, g, rows in parts]),
        np.concatenate(pixels) if pixels else None,
    )


class Queues:
    """Groups that wait for their stages.

    Parameters
    ----------
    edge_exits
        Number of edge stages.
    gather
        Frames that a stage after the first waits for, unless a group has waited for `LONGEST_GATHER` micro-batches.
    """

    def __init__(self, edge_exits: int, gather: int = 0) -> None:
        self.gather = gather
        # by stage, and whether all stages from it on run together; the edge stages first
        self._waiting: dict[tuple[int, bool], list[Group]] = {(i, False): [] for i in range(edge_exits)}

    def put(self, stage: int, group: Group, to_the_end: bool = False) -> None:
        """Let a group wait for a stage, or for all stages from it to the end."""
        group.waited = 0
        self._waiting.setdefault((stage, to_the_end), []).append(group)

    def batch_entered(self) -> None:
        """Note that a micro-batch has entered while these groups wait."""
        for queue in self._waiting.values():
            for group in queue:
                group.waited += 1

    def take(self, force: bool = False) -> tuple[int, bool, Group] | None:
        """The frames of the first stage that enough wait for (with `force`, any), and how they were put."""
        for (stage, to_the_end), queue in self._waiting.items():
            if queue and (force or not stage or self._enough(queue)):
                group = merged(queue)
                queue.clear()
                return stage, to_the_end, group
        return None

    def _enough(self, queue: list[Group]) -> bool:
        most = self.gather
        return not most or sum(len(group.slots) for group in queue) >= most or queue[0].waited >= LONGEST_GATHER


def runs(experts: Ints) -> list[tuple[int, int, int]]:
    """Expert, start and stop of each run of equal experts in a sorted array."""
    if len(experts) == 1 or experts[0] == experts[-1]:
        return [(int(experts[0]), 0, len(experts))]
    bounds = [0, *(np.flatnonzero(np.diff(experts)) + 1).tolist(), len(experts)]
    return [(int(experts[a]), a, b) for a, b in pairwise(bounds)]


def sorted_by_expert(images: Any, slots: Ints, experts: Ints) -> tuple[Any, Ints, Ints]:
    """Sort frames by expert, so that each branch gets its frames in one piece."""
    if len(experts) == 1 or (experts == experts[0]).all():
        return images, slots, experts
    order = np.argsort(experts, kind="stable")
    return rows_of(images, order), slots[order], experts[order]


def select(net: Network, images: Any) -> tuple[Ints, Ints, Floats | None]:
    """What `choose_experts` makes of the distortion classifier's answers to images (B, ...); without a classifier, all
    are pristine and there are no probabilities."""
    if net.classifier is None:
        experts = np.zeros(len(images), dtype=np.int64)
        return experts, experts, None
    return choose_experts(to_numpy(net.classifier(images)), net.abstain_below)


def exit_of(net: Network, i: int, x: Any, experts: Ints) -> tuple[Any, Any]:
    """Confidence and prediction of exit i, (B,) each, by the branch of each frame's expert; sorted by expert."""
    if len(experts) == 1:
        return net.confident(net.branch(i, net.experts[experts[0]], x))
    parts = [net.branch(i, net.experts[e], x[start:stop]) for e, start, stop in runs(experts)]
    return net.confident(joined(parts))


def rest_of(net: Network, stage: int, x: Any, experts: Ints) -> tuple[Any, Any]:
    """Confidence and prediction of the final exit, (B,) each, from the features that go into a stage."""
    for i in range(stage, net.exits):
        x = net.stage(i, x)
    return exit_of(net, net.exits - 1, x, experts)


def decide(confidence: Any, prediction: Any, exit_at: Floats, skip_below: Floats) -> tuple[Floats, Ints, Bools, Bools]:
    """Confidence and prediction of an exit, which frames leave there, and which skip to the cloud, (B,) each.

    Where the thresholds are numbers, those of a single frame, so are all four. On a GPU, all four come back in one
    transfer, so there is one synchronisation per exit.
    """
    if on_cpu(confidence):
        if isinstance(exit_at, float):
            sure = np.float64(confidence.item())
            return sure, prediction.item(), *leave(sure, exit_at, skip_below)
        sure = to_numpy(confidence).astype(float)
        return sure, to_numpy(prediction), *leave(sure, exit_at, skip_below)
    import torch

    confidence = confidence.double()
    at, below = (torch.as_tensor(thresholds, device=confidence.device) for thresholds in (exit_at, skip_below))
    parts = (confidence, prediction, *leave(confidence, at, below))
    columns = torch.stack([part.double() for part in parts]).cpu().numpy()
    sure, index, here, skipped = columns[:, 0] if isinstance(exit_at, float) else columns
    return sure, index.astype(np.int64), here > 0, skipped > 0


def every_exit(net: Network, images: Any, cloud: Answers | None = None) -> tuple[Floats, Ints, Floats | None]:
    """Confidence and prediction of every edge exit and the final exit, and the distortion classifier's probabilities.

    For traces, regret and the accuracy of each exit; policies must not see it.

    Parameters
    ----------
    cloud
        Answers in place of the network's final exit, where another model does.

    Returns
    -------
    confidence, prediction
        (B, edge exits + 1).
    probabilities
        Probability of each expert's distortion, (B, experts); None without a classifier.
    """
    with net.inferring():
        experts, _, probabilities = select(net, images)
        images, order, experts = sorted_by_expert(images, np.arange(len(images)), experts)
        shape = (len(images), net.edge_exits + 1)
        confidence, prediction = np.empty(shape), np.empty(shape, dtype=np.int64)
        x = laid_out(images)
        for i in range(net.edge_exits if cloud is not None else net.exits):
            x = net.stage(i, x)
            if net.edge_exits <= i < net.exits - 1:
                continue  # exits after the partition point are not used
            column = min(i, net.edge_exits)
            sure, index = exit_of(net, i, x, experts)
            confidence[order, column] = to_numpy(sure)
            prediction[order, column] = to_numpy(index)
        if cloud is not None:
            confidence[order, -1], prediction[order, -1] = cloud(images)
    return confidence, prediction, probabilities
