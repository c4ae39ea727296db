"""A session's thread: round after round it does what it is asked, runs frames, and takes replies."""

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial

from eex.stream.live.arrivals import Waiting
from eex.stream.live.config import LiveConfig
from eex.stream.live.intake import Intake
from eex.stream.live.learning import Snapshot
from eex.stream.live.outbox import Outbox
from eex.stream.live.playing import Playing, Stream
from eex.stream.live.tasks import Tasks

IDLE_S = 0.05
"""Longest wait: by then the connection to the worker is looked after again."""
POLL_S = 0.001
"""Wait between two looks at an offloader whose `poll` does not wait."""
SUM_UP_S = 10.0
"""Seconds between two times that finished frames are summed up and recorded."""
SAVE_S = 60.0
"""Seconds between two times that what was learned is saved."""

log = logging.getLogger("eex")


class Rounds:
    """Runs in a thread of its own until the intake is closed and nothing waits, and answers every frame before it ends.

    Parameters
    ----------
    intake, tasks
        What other threads bring, and what they ask.
    playing
        Runs and answers the frames.
    outbox
        Ends with the thread.
    clock
        Time in seconds, on the clock that frames' arrivals are counted on.
    """

    def __init__(
        self,
        config: LiveConfig,
        playing: Playing,
        intake: Intake,
        tasks: Tasks,
        outbox: Outbox,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.playing = playing
        self._saves = config.state is not None
        self._intake, self._tasks, self._outbox, self._clock = intake, tasks, outbox, clock
        self._batch: list[Waiting] = []  # the latest that was taken
        self._leaving: list[Stream] = []
        self._summed_up = self._saved = clock()
        self.thread = threading.Thread(target=self._run, name="eex-session", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._tasks.thread = self.thread
        self.thread.start()

    def let_go(self, its: Stream) -> None:
        """Let a closing stream go once nothing of it is under way."""
        self._tasks.put(partial(self._leaving.append, its))

    def snapshot(self) -> Snapshot:
        """What all streams have learned, the closed ones too."""
        with self._intake.lock:
            there = list(self._intake.streams.values())
        return self.playing.kept.snapshot(self.playing.all_learned(there))

    # ---- in the thread

    def _run(self) -> None:
        try:
            with self.playing.net.inferring():
                while self._round():
                    pass
                self.playing.finish()
                if self._saves:
                    self.playing.kept.join()
                    self.playing.kept.save(self.snapshot())
        except BaseException as error:  # whatever it is, every frame gets its refusal
            log.error("the session failed: %s", error, exc_info=error)
            left = [*self._batch, *self._intake.close(failure=error, drain=False)]
            left += [frame for frame in self.playing.abandon() if frame not in self._batch]
            unanswered = [frame for frame in left if not frame.future.done()]
            self._intake.refuse(unanswered, "failed", f"the session failed: {error}")
            self.playing.record_what_is_left()
        finally:
            self._tasks.end()
            self._outbox.end()

    def _round(self) -> bool:
        """One round; whether there will be another."""
        playing, sharing, now = self.playing, self.playing.sharing, self._clock()
        with self._intake.lock:
            tasks = self._tasks.waiting
            room = playing.room
            batch, due = self._intake.take(room, now)
            self._batch = batch
            if not batch and not tasks:
                if self._intake.closing and not self._intake.arrivals.waiting:
                    return False
                self._tasks.asleep = True
        self._tasks.do()
        if batch:
            playing.feed(batch)
        elif not tasks:
            self._wait(now + IDLE_S if due == -math.inf else min(due, now + IDLE_S))  # -inf: there was no room
        if self._leaving:
            playing.sum_up()
            self._leaving = [its for its in self._leaving if not self._intake.leave(its, playing.leave)]
        if sharing is not None:
            sharing.tend()
        now = self._clock()
        if playing.driver.worth_taking or now - self._summed_up > SUM_UP_S or not room:
            playing.sum_up()
            self._summed_up = now
        if now - self._saved > SAVE_S:
            if self._saves:
                playing.kept.save_aside(self.snapshot)
            else:
                playing.totals.flush()
            self._saved = now
        return True

    def _wait(self, until: float) -> None:
        """Wait for an arrival, a task or a reply, until a time at most."""
        driver = self.playing.driver
        driver.idle()
        wait_s = max(0.0, min(until, driver.due) - self._clock())
        if driver.awaits:
            driver.poll(1000 * wait_s)
            wait_s = min(wait_s, POLL_S)
        self._tasks.sleep(wait_s)
        driver.poll()
