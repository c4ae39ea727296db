"""Replicas of a worker's models at work, each in a thread of its own: one that takes long, or hangs, blocks nobody."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.offload import Tail
from eex.stream.wire.protocol import Buffer, Refusal, ReplyHeader, features_of, one_line, pack, refusal
from eex.stream.worker.batches import BatchKey, Queued, RequestBatch

INLINE_S = 0.002
"""A call that was quicker than this the last time runs in the calling thread: handing it over costs as much."""

RECOVER_EVERY_S = 1.0
CHECK_EVERY_S = 1.0  # whether an idle replica is still there
JOIN_S = 1.0  # for a thread to end; one whose model hangs does not


class ReplicaLostError(Exception):
    """A replica is gone, and its batch can be given to another."""


class Replica(Protocol):
    """Runs the rest of a network somewhere; each is used by one thread."""

    def run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Confidence and prediction (n,) of the final exit for features (n, ...).

        Raises
        ------
        OffloadError
            If the features do not fit.
        ReplicaLostError
            If the replica is gone; `recover` is called then.
        """

    def recover(self) -> None:
        """Come back, however long it takes."""

    def close(self) -> None:
        """End; called by another thread than `run` and `recover`, which may be under way."""


class LocalReplica:
    """Models in this process, by fingerprint."""

    def __init__(self, tails: dict[str, Tail]) -> None:
        self._tails = tails

    def run(self, model: str, stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `Replica`."""
        return self._tails[model](stage, expert, features)

    def recover(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Answer:
    """What a request gets: the message, and the kind of refusal and its reason if it is one."""

    message: list[Buffer]
    kind: Refusal | None = None
    text: str = ""


@dataclass(frozen=True)
class Finished:
    """A batch with an answer for each request, and the model's seconds; None where the replicas were lost."""

    batch: RequestBatch
    answers: list[Answer]
    seconds: float | None


class ReplicaPool:
    """Hands batches to replicas that are free, and collects what they answer.

    Used by one thread, except `busy_ms`.

    Parameters
    ----------
    wake
        Called by a replica's thread when there is something to `collect`, or a replica is free again.
    log
        Takes a line for each replica that is lost.
    """

    def __init__(self, replicas: Sequence[Replica], wake: Callable[[], None], log: Callable[[str], None]) -> None:
        self.replicas = list(replicas)
        self._wake, self._log = wake, log
        self._work: queue.SimpleQueue[RequestBatch | None] = queue.SimpleQueue()
        self._results: deque[tuple[RequestBatch, tuple[list[Answer], float] | None]] = deque()
        self._running: dict[int, RequestBatch] = {}
        self._ready = set(range(len(self.replicas)))
        self._seconds: dict[BatchKey, float] = {}  # that the last call took
        self._ending = False
        self._threads = [threading.Thread(target=self._run, args=(k,), daemon=True) for k in range(len(self.replicas))]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> int:
        """Replicas that are there."""
        return sum(is_alive(self.replicas[k]) for k in list(self._ready))

    @property
    def free(self) -> bool:
        """Whether a replica can take a batch."""
        return len(self._running) < len(self._ready)

    def busy_ms(self, now: float) -> float:
        """For how long no replica has been free to take a batch, because calls of the models are running."""
        running = list(self._running.values())
        if len(running) < max(1, len(self._ready)):
            return 0.0
        return min((1000 * (now - batch.started) for batch in running), default=0.0)

    def run(self, batch: RequestBatch) -> bool:
        """Have a batch run; whether that was done here and now, because it takes no time."""
        self._running[id(batch)] = batch
        local = len(self.replicas) == 1 and isinstance(self.replicas[0], LocalReplica)
        if local and self._seconds.get(batch.group, 1.0) < INLINE_S:
            self._results.append((batch, answer(self.replicas[0], batch)))
            return True
        self._work.put(batch)
        return False

    def collect(self, now: float) -> list[Finished]:
        """The batches that are finished; one whose replica was lost is given to another, once."""
        finished = []
        while self._results:
            batch, result = self._results.popleft()
            del self._running[id(batch)]
            if result is not None:
                answers, seconds = result
                self._seconds[batch.group] = seconds
                if len(self._seconds) > 1000:
                    self._seconds.clear()
                finished.append(Finished(batch, answers, seconds))
                continue
            batch.lost += 1
            if batch.lost == 1:
                batch.started = now
                self._running[id(batch)] = batch
                self._work.put(batch)
            else:
                refusals = [
                    _refused(queued, "failed", "the replicas that had this are gone") for queued in batch.requests
                ]
                finished.append(Finished(batch, refusals, None))
        return finished

    def close(self) -> bool:
        """End replicas and threads; False if a thread goes on, because its model hangs."""
        self._ending = True
        for _ in self._threads:
            self._work.put(None)
        for replica in self.replicas:
            replica.close()
        for thread in self._threads:
            thread.join(JOIN_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, k: int) -> None:
        """What the thread of replica k does."""
        replica = self.replicas[k]
        while True:
            try:
                batch = self._work.get(timeout=CHECK_EVERY_S)
            except queue.Empty:
                if not self._ending and not is_alive(replica):
                    self._lost(k, "it ended while it had nothing to do")
                continue
            if batch is None:
                return
            try:
                self._results.append((batch, answer(replica, batch)))
                self._wake()
            except ReplicaLostError as error:
                self._ready.discard(k)
                self._results.append((batch, None))
                self._lost(k, str(error))

    def _lost(self, k: int, why: str) -> None:
        """Replica k is gone; bring it back."""
        self._ready.discard(k)
        self._log(f"a replica is gone: {one_line(why)}")
        self._wake()
        self._recover(self.replicas[k])
        self._ready.add(k)
        self._wake()

    def _recover(self, replica: Replica) -> None:
        while not self._ending:
            try:
                replica.recover()
                return
            except Exception as error:
                self._log(f"a replica does not come back: {one_line(str(error))}")
                time.sleep(RECOVER_EVERY_S)


def is_alive(replica: Replica) -> bool:
    """Whether a replica is there, as far as it can be known without running it."""
    return bool(getattr(replica, "alive", True))


def answer(replica: Replica, batch: RequestBatch) -> tuple[list[Answer], float]:
    """What each request of a batch gets, and the seconds that the model took.

    A batch that fails is run again request by request, so that a bad one does not spoil the others.

    Raises
    ------
    ReplicaLostError
        If the replica is gone.
    """
    first = batch.requests[0].header
    start = time.perf_counter()
    try:
        arrays = [features_of(queued.header, queued.arrays) for queued in batch.requests]
        features = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        confidence, prediction = replica.run(first.model, first.stage, first.expert, features)
        seconds = time.perf_counter() - start
        confidence = np.asarray(confidence, dtype=np.float32)
        prediction = np.asarray(prediction, dtype=np.int32)
        if confidence.shape != (len(features),) or prediction.shape != (len(features),):
            raise ValueError(f"the model answers {confidence.shape} and {prediction.shape} to {len(features)} frames")
        answers, at = [], 0
        for queued in batch.requests:
            rows = slice(at, at + queued.frames)
            reply = ReplyHeader(queued.header.id, queued.frames, 1000 * seconds)
            answers.append(Answer(pack(reply, confidence[rows], prediction[rows])))
            at = rows.stop
        return answers, seconds
    except ReplicaLostError:
        raise
    except Exception as error:  # whatever the model makes of a client's tensor, the others are served
        if len(batch.requests) > 1:
            alone = [answer(replica, RequestBatch([queued], batch.started)) for queued in batch.requests]
            return [answers[0] for answers, _ in alone], sum(seconds for _, seconds in alone)
        known = isinstance(error, OffloadError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return [_refused(batch.requests[0], "message" if known else "failed", text)], time.perf_counter() - start


def _refused(queued: Queued, kind: Refusal, text: str) -> Answer:
    return Answer(refusal(queued.header.id, kind, text), kind, one_line(text))
