"""One policy played over a stream, and its references in hindsight."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eex.policies.core.base import ExitCost
from eex.policies.core.columns import Floats, Rows
from eex.policies.core.errors import EexError
from eex.policies.wrappers.aim import aims_of
from eex.stream.config import to_json
from eex.stream.run import state
from eex.stream.run.estimates import write_priced
from eex.stream.run.recorder import Recorder, warn
from eex.stream.run.tally import Reference, Tally

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.policies.core.base import Policy
    from eex.stream.config import Resolved, StreamConfig
    from eex.stream.driver import Driver
    from eex.stream.frames.batch import Batch
    from eex.stream.frames.frames import Playable
    from eex.stream.planning.measure import Sending
    from eex.stream.wire.offload import Answers, Offloader

GRID = np.round(np.arange(0, 1.01, 0.1), 2)
"""Fixed thresholds that regret is measured against."""
SHOW_S = 0.2
"""Seconds between two looks at the progress."""


@dataclass(frozen=True)
class Glance:
    """What a progress display needs while a policy is played."""

    policy: str
    done: int
    total: int
    seconds: float
    tally: Tally
    distortion: str = ""
    finished: bool = False
    problem: str = ""


Show = Callable[[Glance], None]


@dataclass(frozen=True)
class Stage:
    """A policy that is being played, for a `Viewer`."""

    label: str
    policy: "Policy"
    driver: "Driver"
    offloader: "Offloader"
    tally: Tally


class Viewer(Protocol):
    """Watches a run closely, as the live page does; called by the thread that plays."""

    def begin(self, stage: Stage) -> None:
        """Another policy is played from now on."""

    def finished(self, rows: Rows) -> None:
        """Frames have finished."""

    def wants_sample(self) -> bool:
        """Whether every exit of the batch that was just fed shall be run, to estimate regret."""

    def sample(self, first: int, confidence: Floats) -> None:
        """Confidences of every exit, (n, exits), of the frames from `first` on."""

    def refresh(self) -> None:
        """See what there is, several times a second."""


@dataclass
class Played:
    """One policy's run over the stream.

    Attributes
    ----------
    policy
        Its label.
    skipped
        Images that could not be used, and why.
    source_seconds
        Of `seconds`, those in which the run waited for frames: to be read, decoded, scaled and distorted.
    withheld
        Frames that the budget kept on the edge.
    unrecorded
        What is missing in the records, as `Recorder.unrecorded` gives it.
    link
        What the offloader reports of workers and round trips.
    aims
        What came of the wishes (`Aims.report`).
    """

    policy: str
    tally: Tally
    seconds: float = 0.0
    source_seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    withheld: int = 0
    unrecorded: dict[str, Any] = field(default_factory=lambda: {"unrecorded": "", "unrecorded_frames": 0})
    link: dict[str, Any] = field(default_factory=dict)
    aims: list[dict[str, Any]] = field(default_factory=list)


def answerers(*links: dict[str, Any]) -> list[str]:
    """Fingerprints of the models that workers answered images with in place of the edge's own, from their reports."""
    workers = [worker for link in links for worker in link.get("workers", [])]
    return sorted({name for worker in workers for name in worker.get("answerers", []) if name})


def _timed(batches: Iterator["Batch"], played: Played) -> Iterator["Batch"]:
    """Batches, with the time that each took to come added up in `played.source_seconds`."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        played.source_seconds += time.perf_counter() - started
        if batch is None:
            return
        yield batch


class Player:
    """Plays policies over the same frames.

    Parameters
    ----------
    config, resolved
        The options, and what they stand for.
    stop
        Says whether to end early.
    sending
        How frames are sent.
    viewer
        Watches closely.
    cloud
        What the cloud answers to images, where that is another model than the network: hindsight needs it.
    """

    def __init__(
        self,
        frames: "Playable",
        net: "Network",
        config: "StreamConfig",
        resolved: "Resolved",
        exit_cost: ExitCost,
        sending: "Sending",
        show: Show = lambda glance: None,
        stop: Callable[[], bool] = lambda: False,
        viewer: Viewer | None = None,
        cloud: "Answers | None" = None,
    ) -> None:
        self.viewer, self.cloud = viewer, cloud
        self.frames, self.net, self.config, self.resolved = frames, net, config, resolved
        self.sending, self.show, self.stop = sending, show, stop
        self.exit_cost = exit_cost

    def play(
        self,
        label: str,
        policy: "Policy",
        offloader: "Offloader",
        folder: Path | None = None,
        resume: bool = False,
        share: bool = False,
    ) -> Played:
        """Stream all frames under one policy.

        Parameters
        ----------
        folder
            For records and state; without one nothing is written.
        resume
            Go on from the state in the folder, if there is one.
        share
            Share what the policy learns with the worker's other edges, and borrow from them.
        """
        from eex.stream.driver import Driver
        from eex.stream.sharing import Sharing

        net, config = self.net, self.config
        experts = 0 if net.classifier is None else len(net.experts) + 1
        played = Played(label, Tally(net.edge_exits + 1, len(net.classes), experts))
        with Recorder(folder, net, resume) as recorder:
            driver = Driver(
                net,
                policy,
                offloader,
                send=self.sending.encoding,
                overhead=self.resolved.price,
                exit_cost=self.exit_cost,
                kind=config.reward,
                gather=config.gather,
                drop_below=config.drop_below,
                first=recorder.first,
            )
            meter, ring = driver.engine.streams.meter, driver.engine.ring
            now = time.perf_counter()
            if 0 < self.frames.total < recorder.first:
                raise EexError(f"--frames {self.frames.total}: {recorder.first:,} frames of this run are done already")
            started = now - recorder.begin(policy, meter, played.tally, to_json(config))
            if folder is not None:
                write_priced(folder / "records", config.reward, self.exit_cost)
            shown, committed = now, recorder.first
            keeper, problem, viewer = aims_of(policy), "", self.viewer
            if viewer is not None:
                viewer.begin(Stage(label, policy, driver, offloader, played.tally))
            learners = driver.engine.streams.learners
            kept = None if folder is None else folder / state.NAME
            images = self.sending.encoding is not None and self.sending.encoding.kind == "input"
            sharing = Sharing(learners, offloader, config.policy, warn, kept, images=images) if share else None

            def take() -> None:
                for rows in driver.take():
                    played.tally.add(rows)
                    recorder.write(rows)
                    if viewer is not None:
                        viewer.finished(rows)

            def commit() -> None:
                """Finish what is under way; then records and state go to the disk together."""
                driver.drain()
                take()
                recorder.commit(policy, meter, played.tally, ring.next, time.perf_counter() - started)

            for batch in _timed(self.frames.batches(self.frames.total, played.skipped, recorder.first), played):
                if self.stop():
                    break
                driver.feed(batch)
                if sharing is not None:
                    sharing.tend()
                now = time.perf_counter()
                look = now - shown > SHOW_S
                if look and viewer is not None:  # before any frame of the batch is taken
                    self._show_closely(viewer, batch, ring.next - len(batch), offloader)
                if config.commit and ring.next - committed >= config.commit:
                    commit()
                    committed = ring.next
                elif look or driver.worth_taking:
                    take()
                if look:
                    shown = now
                    kind = str(self.frames.schedule.names(np.array([ring.next - 1]))[0])
                    before, problem = problem, "" if keeper is None else keeper.problems()
                    if problem and not before:
                        warn(f"frame {ring.next:,}: {problem}")
                    glance = Glance(label, ring.next, self.frames.total, now - started, played.tally, kind)
                    self.show(replace(glance, problem=problem))
            commit()
            played.seconds = time.perf_counter() - started
            if sharing is not None:
                sharing.finish()
            if viewer is not None:
                viewer.refresh()  # with the last frames
        played.withheld, played.unrecorded, played.link = meter.withheld, recorder.unrecorded, offloader.report()
        played.aims = [] if keeper is None else keeper.report()
        if ring.next:
            self.show(Glance(label, ring.next, self.frames.total, played.seconds, played.tally, finished=True))
        return played

    def _show_closely(self, viewer: Viewer, batch: "Batch", first: int, offloader: "Offloader") -> None:
        """Let a viewer see what there is, and every exit of the batch that was just fed if it wants to."""
        from eex.stream.groups import every_exit

        known = self.cloud is not None or not answerers(offloader.report())
        if known and viewer.wants_sample():
            viewer.sample(first, every_exit(self.net, batch.images, self.cloud)[0])
        viewer.refresh()

    def hindsight(self, tally: Tally) -> Reference | None:
        """Run every exit of every frame that a policy was played over; None if interrupted.

        References pay one price for all frames: where it was not constant, the mean of what the policy met. They drop
        frames by the rule that it played by.
        """
        from eex.stream.groups import every_exit

        price, total, exits = self.resolved.price, tally.frames, self.net.edge_exits + 1
        overhead = price.of() if price.constant else tally.mean_overhead
        reference = Reference(exits, overhead, GRID, self.exit_cost, self.config.drop_below, self.config.reward)
        started = shown = time.perf_counter()
        first, nothing = 0, Tally(exits)
        for batch in self.frames.batches(total, {}):
            if self.stop():
                return None
            confidence, prediction, _ = every_exit(self.net, batch.images, self.cloud)
            number = np.arange(first, first + len(batch))
            names = [str(n) for n in self.frames.schedule.names(number)]
            reference.add(number, names, batch.labels, confidence, prediction)
            first += len(batch)
            now = time.perf_counter()
            if now - shown > SHOW_S:
                shown = now
                self.show(Glance("hindsight", first, total, now - started, nothing))
        self.show(Glance("hindsight", first, total, time.perf_counter() - started, nothing, finished=True))
        return reference
