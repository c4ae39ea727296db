"""One policy played over a stream."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.core.errors import EexError
from eex.policies.core.price import parse_price
from eex.stream.config import StreamConfig
from eex.stream.frames.frames import Frames

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet
    from eex.stream.engine import Rows
    from eex.stream.planning.measure import Sending
    from eex.stream.run.tally import Reference, Tally
    from eex.stream.wire.offload import Offloader


GRID = np.round(np.arange(0, 1.01, 0.1), 2)
"""Fixed thresholds that regret is measured against."""


@dataclass(frozen=True)
class Glance:
    """What a progress display needs while a policy is played."""

    policy: str
    done: int
    total: int
    seconds: float
    tally: "Tally"
    distortion: str = ""
    finished: bool = False


@dataclass
class Played:
    """One policy's run over the stream."""

    policy: str
    tally: "Tally"
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    withheld: int = 0
    """Frames that the budget kept on the edge."""
    unrecorded: str = ""
    """Why records end before the stream does, if they do."""


Show = Callable[[Glance], None]


class Stream:
    """Frames that one policy after another is played over."""

    def __init__(
        self,
        frames: Frames,
        net: "EarlyExitNet",
        config: StreamConfig,
        stop: Callable[[], bool] = lambda: False,
        sending: "Sending | None" = None,
    ) -> None:
        self.frames, self.net, self.config, self.stop, self.sending = frames, net, config, stop, sending

    def play(
        self,
        name: str,
        policy: Any,
        offloader: "Offloader | None",
        show: Show,
        folder: Path | None = None,
        resume: bool = False,
    ) -> Played:
        """Stream all frames under one policy.

        Parameters
        ----------
        folder
            For records and state; nothing is written without.
        resume
            Go on from the state in the folder, if there is one.
        """
        from eex.stream.engine import Engine
        from eex.stream.run import state
        from eex.stream.run.records import RecordWriter
        from eex.stream.run.tally import Tally

        config, net, frames = self.config, self.net, self.frames
        played = Played(name, Tally(net.edge_exits + 1), 0.0)
        saved = state.read(folder) if folder is not None and resume else None
        first = 0 if saved is None else int(saved["frames"])
        engine = Engine(
            net,
            policy,
            offloader,
            overhead=parse_price(config.overhead),
            exit_cost=config.exit_cost,
            gather=config.gather,
            send=None if self.sending is None else self.sending.encoding,
            drop_below=config.drop_below,
            first=first,
        )
        seconds = 0.0 if saved is None else state.restore(saved, policy, engine.meter, played.tally)
        if folder is not None:
            state.drop_uncommitted(folder, resume)
        writer = RecordWriter(folder / "records", net.classes, net.experts) if folder is not None else None
        started = time.perf_counter() - seconds
        shown, committed = time.perf_counter(), first

        def commit() -> None:
            """Finish what is under way; then records and state go to the disk together."""
            engine.drain()
            take()
            if writer is None or folder is None or played.unrecorded:
                return
            try:
                parts = writer.commit()
                took = time.perf_counter() - started
                state.write(folder, policy, engine.meter, played.tally, engine.next, parts, took)
            except EexError as error:
                played.unrecorded = str(error)
                writer.abandon()

        def take() -> None:
            for rows in engine.take():
                played.tally.add(rows)
                record(rows)

        def record(rows: "Rows | None") -> None:
            """Write finished frames, or with None the end; a stream goes on where a disk is full."""
            if writer is None or played.unrecorded:
                return
            try:
                writer.close() if rows is None else writer.write(rows)
            except EexError as error:
                played.unrecorded = str(error)
                writer.abandon()

        try:
            for pixels, names, labels, levels in frames.batches(frames.total, played.skipped, first):
                if self.stop():
                    break
                engine.feed(pixels, names, labels, levels)
                now = time.perf_counter()
                tell = now - shown > 0.2
                if config.commit and engine.next - committed >= config.commit:
                    commit()
                    committed = engine.next
                elif tell or engine.worth_taking:
                    take()
                if tell:
                    shown = now
                    kind = frames.schedule.names(np.array([engine.next - 1]))[0]
                    show(Glance(name, engine.next, frames.total, now - started, played.tally, str(kind)))
            commit()
            played.seconds = time.perf_counter() - started
        finally:
            record(None)
        played.withheld = engine.meter.withheld
        if engine.next:
            show(Glance(name, engine.next, frames.total, played.seconds, played.tally, finished=True))
        return played

    def hindsight(self, tally: "Tally", show: Show) -> "Reference | None":
        """Run every exit of every frame that a policy was played over; None if interrupted.

        References pay one price for all frames: where it was not constant, the mean of what the policy met. They drop
        frames by the rule that it played by.
        """
        from eex.stream.engine import every_exit
        from eex.stream.run.tally import Reference, Tally

        price, total = parse_price(self.config.overhead), tally.frames
        overhead = price.of() if price.constant else tally.mean_overhead
        reference = Reference(self.net.edge_exits + 1, overhead, GRID, self.config.exit_cost, self.config.drop_below)
        started = shown = time.perf_counter()
        first = 0
        nothing = Tally(self.net.edge_exits + 1)
        for pixels, names, labels, _ in self.frames.batches(total, {}):
            if self.stop():
                return None
            confidence, prediction, _ = every_exit(self.net, pixels)
            number = np.arange(first, first + len(names))
            reference.add(number, [str(n) for n in self.frames.schedule.names(number)], labels, confidence, prediction)
            first += len(names)
            now = time.perf_counter()
            if now - shown > 0.2:
                shown = now
                show(Glance("hindsight", first, total, now - started, nothing))
        show(Glance("hindsight", first, total, time.perf_counter() - started, nothing, finished=True))
        return reference
