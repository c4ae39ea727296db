"""The engine of a session: streams enter and leave it, and their frames are run, answered and summed up."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.core.aims import parse_aims
from eex.policies.core.base import Ints, Policy
from eex.policies.core.errors import EexError
from eex.policies.core.price import parse_price
from eex.policies.registry import make_policy
from eex.policies.wrappers.aim import aims_of, keeping
from eex.stream.live import learning
from eex.stream.live.answers import Answer, iso
from eex.stream.live.arrivals import Queue, Waiting
from eex.stream.live.config import LiveConfig, StreamOptions
from eex.stream.live.labels import Labelled, Labels
from eex.stream.live.outbox import Outbox

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.run.tally import Tally
    from eex.stream.wire.encoding import Encoding
    from eex.stream.wire.offload import Offloader

CAPACITY = 8192
"""Frames under way, at most."""


class Stream:
    """One stream of a session.

    Attributes
    ----------
    queue
        What waits to be run.
    number
        In the engine's `Streams`; -1 until its first frame is run.
    under_way
        Frames in the engine.
    answered, refused
        Frames so far; refusals by reason.
    """

    def __init__(self, name: str, options: StreamOptions, config: LiveConfig) -> None:
        self.queue = Queue(name, extra=self)
        self.number, self.under_way = -1, 0
        self.latest = -math.inf
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self.tally: Tally | None = None  # from its first finished frames on
        self.aims: list[dict[str, Any]] = []  # what came of its wishes, as last looked at
        self.problem = ""
        self.set(options, config)

    def set(self, options: StreamOptions, config: LiveConfig) -> None:
        """Change the options."""
        self.options = options
        keep = options.keep or config.keep
        self.queue.keep = "all" if keep == "auto" else keep
        self.queue.most = options.queue or config.queue


class Playing:
    """Runs the frames of a session's streams; all of it is for the session's thread.

    Parameters
    ----------
    streams
        The open ones, by name.
    outbox
        Gets the answers.
    note
        Receives a line for what cannot be taken up, recorded or saved.

    Attributes
    ----------
    driver, engine_streams
        The engine with its waiting, and its streams with their learners.
    sharing
        Their part in a fleet; None if they share nothing.
    totals, kept
        What finished frames come to, and what closed streams have learned.
    labels
        Takes true labels that come later; None while nobody gives any.
    """

    def __init__(
        self,
        config: LiveConfig,
        net: "Network",
        offloader: "Offloader",
        encoding: "Encoding | None",
        streams: Mapping[str, Stream],
        outbox: Outbox,
        note: Callable[[str], None],
    ) -> None:
        from eex.stream.driver import Driver
        from eex.stream.engine import exit_cost_of, usual_bytes
        from eex.stream.live.totals import Totals
        from eex.stream.run.estimates import write_priced
        from eex.stream.run.records import RecordWriter
        from eex.stream.sharing import Sharing
        from eex.stream.streams import Streams

        self.config, self.net, self.offloader, self._note = config, net, offloader, note
        self._streams, self._outbox = streams, outbox
        price, make = config.price(), partial(policy_for, config, net.edge_exits)
        self.engine_streams = Streams(make, price, usual_bytes(net, price), config.learn == "shared")
        self._deadlines_ms: dict[int, float] = {}
        exit_cost = exit_cost_of(config.exit_cost, net)
        self.driver = Driver(
            net,
            self.engine_streams,
            offloader,
            send=encoding,
            waits=False,
            deadlines_ms=self._deadlines_ms,
            left=self.answer,
            exit_cost=exit_cost,
            kind=config.reward,
            gather=config.gather,
            drop_below=config.drop_below,
            capacity=max(CAPACITY, 4 * config.batch),
        )
        learners = self.engine_streams.learners
        images = encoding is not None and encoding.kind == "input"
        share = partial(Sharing, learners, offloader, config.policy, note, config.state, images=images)
        self.sharing = share() if config.share else None
        self._ring = self.driver.engine.ring
        self._under_way: list[Waiting | None] = [None] * self._ring.capacity  # by slot
        self.labels: Labels | None = None
        self._cut_off = False  # from all workers
        records = RecordWriter(config.records, net.classes, net.experts) if config.records else None
        self.totals = Totals(net.edge_exits + 1, records, config.retention(), note)
        if config.records is not None:  # what the rewards in the records count, for whoever reads them
            try:
                write_priced(config.records, config.reward, exit_cost)
            except EexError as error:  # on a full disk, frames are answered all the same
                note(str(error))
        made_for = {
            "policy": ":".join([config.policy, *config.policy_option]),
            "reward": config.reward,
            "edge exits": net.edge_exits,
            "network": net.fingerprint,
            "learners": config.learn,
            "aim": "; ".join(aim.text for aim in parse_aims(config.aim)) or None,
        }
        self.kept = learning.Kept(config.state, made_for, note)
        if config.learn == "shared" and "" in self.kept.learned:
            first, state = self.kept.learned.pop("")
            try:
                self.engine_streams.learners.set_state(0, state, first)
            except ValueError as error:
                note(f"the streams learn anew; what they had learned does not fit: {error}")

    # ---- frames

    @property
    def room(self) -> int:
        """Frames that the engine can take now."""
        return self._ring.capacity - (self._ring.next - self._ring.head)

    def feed(self, batch: list[Waiting]) -> None:
        """Run frames together."""
        from eex.stream.frames.batch import Batch

        first, capacity = self._ring.next, self._ring.capacity
        numbers = np.empty(len(batch), dtype=np.int64)
        for k, frame in enumerate(batch):
            self._under_way[(first + k) % capacity] = frame
            its = self._streams[frame.stream]
            if its.number < 0:
                self._enter(its)
            its.under_way += 1
            numbers[k] = its.number
        stacked = np.concatenate([frame.image for frame in batch])  # np.stack takes twice as long
        stacked = stacked.reshape(len(batch), -1, *batch[0].image.shape[1:]).transpose(0, 3, 1, 2)
        self.driver.feed(
            Batch(
                self.net.array(np.divide(stacked, 255, dtype=np.float32, order="C")),
                [frame.name for frame in batch],
                np.array([frame.label for frame in batch]),
                streams=numbers,
                arrived=np.array([frame.since for frame in batch]),
            )
        )

    def answer(self, slots: Ints) -> None:
        """Give frames their answers."""
        rows, net = self._ring.rows, self.net
        exit, best = rows.exit[slots], rows.answer[slots]
        sure = rows.confidence[slots, exit]
        other = (rows.prediction[slots, exit] != best) | np.isnan(sure)  # another exit answered, or none
        if other.any():
            agree = rows.prediction[slots[other]] == best[other, None]
            sure[other] = np.fmax.reduce(np.where(agree, rows.confidence[slots[other]], 0.0), axis=1)
        columns = (exit, best, sure, rows.fallback[slots], rows.latency_ms[slots])
        cloud = net.edge_exits if not self.driver.engine.whole else -1
        classes, given, labels, numbers = net.classes, [], self.labels, rows.frame
        for slot, e, index, c, fallback, ms in zip(
            slots.tolist(), *(column.tolist() for column in columns), strict=True
        ):
            frame = self._under_way[slot]
            assert frame is not None
            its = self._streams[frame.stream]
            its.under_way -= 1
            its.answered += 1
            if labels is not None:
                labels.answered(frame.stream, frame.frame, int(numbers[slot]), index, frame.label)
            answer = Answer(
                stream=frame.stream,
                frame=frame.frame,
                name=frame.name,
                label=classes[index] if index >= 0 else "",
                index=index,
                confidence=c,
                exit=e + 1,
                where="cloud" if e == cloud else "edge",
                fallback=fallback,
                latency_ms=ms,
                captured=iso(frame.captured),
            )
            given.append((frame.future, answer))
        self._outbox.give(given)
        for slot in slots.tolist():  # only now: whatever goes wrong before, `abandon` knows the frame
            self._under_way[slot] = None

    def abandon(self) -> list[Waiting]:
        """Give up on what is under way: the frames that have no answer."""
        left = [frame for frame in self._under_way if frame is not None]
        self._under_way = [None] * len(self._under_way)
        return left

    def record_what_is_left(self) -> None:
        """After a failure, record the finished frames before the first that is not, and let the records go."""
        for last in (self.sum_up, self.totals.close):
            try:
                last()
            except Exception as error:  # whatever it is, the session has failed already
                self._note(f"not all that was answered is recorded: {error}")

    def sum_up(self) -> None:
        """Sum up and record the frames that have left the engine."""
        for rows in self.driver.take():
            self.totals.add(rows, lambda name: self._tally_of(self._streams[name]))
        self.totals.prune()
        self._look_at_workers()
        if self.config.aim:
            for its in tuple(self._streams.values()):
                self._look_at_wishes(its)

    def _look_at_workers(self) -> None:
        """Note when no worker can be reached any more, and when one is again."""
        before, workers = self._cut_off, self.offloader.report().get("workers", ())
        self._cut_off = bool(workers) and not self.offloader.reachable
        if self._cut_off and not before:
            why = "; ".join(f"{worker['endpoint']}: {worker['state']}" for worker in workers)
            self._note(f"no worker can be reached ({why}); frames are answered on the edge until one is")
        elif before and not self._cut_off:
            self._note("a worker is reached again")

    def _look_at_wishes(self, its: Stream) -> None:
        """See what came of a stream's wishes; note when one cannot be kept any more."""
        if its.number < 0:
            return
        learners = self.engine_streams.learners
        keeper = aims_of(learners.place_of(int(self.engine_streams.learner[its.number]))[0])
        if keeper is None:
            return
        before, its.problem, its.aims = its.problem, keeper.problems(), keeper.report()
        if its.problem and not before:
            self._note(f"stream '{its.queue.name}': {its.problem}")

    def _tally_of(self, its: Stream) -> "Tally":
        from eex.stream.run.tally import Tally

        if its.tally is None:
            its.tally = Tally(self.net.edge_exits + 1, curves=False)
        return its.tally

    def relabel(self, its: Stream | None, given: Labelled) -> None:
        """Count the true label of a frame of a stream, open or closed, in the place of the one that it had."""
        for tally in (self.totals.all, *(() if its is None else (self._tally_of(its),))):
            tally.relabel(given.before, given.label, given.answer)

    def finish(self) -> None:
        """Finish what is under way."""
        self.driver.drain()
        self.sum_up()
        self.totals.close()
        if self.sharing is not None:
            self.sharing.finish()

    # ---- streams

    def _enter(self, its: Stream) -> None:
        """Enter a stream into the engine, with what it learned before."""
        first, state = self.kept.learned.get(its.queue.name, (0, None))
        try:
            its.number = self.engine_streams.add(its.queue.name, None, state, first)
        except ValueError as error:
            self._note(f"stream '{its.queue.name}' learns anew; what it had learned does not fit: {error}")
            its.number = self.engine_streams.add(its.queue.name)
        self.kept.learned.pop(its.queue.name, None)
        self.apply(its)

    def apply(self, its: Stream) -> None:
        """Let a stream's options count from its next frame on."""
        if its.number < 0:
            return
        options = its.options
        price = None if options.overhead is None else parse_price(options.overhead)
        if price != self.engine_streams.price_of(its.number):
            self.engine_streams.set_price(its.number, price)
        self._deadlines_ms.pop(its.number, None)
        if options.deadline_ms is not None:
            self._deadlines_ms[its.number] = options.deadline_ms
        frozen, number = self.engine_streams.frozen, its.number
        if isinstance(options.thresholds, tuple):
            exit_at = np.array([*options.thresholds, 0.0])
            frozen[number] = exit_at, np.zeros(len(exit_at) - 1)
        elif options.thresholds == "frozen":
            frozen.setdefault(number, None)
        else:
            frozen.pop(number, None)

    def leave(self, its: Stream) -> bool:
        """Let a stream leave the engine if all its frames have; what it learned is kept. Whether it has left."""
        if its.under_way:
            return False
        if its.number < 0:
            return True
        in_ring = np.arange(self._ring.head, self._ring.next) % self._ring.capacity
        if (self._ring.source[in_ring] == its.number).any():
            return False
        if self.config.aim:
            self._look_at_wishes(its)
        if self.config.learn == "each":
            self.kept.put(its.queue.name, self._learned_by(its))
        self.engine_streams.remove(its.number)
        self._deadlines_ms.pop(its.number, None)
        its.number = -1
        return True

    def learner_of(self, its: Stream) -> tuple[Policy, int]:
        """A copy of a stream's learner, a policy of one run, and the number of its next frame."""
        first, state = self._learned_by(its) if its.number >= 0 else self.kept.learned.get(its.queue.name, (0, None))
        policy = policy_for(self.config, self.net.edge_exits, 1)
        policy.reward = self.config.reward
        if state is not None:
            policy.load_state_dict(state)
        return policy, first

    def overhead_of(self, its: Stream) -> float:
        """The price of offloading that a stream's learner chooses by now, in units of confidence."""
        streams = self.engine_streams
        meter = streams.meter_of(its.number) if its.number >= 0 else streams.meter
        return float(meter.expected(self.offloader.link_ms))

    def _learned_by(self, its: Stream) -> learning.Learned:
        learners, row = self.engine_streams.learners, int(self.engine_streams.learner[its.number])
        return int(learners.next[row]), learners.state_of(row)

    def all_learned(self, streams: Iterable[Stream]) -> dict[str, learning.Learned]:
        """What some streams have learned, and the closed ones; the frames that they learned from are recorded first."""
        self.totals.flush()
        if self.config.learn == "shared":
            learners = self.engine_streams.learners
            return {"": (int(learners.next[0]), learners.state_of(0))}
        return self.kept.learned | {its.queue.name: self._learned_by(its) for its in streams if its.number >= 0}


def policy_for(config: LiveConfig, exits: int, runs: int) -> Policy:
    """The configured policy, for a number of learners."""
    policy = make_policy(config.policy, config.options(), exits=exits, runs=runs, seed=config.seed)
    return keeping(policy, config.aim, config.policy)
