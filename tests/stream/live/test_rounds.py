"""The rounds of a session's thread, with an engine that notes what it is given, and a clock that the test moves."""

import contextlib
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from eex.models.architecture import Preprocessing
from eex.stream.live.config import LiveConfig
from eex.stream.live.intake import Intake
from eex.stream.live.outbox import Outbox
from eex.stream.live.rounds import SAVE_S, SUM_UP_S, Rounds
from eex.stream.live.tasks import Tasks


class Engine:
    """Stands for `Playing`: answers at once what it is fed, and notes what it is asked to do."""

    def __init__(self):
        self.done, self.room, self.sharing = [], 100, None
        self.net = SimpleNamespace(inferring=contextlib.nullcontext)
        poll = lambda wait_ms=0.0: self.done.append(("poll", wait_ms))  # noqa: E731
        self.driver = SimpleNamespace(idle=lambda: None, due=math.inf, awaits=False, poll=poll, worth_taking=False)
        self.totals = SimpleNamespace(flush=lambda: self.done.append("flush"))
        self.kept = SimpleNamespace(
            save_aside=lambda learned: self.done.append(("save", learned())),
            join=lambda: None,
            snapshot=lambda learned: learned,
            save=lambda learned: self.done.append(("saved", learned)),
        )

    def feed(self, batch):
        self.done.append(("feed", [frame.frame for frame in batch]))
        for frame in batch:
            frame.future.set_result("answer")

    def sum_up(self):
        self.done.append("sum up")

    def leave(self, its):
        self.done.append(("leave", its.queue.name))
        return True

    def all_learned(self, streams):
        return [its.queue.name for its in streams]

    def finish(self):
        self.done.append("finish")

    def abandon(self):
        return []

    def record_what_is_left(self):
        self.done.append("record")


@pytest.fixture
def session(tmp_path):
    """A thread's parts, whose rounds the test makes itself."""
    config, tasks, outbox, engine = LiveConfig(state=tmp_path / "s"), Tasks(threading.RLock()), Outbox([]), Engine()
    taken = SimpleNamespace(input_shape=(3, 8, 8), preprocessing=Preprocessing(), classes=("cat", "dog"))
    intake = Intake(config, taken, outbox, tasks.lock, tasks.rouse)
    now = SimpleNamespace(s=0.0)
    rounds = Rounds(config, engine, intake, tasks, outbox, clock=lambda: now.s)
    tasks.sleep = lambda wait_s: engine.done.append(("sleep", wait_s))
    yield SimpleNamespace(intake=intake, tasks=tasks, engine=engine, rounds=rounds, now=now, outbox=outbox)
    tasks.close()


def submit(session, stream="door"):
    return session.intake.submit(np.zeros((8, 8, 3), dtype=np.uint8), stream, None, "", -1, False)


def test_what_waits_is_run_and_a_round_without_work_sleeps(session):
    future = submit(session)
    assert session.rounds._round()
    assert (future.result(0), session.engine.done) == ("answer", [("feed", [0])])
    assert session.rounds._round()
    assert session.engine.done[1:] == [("sleep", 0.05), ("poll", 0.0)]
    assert session.tasks.asleep


def test_a_reply_that_is_due_ends_the_sleep(session):
    session.engine.driver.due = 0.02
    session.rounds._round()
    assert session.engine.done == [("sleep", 0.02), ("poll", 0.0)]
    session.engine.driver.awaits = True
    session.rounds._round()
    assert session.engine.done[2:] == [("poll", 20.0), ("sleep", 0.001), ("poll", 0.0)]


def test_finished_frames_are_summed_up_and_what_was_learned_is_saved_by_the_clock(session):
    submit(session)
    session.rounds._round()
    session.now.s = SUM_UP_S + 0.1
    session.rounds._round()
    assert "sum up" in session.engine.done
    assert not any(entry[0] == "save" for entry in session.engine.done)
    session.now.s = SAVE_S + 0.1
    session.rounds._round()
    assert session.engine.done[-1] == ("save", ["door"])


def test_records_reach_the_disk_by_the_clock_without_a_state_too(session):
    session.rounds._saves = False
    session.now.s = SAVE_S + 0.1
    session.rounds._round()
    assert session.engine.done[-1] == "flush"


def test_without_room_frames_wait_and_finished_ones_are_taken(session):
    submit(session)
    session.engine.room = 0
    session.rounds._round()
    assert session.engine.done == [("sleep", 0.05), ("poll", 0.0), "sum up"]
    assert session.intake.arrivals.waiting == 1


def test_a_closing_stream_goes_after_what_waits_of_it_was_run(session):
    submit(session)
    session.rounds.let_go(session.intake.close_stream("door"))
    session.rounds._round()
    assert session.engine.done == [("feed", [0]), "sum up", ("leave", "door")]
    assert list(session.intake.closed) == ["door"]


def test_the_thread_ends_with_the_intake_and_saves(session):
    submit(session)
    session.intake.close()
    session.rounds._run()
    assert session.engine.done == [("feed", [0]), "finish", ("saved", ["door"])]
    assert session.tasks.over
    assert session.outbox.over


def test_whatever_goes_wrong_every_frame_gets_its_refusal(session, caplog):
    waits = submit(session)
    session.tasks.put(lambda: 1 // 0)
    session.rounds._run()
    assert waits.done()
    late = submit(session).result(0)
    assert (late.reason, late.detail) == ("failed", "the session failed: integer division or modulo by zero")
    assert "the session failed" in caplog.text
