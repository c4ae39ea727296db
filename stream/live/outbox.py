"""What leaves a session: each answer and refusal to its future, to the sinks, and to whoever reads them one by one."""

import itertools
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

from eex.stream.live.answers import Answer, Refusal, Sink

ANSWERS_KEPT = 8192
"""Answers that wait for somebody to take them by `answers`, at most."""
ERRORS_NAMED = 16
"""Different errors of a sink that are counted by name, at most."""


class Outbox:
    """Gives answers and refusals away, from any thread.

    Parameters
    ----------
    sinks
        Called with each, one after another; one that raises is counted and called again for the next.

    Attributes
    ----------
    sinks
        Each with its errors, counted by what they say.
    missed
        Answers that nobody took by `answers` before 8,192 newer ones had come.
    over
        Whether no more will come.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self.sinks = [(sink, Counter[str]()) for sink in sinks]
        self.missed, self.over = 0, False
        self._sinking = threading.RLock()
        self._sinks_in: int | None = None  # the thread that calls the sinks now
        self._waiting: deque[Answer | Refusal] = deque(maxlen=ANSWERS_KEPT)
        self._news = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def give(self, given: Sequence[tuple["Future[Answer | Refusal]", Answer | Refusal]]) -> None:
        """Give some away, each to its future first."""
        for future, one in given:
            future.set_result(one)
        with self._news:
            self.missed += max(0, len(self._waiting) + len(given) - ANSWERS_KEPT)
            self._waiting.extend(one for _, one in given)
            self._news.notify(len(given))
        if not self.sinks:
            return
        with self._sinking:
            before, self._sinks_in = self._sinks_in, threading.get_ident()
            for (_, one), (sink, errors) in itertools.product(given, self.sinks):
                try:
                    sink(one)
                except Exception as error:
                    kind = f"{type(error).__name__}: {error}"[:200]
                    errors[kind if kind in errors or len(errors) < ERRORS_NAMED else "others"] += 1
            self._sinks_in = before

    @property
    def in_sink(self) -> bool:
        """Whether a sink calls this."""
        return self._sinks_in == threading.get_ident()

    def answers(self) -> Iterator[Answer | Refusal]:
        """Yield what is given away, until it is `over` and all are taken."""
        while True:
            with self._news:
                while not self._waiting and not self.over:
                    self._news.wait()
                if not self._waiting:
                    return
                given = self._waiting.popleft()
            yield given

    def next(self) -> Answer | Refusal | None:
        """The next of what `answers` yields; None if there is none now."""
        with self._news:
            return self._waiting.popleft() if self._waiting else None

    def end(self) -> None:
        """No more will come."""
        with self._news:
            self.over = True
            self._news.notify_all()
