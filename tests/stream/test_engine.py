"""The engine by itself: batches and replies in, requests and finished rows out, on a clock that the test moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import EXPERTS, PixelClassifier, pictures, tiny_net

from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Outcomes
from eex.stream.engine import Engine
from eex.stream.frames.batch import Batch
from eex.stream.groups import LONGEST_GATHER, every_exit
from eex.stream.wire.offload import Reply


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def batch(count, seed=0):
    return Batch(pictures(count, seed), [f"{k}.png" for k in range(count)], np.arange(count) % 10)


def run(engine):
    """All stages that can run; the requests made on the way."""
    while engine.step():
        pass
    requests, engine.requests = engine.requests, []
    return requests


def answer_of(slots, confidence=0.99, round_trip_ms=30.0):
    count = len(slots)
    return Reply(1, np.full(count, confidence), np.full(count, 3), compute_ms=10.0, round_trip_ms=round_trip_ms)


def test_a_frame_that_waits_for_the_cloud_stands_still_until_its_reply():
    clock = Clock()
    engine = Engine(tiny_net(), Fixed(1.0, exits=3), clock=clock)
    engine.feed(batch(4))
    assert engine.requests == []  # `feed` runs no stage
    clock.now += 0.25
    (request,) = run(engine)
    assert (request.stage, request.expert, request.features.shape) == (3, "pristine", (4, 10, 1, 1))
    assert engine.awaited == 0
    engine.sent(request.slots, bytes=400)
    assert engine.awaited == 4
    engine.learn()
    assert list(engine.take()) == []
    clock.now += 1.0
    engine.reply(request.slots[:1], answer_of(request.slots[:1]))
    assert engine.awaited == 3
    engine.learn()
    (rows,) = engine.take()
    assert rows.frame.tolist() == [0]
    assert rows.latency_ms.tolist() == [1250.0]
    assert rows.edge_ms.tolist() == [250.0]
    assert rows.link_ms.tolist() == [20.0]
    assert rows.cloud_ms.tolist() == [10.0]
    assert rows.bytes.tolist() == [100.0]
    assert (rows.exit.tolist(), rows.answer.tolist()) == ([3], [3])


def test_the_records_say_when_a_frame_arrived():
    engine = Engine(tiny_net(), Fixed(0.0, exits=3), clock=Clock(), wall=lambda: 1.8e9)
    engine.feed(replace(batch(2), arrived=np.array([49.0, 49.5])))
    run(engine)
    engine.learn()
    (rows,) = engine.take()
    assert rows.captured.tolist() == [1.8e9 - 1, 1.8e9 - 0.5]


def test_latency_is_stamped_where_a_frame_leaves_and_not_when_it_is_taken():
    clock = Clock()
    engine = Engine(tiny_net(), Fixed(0.0, exits=3), clock=clock)
    engine.feed(batch(2))
    clock.now += 0.5
    assert run(engine) == []
    clock.now += 100.0
    engine.learn()
    (rows,) = engine.take()
    assert rows.latency_ms.tolist() == rows.edge_ms.tolist() == [500.0, 500.0]


@pytest.mark.parametrize("failed", [False, True])
def test_the_most_confident_edge_exit_answers_what_the_cloud_cannot(failed):
    net, frames = tiny_net(), batch(6)
    engine = Engine(net, Fixed(1.0, exits=3), clock=Clock())
    engine.feed(frames)
    (request,) = run(engine)
    if failed:
        engine.sent(request.slots, bytes=10)
        engine.reply(request.slots, Reply(1, round_trip_ms=7.0, failed="no reply within 7 ms"))
    else:
        engine.refused(request.slots)
    engine.learn()
    (rows,) = engine.take()
    confidence, prediction, _ = every_exit(net, frames.images)
    best = confidence[:, :-1].argmax(axis=1)
    assert rows.exit.tolist() == best.tolist()
    assert rows.answer.tolist() == prediction[np.arange(6), best].tolist()
    assert rows.fallback.all()
    assert (rows.sent == failed).all()
    assert (rows.reward == -0.1).all() if failed else np.isnan(rows.reward).all()


def test_each_step_runs_one_stage_so_that_requests_can_leave_between():
    net = tiny_net()
    engine = Engine(net, DEEx(0.6, 0.99, extended=True, exits=3), clock=Clock())
    engine.feed(batch(40))
    asked = []
    while engine.step():
        asked.append([request.stage for request in engine.requests])
        engine.requests = []
    assert asked[0] == [1]  # skipped from the first exit, while the others go on
    assert len(asked) == 3


def test_survivors_wait_for_company_but_not_for_ever():
    engine = Engine(tiny_net(), Fixed(1.0, exits=3), gather=10_000, clock=Clock())
    for turn in range(LONGEST_GATHER + 1):
        engine.feed(batch(2, seed=turn))
        assert run(engine) == []
        second = ~np.isnan(engine.ring.rows.confidence[: engine.ring.next, 1])
        assert second.all() if turn == LONGEST_GATHER else not second.any()
    while engine.step(force=True):
        pass
    assert sum(len(request.slots) for request in engine.requests) == 2 * (LONGEST_GATHER + 1)


def test_what_is_known_of_the_link_reaches_the_policy_and_the_rows():
    seen = []

    class Watching(Fixed):
        def choose(self, context):
            seen.append((context.queue, context.link_ms, context.reachable))
            return super().choose(context)

    engine = Engine(tiny_net(), Watching(1.0, exits=3), clock=Clock())
    engine.feed(batch(3))
    (request,) = run(engine)
    engine.sent(request.slots, bytes=1)
    engine.feed(batch(1), link_ms=12.5, reachable=False)
    assert np.isnan(seen[0][1])
    assert seen[0][::2] == (0, True)
    assert seen[1] == (3, 12.5, False)
    (other,) = run(engine)
    for slots in (request.slots, other.slots):
        engine.refused(slots)
    engine.learn()
    rows = next(engine.take())
    assert rows.queue.tolist() == [0, 0, 0, 3]
    assert rows.link_estimate_ms[3] == 12.5
    assert rows.reachable.tolist() == [True, True, True, False]


def test_the_policy_learns_only_when_it_is_told_to():
    learned = []

    class Noting(Fixed):
        def learn(self, outcomes: Outcomes) -> None:
            learned.append(outcomes.frame.tolist())

    engine = Engine(tiny_net(), Noting(0.0, exits=3), clock=Clock())
    engine.feed(batch(3))
    run(engine)
    assert learned == []
    engine.learn()
    engine.learn()
    assert [sorted(frames) for frames in learned] == [[0, 1, 2]]


def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing():
    engine = Engine(tiny_net(), Fixed(1.0, exits=3), capacity=4, clock=Clock())
    engine.feed(batch(3))
    with pytest.raises(ValueError, match="4 frames are under way"):
        engine.feed(batch(2))
    assert engine.ring.next == 3
    assert len(run(engine)[0].slots) == 3


def test_unknown_distortions_are_named_and_taken_by_the_first_expert():
    net, images = tiny_net(experts=EXPERTS, classifier=PixelClassifier()), pictures(60)
    sure = float(np.exp(3) / (np.exp(3) + 2))  # of every frame
    told = {}
    for below in (sure - 0.01, sure + 0.01):
        net.abstain_below = below
        engine = Engine(net, Fixed(0.0, exits=3), clock=Clock())
        engine.feed(Batch(images, [""] * 60, np.zeros(60, dtype=int)))
        run(engine)
        engine.learn()
        rows = next(engine.take())
        told[below] = set(rows.expert.tolist())
    assert list(told.values()) == [{0, 1, 2}, {len(EXPERTS)}]
    pristine = tiny_net(experts=EXPERTS)
    np.testing.assert_array_equal(rows.prediction[:, 0], every_exit(pristine, images)[1][:, 0])
    np.testing.assert_array_equal(every_exit(net, images)[1], every_exit(pristine, images)[1])


def test_images_are_offloaded_as_pixels():
    engine = Engine(tiny_net(), DEEx(0.6, 0.99, extended=True, exits=3), as_input=True, clock=Clock())
    frames = batch(20)
    engine.feed(frames)
    requests = run(engine)
    assert {request.stage for request in requests} == {0}
    sent = np.concatenate([request.features for request in requests])
    slots = np.concatenate([request.slots for request in requests])
    assert sent.dtype == np.uint8
    expected = torch.round(frames.images[slots] * 255).to(torch.uint8).numpy()
    assert np.array_equal(sent, expected)
