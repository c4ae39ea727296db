"""What other threads ask of a session's thread, and the pipe that wakes it."""

import contextlib
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Found = TypeVar("Found")

log = logging.getLogger("eex")


class Tasks:
    """Tasks for one thread, from any other.

    Parameters
    ----------
    lock
        Under which the thread looks whether there is anything to do, and under which others give it something.

    Attributes
    ----------
    thread
        The one that does them.
    fd
        Readable when the thread is to wake.
    asleep
        Whether the thread found nothing to do, and waits or is about to.
    over
        Whether the thread has ended; tasks are then done by whoever asks.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock, self.asleep, self.over = lock, False, False
        self.thread: threading.Thread | None = None
        self._waiting: deque[Callable[[], object]] = deque()
        self.fd, self._wake = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake, False)

    @property
    def here(self) -> bool:
        """Whether this is the thread itself."""
        return threading.current_thread() is self.thread

    def put(self, task: Callable[[], object]) -> None:
        """Have a task done in the thread, soon."""
        with self.lock:
            over = self.over
            if not over:
                self._waiting.append(task)
        if over:
            task()
        self.rouse()

    def ask(self, question: Callable[[], Found]) -> Found:
        """The thread's answer, between two of its rounds; what the question raises is raised here."""
        if self.here:
            return question()
        reply: Future[Found] = Future()

        def task() -> None:
            try:
                reply.set_result(question())
            except BaseException as error:
                reply.set_exception(error)

        self.put(task)
        return reply.result()

    @property
    def waiting(self) -> int:
        """How many are to be done."""
        return len(self._waiting)

    def do(self) -> None:
        """Do what waits; if one raises, the others still wait."""
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()

    def rouse(self) -> None:
        """Wake the thread if it sleeps; what it is to find must have been put there under the lock before."""
        if self.asleep:
            self.asleep = False
            with contextlib.suppress(BlockingIOError, OSError):  # the pipe is full, or closed
                os.write(self._wake, b".")

    def sleep(self, wait_s: float) -> None:
        """Let the thread wait until it is woken, so many seconds at most."""
        if select.select([self.fd], [], [], wait_s)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self.fd, 4096)
        self.asleep = False

    def end(self) -> None:
        """The thread ends: it does what is left, and no more comes."""
        with self.lock:
            self.over = True
        while self._waiting:
            try:
                self.do()
            except Exception:
                log.exception("what was asked of a session that has ended failed")

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)
        os.close(self._wake)
