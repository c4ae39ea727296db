"""A worker between edge and cloud: its own exits answer the frames they are sure of, an upstream worker the rest.

To the edge it is a worker like any other. To the upstream worker it is an edge: the same client, keys and deadlines.
"""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.errors import EexError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import EdgeKeys
from eex.stream.wire.offload import Offloader, Reply, Tail
from eex.stream.wire.reach import UnreachableError
from eex.stream.worker.stats import Stats
from eex.stream.worker.tail import Models, Served, features_array, load_models, make_tail, stage_shapes

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet

AT_ONCE = 8
"""Batches under way at a time, so that one that waits for the upstream worker does not hold up the others."""

IDLE_S = 0.05  # between two looks at the sockets while nothing is asked: pings go out, workers are found again
POLL_MS = 2  # how long new frames wait at most while replies for others are awaited

Head = Callable[[int, str, NDArray[Any]], tuple[Floats, Ints, Bools, NDArray[Any]]]
"""(stage, expert, features (n, ...)) to the four arrays that `make_head` describes."""


def make_head(net: "EarlyExitNet", partition: int, p_tar: float) -> Head:
    """The stages up to a partition point with their exits, from any stage on.

    Returns
    -------
    head
        A function that returns four arrays: for each frame, confidence and prediction, both (n,), of the exit that
        answered it, which is the first whose confidence reached `p_tar`, or else of its most confident exit, or -1 if
        it visited none; which frames no exit answered, (n,); and their features after the partition point, float32,
        (m, ...).
    """
    import torch

    shapes = stage_shapes(net)

    @torch.inference_mode()
    def head(stage: int, expert: str, features: NDArray[Any]) -> tuple[Floats, Ints, Bools, NDArray[Any]]:
        x = features_array(net, shapes[stage], stage, features)
        confidence, prediction = np.full(len(x), -1.0), np.full(len(x), -1, dtype=np.int64)
        going = np.arange(len(x))
        for i in range(stage, partition):
            x = net.stage(i, x)
            top, index = net.confident(net.branch(i, expert, x))
            here, best = top.cpu().numpy().astype(float), index.cpu().numpy()
            surer = here > confidence[going]
            confidence[going[surer]], prediction[going[surer]] = here[surer], best[surer]
            stay = np.flatnonzero(~(here >= p_tar))
            if len(stay) < len(going):
                going, x = going[stay], x[torch.from_numpy(stay).to(x.device)]
            if not len(going):
                break
        unanswered = np.zeros(len(confidence), dtype=bool)
        unanswered[going] = True
        return confidence, prediction, unanswered, x.float().contiguous().cpu().numpy()

    return head


@dataclass
class _Forwarded:
    """A message for the upstream worker, and what became of it."""

    stage: int
    expert: str
    features: NDArray[Any]
    until: float  # when nobody waits for the answer any more
    reply: Reply | None = None  # None, or a failed one, where there is no answer
    settled: threading.Event = field(default_factory=threading.Event)


class Upstream:
    """The way to the upstream worker: many threads ask, one owns the offloader and thereby the sockets.

    Parameters
    ----------
    offloader
        Connected; used by nobody else from now on, and closed by `close`.
    deadline_ms
        After which frames have no answer, however busy the upstream worker is.
    log
        Receives a line when the upstream worker goes and when it comes back.
    reachable
        Whether it was reachable at the start; the first change is logged.
    """

    def __init__(
        self, offloader: Offloader, deadline_ms: float, log: Callable[[str], None] = print, reachable: bool = True
    ) -> None:
        self.offloader, self.deadline_ms, self._log, self._reachable = offloader, deadline_ms, log, reachable
        self._inbox: queue.SimpleQueue[_Forwarded | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, stage: int, expert: str, features: NDArray[Any]) -> tuple[Floats, Ints]:
        """The final exit's confidence and prediction for features (n, ...), both (n,); NaN and -1 without an answer."""
        until = time.monotonic() + self.deadline_ms / 1000
        most = max(1, self.offloader.max_bytes // features[0].nbytes)  # frames that a message may hold
        parts = [_Forwarded(stage, expert, features[k : k + most], until) for k in range(0, len(features), most)]
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
        """What the thread does: submit what was asked, hand out replies, and keep the connection alive in between."""
        waiting: deque[_Forwarded] = deque()
        awaited: dict[int, _Forwarded] = {}
        ids, reachable = itertools.count(1), self._reachable
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
                    if (message := awaited.pop(reply.id, None)) is not None:
                        message.reply = reply
                        message.settled.set()
                if self.offloader.reachable != reachable:
                    reachable = not reachable
                    line = "the upstream worker is back" if reachable else "the upstream worker does not answer"
                    with contextlib.suppress(Exception):  # whatever the log is, upstream is asked on
                        self._log(line)
        finally:
            for message in [*waiting, *awaited.values()]:
                message.settled.set()
            self.offloader.close()

    def _leaves(self, message: _Forwarded, ids: "itertools.count[int]", awaited: dict[int, _Forwarded]) -> bool:
        """Send a message, or settle that it gets no answer; False if it must wait for room."""
        offloader, id = self.offloader, next(ids)
        if time.monotonic() < message.until:
            if offloader.submit(id, message.stage, message.expert, message.features):
                awaited[id] = message
                return True
            if offloader.outstanding and offloader.reachable:  # a full window empties by itself
                return False
        message.settled.set()
        return True


class MiddleReplica:
    """Runs a model up to a partition point, answers the frames its exits are sure of, and asks upstream for the rest.

    A frame that gets no answer from upstream in time is answered by its most confident exit here. If it visited none,
    because it came in after the partition point, the rest of the model is run here.

    Parameters
    ----------
    head, rest
        The model up to the partition point (`make_head`), and from any stage on to its end.
    partition
        Stages that `head` runs.
    upstream
        Shared by all replicas, as are the following.
    stats
        Its `upstream` counts the frames answered here, forwarded, and fallen back.
    computing
        Held while the model runs: two at a time would only slow each other down.
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
        first = max(stage, self._partition)
        there, best = self._upstream.ask(first, expert, left)
        came = ~np.isnan(there)
        confidence[going[came]], prediction[going[came]] = there[came], best[came]
        lost = going[~came]
        if len(lost):
            with self._computing:
                self._counts.update(fallback=len(lost))
                if stage >= self._partition:
                    confidence[lost], prediction[lost] = self._rest(first, expert, left[~came])
        return confidence, prediction

    def recover(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """End the way upstream, for all replicas."""
        self._upstream.close()


def serve_middle(
    models: Models,
    endpoints: Sequence[str],
    partition: int,
    p_tar: float,
    deadline_ms: float,
    *,
    keys: EdgeKeys | None,
    anywhere: bool,
    stats: Stats,
    required: bool = False,
    log: Callable[[str], None] = print,
) -> Served:
    """Load one model and connect to the upstream worker; until that answers, frames are answered here.

    Parameters
    ----------
    endpoints, deadline_ms, keys, anywhere
        Of the upstream worker, as in `eex.stream.wire.client.ZmqOffloader`.
    partition
        Number of stages after which the upstream worker takes over.
    p_tar
        Confidence at which an exit answers here.
    required
        Whether an upstream worker must answer now.

    Raises
    ------
    EexError
        If the model cannot be used, has too few stages, or the upstream worker refuses this one; if it is `required`,
        also if none answers.
    """
    nets: list[EarlyExitNet] = []

    def keep(net: "EarlyExitNet") -> Tail:
        nets.append(net)
        return make_tail(net)

    loaded = load_models(models, keep)
    (net,), (welcome,) = nets, loaded.welcomes
    if partition >= welcome.stages:
        raise EexError(
            f"--partition must lie in 1…{welcome.stages - 1}, the last exit is the upstream worker's; got {partition}"
        )
    offloader = ZmqOffloader(endpoints, welcome.model, deadline_ms, keys=keys, anywhere=anywhere)
    try:
        offloader.connect()
        up = True
    except UnreachableError as error:
        if required:
            raise
        up = False
        log(f"{error}; frames are answered here until the upstream worker answers")
        offloader = ZmqOffloader(endpoints, welcome.model, deadline_ms, keys=keys, anywhere=anywhere)  # that is closed
    head, rest, computing = make_head(net, partition, p_tar), loaded.tails[welcome.model], threading.Lock()
    upstream = Upstream(offloader, deadline_ms, log, up)
    replicas = [MiddleReplica(head, rest, partition, upstream, stats, computing) for _ in range(AT_ONCE)]
    return Served([*replicas], loaded.welcomes, loaded.shapes)
