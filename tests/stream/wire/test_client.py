"""The edge's end over real sockets and in real time; `test_requests.py` has its rules, without either."""

import contextlib
import math
import socket
import threading
import time

import msgspec
import numpy as np
import pytest
import zmq
from loopback import (
    PATIENCE_S,
    bound_router,
    collect,
    endpoint_of,
    frames,
    greet,
    offloading,
    receive,
    reply,
    serving,
    submit,
)
from simulated import WELCOME, tail

from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader
from eex.stream.wire.peer import HELLO_ID
from eex.stream.wire.protocol import refusal

pytestmark = pytest.mark.timeout(60)


def all_offloaders(router):
    endpoint = endpoint_of(router)
    return [NoOffloader(), InMemoryOffloader(tail), ZmqOffloader(endpoint, "model-a")]


def test_all_offloaders_start_alike(router):
    for offloader in all_offloaders(router):
        with contextlib.closing(offloader):
            assert (offloader.outstanding, offloader.bytes_sent, offloader.poll(), offloader.poll(10)) == (0, 0, [], [])
            assert math.isnan(offloader.link_ms)


# ---- a worker that works


def test_frames_go_to_the_worker_and_back(router):
    with serving(router) as lines, offloading(router) as offloader:
        assert offloader.connect(PATIENCE_S) == WELCOME
        before = offloader.bytes_sent
        assert offloader.submit(1, 1, "blur", frames(3))
        assert offloader.submit(2, 2, "pristine", frames(2).astype(np.float16))
        assert offloader.outstanding == 2
        replies = collect(offloader, 2)
        assert offloader.outstanding == 0
        np.testing.assert_array_equal(replies[1].confidence, [0.5, 0.5, 0.5])
        np.testing.assert_array_equal(replies[1].prediction, [1, 1, 1])
        np.testing.assert_array_equal(replies[2].confidence, [0.25, 0.25])
        assert replies[1].confidence.dtype == np.float64
        assert replies[1].prediction.dtype == np.int64
        assert all(0 <= r.compute_ms <= r.round_trip_ms and not r.failed for r in replies.values())
        assert offloader.bytes_sent - before > 3 * 16 + 2 * 8
        assert 0 < offloader.link_ms < 1000 * PATIENCE_S
        assert lines == []


def test_several_edges_get_their_own_replies(router):
    with serving(router), offloading(router) as a, offloading(router) as b:
        submit(a, 1, 1, "blur", frames(1))
        submit(b, 1, 2, "pristine", frames(2))
        np.testing.assert_array_equal(collect(b, 1)[1].confidence, [0.25, 0.25])
        np.testing.assert_array_equal(collect(a, 1)[1].confidence, [0.5])


def test_poll_without_time_does_not_wait_and_nothing_awaited_is_not_waited_for(router):
    with offloading(router, by_hand=True) as offloader:
        start = time.monotonic()
        assert offloader.poll(1000 * PATIENCE_S) == []
        submit(offloader, 1, 1, "blur", frames())
        assert offloader.poll(0) == []
        assert time.monotonic() - start < PATIENCE_S / 2


def test_a_worker_may_go_and_come_back():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as first:
        first.linger = 0
        first.bind("tcp://127.0.0.1:*")
        endpoint = endpoint_of(first)
        offloader = ZmqOffloader(endpoint, "model-a", deadline_ms=1000 * PATIENCE_S)
        greet(first, offloader)
        submit(offloader, 0, 1, "blur", frames())
        receive(first)
    with contextlib.closing(offloader):
        assert collect(offloader, 1)[0].failed == "the connection to the worker broke"
        assert not offloader.reachable
        assert not offloader.submit(1, 1, "blur", frames())
        with zmq.Context() as context, context.socket(zmq.ROUTER) as second:
            second.linger = 0
            second.bind(endpoint)
            with serving(second):
                submit(offloader, 1000, 1, "blur", frames())
                assert not collect(offloader, 1)[1000].failed


# ---- a worker that does not


@pytest.mark.parametrize("served", [True, False])
def test_keys_are_not_to_blame_where_the_worker_has_served_before(served):
    with bound_router() as router:
        port = int(endpoint_of(router).rpartition(":")[2])
        offloader = ZmqOffloader(endpoint_of(router), "model-a")
        if served:
            greet(router, offloader)
    with contextlib.closing(offloader), socket.create_server(("127.0.0.1", port)) as door:
        door.settimeout(0.01)
        end, problem = time.monotonic() + PATIENCE_S, ""
        while not problem and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                door.accept()[0].close()
            offloader.poll()
            state = offloader.report()["workers"][0]["state"]
            problem = state if state.startswith("it closed") else ""
    assert ("keys" in problem, bool(problem)) == (not served, True)


def test_a_hanging_worker_cannot_hold_the_edge(router):
    go_on, entered = threading.Event(), threading.Event()

    def hanging(*arguments):
        entered.set()
        assert go_on.wait(PATIENCE_S)
        return tail(*arguments)

    with serving(router, hanging), offloading(router, deadline_ms=100) as offloader:
        for id in range(3):
            submit(offloader, id, 1, "blur", frames())
        failed = collect(offloader, 3)
        assert all(r.failed == "no reply within 100 ms" and r.round_trip_ms > 100 for r in failed.values())
        assert all(len(r.confidence) == len(r.prediction) == 0 for r in failed.values())
        assert offloader.outstanding == 0
        assert offloader.link_ms == 100
        assert entered.is_set()
        offloader._requests.deadline_ms = 1000 * PATIENCE_S
        submit(offloader, 3, 1, "blur", frames())
        go_on.set()
        answered = collect(offloader, 1)  # the three late ones come before it, and are dropped
        assert not answered[3].failed
        assert offloader.poll() == []


def test_a_flood_of_strangers_does_not_hold_the_edge(router):
    with offloading(router, by_hand=True, window=1) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        client = receive(router)[0]
        for _ in range(500):
            reply(router, client, 99)
        reply(router, client, 1)
        assert not collect(offloader, 1)[1].failed


def test_nothing_is_sent_where_nobody_is():
    with bound_router() as socket:
        endpoint = endpoint_of(socket)
    with contextlib.closing(ZmqOffloader(endpoint, "model-a")) as offloader:
        assert [offloader.submit(id, 1, "blur", frames()) for id in range(20)] == [False] * 20
        assert offloader.outstanding == 0
        assert offloader.bytes_sent == 0
        assert offloader.poll(100) == []
    offloader = ZmqOffloader(endpoint, "model-a")
    with pytest.raises(OffloadError, match=r"^tcp://127.0.0.1:\d+: no eex-worker answered within 0.2 s; .*$"):
        offloader.connect(0.2)


def test_a_callers_mistakes_are_errors():
    with pytest.raises(OffloadError, match="nowhere: not a worker's endpoint"):
        ZmqOffloader("nowhere", "model-a")
    with pytest.raises(ValueError, match="must be positive, got 0 and 16"):
        ZmqOffloader("tcp://127.0.0.1:1", "model-a", deadline_ms=0)


# ---- hello


def test_a_worker_with_another_model_is_noticed_at_start_and_later(router):
    with serving(router) as lines:
        endpoint = endpoint_of(router)
        offloader = ZmqOffloader(endpoint, "model-b")
        with pytest.raises(OffloadError, match="the worker has model model-a, the edge model-b"):
            offloader.connect(PATIENCE_S)
        assert lines == ["refused a message: the worker has model model-a, the edge model-b"]
        with offloading(router) as unchecked:
            unchecked.connect(PATIENCE_S)
            unchecked._requests.fingerprint = "model-b"
            submit(unchecked, 1, 1, "blur", frames())
            assert collect(unchecked, 1)[1].failed == "the worker has model model-a, the edge model-b"
            assert not unchecked.reachable


def test_a_worker_that_does_not_answer_is_not_waited_for(router):
    offloader = ZmqOffloader(endpoint_of(router), "model-a")
    with pytest.raises(OffloadError, match="no eex-worker answered"):
        offloader.connect(0.3)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refusal(HELLO_ID, "message", "too old\n"), r"the worker refused: too old$"),
        ([msgspec.msgpack.encode({"kind": "welcome", "version": 99, "news": 1})], r"the message speaks version 99 of"),
        ([b"HTTP/1.1 400 Bad Request"], r"not a header of eex"),
    ],
)
def test_another_kind_of_worker_is_noticed(router, answer, says):
    offloader = ZmqOffloader(endpoint_of(router), "model-a")

    def give():
        if router.poll(1000 * PATIENCE_S):
            router.send_multipart([router.recv_multipart()[0], *answer])

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    with pytest.raises(OffloadError, match=rf"^tcp://127.0.0.1:\d+: {says}"):
        offloader.connect(PATIENCE_S)
    thread.join(PATIENCE_S)
