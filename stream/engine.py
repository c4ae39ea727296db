"""The engine: a state machine that turns micro-batches and replies into requests and finished rows.

It never waits and knows neither sockets nor workers. It reads its clock only to timestamp frames. Time and the network
belong to its caller (`eex.stream.driver`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import Network
from eex.models.arrays import joined, laid_out, to_numpy
from eex.policies.core.base import Bools, ExitCost, Ints, Outcomes, Policy, Reward
from eex.policies.core.columns import Rows
from eex.policies.core.exit_cost import parse_exit_cost
from eex.policies.core.price import Price
from eex.policies.core.reward import reward
from eex.policies.core.routing import answer, drop
from eex.policies.core.schedule import KINDS
from eex.stream.frames.batch import Batch
from eex.stream.groups import Group, Queues, decide, exit_of, rest_of, runs, select, sorted_by_expert
from eex.stream.ring import Ring, place_of
from eex.stream.streams import Streams
from eex.stream.wire.encoding import as_input
from eex.stream.wire.offload import Reply

NOBODY: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Request:
    """Frames for the cloud to continue; all frames of a request have the same expert.

    Attributes
    ----------
    stage
        First stage to run, counted from 0.
    expert
        Expert whose branch answers.
    features
        Input of the stage, (n, ...): float32; for stage 0 uint8 pixels of images, or token ids as float32.
    slots
        Slots of the frames in the engine's ring.
    """

    stage: int
    expert: str
    features: NDArray[Any]
    slots: Ints


class Engine:
    """Runs micro-batches through the edge stages; frames finish at an exit or when the reply to their request arrives.

    `feed` takes a batch, and `step` runs one stage. After each step, the caller removes the new entries of `requests`,
    calls `sent` or `refused` for each, and `reply` once a reply to a sent one arrives. Frames under way are rows of a
    ring, so memory stays constant however long the stream is.

    Parameters
    ----------
    net
        The network, usually `eex.models.fast.optimised`; the stages up to its partition point run here.
    policy
        Chooses thresholds for the network's edge exits: a policy of one run, which plays a single stream, or `Streams`.
    whole
        Run the remaining stages here too: there is no cloud. A partition point after the last stage does the same.
    overhead
        Price of offloading a frame, in units of confidence: a number, or a `Price`. The policy chooses by the expected
        price and learns from the price paid. `Streams` bring their own.
    exit_cost
        Price of each edge exit after the first, one for all or one each.
    kind
        What frames earn.
    gather
        Run a stage after the first exit only once this many frames wait for it, or some for `LONGEST_GATHER`
        micro-batches (`eex.stream.groups`). Larger batches make deep stages faster and answers a little later.
    as_input
        Offload the frames themselves instead of features, as `eex.stream.wire.encoding.as_input` makes them: 8-bit
        images (n, C, H, W), or token ids (n, T). All stages then run in the cloud.
    drop_below
        Drop frames instead of offloading them if their confidence at the last visited edge exit is lower. Dropped
        frames are not sent, get no answer, and the policy does not learn from them. Audited frames are not dropped.
        0 drops none.
    kinds
        Number of distortion kinds in the frames' levels.
    capacity
        Maximum number of frames under way.
    first
        Number of the first frame; the policy has learned from all before it.
    clock
        Returns the time in seconds; used to timestamp frames as they enter and leave.
    wall
        Returns the time in seconds since 1970, for the records.

    Raises
    ------
    ValueError
        If the policy is for another number of exits or for several runs.
    """

    def __init__(
        self,
        net: Network,
        policy: Policy | Streams,
        *,
        whole: bool = False,
        overhead: float | Price = 0.1,
        exit_cost: ExitCost = 0.0,
        kind: Reward = "adaee",
        gather: int = 0,
        as_input: bool = False,
        drop_below: float = 0.0,
        kinds: int = len(KINDS),
        capacity: int = 8192,
        first: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.streams = policy if isinstance(policy, Streams) else streams_of(net, policy, overhead, first)
        self.net, self.learners, self.clock, self.wall, self.kind = net, self.streams.learners, clock, wall, kind
        if self.learners.exits != net.edge_exits:
            raise ValueError(f"the policy is for {self.learners.exits} edge exits, the network has {net.edge_exits}")
        self.whole = whole or net.partition == net.exits
        self.learners.count(kind, exit_cost)
        self.exit_cost, self.drop_below, self.as_input = exit_cost, drop_below, as_input
        self.edge_exits = net.edge_exits
        self.ring = Ring(capacity, net.edge_exits + 1, kinds, first)
        self.requests: list[Request] = []
        self.awaited = 0  # frames sent without a reply yet
        self._queues = Queues(net.edge_exits, gather)
        self._finished: list[Ints] = []
        self._left = 0  # how many of them `left` has given
        self.policy_seconds = self.routing_seconds = 0.0

    # ---- in

    def feed(self, batch: Batch, link_ms: float = float("nan"), reachable: bool = True) -> None:
        """Add a micro-batch and let the policy choose its thresholds; `step` runs it.

        The policy sees `link_ms`, the estimated round trip to the cloud (NaN while unknown), and whether a worker is
        believed to be `reachable`.

        Raises
        ------
        ValueError
            If there is no room for it.
        """
        count = len(batch)
        if not self.ring.has_room(count):
            raise ValueError(f"{self.ring.capacity} frames are under way: take the finished ones before feeding more")
        self._queues.batch_entered()
        entered = self.clock()
        with self.net.inferring():
            experts, named, probabilities = select(self.net, batch.images)
            started = self.clock()
            frame, place = self.ring.enter(count)
            slots = frame % self.ring.capacity
            arrived = entered if batch.arrived is None else batch.arrived
            self.ring.write(
                place,
                name=batch.names[0] if count == 1 else batch.names,
                label=batch.labels,
                levels=0.0 if batch.levels is None else batch.levels,
                expert=named,
                entered=arrived,
                captured=arrived + (self.wall() - self.clock()),
            )
            self.routing_seconds += self.clock() - started
            streams = np.zeros(count, dtype=np.int64) if batch.streams is None else batch.streams
            started = self.clock()
            chosen = self.streams.choose(
                streams,
                started,
                exit_cost=self.exit_cost,
                distortion=probabilities,
                queue=self.awaited,
                link_ms=link_ms,
                reachable=reachable,
            )
            self.ring.write(place, **chosen)
            self.policy_seconds += self.clock() - started
            images, slots, experts = sorted_by_expert(batch.images, slots, experts)
            inputs = as_input(to_numpy(images)) if self.as_input and not self.whole else None
            x = laid_out(images)
        self._queues.put(0, Group(x, slots, experts, inputs))

    def step(self, force: bool = False) -> bool:
        """Run the next stage that enough frames wait for (with `force`, any frames); return whether one ran."""
        if (found := self._queues.take(force)) is None:
            return False
        stage, to_the_end, group = found
        with self.net.inferring():
            (self._run_rest if to_the_end else self._run_stage)(stage, group)
        return True

    def sent(self, slots: Ints, bytes: int) -> None:
        """Frames of a request have been sent, in a message of so many bytes; a `reply` will follow."""
        rows = self.ring.rows
        rows.sent[slots] = True
        rows.bytes[slots] = each = bytes / len(slots)
        self.streams.sent(self.ring.source[slots], each)
        self.awaited += len(slots)

    def refused(self, slots: Ints) -> None:
        """Note that frames of a request could not be sent; their most confident edge exit answers."""
        self.streams.released(self.ring.source[slots])
        self._fall_back(slots)

    def _fall_back(self, slots: Ints) -> None:
        rows = self.ring.rows
        rows.fallback[slots] = True
        edge = rows.confidence[slots, :-1]
        self._finish(slots, np.where(np.isnan(edge), -np.inf, edge).argmax(axis=1))

    def reply(self, slots: Ints, reply: Reply) -> None:
        """Process the reply to sent frames; if it failed, their most confident edge exit answers."""
        self.awaited -= len(slots)
        rows, final = self.ring.rows, self.edge_exits
        bytes_each, scarcity = float(rows.bytes[slots[0]]), self.ring.scarcity[slots]
        for of, paid in self.streams.paid(self.ring.source[slots], scarcity, reply.round_trip_ms, bytes_each):
            rows.overhead[slots[of]] = paid
        if reply.failed:
            rows.link_ms[slots] = reply.round_trip_ms  # waited for in vain
            self._fall_back(slots)
            return
        rows.confidence[slots, final] = reply.confidence
        rows.prediction[slots, final] = reply.prediction
        rows.cloud_ms[slots] = reply.compute_ms
        rows.link_ms[slots] = np.maximum(0.0, reply.round_trip_ms - reply.compute_ms)
        self._finish(slots, final)

    # ---- out

    def learn(self) -> None:
        """Work out answers and rewards of the frames that have left, and let the policy learn from them."""
        if not self._finished:
            return
        started = self.clock()
        slots: Ints = joined(self._finished)
        self._finished.clear()
        self._left = 0
        row, at = self.ring.outcomes(slots), place_of(slots)
        c = row["confidence"]
        answers = answer(c, row["prediction"], row["exit"], row["exit_at"][:, -1])
        row["reward"] = earned = reward(c, row["offloaded"], row["sent"], row["overhead"], self.exit_cost, self.kind)
        frozen = self.ring.frozen[at]
        if frozen if len(slots) == 1 else frozen.any():  # what was played is not what the policy chose
            row["reward"] = np.where(frozen, np.nan, earned)
        rank, chosen = self.learners.learn(Outcomes(**row))
        self.ring.write(at, answer=answers, reward=earned, feedback_rank=rank, feedback_at=chosen)
        self.ring.finish(slots)
        self.policy_seconds += self.clock() - started

    def left(self) -> Ints:
        """Slots of the frames that have left since the last call, their `answer` worked out before `learn` does."""
        if self._left == len(self._finished):
            return NOBODY
        slots: Ints = joined(self._finished[self._left :])
        self._left = len(self._finished)
        rows = self.ring.rows
        rows.answer[slots] = answer(
            rows.confidence[slots], rows.prediction[slots], rows.exit[slots], rows.exit_at[slots, -1]
        )
        return slots

    def take(self) -> Iterator[Rows]:
        """Yield the finished frames that are next in order, in a few pieces; each frame is returned once."""
        return self.ring.take()

    # ---- the edge

    def _run_stage(self, i: int, group: Group) -> None:
        """Run edge stage i and its exit on a group, and pass on the frames that do not leave."""
        slots, at = group.slots, place_of(group.slots)
        group.features = self.net.stage(i, group.features)
        confidence, prediction = exit_of(self.net, i, group.features, group.experts)
        started, rows = self.clock(), self.ring.rows
        sure, index, here, skipped = decide(confidence, prediction, rows.exit_at[at, i], rows.skip_below[at, i])
        rows.confidence[at, i] = sure
        rows.prediction[at, i] = index
        alone = len(slots) == 1
        leaving, skipping = (int(here), int(skipped)) if alone else (np.count_nonzero(here), np.count_nonzero(skipped))
        if leaving:
            self._finish(slots if leaving == len(slots) else slots[here], i)
        stays = leaving + skipping < len(slots)
        going = group.some(~(here | skipped)) if stays and leaving + skipping else group
        self.routing_seconds += self.clock() - started
        if skipping:
            self._offload(i + 1, group.some(skipped))
        if stays:
            if i + 1 < self.edge_exits:
                self._queues.put(i + 1, going)
            else:
                self._offload(i + 1, going)

    def _offload(self, stage: int, group: Group) -> None:
        """Request the stages from `stage` on; drop hopeless frames, and keep those beyond the budget on the edge."""
        rows, slots = self.ring.rows, group.slots
        rows.offloaded[slots] = True
        if self.drop_below > 0:
            dropped = drop(rows.confidence[slots, stage - 1], rows.audited[slots], self.drop_below)
            rows.dropped[slots[dropped]] = True
            group = self._keep(group, ~dropped, lambda slots: self._finish(slots, -1))
        group = self._keep(group, self.streams.admits(self.ring.source[group.slots]), self._withhold)
        slots = group.slots
        if not len(slots):
            return
        if self.whole:
            self.streams.sent(self.ring.source[slots], 0.0)
            self._queues.put(stage, group, to_the_end=True)
            return
        rows.edge_ms[slots] = 1000 * (self.clock() - self.ring.entered[slots])
        if group.pixels is None:
            features = to_numpy(group.features)
        else:
            stage, features = 0, group.pixels
        for expert, a, b in runs(group.experts):
            self.requests.append(Request(stage, self.net.experts[expert], features[a:b], slots[a:b]))

    def _keep(self, group: Group, kept: Bools, others: Callable[[Ints], None]) -> Group:
        """The frames of a group that are kept, (n,); the slots of the others are passed on."""
        if kept.all():
            return group
        others(group.slots[~kept])
        return group.some(kept)

    def _withhold(self, slots: Ints) -> None:
        self.ring.rows.edge_ms[slots] = 1000 * (self.clock() - self.ring.entered[slots])
        self._fall_back(slots)

    def _run_rest(self, stage: int, group: Group) -> None:
        """Run the remaining stages here, skipping the exits between them, and answer at the final exit."""
        final, slots, rows = self.edge_exits, group.slots, self.ring.rows
        confidence, prediction = rest_of(self.net, stage, group.features, group.experts)
        rows.confidence[slots, final] = to_numpy(confidence)
        rows.prediction[slots, final] = to_numpy(prediction)
        rows.sent[slots] = True
        self._finish(slots, final)

    def _finish(self, slots: Ints, exit: Ints | int) -> None:
        """Note that frames leave; `learn` works out their answers and rewards together."""
        rows, at = self.ring.rows, place_of(slots)
        now_ms = 1000 * (self.clock() - self.ring.entered[at])
        edge_ms, sent = now_ms, rows.sent[at]
        if not self.whole and (sent if len(slots) == 1 else sent.any()):
            edge_ms = np.where(sent, rows.edge_ms[at], now_ms)[()]
        self.ring.write(at, exit=exit, latency_ms=now_ms, edge_ms=edge_ms)
        self._finished.append(slots)


def exit_cost_of(text: float | str, net: Network) -> ExitCost:
    """The exit cost that was stated, for a network's edge exits: `auto` goes by multiply-adds.

    Raises
    ------
    EexError
        If the network has more or fewer edge exits than there are prices.
    """
    prices = parse_exit_cost(text)
    if not prices.auto:
        return prices.of(net.edge_exits)
    costs = net.costs()
    work = [stage + branch for stage, branch in zip(costs.stage_macs, costs.branch_macs, strict=True)]
    return prices.of(net.edge_exits, work[: net.edge_exits])


def streams_of(net: Network, policy: Policy, overhead: float | Price, first: int = 0) -> Streams:
    """The single stream that a policy plays on a network, from its frame number `first` on.

    Raises
    ------
    ValueError
        If the policy is for another number of exits or for several runs.
    """
    if policy.exits != net.edge_exits or policy.runs != 1:
        made_for, exits = f"{policy.exits} edge exits and {policy.runs} runs", net.edge_exits
        raise ValueError(f"the policy is for {made_for}, the network has {exits} and a stream is one run")
    price = overhead if isinstance(overhead, Price) else Price(per_frame=overhead)
    return Streams.of(policy, price, usual_bytes(net, price), first)


def usual_bytes(net: Network, price: Price) -> float:
    """Bytes of a frame's features at the partition point; 0 for a price that does not depend on them."""
    return float(net.costs().feature_bytes[net.partition - 1]) if price.per_mb or price.budget else 0.0
