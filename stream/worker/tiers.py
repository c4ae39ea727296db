"""A worker between edge and cloud: its own exits answer what they are sure of, an upstream worker the rest.

To the edge it is a worker like any other. To the upstream worker it is an edge: the same client, keys and deadlines.
"""

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Floats, Ints
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.offload import Offloader, Reply, Tail
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import features_tensor, stage_shapes

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet

AT_ONCE = 8
"""Batches under way at a time, so that one that waits for the upstream worker does not hold up the others."""

IDLE_S = 0.05  # between two looks at the link while nothing is asked: pings are answered, workers found again
POLL_MS = 2  # how long a new question waits at most while answers to others are awaited

Head = Callable[[int, str, NDArray[Any]], tuple[Floats, Ints, Bools, NDArray[Any]]]
"""(stage, expert, features (n, ...)) to what `make_head` says."""


def make_head(net: "EarlyExitNet", partition: int, p_tar: float) -> Head:
    """The stages up to a partition point, and the exits behind them, from any stage on.

    Returns
    -------
    head
        A function that returns, of each frame, the confidence and prediction of the exit that answered it, the first
        whose confidence reached `p_tar`, or of its most confident one, -1 where it visited none, both (n,); which
        frames no exit answered, (n,); and these frames' features behind the partition point, float32, (m, ...).
    """
    import torch

    shapes = stage_shapes(net)

    @torch.inference_mode()
    def head(stage: int, expert: str, features: NDArray[Any]) -> tuple[Floats, Ints, Bools, NDArray[Any]]:
        x = features_tensor(net, shapes[stage], stage, features)
        confidence, prediction = np.full(len(x), -1.0), np.full(len(x), -1, dtype=np.int64)
        going = np.arange(len(x))
        for i in range(stage, partition):
            x = net.stage(i, x)
            top, index = net.confident(net.branch(i, expert, x))
            told, best = top.cpu().numpy().astype(float), index.cpu().numpy()
            surer = told > confidence[going]
            confidence[going[surer]], prediction[going[surer]] = told[surer], best[surer]
            stay = np.flatnonzero(~(told >= p_tar))
            if len(stay) < len(going):
                going, x = going[stay], x[torch.from_numpy(stay).to(x.device)]
            if not len(going):
                break
        unanswered = np.zeros(len(confidence), dtype=bool)
        unanswered[going] = True
        return confidence, prediction, unanswered, x.float().contiguous().cpu().numpy()

    return head


@dataclass
class _Asked:
    """A message for the upstream worker, and what became of it."""

    stage: int
    expert: str
    features: NDArray[Any]
    until: float
    reply: Reply | None = None  # None or a failed one: there is no answer
    settled: threading.Event = field(default_factory=threading.Event)


class Upstream:
    """The way to the upstream worker: many threads ask, one owns the offloader, and so the sockets.

    Parameters
    ----------
    offloader
        Connected; used by nobody else from now on, and closed by `close`.
    deadline_ms
        After which a question has no answer, however busy the link is.
    log
        Told when the upstream worker goes and when it comes back.
    """

    def __init__(self, offloader: Offloader, deadline_ms: float, log: Callable[[str], None] = print) -> None:
        self.offloader, self.deadline_ms, self._log = offloader, deadline_ms, log
        self._inbox: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, stage: int, expert: str, features: NDArray[Any]) -> tuple[Floats, Ints]:
        """The final exit's confidence and prediction for features (n, ...), both (n,); NaN and -1 without an answer."""
        until = time.monotonic() + self.deadline_ms / 1000
        most = max(1, self.offloader.max_bytes // features[0].nbytes)  # frames that a message may hold
        parts = [_Asked(stage, expert, features[k : k + most], until) for k in range(0, len(features), most)]
        for part in parts:
            self._inbox.put(part)
        confidence, prediction = np.full(len(features), np.nan), np.full(len(features), -1, dtype=np.int64)
        for k, part in enumerate(parts):
            part.settled.wait(max(0.0, until - time.monotonic()))
            if (reply := part.reply) is not None and not reply.failed:
                rows = slice(k * most, k * most + len(part.features))
                confidence[rows], prediction[rows] = reply.confidence, reply.prediction
        return confidence, prediction

    def close(self) -> None:
        """Give up what is awaited, and close the offloader; may be called again."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        """What the thread does: submit what is asked, hand replies out, and look after the link in between."""
        waiting: deque[_Asked] = deque()
        awaited: dict[int, _Asked] = {}
        ids, reachable = itertools.count(1), True
        try:
            while True:
                try:
                    item = self._inbox.get(
                        timeout=None if waiting or awaited else IDLE_S, block=not (waiting or awaited)
                    )
                    while item is not None:
                        waiting.append(item)
                        item = self._inbox.get_nowait()
                    return
                except queue.Empty:
                    pass
                while waiting and self._leaves(waiting[0], ids, awaited):
                    waiting.popleft()
                for reply in self.offloader.poll(POLL_MS):
                    asked = awaited.pop(reply.id)
                    asked.reply = reply
                    asked.settled.set()
                if self.offloader.reachable != reachable:
                    reachable = not reachable
                    self._log("the upstream worker is back" if reachable else "the upstream worker does not answer")
        finally:
            for asked in [*waiting, *awaited.values()]:
                asked.settled.set()
            self.offloader.close()

    def _leaves(self, asked: _Asked, ids: "itertools.count[int]", awaited: dict[int, _Asked]) -> bool:
        """Send a message, or settle that it gets no answer; False if it must wait for room."""
        offloader, id = self.offloader, next(ids)
        if time.monotonic() < asked.until:
            if offloader.submit(id, asked.stage, asked.expert, asked.features):
                awaited[id] = asked
                return True
            if offloader.outstanding and offloader.reachable:  # a full window empties by itself
                return False
        asked.settled.set()
        return True


class MiddleReplica:
    """Runs a model up to a partition point, answers what its exits are sure of, and asks upstream for the rest.

    A frame that gets no answer from upstream in time is answered by its most confident exit here; where it came from
    behind the partition point, and so visited none, the rest of the model is run here.

    Parameters
    ----------
    head, rest
        The model up to the partition point (`make_head`), and from any stage on to its end.
    partition
        Stages that `head` runs.
    upstream
        Shared by all replicas, as are the following.
    stats
        Its `upstream` counts frames answered here, forwarded, and fallen back.
    computing
        Held while the model runs: two at a time would only be in each other's way.
    """

    def __init__(
        self, head: Head, rest: Tail, partition: int, upstream: Upstream, stats: Stats, computing: threading.Lock
    ) -> None:
        self._head, self._rest, self._partition, self._upstream = head, rest, partition, upstream
        self._counts, self._computing = stats.upstream, computing
        self._counts.update(here=0, forwarded=0, fallback=0)

    def run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `eex.stream.worker.pool.Replica`."""
        with self._computing:
            confidence, prediction, unanswered, left = self._head(stage, expert, features)
            self._counts.update(here=int((~unanswered).sum()), forwarded=int(unanswered.sum()))
        if not unanswered.any():
            return confidence, prediction
        going = np.flatnonzero(unanswered)
        behind = max(stage, self._partition)
        told, best = self._upstream.ask(behind, expert, left)
        came = ~np.isnan(told)
        confidence[going[came]], prediction[going[came]] = told[came], best[came]
        lost = going[~came]
        if len(lost):
            with self._computing:
                self._counts.update(fallback=len(lost))
                if stage >= self._partition:
                    confidence[lost], prediction[lost] = self._rest(behind, expert, left[~came])
        return confidence, prediction

    def recover(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """End the way upstream, for all replicas."""
        self._upstream.close()


def middle_replicas(
    net: "EarlyExitNet",
    rest: Tail,
    partition: int,
    p_tar: float,
    offloader: ZmqOffloader,
    stats: Stats,
    log: Callable[[str], None] = print,
) -> list[MiddleReplica]:
    """Replicas of a network up to a partition point, which share one connected offloader to the upstream worker."""
    head, computing = make_head(net, partition, p_tar), threading.Lock()
    upstream = Upstream(offloader, offloader.deadline_ms, log)
    return [MiddleReplica(head, rest, partition, upstream, stats, computing) for _ in range(AT_ONCE)]
