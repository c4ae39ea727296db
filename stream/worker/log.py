"""Lines for the user that never block and never raise, whatever becomes of the pipe, file or terminal they go to."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_WAITING = 1000  # lines, before new ones are dropped
LINES_A_SECOND = 20
LINES_AN_HOUR = 1000
REPEAT_S = 600.0
"""A line that was logged within this time is counted instead of logged again."""


class Log:
    """Writes lines to a file descriptor in a thread of its own.

    A line is dropped, and counted, if too many wait because nobody reads, or if it cannot be written, as on a full
    device. The process may end while the thread is stuck in a write.

    Attributes
    ----------
    dropped
        Lines that could not be written.
    """

    def __init__(self, descriptor: int, prefix: str = "") -> None:
        self.dropped = 0
        self._descriptor, self._prefix = descriptor, prefix
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, line: str) -> None:
        """Have a line written soon; returns at once."""
        with self._changed:
            if len(self._lines) >= MOST_WAITING:
                self.dropped += 1
                return
            self._lines.append(f"{self._prefix}{line}\n")
            if self._thread is None:
                thread = threading.Thread(target=self._write, daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError:  # no room for a thread: a later line tries again
                    return
            self._changed.notify_all()

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait until all lines are written; whether they were in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines, timeout_s)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                data = self._lines[0].encode(errors="backslashreplace")
            try:
                while data:
                    try:
                        data = data[os.write(self._descriptor, data) :]
                    except BlockingIOError:  # the other end of a pipe made it non-blocking
                        time.sleep(0.05)
            except OSError:
                self.dropped += 1
            with self._changed:
                self._lines.popleft()
                self._changed.notify_all()


class Throttled:
    """A log that takes a limited number of lines, so that strangers cannot fill a disk with it.

    At most `LINES_A_SECOND` and `LINES_AN_HOUR` are passed on. A line that is repeated within `REPEAT_S` is counted,
    and the count is added when the line is next logged.

    Attributes
    ----------
    dropped
        Lines that were not passed on.
    """

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        self._log, self._clock = log, clock
        self._second: deque[float] = deque(maxlen=LINES_A_SECOND)
        self._hour: deque[float] = deque(maxlen=LINES_AN_HOUR)
        self._said: dict[str, tuple[float, int]] = {}  # when a line was last logged, and how often dropped since

    def __call__(self, line: str) -> None:
        """Log a line, unless it was logged lately or there were too many."""
        now = self._clock()
        at, times = self._said.get(line, (-REPEAT_S, 0))
        full = len(self._second) == LINES_A_SECOND and now - self._second[0] <= 1
        full |= len(self._hour) == LINES_AN_HOUR and now - self._hour[0] <= 3600
        if full or now - at < REPEAT_S:
            self.dropped += 1
            if line in self._said:
                self._said[line] = at, times + 1
            return
        self._second.append(now)
        self._hour.append(now)
        self._said.pop(line, None)
        self._said[line] = now, 0
        if len(self._said) > LINES_AN_HOUR:
            del self._said[next(iter(self._said))]
        with contextlib.suppress(Exception):  # whatever the log is, the service goes on
            self._log(f"{line} (and {times} times before)" if times else line)
