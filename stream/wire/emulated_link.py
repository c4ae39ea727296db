"""The emulated link: a TCP relay between edge and worker that delays bytes as a given network would.

It needs no privileges and does not look into what it relays: ZeroMQ, with CURVE or without, passes through as bytes.
One process relays all connections, which share the link's rate in each direction. What it models of a real stack:

- half a round trip each way, and one round trip before the first byte, for TCP's handshake;
- the rate, by keeping track of when the link is free again;
- slow start: a connection may have ten segments unacknowledged at first, and one more for each that is acknowledged
  while it uses its window; after a pause, the window is halved for every time-out that the pause lasted
  (`tcp_cwnd_restart` of Linux), not below ten segments;
- outages: bytes under way are lost and sent again after TCP's time-out, which doubles each time, so that a connection
  recovers some time after its link; three seconds at most, since an edge then makes a new one.

It models neither packet loss nor other traffic. tests/stream/wire/test_emulated_link.py compares it with a real stack.
"""

import contextlib
import random
import select
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eex.policies.core.errors import EexError
from eex.policies.core.link import DOWN, FIRST_WINDOW, SEGMENT, SimulatedLink, parse_link
from eex.stream.guard import guarded
from eex.stream.wire.reach import split

CHUNK = 4 * SEGMENT
"""Bytes that travel together: few enough for timely acknowledgements, enough for 100 Mbit/s in Python."""
LARGEST_WINDOW = 3 << 20
"""Bytes of one connection that may be unacknowledged: what Linux's receive buffer allows by default."""
LEAST_TIMEOUT_S = 0.2
"""Linux's shortest wait, on top of the round trip, before TCP sends again or begins to reduce its window."""
LONGEST_TIMEOUT_S = 3.0
"""The longest: an edge makes a connection anew on which nothing was acknowledged for so long."""
NEVER_S = 3600.0
"""Bytes that could not be sent for so long never arrive."""
TICK_S = 0.1  # how late a stop may be noticed
READY = "eex-link: "


@dataclass
class _Chunk:
    data: bytes  # empty where the sender has closed
    arrives: float
    acked: float


@dataclass
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    lane: int  # of the link: 0 to the worker, 1 back
    opens: float  # when the first byte may leave
    window: int = FIRST_WINDOW
    unacked: int = 0
    last_sent: float = 0.0
    last_arrival: float = 0.0
    under_way: deque[_Chunk] = field(default_factory=deque)
    acks: deque[tuple[float, int]] = field(default_factory=deque)
    waiting: bytes = b""  # arrived, and not yet taken by the sink
    ended: bool = False  # the source has closed
    done: bool = False  # and so has the sink


class Relay:
    """Relays TCP connections over a simulated link, in the thread that calls `run`.

    Parameters
    ----------
    link
        The link over time, which begins when the relay is made.
    targets
        Where connections go, as (host, port); each target has a port of its own here, in `ports`. While nobody knows
        the host, they are closed.
    seed
        Seed of the jitter.

    Raises
    ------
    OSError
        If there is no port to listen on.
    """

    def __init__(self, link: SimulatedLink, targets: Sequence[tuple[str, int]], seed: int = 0) -> None:
        self.link = link
        self._targets = list(targets)
        self._random = random.Random(seed)
        self._doors = [socket.create_server(("127.0.0.1", 0)) for _ in targets]
        for door in self._doors:
            door.setblocking(False)
        self.ports = [door.getsockname()[1] for door in self._doors]
        self._pipes: list[_Pipe] = []
        self._free = [0.0, 0.0]  # when each lane of the link is free again
        self._began = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Relay until `stop` is set, then close everything."""
        try:
            while not stop.is_set():
                self._turn()
        finally:
            for open_socket in [*self._doors, *(s for p in self._pipes for s in (p.source, p.sink))]:
                open_socket.close()

    # ---- one turn

    def _turn(self) -> None:
        now = time.monotonic()
        due = min((t for p in self._pipes if (t := self._next(p)) is not None), default=now + TICK_S)
        reading = [p for p in self._pipes if self._may_read(p, now)]
        writing = [p.sink for p in self._pipes if p.waiting]
        wait = max(0.0, min(due - now, TICK_S))
        readable, _, _ = select.select([*self._doors, *(p.source for p in reading)], writing, [], wait)
        found = set(readable)
        for door, target in zip(self._doors, self._targets, strict=True):
            if door in found:
                self._accept(door, *target)
        now = time.monotonic()
        for pipe in reading:
            if pipe.source in found:
                self._read(pipe, now)
        for pipe in self._pipes:
            self._deliver(pipe, now)
        self._tidy()

    def _next(self, pipe: _Pipe) -> float | None:
        """When something happens to a pipe though its sockets are quiet."""
        times = [pipe.under_way[0].arrives] if pipe.under_way and not pipe.waiting else []
        times += [pipe.acks[0][0]] if pipe.acks else []
        times += [pipe.opens] if pipe.opens > time.monotonic() else []
        return min(times, default=None)

    def _may_read(self, pipe: _Pipe, now: float) -> bool:
        return not pipe.ended and pipe.opens <= now and pipe.unacked < pipe.window

    def _accept(self, door: socket.socket, host: str, port: int) -> None:
        try:
            near, _ = door.accept()
        except OSError:  # it is gone again
            return
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # as an edge would choose
            far = socket.socket(family)
        except OSError:  # the name may get an address later
            near.close()
            return
        far.setblocking(False)
        far.connect_ex(address)  # if nobody is there, the first read fails, and the near end is closed
        now = time.monotonic()
        up = self._up(now)
        opens = up + self._round_trip(up)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pipes += [_Pipe(near, far, 0, opens), _Pipe(far, near, 1, opens)]

    # ---- bytes

    def _read(self, pipe: _Pipe, now: float) -> None:
        self._rest(pipe, now)
        while self._may_read(pipe, now):
            try:
                data = pipe.source.recv(min(CHUNK, pipe.window - pipe.unacked))
            except BlockingIOError:
                return
            except OSError:  # reset: what is under way arrives, then the other end is closed
                data = b""
            self._send(pipe, data, now)
            if not data:
                pipe.ended = True

    def _rest(self, pipe: _Pipe, now: float) -> None:
        """After a pause, a connection starts slowly again."""
        if pipe.unacked or not pipe.last_sent:
            return
        timeout = LEAST_TIMEOUT_S + self._round_trip(now)
        paused = now - pipe.last_sent
        while (paused := paused - timeout) > 0 and pipe.window > FIRST_WINDOW:
            pipe.window = max(FIRST_WINDOW, pipe.window // 2)

    def _send(self, pipe: _Pipe, data: bytes, now: float) -> None:
        """Put bytes on the link: they leave when it is free, and arrive half a round trip later, in order."""
        leaves = max(now, self._free[pipe.lane], pipe.opens)
        arrives, lost = self._flight(leaves, len(data))
        if lost:
            pipe.window = FIRST_WINDOW
        else:
            self._free[pipe.lane] = leaves + len(data) / self._bytes_per_s(leaves)
        pipe.last_arrival = arrives = max(arrives, pipe.last_arrival)
        pipe.last_sent = now
        pipe.unacked += len(data)
        pipe.under_way.append(_Chunk(data, arrives, arrives + self._round_trip(arrives) / 2))

    def _flight(self, leaves: float, bytes: int) -> tuple[float, bool]:
        """When bytes that leave at a time arrive, and whether an outage made TCP send them again."""
        timeout, lost, began = LEAST_TIMEOUT_S + self._round_trip(leaves), False, leaves
        while True:
            half = self._round_trip(leaves) / 2
            jitter = self.link.jitter_ms / 2000 * (2 * self._random.random() - 1)
            arrives = leaves + bytes / self._bytes_per_s(leaves) + max(0.0, half + jitter)
            up = self._up(leaves)
            if up == leaves and self._up(arrives) == arrives:
                return arrives, lost
            if up == float("inf"):
                return up, True
            leaves, timeout, lost = leaves + timeout, min(2 * timeout, LONGEST_TIMEOUT_S), True
            if leaves > began + NEVER_S:  # it is never up for long enough
                return float("inf"), True

    def _deliver(self, pipe: _Pipe, now: float) -> None:
        """Hand over what has arrived, and count what is acknowledged."""
        while pipe.waiting or (pipe.under_way and pipe.under_way[0].arrives <= now):
            if not pipe.waiting:
                chunk = pipe.under_way.popleft()
                if not chunk.data:
                    with contextlib.suppress(OSError):
                        pipe.sink.shutdown(socket.SHUT_WR)
                    pipe.done = True
                    return
                pipe.waiting = chunk.data
                pipe.acks.append((max(chunk.acked, now), len(chunk.data)))
            try:
                taken = pipe.sink.send(pipe.waiting)
            except BlockingIOError:
                break
            except OSError:  # the sink is gone; so is the connection
                pipe.done = pipe.ended = True
                pipe.waiting = b""
                pipe.under_way.clear()
                break
            pipe.waiting = pipe.waiting[taken:]
        while pipe.acks and pipe.acks[0][0] <= now:
            _, bytes = pipe.acks.popleft()
            if 2 * pipe.unacked >= pipe.window:  # it uses its window
                pipe.window = min(LARGEST_WINDOW, pipe.window + bytes)
            pipe.unacked -= bytes

    def _tidy(self) -> None:
        """Close connections whose two directions are done, or whose sink is gone."""
        for there, back in [(self._pipes[k], self._pipes[k + 1]) for k in range(0, len(self._pipes), 2)]:
            if there.done and back.done:
                there.source.close()
                there.sink.close()
                self._pipes.remove(there)
                self._pipes.remove(back)

    # ---- the link at a time

    def _up(self, now: float) -> float:
        since = now - self._began
        up = self.link.up_at(since)
        return now if up == since else self._began + up

    def _round_trip(self, now: float) -> float:
        """The round trip in seconds; during an outage, the shortest outside of outages."""
        if now == float("inf"):
            return 0.0
        ms = self.link.piece_at(now - self._began).round_trip_ms
        return min((p.round_trip_ms for p in self.link.pieces), default=0.0) / 1000 if ms == DOWN else ms / 1000

    def _bytes_per_s(self, now: float) -> float:
        return 125_000 * self.link.piece_at(now - self._began).mbit


@contextlib.contextmanager
def emulated(link: str, endpoints: Sequence[str], seed: int = 0) -> Iterator[list[str]]:
    """Put an emulated link in front of workers for the length of a `with` block; yields the endpoints to use instead.

    The relay is a process of its own, which also ends with this one. If it ends earlier, a warning says so.

    Parameters
    ----------
    link
        Text for `eex.policies.core.link.parse_link`.
    endpoints
        Endpoints of the workers, "tcp://host:port".
    seed
        Seed of the jitter.

    Raises
    ------
    EexError
        If the link or an endpoint is malformed, or the relay cannot start.

    Examples
    --------
    ::

        with emulated("paris:30s, down:10s", [worker.endpoint()]) as endpoints:
            offloader = ZmqOffloader(endpoints, net.tail_fingerprint)
    """
    parse_link(link)
    for endpoint in endpoints:
        split(endpoint)
    command = [sys.executable, "-P", "-m", "eex.stream.wire.emulated_link", link, str(seed), *endpoints]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith(READY):
                raise EexError("the emulated link (--link) could not start")
            yield line.removeprefix(READY).split()
        finally:
            if (code := process.poll()) is not None and line:
                warnings.warn(
                    f"the emulated link (--link) ended early, with exit status {code}: from then on no worker could be "
                    "reached through it",
                    stacklevel=3,
                )
            process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Entry point of the relay's process: takes a link, a seed and endpoints, and ends with its standard input."""
    sys.exit(guarded(_main))


def _main() -> None:
    text, seed, *endpoints = sys.argv[1:]
    relay = Relay(parse_link(text), [split(e) for e in endpoints], int(seed))
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    print(READY + " ".join(f"tcp://127.0.0.1:{port}" for port in relay.ports), flush=True)
    relay.run(stop)


if __name__ == "__main__":
    main()
