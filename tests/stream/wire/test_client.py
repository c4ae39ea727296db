"""Offloading: every message that is sent yields exactly one reply, whatever the worker or the network does."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest
import torch
import zmq

from eex.models.network import make
from eex.policies.core.errors import OffloadError
from eex.stream.wire import protocol
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader
from eex.stream.wire.peer import HELLO_ID
from eex.stream.wire.protocol import Hello, Ping, Pong, ReplyHeader, Welcome, pack, refusal, unpack
from eex.stream.worker import embedded
from eex.stream.worker.embedded import EmbeddedWorker
from eex.stream.worker.serve import serve
from eex.stream.worker.tail import make_tail

pytestmark = pytest.mark.timeout(60)

WELCOME = Welcome("model-a", 4, ("pristine", "blur"), ("cat", "dog", "ship"))
PATIENCE_S = 20.0  # for what must happen; nothing waits so long on an idle machine


def tail(stage, expert, features):
    """Says what it was asked, so that a test can see it."""
    return np.full(len(features), 0.5 if expert == "blur" else 0.25), np.full(len(features), stage % 3)


def frames(n=1, value=0.0):
    return np.full((n, 2, 2), value, dtype=np.float32)


def collect(offloader, count):
    """The next `count` replies, by id."""
    replies, end = [], time.monotonic() + PATIENCE_S
    while len(replies) < count and time.monotonic() < end:
        replies += offloader.poll(100)
    assert len(replies) == count
    assert len({reply.id for reply in replies}) == count
    return {reply.id: reply for reply in replies}


def wait(offloader, until):
    """Let the offloader do what it does in the background until something is so; nothing may be awaited."""
    end = time.monotonic() + PATIENCE_S
    while not until() and time.monotonic() < end:
        assert not offloader.outstanding
        offloader._step(time.monotonic() + 0.05)
    assert until()


def submit(offloader, *arguments):
    """Submit as soon as a worker is there."""
    if not offloader.reachable:
        wait(offloader, lambda: offloader.reachable)
    assert offloader.submit(*arguments)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


@pytest.fixture
def router(context):
    """A bound ROUTER for a test to play the worker with."""
    with context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind("tcp://127.0.0.1:*")
        yield socket


@contextlib.contextmanager
def serving(socket, tail=tail, welcome=WELCOME):
    """`serve` in a thread; yields what it logs."""
    stop, lines = threading.Event(), []
    thread = threading.Thread(target=serve, args=(socket, tail, stop, welcome, lines.append), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def offloading(socket, fingerprint="model-a", by_hand=False, **options):
    """An offloader; `by_hand` where the test plays the worker, and only greets."""
    endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    options = {"deadline_ms": 1000 * PATIENCE_S} | options
    with contextlib.closing(ZmqOffloader(endpoint, fingerprint, **options)) as offloader:
        if by_hand:
            greet(socket, offloader)
        yield offloader


def greet(router, offloader):
    end = time.monotonic() + PATIENCE_S
    while not offloader.reachable and time.monotonic() < end:
        offloader._step(time.monotonic() + 0.01)
        if router.poll(10):
            entertain(router, router.recv_multipart())
    assert offloader.reachable


def entertain(router, message):
    """Answer a hello or a ping; whether it was one."""
    client, *frames = message
    header, _ = unpack(frames)
    if isinstance(header, Hello):
        router.send_multipart([client, *pack(WELCOME)])
    elif isinstance(header, Ping):
        router.send_multipart([client, *pack(Pong(header.id))])
    return isinstance(header, Hello | Ping)


def receive(router):
    """The next request: (client, header, features)."""
    while True:
        assert router.poll(1000 * PATIENCE_S)
        message = router.recv_multipart()
        if not entertain(router, message):
            header, arrays = unpack(message[1:])
            return message[0], header, arrays[0]


def reply(router, client, id, confidence=(0.5,), prediction=(1,)):
    header = ReplyHeader(id, len(confidence), 2.0)
    arrays = np.array(confidence, dtype=np.float32), np.array(prediction, dtype=np.int32)
    router.send_multipart([client, *pack(header, *arrays)])


def all_offloaders(router):
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
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


def test_a_stopped_worker_answers_what_has_arrived(router):
    stop = threading.Event()
    stop.set()
    with offloading(router, by_hand=True) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        assert router.poll(1000 * PATIENCE_S)
        serve(router, tail, stop, WELCOME)
        assert not collect(offloader, 1)[1].failed


def test_a_worker_may_go_and_come_back(context):
    with context.socket(zmq.ROUTER) as first:
        first.linger = 0
        first.bind("tcp://127.0.0.1:*")
        endpoint = first.getsockopt_string(zmq.LAST_ENDPOINT)
        offloader = ZmqOffloader(endpoint, "model-a", deadline_ms=1000 * PATIENCE_S)
        greet(first, offloader)
        submit(offloader, 0, 1, "blur", frames())
        receive(first)
    with contextlib.closing(offloader):
        assert collect(offloader, 1)[0].failed == "the connection to the worker broke"
        assert not offloader.reachable
        assert not offloader.submit(1, 1, "blur", frames())
        with context.socket(zmq.ROUTER) as second:
            second.linger = 0
            second.bind(endpoint)
            with serving(second):
                submit(offloader, 1000, 1, "blur", frames())
                assert not collect(offloader, 1)[1000].failed


# ---- a worker that does not


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


def test_duplicates_and_strangers_are_dropped_and_order_does_not_matter(router):
    with offloading(router, by_hand=True) as offloader:
        for id in (1, 2, 3):
            submit(offloader, id, 1, "blur", frames())
        for _ in range(3):
            client = receive(router)[0]
        for id in (3, 3, 99, 1, 3, 1):
            reply(router, client, id)
        router.send_multipart([client, *pack(WELCOME)])
        router.send_multipart([client, b"junk", b"", b"junk"])
        reply(router, client, 2)
        assert list(collect(offloader, 3)) == [3, 1, 2]
        assert offloader.poll() == []


def test_a_reply_that_is_read_too_late_has_failed(router):
    with offloading(router, by_hand=True, deadline_ms=50) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        client = receive(router)[0]
        reply(router, client, 1)
        assert offloader._channels[0].socket.poll(1000 * PATIENCE_S)
        time.sleep(0.06)  # the edge is busy with something else
        assert [r.failed for r in offloader.poll()] == ["no reply within 50 ms"]
        assert offloader.poll() == []


@pytest.mark.parametrize(
    ("confidence", "prediction", "says"),
    [
        ((0.5, 0.5), (1, 1), "2 answers to 1 frames"),
        ((math.nan,), (1,), r"not in \[0, 1\]"),
        ((1.5,), (1,), r"not in \[0, 1\]"),
        ((0.5,), (-1,), "no class"),
    ],
)
def test_replies_that_make_no_sense_have_failed(router, confidence, prediction, says):
    with offloading(router, by_hand=True) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        reply(router, receive(router)[0], 1, confidence, prediction)
        failed = collect(offloader, 1)[1]
        with pytest.raises(AssertionError, match=says):
            assert not failed.failed, failed.failed
        assert len(failed.confidence) == 0


def test_a_prediction_beyond_the_workers_classes_has_failed(router):
    with (
        serving(router, lambda stage, expert, x: (np.ones(len(x)), np.full(len(x), 3))),
        offloading(router) as offloader,
    ):
        offloader.connect(PATIENCE_S)
        assert offloader.submit(1, 1, "blur", frames())
        assert "no class" in collect(offloader, 1)[1].failed


def test_a_damaged_reply_has_failed_at_once(router):
    with offloading(router, by_hand=True) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        client = receive(router)[0]
        header = pack(ReplyHeader(1, 1, 2.0), np.ones(1, dtype=np.float32), np.ones(1, dtype=np.int32))[0]
        router.send_multipart([client, header, b"short", b""])
        assert "bad reply: float32 (1,) takes 4 bytes, got 5" in collect(offloader, 1)[1].failed


def test_a_flood_of_strangers_does_not_hold_the_edge(router):
    with offloading(router, by_hand=True, window=1) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        client = receive(router)[0]
        for _ in range(500):
            reply(router, client, 99)
        reply(router, client, 1)
        assert not collect(offloader, 1)[1].failed


def test_nothing_is_sent_where_nobody_is(context):
    with context.socket(zmq.ROUTER) as socket:
        socket.bind("tcp://127.0.0.1:*")
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    with contextlib.closing(ZmqOffloader(endpoint, "model-a")) as offloader:
        assert [offloader.submit(id, 1, "blur", frames()) for id in range(20)] == [False] * 20
        assert offloader.outstanding == 0
        assert offloader.bytes_sent == 0
        assert offloader.poll(1000) == []
    offloader = ZmqOffloader(endpoint, "model-a")
    with pytest.raises(OffloadError, match=r"^tcp://127.0.0.1:\d+: no eex-worker answered within 0.2 s; .*$"):
        offloader.connect(0.2)


def test_the_window_bounds_what_is_awaited(router):
    with offloading(router, by_hand=True, window=2) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        submit(offloader, 2, 1, "blur", frames())
        assert not offloader.submit(3, 1, "blur", frames())
        client = receive(router)[0]
        reply(router, client, 1)
        collect(offloader, 1)
        submit(offloader, 3, 1, "blur", frames())


def test_a_callers_mistakes_are_errors(router):
    with offloading(router, by_hand=True) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        with pytest.raises(ValueError, match="id 1 is awaited already"):
            offloader.submit(1, 1, "blur", frames())
        with pytest.raises(OffloadError, match="float64"):
            offloader.submit(2, 1, "blur", frames().astype(np.float64))
        assert offloader.outstanding == 1
    with pytest.raises(OffloadError, match="nowhere: not a worker's endpoint"):
        ZmqOffloader("nowhere", "model-a")
    with pytest.raises(ValueError, match="must be positive, got 0 and 16"):
        ZmqOffloader("tcp://127.0.0.1:1", "model-a", deadline_ms=0)


# ---- hello


def test_a_worker_with_another_model_is_noticed_at_start_and_later(router):
    with serving(router) as lines:
        endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
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
    offloader = ZmqOffloader(router.getsockopt_string(zmq.LAST_ENDPOINT), "model-a")
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
    offloader = ZmqOffloader(router.getsockopt_string(zmq.LAST_ENDPOINT), "model-a")

    def give():
        if router.poll(1000 * PATIENCE_S):
            router.send_multipart([router.recv_multipart()[0], *answer])

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    with pytest.raises(OffloadError, match=rf"^tcp://127.0.0.1:\d+: {says}"):
        offloader.connect(PATIENCE_S)
    thread.join(PATIENCE_S)


def test_an_edge_of_another_version_is_told(router, context):
    with serving(router), context.socket(zmq.DEALER) as edge:
        edge.linger = 0
        edge.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
        edge.send_multipart([msgspec.msgpack.encode({"kind": "hello", "version": 99, "id": 0})])
        assert edge.poll(1000 * PATIENCE_S)
        header, _ = unpack(edge.recv_multipart())
        assert header.error == f"the message speaks version 99 of the protocol, this eex speaks {protocol.VERSION}"


# ---- messages that a worker cannot use


def test_bad_messages_do_not_stop_the_service(context, router):
    def picky(stage, expert, features):
        if features.max() > 1:
            raise RuntimeError("mat1 and mat2\ncannot be multiplied")
        return tail(stage, expert, features)

    with (
        serving(router, picky) as lines,
        context.socket(zmq.DEALER) as stranger,
        offloading(router) as offloader,
    ):
        stranger.linger = 0
        stranger.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
        good = pack(protocol.Request(5, "model-a", 1, "blur", "float32", (1, 1)), np.zeros((1, 1), dtype=np.float32))
        bad = [
            [b""],
            [b"\x80\x04\x95."],  # a pickle
            [b"\x91" * 60_000],
            [bytes(protocol.MAX_HEADER_BYTES + 1)],
            [good[0]],
            [good[0], b"short"],
            [*good, b"more"],
            pack(WELCOME),
            refusal(5, "failed", "confused"),
        ]
        for message in bad:
            stranger.send_multipart(message)
        submit(offloader, 1, 1, "blur", frames(value=2.0))
        submit(offloader, 2, 9, "blur", frames())
        submit(offloader, 3, 1, "fog", frames())
        submit(offloader, 4, 1, "blur", frames())
        replies = collect(offloader, 4)
        assert replies[1].failed == "RuntimeError: mat1 and mat2 cannot be multiplied"
        assert replies[2].failed == "there is no stage 9, the model has 4"
        assert replies[3].failed == "unknown expert 'fog', expected one of pristine, blur"
        assert not replies[4].failed
        assert offloader.connect(PATIENCE_S) == WELCOME
        stranger.send_multipart(good)
        answers = []
        while not answers or answers[-1].frames == 0:
            assert stranger.poll(1000 * PATIENCE_S)
            answers.append(unpack(stranger.recv_multipart())[0])
        assert [a.id for a in answers] == [5] * 5
        assert len(lines) == len(bad) + 3
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: (np.ones(2), np.ones(2)),
        lambda *_: (np.ones((1, 1)), np.ones(1)),
        lambda *_: None,
        lambda *_: ("x", "y"),
    ],
)
def test_a_tail_that_answers_nonsense_is_an_error_reply(router, answer):
    with serving(router, answer), offloading(router) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        assert collect(offloader, 1)[1].failed


def test_a_welcome_that_cannot_be_said_is_an_error_at_start(router):
    with pytest.raises(OffloadError, match="classes"):
        serve(router, tail, threading.Event(), Welcome("m", 4, ("pristine",), ()))


# ---- the model behind it


def test_the_tail_of_a_network_goes_on_where_the_edge_stopped():
    torch.manual_seed(0)
    net = make("resnet", ["a", "b", "c"], shares=(0.2, 0.6), input_shape=(3, 16, 16), width=8).eval()
    rest = make_tail(net)
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        probabilities = net(torch.from_numpy(images))[-1].softmax(dim=1).numpy()
        features = net.stage(0, torch.from_numpy(images)).numpy()
    features.flags.writeable = False  # as off the wire
    for stage, x, tolerance in [(0, images, 1e-6), (1, features, 1e-6), (1, features.astype(np.float16), 1e-2)]:
        confidence, prediction = rest(stage, "pristine", x)
        np.testing.assert_allclose(confidence, probabilities.max(axis=1), atol=tolerance)
        np.testing.assert_array_equal(prediction, probabilities.argmax(axis=1))
    with pytest.raises(OffloadError, match=r"stage 1 takes features \(n, 8, 8, 8\), got \(3, 5\)"):
        rest(1, "pristine", np.zeros((3, 5), dtype=np.float32))


# ---- the process


SCRIPT = """
import sys, threading
import numpy as np
from eex.stream.worker.embedded import read_keys
from eex.stream.worker.pool import LocalReplica
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.serve import listen, stop_on_signals, stop_with_parent
stop, keys = stop_on_signals(), None
if "--with-parent" in sys.argv:
    keys = read_keys()
    stop_with_parent(stop)
assert "torch" not in sys.modules
replica = LocalReplica({"model-a": lambda stage, expert, x: (np.full(len(x), 0.5), np.full(len(x), stage))})
listen([Welcome("model-a", 4, ("blur",), tuple("abcd"))], [replica], "tcp://127.0.0.1:*", stop, keys=keys)
"""


@contextlib.contextmanager
def process(*arguments):
    """A worker process that is ready."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            if "--with-parent" in arguments:
                child.stdin.write("0" * 40 + " " + "1" * 40 + "\n")
                child.stdin.flush()
            line = child.stdout.readline()
            assert line.startswith("eex-worker: listening on tcp://127.0.0.1:")
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_well_on_a_signal(number):
    with process() as child:
        child.send_signal(number)
        assert child.wait(PATIENCE_S) == 0


def test_a_worker_ends_with_its_parent_only_if_asked():
    with process("--with-parent") as child:
        child.stdin.close()
        assert child.wait(PATIENCE_S) == 0
    with process() as child:
        child.stdin.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


def test_an_embedded_worker_serves_and_goes(monkeypatch):
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", SCRIPT))
    with EmbeddedWorker() as ours:
        pid = ours._process.pid
        endpoint = ours.endpoint(PATIENCE_S)
        with contextlib.closing(ZmqOffloader(endpoint, "model-a", keys=ours.keys)) as offloader:
            assert offloader.connect(PATIENCE_S).model == "model-a"
            assert offloader.submit(1, 2, "blur", frames(2))
            np.testing.assert_array_equal(collect(offloader, 1)[1].prediction, [2, 2])
        assert ours.endpoint(0) == endpoint
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    ours.close()  # again
    with pytest.raises(RuntimeError, match="not started"):
        ours.endpoint(0)


def test_an_embedded_worker_that_cannot_start_says_why(monkeypatch):
    script = "import sys; print('noise'); print('error: no such model', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script))
    with (
        EmbeddedWorker() as ours,
        pytest.raises(OffloadError, match=r"could not start \(exit status 2\): no such model$"),
    ):
        ours.endpoint(PATIENCE_S)


def test_an_embedded_worker_that_hangs_is_killed(monkeypatch):
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script))
    start = time.monotonic()
    with EmbeddedWorker() as ours:
        pid = ours._process.pid
        with pytest.raises(OffloadError, match=r"not ready within 0.1 s"):
            ours.endpoint(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - start < PATIENCE_S
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-c", script.replace("up", embedded.READY + "tcp://x")))
    monkeypatch.setattr(embedded, "GRACE_S", 0.1)
    with EmbeddedWorker() as ours:
        assert ours.endpoint(PATIENCE_S) == "tcp://x"


# ---- the in-memory twin


def test_in_memory_replies_come_in_order_reversed_or_held():
    cloud = InMemoryOffloader(tail, round_trip_ms=5)
    assert [cloud.submit(id, 1, "blur", frames(2)) for id in range(3)] == [True] * 3
    assert cloud.outstanding == 3
    assert cloud.bytes_sent == 3 * 2 * 16
    replies = cloud.poll()
    assert [r.id for r in replies] == [0, 1, 2]
    np.testing.assert_array_equal(replies[0].confidence, [0.5, 0.5])
    np.testing.assert_array_equal(replies[0].prediction, [1, 1])
    assert (cloud.outstanding, cloud.link_ms, cloud.poll()) == (0, 5, [])

    cloud = InMemoryOffloader(tail, reverse=True)
    for id in range(3):
        cloud.submit(id, 1, "blur", frames())
    assert [r.id for r in cloud.poll()] == [2, 1, 0]

    cloud = InMemoryOffloader(tail, held=True)
    for id in range(3):
        cloud.submit(id, 1, "blur", frames())
    assert cloud.poll(1000) == []
    assert cloud.outstanding == 3
    cloud.release(1)
    assert [r.id for r in cloud.poll()] == [0]
    cloud.release()
    assert [r.id for r in cloud.poll()] == [1, 2]


def test_in_memory_replies_are_lost_or_refused_as_told():
    def refuse(stage, expert, features):
        raise OffloadError("no such stage")

    cloud = InMemoryOffloader(tail, lose=range(0, 10, 2), window=3)
    assert [cloud.submit(id, 1, "blur", frames()) for id in range(4)] == [True, True, True, False]
    assert [bool(r.failed) for r in cloud.poll()] == [True, False, True]
    cloud.connected = False
    assert not cloud.submit(5, 1, "blur", frames())
    cloud = InMemoryOffloader(refuse)
    assert cloud.submit(1, 1, "blur", frames())
    with pytest.raises(ValueError, match="awaited already"):
        cloud.submit(1, 1, "blur", frames())
    (refused,) = cloud.poll()
    assert (refused.failed, len(refused.confidence)) == ("no such stage", 0)
    cloud.submit(2, 1, "blur", frames())
    cloud.close()
    assert (cloud.outstanding, cloud.poll()) == (0, [])


def test_nothing_can_be_sent_without_a_worker():
    nowhere = NoOffloader()
    assert not nowhere.submit(1, 1, "blur", frames())
    assert nowhere.poll(1000) == []
    nowhere.close()


def test_the_seam_needs_neither_torch_nor_a_model():
    modules = "eex.stream.wire.client, eex.stream.worker.embedded"
    code = f"import sys, {modules}; assert not {{'torch', 'tyro'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
