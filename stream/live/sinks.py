"""Where answers go as they are known: standard output, a rotated file, ZeroMQ, MQTT, a function.

Whatever a sink does, the stream goes on: each has a thread and a bounded queue of its own, and what it cannot take is
counted.
"""

import contextlib
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from eex.policies.core.errors import EexError
from eex.policies.core.files import append, lock
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.streams import shown
from eex.stream.run.sizes import parse_bytes

CAPACITY = 10_000
"""Answers that wait for a sink at most; then the oldest is given up for the newest."""
RETRY_S = (0.1, 10.0)
"""Seconds until a sink that took nothing is tried again: the first time, and at most."""

LATE = "does not keep up"
UNREAD = "nobody reads it"
BEGINNING = b'{"kind":'
"""How each line begins."""

Item = Answer | Refusal


class UnavailableError(EexError):
    """A sink takes nothing at the moment: the answer is kept and tried again."""


class UndeliveredError(EexError):
    """A sink did not take this answer and never will."""


@dataclass(frozen=True)
class Target:
    """What a sink writes to.

    Attributes
    ----------
    deliver
        Takes one answer. It may wait. Raises `UnavailableError` or `UndeliveredError`.
    close
        Ends it within so many seconds; returns how many of the answers that it took were not confirmed.
    """

    deliver: Callable[[Item], None]
    close: Callable[[float], int] = lambda seconds: 0


class Sink:
    """Hands answers to a target in a thread of its own. Calling it never waits.

    Parameters
    ----------
    name
        For the summary.
    target
        What it writes to.
    capacity
        Answers that wait at most.
    say
        Called with one line, which names the sink, when it stops taking answers and when it takes them again.

    Attributes
    ----------
    delivered, lost
        Answers that the target took, and those that it will never get.
    problem
        Why it took nothing the last time; empty if it never did.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        *,
        capacity: int = CAPACITY,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name, self.delivered, self.lost, self.problem = name, 0, 0, ""
        self._target, self._capacity, self._say = target, capacity, say
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closing, self._ill = False, False
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def __call__(self, item: Item) -> None:
        """Take an answer or a refusal."""
        with self._changed:
            if self._closing:
                self.lost += 1
                return
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self.lost += 1
                self.problem = self.problem or LATE
            self._waiting.append(item)
            self._changed.notify()

    def close(self, seconds: float = 5.0) -> None:
        """Hand over what waits, for at most so many seconds; what is left then is lost. Once closed, it stays so."""
        until = time.monotonic() + seconds
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(0.5)
        if self._thread.is_alive():  # the target hangs, with one answer in hand
            self.lost += 1
            self.problem = self.problem or LATE
        else:
            unconfirmed = self._target.close(max(0.1, until - time.monotonic()))
            self.delivered -= unconfirmed
            self.lost += unconfirmed

    def row(self) -> dict[str, Any]:
        """Its line of the summary."""
        return {"sink": self.name, "delivered": self.delivered, "lost": self.lost, "problem": self.problem}

    def _run(self) -> None:
        wait = RETRY_S[0]
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                item = self._waiting.popleft()
            try:
                self._target.deliver(item)
            except UnavailableError as error:
                self._failed(str(error))
                with self._changed:
                    if len(self._waiting) >= self._capacity:
                        self.lost += 1  # a newer one has taken its place
                    else:
                        self._waiting.appendleft(item)
                    if self._closing:
                        self._changed.wait_for(lambda: not self._waiting, RETRY_S[0])
                    else:
                        self._changed.wait_for(lambda: self._closing, wait)
                wait = min(2 * wait, RETRY_S[1])
            except Exception as error:
                self.lost += 1
                self._failed(str(error) if isinstance(error, EexError) else f"{type(error).__name__}: {error}")
            else:
                wait = RETRY_S[0]
                self.delivered += 1
                if self._ill:
                    self._ill = False
                    self._say(f"answers to {self.name}: taken again")

    def _failed(self, problem: str) -> None:
        if not self._ill or problem != self.problem:
            self._say(f"answers to {self.name}: {problem}")
        self.problem, self._ill = problem, True


def open_sink(spec: str, *, say: Callable[[str], None] = lambda line: None) -> Sink:
    """Open the sink of `--answers SPEC`.

    ==================================  =====================================================================
    `-`                                 JSON Lines on standard output
    `FILE`                              JSON Lines; `FILE?size=100MB&keep=9` says when it is rotated, and how
                                        many earlier files stay
    `zmq+pub://HOST:PORT`               messages of two parts: the stream's name, and the JSON
    `mqtt://[USER@]HOST[:PORT]/TOPIC`   TOPIC/answers/STREAM, and TOPIC/status, which is retained
    ==================================  =====================================================================

    Raises
    ------
    EexError
        If the specification is wrong, or the file or address cannot be used. That a broker is not there yet is no
        error.
    """
    name = shown(spec)
    scheme = spec.partition("://")[0].lower() if "://" in spec else ""
    if spec == "-":
        target = _standard_output()
    elif scheme == "zmq+pub":
        target = _publisher(spec)
    elif scheme in ("mqtt", "mqtts"):
        from eex.stream.live.mqtt import mqtt

        target = mqtt(spec)
    elif scheme:
        raise EexError(f"{name}: unknown scheme '{scheme}'; expected zmq+pub, mqtt, mqtts, a file or -")
    elif spec:
        target = _file(spec)
    else:
        raise EexError("--answers: is empty; expected -, a file, zmq+pub://… or mqtt://…")
    return Sink(name, target, say=say)


def unread(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether answers went somewhere and nobody reads them any more, by the lines of all sinks in the summary."""
    return bool(rows) and all(row.get("problem", "").startswith(UNREAD) for row in rows)


def callback(function: Callable[[Item], None], name: str = "", **options: Any) -> Sink:
    """A sink that calls a function, in a thread of its own; if it raises, that answer is lost and the next is tried."""

    def deliver(item: Item) -> None:
        try:
            function(item)
        except Exception as error:
            raise UndeliveredError(f"raised {type(error).__name__}: {error}") from None

    return Sink(name or getattr(function, "__qualname__", repr(function)), Target(deliver), **options)


def line(item: Item) -> bytes:
    """An answer or refusal as a line of JSON."""
    return msgspec.json.encode(item) + b"\n"


def _standard_output() -> Target:
    def deliver(item: Item) -> None:
        try:
            append(1, line(item))  # not sys.stdout, whose lock a thread that hangs would keep to the end
        except BrokenPipeError as error:
            raise UndeliveredError(f"{UNREAD}: {error.strerror}") from None
        except OSError as error:
            raise UnavailableError(f"cannot be written: {error.strerror}") from None

    return Target(deliver)


def _file(spec: str) -> Target:
    """A file that is rotated: FILE.1 is the one before, FILE.2 that before it."""
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"size", "keep"}):
        raise EexError(f"{spec}: unknown option '{unknown[0]}'; expected size=BYTES and keep=FILES")
    size = parse_bytes(options.get("size", "100MB"), f"{spec}: size")
    if not re.fullmatch(r"[1-9]\d{0,3}", keep := options.get("keep", "9")):
        raise EexError(f"{spec}: keep must be a whole number from 1 to 9999, got '{keep}'")
    path = Path(name)
    log = _Log(path, size, int(keep))
    try:
        log.open()
    except OSError as error:
        raise EexError(f"{path}: cannot be written: {error.strerror}") from None

    def deliver(item: Item) -> None:
        try:
            log.write(line(item))
        except OSError as error:
            raise UnavailableError(f"cannot be written: {error.strerror}") from None
        except EexError as error:
            raise UnavailableError(str(error)) from None

    def close(seconds: float) -> int:
        log.close()
        return 0

    return Target(deliver, close)


class _Log:
    """A file of whole lines."""

    def __init__(self, path: Path, size: int, keep: int) -> None:
        self._path, self._size, self._keep = path, size, keep
        self._file = -1
        self._end = 0
        self._rotates = False  # a device has no size

    def open(self) -> None:
        """Append to the file; an answer that an earlier run did not finish is taken off."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._rotates = stat.S_ISREG(os.fstat(self._file).st_mode)
        if not self._rotates:
            return
        try:
            lock(self._file, self._path)
        except EexError:
            self.close()
            raise
        self._end = os.fstat(self._file).st_size
        tail = os.pread(self._file, 65_536, max(0, self._end - 65_536))
        rest = tail[tail.rfind(b"\n") + 1 :]
        if rest.startswith(BEGINNING):
            self._end -= len(rest)
            os.ftruncate(self._file, self._end)
        elif rest:  # somebody else's last line
            append(self._file, b"\n")
            self._end += 1

    def write(self, data: bytes) -> None:
        """Append a line, whole or not at all."""
        if self._file < 0:
            self.open()
        if self._rotates and self._end and self._end + len(data) > self._size:
            self._rotate()
        append(self._file, data)
        self._end += len(data)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                os.replace(older, self._numbered(number))
        self.open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _publisher(spec: str) -> Target:
    """A ZeroMQ publisher. Subscribers that do not keep up miss answers, and the others do not wait for them."""
    import zmq

    from eex.stream.live.sockets import opened
    from eex.stream.wire.sockets import lives

    stack = contextlib.ExitStack()
    socket = stack.enter_context(opened(spec, {zmq.SNDHWM: CAPACITY, zmq.XPUB_NODROP: 1, **lives(15_000)}))

    def deliver(item: Item) -> None:
        message = [item.stream.encode(), msgspec.json.encode(item)]
        try:
            socket.send_multipart(message, zmq.NOBLOCK)
        except zmq.Again:
            socket.setsockopt(zmq.XPUB_NODROP, 0)  # to those that keep up
            socket.send_multipart(message, zmq.NOBLOCK)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            raise UndeliveredError("a subscriber does not keep up and misses answers") from None
        except zmq.ZMQError as error:
            raise UnavailableError(f"cannot be sent: {zmq.strerror(error.errno or 0)}") from None

    def close(seconds: float) -> int:
        socket.linger = int(1000 * min(seconds, 1.0))
        stack.close()
        return 0

    return Target(deliver, close)
