"""The engine: runs micro-batches through the edge part of a network, asks the policy, offloads what does not leave."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eex.models.network import EarlyExitNet
from eex.policies.core.base import Bools, Context, Floats, Ints, Outcomes, Policy
from eex.policies.core.price import Meter, Price, parse_price
from eex.policies.core.reward import reward
from eex.policies.core.routing import answer, drop, leave
from eex.stream.wire.encoding import Encoding, encode, pixels
from eex.stream.wire.offload import Offloader, Reply

_REQUESTS = itertools.count(1)  # of all engines: several may use one offloader, one after the other

TAKE_FROM = 1024
"""Frames that are fed before finished ones are summed up and recorded in one go: row by row that costs more."""

LONGEST_GATHER = 8
"""Micro-batches that survivors wait at most for company before the next stage runs."""


@dataclass(frozen=True)
class Rows:
    """Finished frames in the order in which they came in, as columns, one row a frame.

    Exits are counted from 0; the last column of `confidence`, `prediction` and `exit_at` is the final exit's. A frame
    that was `dropped` has exit and answer -1, and counts as offloaded but not as sent. The
    context's `queue`, `link_ms` (here `link_estimate_ms`) and `reachable` that a frame was chosen in, its rank `heard`
    among the frames that the policy was told of, and how many frames had been chosen for by then, `heard_at`, are what
    replay needs to make the same choices (`eex.policies.core.replay.Feedback`).
    """

    frame: Ints
    name: NDArray[np.object_]
    label: Ints
    levels: Floats
    expert: Ints
    arm: Ints
    probability: Floats
    audited: Bools
    queue: Ints
    link_estimate_ms: Floats
    reachable: Bools
    exit_at: Floats
    skip_below: Floats
    confidence: Floats
    prediction: Ints
    exit: Ints
    offloaded: Bools
    sent: Bools
    fallback: Bools
    dropped: Bools
    answer: Ints
    overhead: Floats
    reward: Floats
    heard: Ints
    heard_at: Ints
    bytes: Floats
    edge_ms: Floats
    link_ms: Floats
    cloud_ms: Floats
    latency_ms: Floats

    def __len__(self) -> int:
        return len(self.frame)


_KINDS: dict[str, Any] = {"float": np.float64, "int": np.int64, "bool": np.bool_, "object": np.object_}
_NAN = float("nan")
_COLUMNS: dict[str, tuple[str, Any]] = {  # those of `Rows` and two more: their kind, and the value when a frame enters
    "frame": ("int", -1),
    "name": ("object", ""),
    "label": ("int", -1),
    "levels": ("float", _NAN),
    "expert": ("int", -1),
    "arm": ("int", -1),
    "probability": ("float", _NAN),
    "audited": ("bool", False),
    "queue": ("int", -1),
    "link_estimate_ms": ("float", _NAN),
    "reachable": ("bool", False),
    "exit_at": ("float", _NAN),
    "skip_below": ("float", _NAN),
    "confidence": ("float", _NAN),
    "prediction": ("int", -1),
    "exit": ("int", -1),
    "offloaded": ("bool", False),
    "sent": ("bool", False),
    "fallback": ("bool", False),
    "dropped": ("bool", False),
    "answer": ("int", -1),
    "overhead": ("float", _NAN),
    "reward": ("float", _NAN),
    "heard": ("int", -1),
    "heard_at": ("int", -1),
    "bytes": ("float", 0.0),
    "edge_ms": ("float", _NAN),
    "link_ms": ("float", 0.0),
    "cloud_ms": ("float", 0.0),
    "latency_ms": ("float", _NAN),
    "entered": ("float", _NAN),  # in seconds
    "scarcity": ("float", 0.0),  # the budget's part of the price when the frame was chosen for
}


class _Table:
    """Rows of frames under way. Columns of one type lie side by side, so that a frame's row is reset, or read, in a few
    steps: where frames come singly, what a call of numpy costs counts."""

    def __init__(self, count: int, exits: int, kinds: int) -> None:
        widths = {"levels": kinds, "exit_at": exits, "skip_below": exits - 1, "confidence": exits, "prediction": exits}
        end = dict.fromkeys(_KINDS, 0)
        self.place: dict[str, tuple[str, int | slice]] = {}  # of a column: which part, and where in it
        for name, (kind, _) in _COLUMNS.items():
            start, end[kind] = end[kind], end[kind] + widths.get(name, 1)
            self.place[name] = kind, slice(start, end[kind]) if name in widths else start
        self.parts: dict[str, NDArray[Any]] = {k: np.empty((count, end[k]), dtype) for k, dtype in _KINDS.items()}
        self.fresh: dict[str, NDArray[Any]] = {k: np.empty(end[k], dtype) for k, dtype in _KINDS.items()}
        for name, (kind, value) in _COLUMNS.items():
            self.fresh[kind][self.place[name][1]] = value
        self.reset(slice(None))

    def reset(self, slots: Ints | slice) -> None:
        """Make rows what they are when a frame enters."""
        for kind, values in self.fresh.items():
            self.parts[kind][slots] = values

    def columns(self, slots: Ints | slice) -> dict[str, Any]:
        """The columns of some rows by name; views of the table where `slots` is a slice."""
        parts = {kind: values[slots] for kind, values in self.parts.items()}
        return {name: parts[kind][:, at] for name, (kind, at) in self.place.items()}


class Engine:
    """Feeds micro-batches to the edge stages; frames leave at exits, or go to the cloud and are answered when it
    replies.

    Frames under way live in a ring of rows, so memory stays constant however long the stream is.

    Parameters
    ----------
    net
        The network, usually `eex.models.fast.optimised`; stages up to its partition point run here.
    policy
        Chooses thresholds for the network's edge exits, with `runs` = 1.
    offloader
        Takes what does not leave on the edge; None runs the remaining stages here too, as does a partition point behind
        the last stage.
    overhead
        Price of offloading a frame, in units of confidence: a number, or what it is made of. The policy chooses by the
        price that is expected, and is told the one that was paid.
    exit_cost
        Price of each further edge exit.
    gather
        Run a stage behind the first exit only once so many survivors wait for it (or they have waited for
        `LONGEST_GATHER` micro-batches): deep stages are faster in company, and answers a little later. 0 never waits.
    send
        How frames are sent to the cloud; by default the features as they are.
    drop_below
        Frames meant for the cloud whose confidence at the last edge exit they visited is lower are dropped instead:
        nobody answers them, nothing is sent, and they teach the policy nothing. Audited ones are not. 0 drops none.
    kinds
        How many kinds of distortion the frames' levels tell of.
    capacity
        Frames under way at most; feeding more waits for the oldest.
    first
        Number of the first frame; the policy was told of all before it.

    Raises
    ------
    ValueError
        If the policy is for another number of exits or for several runs.
    """

    def __init__(
        self,
        net: EarlyExitNet,
        policy: Policy,
        offloader: Offloader | None = None,
        *,
        overhead: float | Price = 0.1,
        exit_cost: float = 0.0,
        gather: int = 0,
        send: Encoding | None = None,
        drop_below: float = 0.0,
        kinds: int = 2,
        capacity: int = 8192,
        first: int = 0,
    ) -> None:
        if policy.exits != net.edge_exits or policy.runs != 1:
            raise ValueError(
                f"the policy is for {policy.exits} edge exits and {policy.runs} runs, the network has "
                f"{net.edge_exits} and a stream is one run"
            )
        if net.partition == net.exits:
            offloader = None
        self.net, self.policy, self.offloader = net, policy, offloader
        price = overhead if isinstance(overhead, Price) else parse_price(overhead)
        self.meter = Meter(price, bytes=_usual_bytes(net) if price.per_mb or price.budget else 0.0)
        self.exit_cost, self.gather, self.capacity = exit_cost, gather, capacity
        self.drop_below = drop_below
        self.send = None if offloader is None else send
        self.edge_exits = net.edge_exits
        self.device = net.mean.device
        self.on_cpu = self.device.type == "cpu"
        self.head = self.next = first  # oldest frame not yet taken; number of the next one
        self.heard = first  # frames that the policy was told of
        self._table = _Table(capacity, net.edge_exits + 1, kinds)
        columns = self._table.columns(slice(None))
        self._entered, self._scarcity = columns.pop("entered"), columns.pop("scarcity")
        self._ring = Rows(**columns)
        self._done = np.zeros(capacity, dtype=bool)
        self._queues: list[list[_Group]] = [[] for _ in range(net.exits)]
        self._tails: dict[int, list[_Group]] = {}
        self._awaited: dict[int, Ints] = {}  # request id: slots
        self._finished: list[Ints] = []
        self._aside: list[Rows] = []  # finished while `feed` waited for room
        self.policy_seconds = self.routing_seconds = 0.0

    # ---- in

    def feed(self, images: Tensor, names: Sequence[str], labels: Ints, levels: Floats) -> None:
        """Take in one micro-batch, run what can run, and send off what does not leave.

        Parameters
        ----------
        images
            (B, C, H, W) in [0, 1], on the network's device, distorted as they are to be seen.
        names, labels, levels
            Of each frame, for the records: (B,), (B,) with -1 for unknown, (B, kinds).
        """
        count = len(images)
        if count > self.capacity // 2:
            raise ValueError(f"a micro-batch may hold {self.capacity // 2} frames at most, got {count}")
        if self.next + count - self.head > self.capacity and (self._aside or self._takeable()):
            raise ValueError(f"{self.capacity} frames are under way: take the finished ones before feeding more")
        while self.next + count - self.head > self.capacity:
            with torch.inference_mode():
                self._pump(force=True)
            self.poll(timeout_ms=50)
            self._aside += self._take_from_ring()
        entered = time.perf_counter()
        frame = np.arange(self.next, self.next + count)
        slots = frame % self.capacity
        self.next += count
        with torch.inference_mode():
            experts, probabilities = _select(self.net, images)
            started = time.perf_counter()
            place = slice(slots[0], slots[-1] + 1) if slots[0] <= slots[-1] else slots  # a slice is written sooner
            self._enter(place, frame, names, labels, levels, experts, entered)
            self.routing_seconds += time.perf_counter() - started
            self._choose(frame, place, probabilities)
            images, slots, experts = _sorted_by_expert(images, slots, experts)
            inputs = None
            if self.send is not None and self.send.kind == "input":
                inputs = pixels(images.float().cpu().numpy())
            self._run_stage(0, images.contiguous(memory_format=torch.channels_last), slots, experts, inputs)
            self._pump(force=False)
        self.poll()

    def poll(self, timeout_ms: float = 0.0) -> None:
        """Take in replies that have come, waiting up to `timeout_ms` for the first, and let the policy learn."""
        if self.offloader is not None:
            for reply in self.offloader.poll(timeout_ms):
                self._take_reply(reply)
        self._learn()

    def drain(self) -> None:
        """Run and await everything that is under way; each frame has its answer afterwards."""
        with torch.inference_mode():
            self._pump(force=True)
        while self._awaited:
            self.poll(timeout_ms=50)
        self._learn()

    # ---- out

    def take(self) -> Iterator[Rows]:
        """Finished frames that are next in order, in a few pieces; each frame is given once."""
        while self._aside:
            yield self._aside.pop(0)
        yield from self._take_from_ring()

    def _take_from_ring(self) -> Iterator[Rows]:
        while ready := self._takeable():
            start = self.head % self.capacity
            stop = min(start + ready, self.capacity)
            columns = self._table.columns(np.arange(start, stop))
            rows = Rows(**{f.name: columns[f.name] for f in fields(Rows)})
            self._done[start:stop] = False
            self.head += stop - start
            yield rows

    @property
    def under_way(self) -> int:
        """Frames fed and not yet taken."""
        return self.next - self.head + sum(map(len, self._aside))

    @property
    def worth_taking(self) -> bool:
        """Whether so many frames were fed since the last were taken that taking them in one go pays."""
        return self.next - self.head >= TAKE_FROM

    def _takeable(self) -> int:
        """How many frames from the oldest on are finished."""
        ahead = self._done[np.arange(self.head, self.next) % self.capacity]
        return int(ahead.argmin()) if not ahead.all() else len(ahead)

    # ---- the edge

    def _choose(self, frame: Ints, slots: Ints | slice, probabilities: Floats | None) -> None:
        started = time.perf_counter()
        link_ms = float("nan") if self.offloader is None else self.offloader.link_ms
        queue = sum(map(len, self._awaited.values()))
        reachable = self.offloader is None or self.offloader.reachable
        self.meter.arrive(started, len(frame))
        overhead = self.meter.expected(link_ms)
        context = Context(
            frames=len(frame),
            first=int(frame[0]),
            overhead=overhead,
            exit_cost=self.exit_cost,
            distortion=None if probabilities is None else probabilities[None],
            queue=queue,
            link_ms=link_ms,
            reachable=reachable,
        )
        chosen = self.policy.choose(context)
        ring = self._ring
        ring.exit_at[slots] = chosen.exit_at[0]
        ring.skip_below[slots] = chosen.skip_below[0]
        ring.arm[slots] = chosen.arm[0]
        ring.probability[slots] = chosen.probability[0]
        ring.audited[slots] = chosen.audited[0]
        ring.queue[slots] = queue
        ring.link_estimate_ms[slots] = link_ms
        ring.reachable[slots] = reachable
        ring.overhead[slots] = overhead
        self._scarcity[slots] = self.meter.scarcity
        self.policy_seconds += time.perf_counter() - started

    def _enter(
        self,
        slots: Ints | slice,
        frame: Ints,
        names: Sequence[str],
        labels: Ints,
        levels: Floats,
        experts: Ints,
        entered: float,
    ) -> None:
        ring = self._ring
        self._table.reset(slots)
        ring.frame[slots] = frame
        ring.name[slots] = names
        ring.label[slots] = labels
        ring.levels[slots] = levels
        ring.expert[slots] = experts
        self._entered[slots] = entered

    def _run_stage(self, i: int, x: Tensor, slots: Ints, experts: Ints, inputs: "_Pixels" = None) -> None:
        """Run edge stage i and its exit on some frames, and pass on those that do not leave."""
        x = self.net.stage(i, x)
        confidence, prediction = self.net.confident(_logits(self.net, i, x, experts))
        started = time.perf_counter()
        ring = self._ring
        exit_at, skip_below = ring.exit_at[slots, i], ring.skip_below[slots, i]
        if self.on_cpu:
            told, index = confidence.numpy().astype(float), prediction.numpy()
            here, sent = leave(told, exit_at, skip_below)
        else:
            confidence = confidence.double()
            at, below = (torch.from_numpy(t).to(self.device) for t in (exit_at, skip_below))
            answered, skipped = leave(confidence, at, below)
            # one transfer, so that the GPU is waited for once an exit
            columns = torch.stack([confidence, *(c.double() for c in (prediction, answered, skipped))]).cpu().numpy()
            told, index, here, sent = columns[0], columns[1].astype(np.int64), columns[2] > 0, columns[3] > 0
        ring.confidence[slots, i] = told
        ring.prediction[slots, i] = index
        group = _Group(x, slots, experts, inputs)
        leaving, skipping = np.count_nonzero(here), np.count_nonzero(sent)
        if leaving:
            self._finish(slots if leaving == len(slots) else slots[here], i)
        going = group.some(~(here | sent)) if 0 < leaving + skipping < len(slots) else group
        self.routing_seconds += time.perf_counter() - started
        if skipping:
            self._offload(i + 1, group.some(sent))
        if leaving + skipping < len(slots):
            if i + 1 < self.edge_exits:
                self._queues[i + 1].append(going)
            else:
                self._offload(i + 1, going)

    def _pump(self, force: bool) -> None:
        """Run the stages behind the first exit for which enough frames wait."""
        for i in range(1, self.edge_exits):
            queue = self._queues[i]
            if _ready(queue, self.gather, force):
                group = _merged(queue)
                queue.clear()
                self._run_stage(i, group.features, group.slots, group.experts, group.inputs)
        for stage, queue in self._tails.items():
            if _ready(queue, self.gather, force):
                group = _merged(queue)
                queue.clear()
                self._run_tail(stage, group)

    # ---- the cloud

    def _offload(self, stage: int, group: "_Group") -> None:
        """Send frames on to the stages that do not run here; each message holds frames of one expert.

        Where the frames' own pixels are given, those are sent instead of the features, for all stages to run there.
        """
        ring, slots = self._ring, group.slots
        ring.offloaded[slots] = True
        if self.drop_below > 0:
            dropped = drop(ring.confidence[slots, stage - 1], ring.audited[slots], self.drop_below)
            if dropped.any():
                ring.dropped[slots[dropped]] = True
                self._finish(slots[dropped], -1)
                if dropped.all():
                    return
                group = group.some(~dropped)
                slots = group.slots
        if (admitted := self.meter.admits(len(slots))) < len(slots):
            ring.edge_ms[slots[admitted:]] = 1000 * (time.perf_counter() - self._entered[slots[admitted:]])
            self._fall_back(slots[admitted:])
            if not admitted:
                return
            group = group.some(np.arange(len(slots)) < admitted)
            slots = group.slots
        if self.offloader is None:
            self.meter.sent(len(slots), 0.0)
            self._tails.setdefault(stage, []).append(group)
            return
        if group.inputs is None:
            features = group.features.contiguous().cpu().numpy()
        else:
            stage, features = 0, group.inputs
        most = max(1, self.offloader.max_bytes // (4 * features[0].size))  # frames a message may hold, as float32
        for expert, start, stop in _runs(group.experts):
            for k in range(start, stop, most):
                end = min(k + most, stop)
                self._submit(stage, self.net.experts[expert], features[k:end], slots[k:end])

    def _submit(self, stage: int, expert: str, features: NDArray[Any], slots: Ints) -> None:
        offloader = self.offloader
        assert offloader is not None
        now = time.perf_counter()
        self._ring.edge_ms[slots] = 1000 * (now - self._entered[slots])
        bytes_before = offloader.bytes_sent
        request = next(_REQUESTS)
        sent, fits = False, 4 * features.size <= offloader.max_bytes
        payload = features if self.send is None else encode(features, self.send)
        while fits and not (sent := offloader.submit(request, stage, expert, payload)):
            if not (offloader.outstanding and offloader.reachable):  # a full window empties by itself
                break
            for reply in offloader.poll(10):
                self._take_reply(reply)
        if sent:
            self._ring.sent[slots] = True
            bytes = offloader.bytes_sent - bytes_before
            self._ring.bytes[slots] = bytes / len(slots)
            self.meter.sent(len(slots), bytes)
            self._awaited[request] = slots
        else:
            self._fall_back(slots)

    def _take_reply(self, reply: Reply) -> None:
        slots = self._awaited.pop(reply.id, None)
        if slots is None:
            return
        ring, final = self._ring, self.edge_exits
        if not self.meter.price.constant:
            bytes = float(ring.bytes[slots[0]])
            ring.overhead[slots] = self.meter.paid(self._scarcity[slots], reply.round_trip_ms, bytes)
        if reply.failed:
            ring.link_ms[slots] = reply.round_trip_ms  # waited for in vain
            self._fall_back(slots)
            return
        ring.confidence[slots, final] = reply.confidence
        ring.prediction[slots, final] = reply.prediction
        ring.cloud_ms[slots] = reply.compute_ms
        ring.link_ms[slots] = np.maximum(0.0, reply.round_trip_ms - reply.compute_ms)
        self._finish(slots, final)

    def _fall_back(self, slots: Ints) -> None:
        """Answer frames that got no reply at their most confident edge exit."""
        ring = self._ring
        ring.fallback[slots] = True
        edge = ring.confidence[slots, :-1]
        self._finish(slots, np.where(np.isnan(edge), -np.inf, edge).argmax(axis=1))

    def _run_tail(self, stage: int, group: "_Group") -> None:
        """Run the remaining stages here, past the exits between, and answer at the final exit."""
        x, final = group.features, self.edge_exits
        for i in range(stage, self.net.exits):
            x = self.net.stage(i, x)
        confidence, prediction = self.net.confident(_logits(self.net, self.net.exits - 1, x, group.experts))
        self._ring.confidence[group.slots, final] = confidence.cpu().numpy()
        self._ring.prediction[group.slots, final] = prediction.cpu().numpy()
        self._ring.sent[group.slots] = True
        self._finish(group.slots, final)

    # ---- answers

    def _finish(self, slots: Ints, exit: Ints | int) -> None:
        """Note that frames leave; what follows from it is worked out for all of them at once, in `_learn`."""
        ring = self._ring
        now_ms = 1000 * (time.perf_counter() - self._entered[slots])
        ring.exit[slots] = exit
        ring.latency_ms[slots] = now_ms
        if self.offloader is None:
            ring.edge_ms[slots] = now_ms
        else:
            ring.edge_ms[slots] = np.where(ring.sent[slots], ring.edge_ms[slots], now_ms)
        self._finished.append(slots)

    def _learn(self) -> None:
        """Give the frames that have finished their answers and rewards, and tell the policy."""
        if not self._finished:
            return
        started = time.perf_counter()
        slots = np.concatenate(self._finished)
        self._finished.clear()
        ring = self._ring
        row = self._table.columns(slots)
        c = row["confidence"]
        ring.answer[slots] = answer(c, row["prediction"], row["exit"], row["exit_at"][:, -1])
        row["reward"] = reward(c, row["offloaded"], row["sent"], row["overhead"], self.exit_cost)
        ring.reward[slots] = row["reward"]
        self.policy.learn(Outcomes(run=np.zeros(len(slots), dtype=np.int64), **{name: row[name] for name in _TOLD}))
        ring.heard[slots] = np.arange(self.heard, self.heard + len(slots))
        ring.heard_at[slots] = self.next
        self.heard += len(slots)
        self._done[slots] = True
        self.policy_seconds += time.perf_counter() - started


def _usual_bytes(net: EarlyExitNet) -> float:
    """What a frame's features take that goes on from the partition point."""
    return float(net.costs().feature_bytes[net.partition - 1])


_Pixels = NDArray[np.uint8] | None  # of frames, (n, C, H, W)

_TOLD = tuple(f.name for f in fields(Outcomes) if f.name != "run")


@dataclass
class _Group:
    """Frames that go to the same stage; those of one expert are side by side, lower experts first."""

    features: Tensor
    slots: Ints
    experts: Ints
    inputs: "_Pixels" = None  # where they are what is sent
    waited: int = 0

    def some(self, chosen: Bools) -> "_Group":
        """Those of the frames that are chosen, (n,)."""
        rows = np.flatnonzero(chosen)
        inputs = None if self.inputs is None else self.inputs[rows]
        return _Group(_rows(self.features, rows), self.slots[rows], self.experts[rows], inputs)


def _rows(x: Tensor, rows: Ints) -> Tensor:
    """Some frames of a batch; feature maps (B, C, H, W) are copied as they lie, channels last: that is faster."""
    index = torch.from_numpy(rows).to(x.device)
    if x.dim() != 4:
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _ready(queue: list[_Group], gather: int, force: bool) -> bool:
    if not queue:
        return False
    for group in queue:
        group.waited += 1
    return force or sum(len(g.slots) for g in queue) >= gather or queue[0].waited > LONGEST_GATHER


def _merged(queue: list[_Group]) -> _Group:
    if len(queue) == 1:
        return queue[0]
    parts = [(e, group, slice(a, b)) for group in queue for e, a, b in _runs(group.experts)]
    parts.sort(key=lambda part: part[0])
    return _Group(
        torch.cat([g.features[rows] for _, g, rows in parts]),
        np.concatenate([g.slots[rows] for _, g, rows in parts]),
        np.concatenate([g.experts[rows] for _, g, rows in parts]),
        None
        if queue[0].inputs is None
        else np.concatenate([g.inputs[rows] for _, g, rows in parts if g.inputs is not None]),
    )


def _runs(experts: Ints) -> list[tuple[int, int, int]]:
    """Expert, start and stop of each run of the same expert in what is sorted by expert."""
    if experts[0] == experts[-1]:
        return [(int(experts[0]), 0, len(experts))]
    bounds = [0, *(np.flatnonzero(np.diff(experts)) + 1).tolist(), len(experts)]
    return [(int(experts[a]), a, b) for a, b in pairwise(bounds)]


def _logits(net: EarlyExitNet, i: int, x: Tensor, experts: Ints) -> Tensor:
    """What its expert's branch at exit i says of each frame, (B, classes); frames are sorted by expert."""
    parts = [net.branch(i, net.experts[e], x[start:stop]) for e, start, stop in _runs(experts)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sorted_by_expert(images: Tensor, slots: Ints, experts: Ints) -> tuple[Tensor, Ints, Ints]:
    """The frames of each expert side by side, so that its branch takes them in one piece."""
    if (experts == experts[0]).all():
        return images, slots, experts
    order = np.argsort(experts, kind="stable")
    return images.index_select(0, torch.from_numpy(order).to(images.device)), slots[order], experts[order]


def _select(net: EarlyExitNet, images: Tensor) -> tuple[Ints, Floats | None]:
    """Which expert looks at each frame, (B,), and the distortion classifier's probabilities, (B, experts)."""
    if net.classifier is None:
        return np.zeros(len(images), dtype=np.int64), None
    logits = net.classifier(images).float().cpu().numpy().astype(float)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits.argmax(axis=1), odds / odds.sum(axis=1, keepdims=True)


@torch.inference_mode()
def every_exit(net: EarlyExitNet, images: Tensor) -> tuple[Floats, Ints, Floats | None]:
    """What every edge exit and the final exit would say of each image, and the distortion classifier before them.

    This is what no policy may see: it is for traces, for regret and for the figures by exit.

    Returns
    -------
    confidence, prediction
        (B, edge exits + 1).
    probabilities
        Of each expert's distortion, (B, experts); None without a classifier.
    """
    experts, probabilities = _select(net, images)
    images, order, experts = _sorted_by_expert(images, np.arange(len(images)), experts)
    shape = (len(images), net.edge_exits + 1)
    confidence, prediction = np.empty(shape), np.empty(shape, dtype=np.int64)
    x = images.contiguous(memory_format=torch.channels_last)
    for i in range(net.exits):
        x = net.stage(i, x)
        if net.edge_exits <= i < net.exits - 1:
            continue  # an exit behind the partition point: nobody asks it
        column = min(i, net.edge_exits)
        told, index = net.confident(_logits(net, i, x, experts))
        confidence[order, column] = told.cpu().numpy()
        prediction[order, column] = index.cpu().numpy()
    return confidence, prediction, probabilities
