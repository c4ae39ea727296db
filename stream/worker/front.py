"""The worker's front: one socket for all clients, whose requests are batched for one or more replicas of the models.

One thread, that of `Front.serve`, owns the sockets: it checks and refuses, answers pings, and hands batches out. Each
replica is called in a thread of its own, so that a model that takes long, or hangs, does not silence the worker.
"""

import bisect
import math
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.keys import Known
from eex.stream.wire.offload import Tail
from eex.stream.wire.protocol import (
    Buffer,
    Hello,
    Ping,
    Pong,
    Refusal,
    ReplyHeader,
    Request,
    Welcome,
    features_of,
    one_line,
    pack,
    readable_id,
    refusal,
    unpack,
)
from eex.stream.wire.security import answer_zap
from eex.stream.wire.sockets import receive, send

POLL_MS = 100  # how late a stop may be noticed
INLINE_S = 0.002  # a call that was quicker than this the last time runs where it arrives: a hop costs as much
READ_AT_ONCE = 64  # messages that are read before batches are handed out
UNREAD_S = 1.0  # a reply that its client has not taken in by then is dropped
GONE_S = 3.0  # a client that was silent for so long makes room for others; edges ping several times a second
MOST_PARTS = 16  # of a message; the protocol's have three
LINES_A_SECOND = 20
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LATENCY_BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


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
class Limits:
    """What a worker takes on.

    Attributes
    ----------
    clients
        Connections that it serves at a time.
    queued_bytes
        Of all requests that wait.
    batch
        Frames in one call of a model.
    wait_ms
        How long a request waits for company; what arrives while the model runs is batched in any case.
    drain_s
        How long a stopped worker goes on with what it has taken on.
    key_clients, key_requests
        Connections of one key, and requests that it has under way over all of them, where clients have keys: so that
        no key takes the room of all others.
    """

    clients: int = 64
    queued_bytes: int = 256 << 20
    batch: int = 64
    wait_ms: float = 0.0
    drain_s: float = 5.0
    key_clients: int = 32
    key_requests: int = 256


class Histogram:
    """Counts by upper bound, as Prometheus has them, without its price."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = list(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class Stats:
    """What a front has done since it started; written by its thread, read by any."""

    requests: Counter[str] = field(default_factory=Counter)  # by model
    refusals: Counter[str] = field(default_factory=Counter)  # by kind
    frames: int = 0
    expired: int = 0  # requests whose deadline had passed before the model was free
    unread: int = 0  # replies that their clients did not take in
    strangers: int = 0  # clients turned away
    upstream: Counter[str] = field(default_factory=Counter)  # frames answered here, forwarded, fallback (`middle`)
    batch_frames: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    latency_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_MS))
    compute_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_MS))


@dataclass
class _Client:
    id: bytes
    heard: float
    key: str = ""  # the name of its key; empty in plain text
    waiting: int = 0  # requests taken on and not answered yet
    outbox: deque[tuple[float, list[Buffer]]] = field(default_factory=deque)  # replies that wait for the link


@dataclass
class _Asked:
    client: _Client
    header: Request
    arrays: list[NDArray[Any]]
    arrived: float

    @property
    def nbytes(self) -> int:
        """Bytes of its features once they are decoded."""
        return math.prod(self.header.shape) * (2 if self.header.dtype == "float16" else 4)


@dataclass
class _Batch:
    asked: list[_Asked]
    started: float
    lost: int = 0  # replicas that went away with it


@dataclass(frozen=True)
class _Answer:
    """What a request gets: the message, and the kind of refusal and its reason if it is one."""

    message: list[Buffer]
    kind: Refusal | None = None
    text: str = ""


_Key = tuple[str, int, str, str, tuple[int, ...]]


class Front:
    """Answers clients on a bound ROUTER socket, which the caller opens and closes.

    Parameters
    ----------
    welcomes
        What each model is; the first is given to who asks for any.
    replicas
        Where batches run.
    shapes
        What each stage takes, (C, H, W) or (C,), by model; where unknown, the replica has to check.
    stats
        To count in, where the replicas count too.
    zap, known
        The socket on which libzmq asks about clients, and who is known.

    Raises
    ------
    OffloadError
        If a welcome is beyond the protocol's limits.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        welcomes: Sequence[Welcome],
        replicas: Sequence[Replica],
        *,
        shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
        limits: Limits | None = None,
        stats: Stats | None = None,
        zap: zmq.Socket[bytes] | None = None,
        known: Known = lambda key: "",
        log: Callable[[str], None] = print,
    ) -> None:
        self.socket, self.replicas = socket, list(replicas)
        self.limits, self.shapes, self.known = limits or Limits(), shapes or {}, known
        self.stats = stats or Stats()
        self.draining = False
        self.clients: dict[bytes, _Client] = {}
        self.queued = self.queued_bytes = 0
        self._welcomes = {w.model: w for w in welcomes}
        self._packed = {w.model: pack(w) for w in welcomes}
        self._packed[""] = pack(welcomes[0])
        self._zap, self._log_line = zap, log
        self._lines: deque[float] = deque(maxlen=LINES_A_SECOND)
        self._queues: dict[_Key, deque[_Asked]] = {}
        self._quick: dict[_Key, float] = {}  # seconds that the last call took
        self._work: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._results: deque[tuple[_Batch, list[_Answer] | None, float]] = deque()
        self._running: dict[int, _Batch] = {}
        self._ready = set(range(len(self.replicas)))
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        self._poller = zmq.Poller()
        for source in (socket, self._woken, *([zap] if zap is not None else [])):
            self._poller.register(source, zmq.POLLIN)

    # ---- the loop

    def serve(self, stop: threading.Event) -> None:
        """Answer until `stop` is set, then what has been taken on by then."""
        threads = [threading.Thread(target=self._work_on, args=(k,), daemon=True) for k in range(len(self.replicas))]
        for thread in threads:
            thread.start()
        try:
            while not stop.is_set():
                self._turn(POLL_MS)
            for _ in range(READ_AT_ONCE):
                if not self._read():
                    break
            self.draining = True
            end = time.monotonic() + self.limits.drain_s
            while time.monotonic() < end and (self.queued or any(c.outbox for c in self.clients.values())):
                self._turn(10)
        finally:
            self.draining = True
            for _ in threads:
                self._work.put(None)
            for replica in self.replicas:
                replica.close()
            for thread in threads:
                thread.join(1.0)  # one whose model hangs stays behind
            if not any(thread.is_alive() for thread in threads):
                os.close(self._woken)
                os.close(self._waker)

    @property
    def busy_ms(self) -> float:
        """For how long the longest call of a model has been running."""
        now = time.monotonic()
        return max((1000 * (now - batch.started) for batch in list(self._running.values())), default=0.0)

    def _turn(self, wait_ms: float) -> None:
        """Wait for something to do, and do it."""
        now = time.monotonic()
        if self._queues:
            wait_ms = min(wait_ms, self._due_in_ms(now))
        if any(client.outbox for client in self.clients.values()):
            wait_ms = min(wait_ms, 2)
        ready = dict(self._poller.poll(math.ceil(wait_ms)))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._zap is not None and self._zap in ready and (line := answer_zap(self._zap, self.known)):
            self.stats.strangers += 1
            self._log(line)
        if self.socket in ready:
            self._read()
        self._collect()
        self._hand_out()
        self._flush()

    def _log(self, line: str) -> None:
        """Say it, unless so much was said within a second already: strangers must not fill a disk."""
        now = time.monotonic()
        if len(self._lines) < LINES_A_SECOND or now - self._lines[0] > 1:
            self._lines.append(now)
            self._log_line(line)

    # ---- in

    def _read(self) -> int:
        """Take in what has come; how many messages."""
        for k in range(READ_AT_ONCE):
            message = receive(self.socket, MOST_PARTS)
            if message is None:
                return k
            key = "" if self._zap is None else str(message[-1].get("User-Id"))  # what `answer_zap` named it
            self._take_in(message[0].bytes, [frame.buffer for frame in message[1:]], key)
        return READ_AT_ONCE

    def _take_in(self, id: bytes, frames: list[Buffer], key: str) -> None:
        now = time.monotonic()
        try:
            header, arrays = unpack(frames)
        except Exception as error:  # whatever it is, the others are served
            self._refuse(self.clients.get(id) or _Client(id, now), readable_id(frames), "message", str(error))
            return
        if not isinstance(header, Hello | Ping | Request):
            mine = getattr(header, "id", None)
            text = "a worker takes a hello, a ping or a request, got a worker's own message"
            self._refuse(self.clients.get(id) or _Client(id, now), mine, "message", text)
            return
        client = self._client(id, now, key)
        if isinstance(client, str):
            self._refuse(_Client(id, now), header.id, "clients", client)
        elif isinstance(header, Ping):
            self._send_now(client, pack(Pong(header.id, self.queued, self.busy_ms, self.draining)))
        elif self.draining:
            self._refuse(client, header.id, "draining", "the worker is about to stop")
        elif isinstance(header, Hello):
            if header.model in self._packed:
                self._send_now(client, self._packed[header.model])
            else:
                self._refuse(client, header.id, "model", self._no_model(header.model))
        else:
            self._ask(_Asked(client, header, arrays, now))

    def _client(self, id: bytes, now: float, key: str) -> _Client | str:
        """Who sent a message; why it is not served if there are too many."""
        client = self.clients.get(id)
        if client is None or client.key != key:  # a client may choose an id that another key's had
            problem = self._too_many(key)
            if problem:
                for old in list(self.clients.values()):
                    if now - old.heard > GONE_S and not old.waiting and not old.outbox:
                        del self.clients[old.id]
                problem = self._too_many(key)
            if problem:
                return problem
            client = self.clients[id] = _Client(id, now, key)
        client.heard = now
        return client

    def _too_many(self, key: str) -> str:
        """Why there is no room for one more client of a key; empty if there is."""
        if len(self.clients) >= self.limits.clients:
            return f"the worker serves {self.limits.clients} clients already"
        if key and sum(client.key == key for client in self.clients.values()) >= self.limits.key_clients:
            return f"the worker serves {self.limits.key_clients} clients with the key '{key}' already"
        return ""

    def _waiting_of(self, key: str) -> int:
        """Requests of a key that are under way; 0 in plain text."""
        return sum(client.waiting for client in self.clients.values() if client.key == key) if key else 0

    def _no_model(self, model: str) -> str:
        return f"the worker has model {', '.join(self._welcomes)}, the edge {one_line(model)}"

    def _ask(self, asked: _Asked) -> None:
        """Take a request on, or refuse it."""
        client, header = asked.client, asked.header
        welcome = self._welcomes.get(header.model)
        if welcome is None:
            self._refuse(client, header.id, "model", self._no_model(header.model))
        elif header.stage >= welcome.stages:
            text = f"there is no stage {header.stage}, the model has {welcome.stages}"
            self._refuse(client, header.id, "stage", text)
        elif header.expert not in welcome.experts:
            text = f"unknown expert '{header.expert}', expected one of {', '.join(welcome.experts)}"
            self._refuse(client, header.id, "expert", text)
        elif (shapes := self.shapes.get(header.model)) and header.shape[1:] != shapes[header.stage]:
            takes = ", ".join(map(str, shapes[header.stage]))
            text = f"stage {header.stage} takes features (n, {takes}), got {header.shape}"
            self._refuse(client, header.id, "message", text)
        elif asked.nbytes > welcome.max_bytes:
            text = f"{asked.nbytes:,} bytes in one message, the worker takes {welcome.max_bytes:,}"
            self._refuse(client, header.id, "message", text)
        elif client.waiting >= welcome.window:
            text = f"{client.waiting} requests of this client are under way already"
            self._refuse(client, header.id, "busy", text)
        elif self._waiting_of(client.key) >= self.limits.key_requests:
            text = f"{self.limits.key_requests} requests of the key '{client.key}' are under way already"
            self._refuse(client, header.id, "busy", text)
        elif self.queued_bytes + asked.nbytes > self.limits.queued_bytes:
            self._refuse(client, header.id, "busy", f"{self.queued_bytes:,} bytes wait already")
        else:
            key = (header.model, header.stage, header.expert, header.dtype, header.shape[1:])
            self._queues.setdefault(key, deque()).append(asked)
            client.waiting += 1
            self.queued += 1
            self.queued_bytes += asked.nbytes
            self.stats.requests[header.model] += 1

    def _refuse(self, client: _Client, id: int | None, kind: Refusal, text: str) -> None:
        self.stats.refusals[kind] += 1
        self._log(f"refused a message: {one_line(text)}")
        if id is not None:
            self._send_now(client, refusal(id, kind, text))

    # ---- batches

    def _oldest(self) -> _Key | None:
        return min(self._queues, key=lambda key: self._queues[key][0].arrived, default=None)

    def _due_in_ms(self, now: float) -> float:
        """When the oldest request must be handed out, if a replica is free."""
        key = self._oldest()
        if key is None or len(self._running) >= len(self._ready):
            return POLL_MS
        if not self.limits.wait_ms or self.draining or self._frames_of(key) >= self.limits.batch:
            return 0.0
        return max(0.0, self.limits.wait_ms - 1000 * (now - self._queues[key][0].arrived))

    def _frames_of(self, key: _Key) -> int:
        return sum(asked.header.shape[0] for asked in self._queues[key])

    def _hand_out(self) -> None:
        """Give batches to the replicas that are free."""
        while self._queues and len(self._running) < len(self._ready):
            now = time.monotonic()
            if self._due_in_ms(now) > 0:
                return
            key = self._oldest()
            assert key is not None
            batch = self._next_batch(key, now)
            if not batch.asked:
                continue
            frames = sum(asked.header.shape[0] for asked in batch.asked)
            self.stats.frames += frames
            self.stats.batch_frames.add(frames)
            self._running[id(batch)] = batch
            local = len(self.replicas) == 1 and isinstance(self.replicas[0], LocalReplica)
            if local and self._quick.get(key, 1.0) < INLINE_S:
                self._results.append((batch, *_answers(self.replicas[0], batch)))
                self._collect()
                return  # back to the socket first
            self._work.put(batch)

    def _next_batch(self, key: _Key, now: float) -> _Batch:
        waiting, frames = self._queues[key], 0
        chosen: list[_Asked] = []
        while waiting and (not chosen or frames + waiting[0].header.shape[0] <= self.limits.batch):
            asked = waiting.popleft()
            if 0 < asked.header.deadline_ms < 1000 * (now - asked.arrived):
                self.stats.expired += 1  # nobody waits for it any more
                self._done_with(asked)
                continue
            chosen.append(asked)
            frames += asked.header.shape[0]
        if not waiting:
            del self._queues[key]
        return _Batch(chosen, now)

    def _work_on(self, k: int) -> None:
        """What the thread of replica k does."""
        replica = self.replicas[k]
        while (batch := self._work.get()) is not None:
            try:
                answers, seconds = _answers(replica, batch)
                self._results.append((batch, answers, seconds))
                self._wake()
            except ReplicaLostError as error:
                self._ready.discard(k)
                self._results.append((batch, None, 0.0))
                self._log(f"a replica is gone: {one_line(str(error))}")
                self._wake()
                while not self.draining:
                    try:
                        replica.recover()
                        break
                    except Exception as error:
                        self._log(f"a replica does not come back: {one_line(str(error))}")
                        time.sleep(1.0)
                self._ready.add(k)
                self._wake()

    def _wake(self) -> None:
        os.write(self._waker, b"\0")

    # ---- out

    def _collect(self) -> None:
        """Send what the replicas have finished."""
        while self._results:
            batch, answers, seconds = self._results.popleft()
            del self._running[id(batch)]
            if answers is None:
                self._again(batch)
                continue
            header = batch.asked[0].header
            self._quick[header.model, header.stage, header.expert, header.dtype, header.shape[1:]] = seconds
            if len(self._quick) > 1000:
                self._quick.clear()
            self.stats.compute_ms.add(1000 * seconds)
            now = time.monotonic()
            for asked, answer in zip(batch.asked, answers, strict=True):
                self.stats.latency_ms.add(1000 * (now - asked.arrived))
                self._send(asked, answer)

    def _again(self, batch: _Batch) -> None:
        """Give what a lost replica had to another, once."""
        batch.lost += 1
        if batch.lost == 1:
            batch.started = time.monotonic()
            self._running[id(batch)] = batch
            self._work.put(batch)
            return
        for asked in batch.asked:
            self._send(asked, _refused(asked, "failed", "the replicas that had this are gone"))

    def _done_with(self, asked: _Asked) -> None:
        self.queued -= 1
        self.queued_bytes -= asked.nbytes
        asked.client.waiting -= 1

    def _send(self, asked: _Asked, answer: _Answer) -> None:
        """Send the answer to a request, or keep it until the link takes it."""
        if answer.kind is not None:
            self.stats.refusals[answer.kind] += 1
            self._log(f"refused a message: {answer.text}")
        self._done_with(asked)
        client = asked.client
        if client.outbox or not self._try(client, answer.message):
            client.outbox.append((time.monotonic(), answer.message))
            client.waiting += 1  # what a client does not read counts as under way

    def _send_now(self, client: _Client, message: list[Buffer]) -> None:
        """Send what nobody has to wait for; it is dropped if the client does not read."""
        if client.outbox or not self._try(client, message):
            self.stats.unread += 1

    def _try(self, client: _Client, message: list[Buffer]) -> bool:
        try:
            send(self.socket, [client.id, *message])
        except zmq.Again:
            return False
        except zmq.ZMQError:  # it is gone
            client.outbox.clear()
            self.clients.pop(client.id, None)
        return True

    def _flush(self) -> None:
        """Send what waited for a link, and drop what waited too long."""
        now = time.monotonic()
        for client in list(self.clients.values()):
            while client.outbox:
                since, message = client.outbox[0]
                late = now - since > UNREAD_S
                self.stats.unread += late
                if not late and not self._try(client, message):
                    break
                if client.outbox:  # unless it is gone
                    client.outbox.popleft()
                    client.waiting -= 1


def _refused(asked: _Asked, kind: Refusal, text: str) -> _Answer:
    return _Answer(refusal(asked.header.id, kind, text), kind, one_line(text))


def _answers(replica: Replica, batch: _Batch) -> tuple[list[_Answer], float]:
    """What each request of a batch gets, and the seconds that the model took."""
    first = batch.asked[0].header
    start = time.perf_counter()
    try:
        arrays = [features_of(asked.header, asked.arrays) for asked in batch.asked]
        features = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        confidence, prediction = replica.run(first.model, first.stage, first.expert, features)
        seconds = time.perf_counter() - start
        confidence = np.asarray(confidence, dtype=np.float32)
        prediction = np.asarray(prediction, dtype=np.int32)
        if confidence.shape != (len(features),) or prediction.shape != (len(features),):
            raise ValueError(f"the model answers {confidence.shape} and {prediction.shape} to {len(features)} frames")
        answers, at = [], 0
        for asked in batch.asked:
            n = asked.header.shape[0]
            reply = ReplyHeader(asked.header.id, n, 1000 * seconds)
            answers.append(_Answer(pack(reply, confidence[at : at + n], prediction[at : at + n])))
            at += n
        return answers, seconds
    except ReplicaLostError:
        raise
    except Exception as error:  # whatever the model makes of a client's tensor, the others are served
        if len(batch.asked) > 1:
            alone = [_answers(replica, _Batch([asked], batch.started)) for asked in batch.asked]
            return [answers[0] for answers, _ in alone], sum(seconds for _, seconds in alone)
        known = isinstance(error, OffloadError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return [_refused(batch.asked[0], "message" if known else "failed", text)], time.perf_counter() - start
