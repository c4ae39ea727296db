"""A worker's side of the protocol, as a state machine: messages and the time go in, messages and batches come out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from eex.stream.wire.protocol import (
    SHARE_EVERY_S,
    Buffer,
    FleetHeader,
    Hello,
    Ping,
    Pong,
    Refusal,
    Request,
    SumsHeader,
    Welcome,
    one_line,
    pack,
    readable_id,
    refusal,
    unpack,
)
from eex.stream.worker.batches import BatchQueue, Queued, RequestBatch
from eex.stream.worker.clients import Client, Clients, Limits, RefusedError, Send
from eex.stream.worker.fleets import Fleets
from eex.stream.worker.pool import Answer, Finished
from eex.stream.worker.stats import Stats


class Service:
    """Checks and refuses, answers hellos and pings, and turns requests into batches and batches into replies.

    Times are given, in seconds of any clock that does not go back. Whoever owns the sockets calls `take_in` with each
    message, runs what `next_batch` gives, and gives it back to `finish`.

    Parameters
    ----------
    welcomes
        What each model is; the first is given to a client that asks for any.
    send
        Hands a message to a client.
    shapes
        What each stage takes, (C, H, W) or (C,), by model; where unknown, the replica has to check.
    busy_ms
        Says for how long the longest call of a model has been running.
    fleets
        What edges share; by default, new ones that are kept in memory.

    Attributes
    ----------
    draining
        Whether the worker is about to stop, and refuses new requests; see `drain`.
    queued, queued_bytes
        Requests under way, and bytes of their features.

    Raises
    ------
    OffloadError
        If a welcome is beyond the protocol's limits.
    """

    def __init__(
        self,
        welcomes: Sequence[Welcome],
        send: Send,
        *,
        limits: Limits,
        shapes: Mapping[str, Sequence[tuple[int, ...]]],
        stats: Stats,
        busy_ms: Callable[[float], float],
        log: Callable[[str], None],
        fleets: Fleets | None = None,
    ) -> None:
        self.limits, self.shapes, self.stats, self._busy_ms, self._log = limits, shapes, stats, busy_ms, log
        self.clients = Clients(limits, send, stats)
        self.fleets = fleets or Fleets()
        self.waiting = BatchQueue(limits.batch, limits.wait_ms)
        self.draining = False
        self.queued = self.queued_bytes = 0
        self.welcomes = {welcome.model: welcome for welcome in welcomes}
        self._packed = {welcome.model: pack(welcome) for welcome in welcomes}
        self._packed[""] = pack(welcomes[0])

    def drain(self) -> None:
        """From now on, refuse new requests and let none wait for company."""
        self.draining = True
        self.waiting.wait_ms = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is something to finish before the worker may stop."""
        return self.queued > 0 or self.clients.owed

    # ---- in

    def take_in(self, now: float, id: bytes, frames: list[Buffer], key: str = "") -> None:
        """One message of a client.

        Parameters
        ----------
        id, key
            The client's name on the socket, and the name of its key; empty in plain text.
        """
        try:
            header, arrays = unpack(frames)
        except Exception as error:  # whatever it is, the others are served
            self._refuse(self.clients.get(id) or Client(id, now), readable_id(frames), "message", str(error))
            return
        if not isinstance(header, Hello | Ping | Request | SumsHeader):
            text = "a worker takes a hello, a ping, a request or sums, got a worker's own message"
            self._refuse(self.clients.get(id) or Client(id, now), getattr(header, "id", None), "message", text)
            return
        client = Client(id, now)
        try:
            client = self.clients.admit(id, now, key, asks=not isinstance(header, Ping))
            if isinstance(header, Ping):
                self.clients.notify(client, pack(Pong(header.id, self.queued, self._busy_ms(now), self.draining)))
            elif self.draining:
                raise RefusedError("draining", "the worker is about to stop")
            elif isinstance(header, Hello):
                if header.model not in self._packed:
                    raise RefusedError("model", self._no_model(header.model))
                self.clients.notify(client, self._packed[header.model])
            elif isinstance(header, SumsHeader):
                self._share(client, header, arrays[0], now)
            else:
                self._accept(Queued(client, header, arrays, now))
        except RefusedError as error:
            self._refuse(client, header.id, error.kind, str(error))

    def _share(self, client: Client, header: SumsHeader, sums: NDArray[Any], now: float) -> None:
        """Keep what an edge shares and send it what the others do, or raise `RefusedError`."""
        welcome = self.welcomes.get(header.model)
        if welcome is None:
            raise RefusedError("model", self._no_model(header.model))
        if now - client.shared < SHARE_EVERY_S:
            raise RefusedError("busy", f"sums came less than {SHARE_EVERY_S:g} s after the last ones")
        client.shared = now
        try:
            edges, others = self.fleets.take_in(header, sums, client.key, welcome.answerer)
        except ValueError as error:
            raise RefusedError("message", f"no stream has such sums: {error}") from None
        self.stats.shared += 1
        self.clients.notify(client, pack(FleetHeader(header.id, len(others), edges), others))

    def _accept(self, queued: Queued) -> None:
        """Take a request on, or raise `RefusedError`."""
        client, nbytes = queued.client, queued.nbytes
        welcome = self._check(queued.header, nbytes)
        self.clients.check_room(client, welcome.window, nbytes)
        if self.queued_bytes + nbytes > self.limits.queued_bytes:
            raise RefusedError("busy", f"{self.queued_bytes:,} bytes wait already")
        self.waiting.put(queued)
        client.waiting += 1
        client.waiting_bytes += nbytes
        self.queued += 1
        self.queued_bytes += nbytes
        self.stats.requests[welcome.model] += 1

    def _check(self, request: Request, nbytes: int) -> Welcome:
        """The model that a request is for, or raise `RefusedError` if it cannot be run."""
        welcome = self.welcomes.get(request.model)
        if welcome is None:
            raise RefusedError("model", self._no_model(request.model))
        if request.stage >= welcome.stages:
            raise RefusedError("stage", f"there is no stage {request.stage}, the model has {welcome.stages}")
        if request.expert not in welcome.experts:
            names = ", ".join(welcome.experts)
            raise RefusedError("expert", f"unknown expert '{request.expert}', expected one of {names}")
        shapes = self.shapes.get(request.model)
        if shapes and request.shape[1:] != shapes[request.stage]:
            takes = ", ".join(map(str, shapes[request.stage]))
            raise RefusedError("message", f"stage {request.stage} takes features (n, {takes}), got {request.shape}")
        if nbytes > welcome.max_bytes:
            raise RefusedError("message", f"{nbytes:,} bytes in one message, the worker takes {welcome.max_bytes:,}")
        return welcome

    def _no_model(self, model: str) -> str:
        return f"the worker has model {', '.join(self.welcomes)}, the edge {one_line(model)}"

    def _refuse(self, client: Client, id: int | None, kind: Refusal, text: str) -> None:
        self._count_refusal(kind, one_line(text))
        if id is not None:
            self.clients.notify(client, refusal(id, kind, text))

    def _count_refusal(self, kind: Refusal, line: str) -> None:
        self.stats.refusals[kind] += 1
        self._log(f"refused a message: {line}")

    # ---- batches

    def next_batch(self, now: float) -> RequestBatch | None:
        """The batch to run now; None if there is none yet."""
        while self.waiting.due_in_ms(now) <= 0:
            batch, expired = self.waiting.take(now)
            self.stats.expired += len(expired)
            for queued in expired:
                self._release(queued)
            if batch.requests:
                self.stats.frames += batch.frames
                self.stats.batch_frames.add(batch.frames)
                return batch
        return None

    def finish(self, now: float, finished: Finished) -> None:
        """Send the answers of a batch."""
        if finished.seconds is not None:
            self.stats.compute_ms.add(1000 * finished.seconds)
        for queued, answer in zip(finished.batch.requests, finished.answers, strict=True):
            if finished.seconds is not None:
                self.stats.latency_ms.add(1000 * (now - queued.arrived))
            self._reply(now, queued, answer)

    def _reply(self, now: float, queued: Queued, answer: Answer) -> None:
        if answer.kind is not None:
            self._count_refusal(answer.kind, answer.text)
        self._release(queued)
        self.clients.reply(queued.client, answer.message, now)

    def _release(self, queued: Queued) -> None:
        """A request is under way no more."""
        self.queued -= 1
        self.queued_bytes -= queued.nbytes
        queued.client.waiting -= 1
        queued.client.waiting_bytes -= queued.nbytes
