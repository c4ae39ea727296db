"""What is promised for a submitted frame: a future of its answer, and the error of one that got none."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from eex.policies.core.errors import EexError
from eex.stream.live.answers import Answer, Refusal


class Refused(EexError):
    """A frame got no answer; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"frame {refusal.frame} of stream '{refusal.stream}': {refusal.reason}: {refusal.detail}")
        self.refusal = refusal


_DECIDING = threading.Lock()
"""Held while a future gets its condition, or its result without one."""


class Promised(Future[Answer | Refusal]):
    """A future that cannot be cancelled: every frame gets its answer or refusal.

    Its condition variable, which takes most of the time that a future takes, is made once somebody waits or adds a
    callback: of many frames only the sinks want the answer.
    """

    def __init__(self) -> None:
        self._state, self._result, self._exception = "PENDING", None, None  # as `Future` does, but for the condition
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[Answer | Refusal]], object]] = []

    def __getattr__(self, name: str) -> Any:
        if name != "_condition":
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        with _DECIDING:
            return vars(self).setdefault("_condition", threading.Condition())

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._state == "FINISHED"

    def result(self, timeout: float | None = None) -> Answer | Refusal:
        """The answer, waited for; a `TimeoutError` if it takes longer than so many seconds."""
        if self._state == "FINISHED" and self._result is not None:
            return self._result
        return super().result(timeout)

    def set_result(self, result: Answer | Refusal) -> None:
        """Give the answer; whoever waits gets it."""
        with _DECIDING:
            if "_condition" not in vars(self) and self._state == "PENDING":
                self._result, self._state = result, "FINISHED"
                return
        super().set_result(result)

    def cancel(self) -> bool:
        """Do nothing, and say so."""
        return False
