"""Frames and streams that come in, without an engine."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from eex.models.architecture import Preprocessing
from eex.policies.core.errors import EexError
from eex.stream.live.config import LiveConfig, StreamOptions
from eex.stream.live.intake import Intake
from eex.stream.live.outbox import Outbox

IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


@pytest.fixture
def intake():
    taken = SimpleNamespace(input_shape=(3, 8, 8), preprocessing=Preprocessing(), classes=("cat", "dog"))
    found = Intake(LiveConfig(queue=2, batch=4), taken, Outbox([]), threading.RLock(), lambda: roused.append(1))
    roused = found.roused = []
    return found


def submit(intake, stream="door", wait=False, image=IMAGE, **given):
    return intake.submit(image, stream, given.get("at"), "", -1, wait)


def reasons(*futures):
    return [future.result(0).reason for future in futures]


def test_a_full_queue_refuses_or_waits_for_room(intake):
    kept = [submit(intake) for _ in range(2)]
    assert reasons(submit(intake)) == ["full"]
    assert not any(future.done() for future in kept)
    waiting = threading.Thread(target=submit, args=(intake, "door", True))
    waiting.start()
    while intake.streams["door"].queue.submitted < 4:
        time.sleep(0.001)
    with intake.lock:
        batch, _ = intake.take(1, time.perf_counter())
    waiting.join(10)
    assert [frame.frame for frame in batch] == [0]
    assert [frame.frame for frame in intake.streams["door"].queue.frames] == [1, 3]  # the third was refused
    assert intake.streams["door"].refused == {"full": 1}


def test_a_frame_counts_from_when_it_was_captured_unless_that_is_to_come(intake):
    wall = time.time()
    submit(intake, at=wall - 5.0)
    submit(intake, at=wall + 1000.0)
    then, now = intake.streams["door"].queue.frames
    assert then.arrived - then.since == pytest.approx(5.0, abs=0.5)
    assert now.arrived == pytest.approx(now.since)


def test_the_newest_frame_makes_the_one_before_stale(intake):
    intake.set_options("door", StreamOptions(keep="newest"))
    first, second = submit(intake), submit(intake)
    assert reasons(first) == ["stale"]
    assert not second.done()
    assert len(intake.roused) == 2


def test_what_is_no_image_is_refused_and_counted(intake):
    assert reasons(submit(intake, image=b"no image")) == ["undecodable"]
    assert intake.skip("door", "x.png", "it is cut off").detail == "it is cut off"
    assert intake.streams["door"].refused == {"undecodable": 2}
    assert intake.streams["door"].queue.submitted == 2


def test_a_stream_goes_once_nothing_of_it_waits_and_comes_back_as_it_was(intake):
    submit(intake)
    its = intake.close_stream("door")
    assert reasons(submit(intake)) == ["closed"]
    assert not intake.leave(its, lambda _: True)  # a frame waits
    with intake.lock:
        intake.take(4, time.perf_counter())
    assert not intake.leave(its, lambda _: False)  # a frame is under way
    assert intake.leave(its, lambda _: True)
    assert (list(intake.streams), list(intake.closed)) == ([], ["door"])
    submit(intake)
    assert intake.streams["door"] is its
    assert intake.leave(its, lambda _: pytest.fail("it is open again"))
    assert intake.close_stream("window") is None


def test_a_closed_intake_hands_back_what_waits_and_says_why(intake):
    futures = [submit(intake), submit(intake, "window")]
    left = intake.close(drain=False)
    intake.refuse(left, "closed", "the session was closed")
    assert reasons(*futures, submit(intake)) == ["closed"] * 3
    with pytest.raises(EexError, match="the session is closed"):
        intake.set_options("door", StreamOptions())
    intake.close(failure=RuntimeError("no memory"))
    assert submit(intake).result(0).detail == "the session failed: no memory"
