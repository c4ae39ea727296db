"""Who is run next, with a clock that the test moves."""

import math
from collections import Counter

import numpy as np

from eex.stream.live.arrivals import Arrivals, Queue, Waiting


def frame(stream, number, arrived=0.0):
    return Waiting(stream, number, "", -1, np.zeros(0, dtype=np.uint8), 0.0, arrived, arrived, None)


def test_nothing_waits_for_a_batch_to_fill():
    arrivals = Arrivals(batch=32)
    arrivals.streams = 2
    assert arrivals.due() == math.inf
    arrivals.put(Queue("a"), frame("a", 0, arrived=5.0))
    assert arrivals.due() == -math.inf
    assert [f.frame for f in arrivals.take(100)] == [0]
    assert arrivals.due() == math.inf


def test_a_frame_waits_for_others_as_long_as_it_may_and_not_for_its_own_stream():
    arrivals = Arrivals(batch=3, wait_s=0.5)
    a, b = Queue("a"), Queue("b")
    arrivals.streams = 1
    arrivals.put(a, frame("a", 0, arrived=1.0))
    assert arrivals.due() == -math.inf  # nobody else could come
    arrivals.streams = 2
    assert arrivals.due() == 1.5
    arrivals.put(b, frame("b", 0, arrived=1.2))
    assert arrivals.due() == 1.5
    arrivals.put(b, frame("b", 1, arrived=1.3))
    assert arrivals.due() == -math.inf  # the batch is full
    assert len(arrivals.take(100)) == 3


def test_frames_that_are_replaced_wait_no_longer_than_one_may():
    arrivals, a, b = Arrivals(batch=32, wait_s=0.05), Queue("a", keep="newest"), Queue("b", keep="newest")
    arrivals.streams = 2
    for k in range(3):  # as cameras whose frames come sooner than the wait is over
        arrivals.put(a, frame("a", k, arrived=k / 30))
        arrivals.put(b, frame("b", k, arrived=k / 30 + 0.01))
    assert arrivals.due() == 0.05
    assert [f.frame for f in arrivals.take(1)] == [2]
    assert arrivals.due() == 0.01 + 0.05
    arrivals.put(a, frame("a", 3, arrived=0.1))
    assert [f.stream for f in arrivals.take(100)] == ["b", "a"]
    arrivals.put(a, frame("a", 4, arrived=0.2))
    assert arrivals.due() == 0.2 + 0.05


def test_the_newest_frame_takes_the_place_of_the_one_before():
    arrivals, queue = Arrivals(batch=4), Queue("a", keep="newest")
    assert arrivals.put(queue, frame("a", 0)) == []
    assert [f.frame for f in arrivals.put(queue, frame("a", 1))] == [0]
    assert not queue.full
    assert [f.frame for f in arrivals.take(4)] == [1]
    assert arrivals.waiting == 0


def test_while_frames_are_replaced_fewer_are_run_together():
    arrivals = Arrivals(batch=32)
    queues = [Queue(name, keep="newest") for name in "abcdefgh"]
    for queue in queues:
        arrivals.put(queue, frame(queue.name, 0))
    for queue in queues:
        assert len(arrivals.put(queue, frame(queue.name, 1))) == 1
    assert [f.stream for f in arrivals.take(100)] == ["a", "b"]
    assert [f.stream for f in arrivals.take(100)] == list("cdefgh")  # none was replaced since


def test_turns_are_fair_whatever_the_streams_bring():
    arrivals = Arrivals(batch=4)
    busy, calm = Queue("busy", most=1000), Queue("calm")
    for k in range(100):
        arrivals.put(busy, frame("busy", k))
    arrivals.put(calm, frame("calm", 0))
    assert ("calm", 0) in [(f.stream, f.frame) for f in arrivals.take(4)]
    served = Counter()
    queues = [Queue(name, keep="newest") for name in "abcdef"]
    arrivals.clear()
    for k in range(200):  # all of them, faster than they are served
        for queue in queues:
            arrivals.put(queue, frame(queue.name, k))
        served.update(f.stream for f in arrivals.take(4))
    assert max(served.values()) - min(served.values()) <= 1


def test_room_limits_what_is_taken_and_clearing_leaves_nothing():
    arrivals, queue = Arrivals(batch=8), Queue("a", most=3)
    for k in range(3):
        arrivals.put(queue, frame("a", k))
    assert queue.full
    assert [f.frame for f in arrivals.take(2)] == [0, 1]
    assert not queue.full
    assert arrivals.take(0) == []
    assert [f.frame for f in arrivals.clear()] == [2]
    assert arrivals.due() == math.inf
    arrivals.put(queue, frame("a", 3))
    assert [f.frame for f in arrivals.take(8)] == [3]
