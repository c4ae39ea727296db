"""What can be run together is, oldest first, up to a number of frames; the clock is moved by hand."""

import math

import numpy as np
import pytest

from eex.stream.wire.protocol import Request
from eex.stream.worker.batches import BatchQueue, Queued
from eex.stream.worker.clients import Client


def queued(id, arrived=0.0, *, frames=1, stage=1, expert="blur", model="m", dtype="float32", size=4, deadline_ms=0.0):
    header = Request(id, model, stage, expert, dtype, (frames, size), deadline_ms)
    return Queued(Client(b"a", 0.0), header, [np.zeros((frames, size), dtype=dtype)], arrived)


def queue_of(*requests, batch=6, wait_ms=0.0):
    queue = BatchQueue(batch, wait_ms)
    for request in requests:
        queue.put(request)
    return queue


def taken(queue, now=1.0):
    batch, expired = queue.take(now)
    return [q.header.id for q in batch.requests], [q.header.id for q in expired]


def test_requests_of_one_kind_share_a_batch_up_to_its_frames():
    queue = queue_of(*(queued(id, id / 100, frames=2) for id in range(5)))
    assert (taken(queue), taken(queue)) == (([0, 1, 2], []), ([3, 4], []))
    assert not queue


@pytest.mark.parametrize(
    "other", [{"stage": 2}, {"expert": "fog"}, {"model": "n"}, {"dtype": "float16"}, {"size": 5}], ids=str
)
def test_requests_of_another_kind_do_not(other):
    queue = queue_of(queued(1, 0.1), queued(2, 0.0, **other), queued(3, 0.2))
    assert (taken(queue), taken(queue)) == (([2], []), ([1, 3], []))  # the oldest first


def test_one_request_may_be_larger_than_a_batch():
    queue = queue_of(queued(1, frames=9), queued(2))
    batch, _ = queue.take(0.0)
    assert (batch.frames, batch.started, taken(queue)) == (9, 0.0, ([2], []))


def test_a_request_whose_deadline_has_passed_is_not_run():
    queue = queue_of(queued(1, 0.0, deadline_ms=50), queued(2, 0.0, deadline_ms=150), queued(3, 0.0))
    assert taken(queue, now=0.1) == ([2, 3], [1])
    assert taken(queue_of(queued(1, 0.0, deadline_ms=50)), now=0.1) == ([], [1])


def test_requests_may_wait_for_company():
    queue = queue_of(wait_ms=20.0, batch=3)
    assert queue.due_in_ms(0.0) == math.inf
    queue.put(queued(1, 1.0))
    assert queue.due_in_ms(1.005) == pytest.approx(15.0)
    queue.put(queued(2, 1.006, stage=2))  # of another kind: it does not help
    assert queue.due_in_ms(1.010) == pytest.approx(10.0)
    assert queue.due_in_ms(1.5) == 0.0
    queue.put(queued(3, 1.010, frames=2))
    assert queue.due_in_ms(1.010) == 0.0  # the batch is full
    assert taken(queue) == ([1, 3], [])
    assert queue.due_in_ms(1.020) == pytest.approx(6.0)


def test_requests_wait_no_longer_than_half_of_their_deadline():
    queue = queue_of(queued(1, deadline_ms=500.0), wait_ms=600.0)
    assert queue.due_in_ms(0.1) == pytest.approx(150)
    queue.put(queued(2, arrived=0.1, deadline_ms=60.0))
    assert queue.due_in_ms(0.1) == pytest.approx(30)
    queue = queue_of(queued(1), wait_ms=600.0)  # waits for its answer for ever
    assert queue.due_in_ms(0.1) == pytest.approx(500)


def test_a_kind_that_is_due_first_or_full_does_not_wait_for_the_oldest():
    oldest, hasty = queued(1, 0.0, deadline_ms=5000.0), queued(2, 0.001, expert="fog", deadline_ms=300.0)
    queue = queue_of(oldest, hasty, wait_ms=400.0)
    assert queue.due_in_ms(0.0) == pytest.approx(151)
    assert taken(queue, now=0.16) == ([2], [])
    assert queue.due_in_ms(0.16) == pytest.approx(240)
    queue.put(queued(3, 0.17, expert="fog", frames=6))  # as many as a batch holds
    assert queue.due_in_ms(0.17) == 0.0
    assert taken(queue, now=0.17) == ([3], [])


def test_without_a_wait_a_batch_is_due_at_once():
    assert queue_of(queued(1, 5.0)).due_in_ms(5.0) == 0.0


def test_the_bytes_of_a_request_are_those_of_its_decoded_features():
    assert [queued(1, frames=3, dtype=dtype).nbytes for dtype in ("float32", "float16", "int8", "uint8")] == [
        48,
        24,
        48,
        48,
    ]
