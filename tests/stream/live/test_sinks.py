"""Sinks: every answer is delivered or counted as lost, and nothing that a sink does holds a stream back."""

import errno
import json
import os
import threading
import time

import msgspec
import pytest
import zmq

from eex.policies.core.errors import EexError
from eex.stream.live import sinks
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.sinks import Sink, Target, UnavailableError, UndeliveredError, callback, open_sink

pytestmark = pytest.mark.timeout(60)


def answer(frame=0, stream="door"):
    return Refusal(stream=stream, frame=frame, name="", reason="stale", detail="", captured="")


def lines(path):
    return [msgspec.json.decode(line, type=Answer | Refusal).frame for line in path.read_bytes().splitlines()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sinks, "RETRY_S", (0.005, 0.02))


class Held:
    """A target that takes nothing until it may, and fails as it is told to."""

    def __init__(self):
        self.may, self.got, self.error = threading.Event(), [], None

    def deliver(self, item):
        assert self.may.wait(30)
        if self.error is not None:
            raise self.error
        self.got.append(item.frame)


def test_what_is_delivered_comes_in_order():
    got = []
    sink = callback(lambda item: got.append(item.frame))
    for frame in range(1000):
        sink(answer(frame))
    sink.close()
    assert got == list(range(1000))
    assert sink.row() == {
        "sink": "test_what_is_delivered_comes_in_order.<locals>.<lambda>",
        "delivered": 1000,
        "lost": 0,
        "problem": "",
    }


def test_a_slow_sink_holds_nothing_back_and_the_oldest_are_lost():
    held = Held()
    sink = Sink("slow", Target(held.deliver), capacity=10)
    begun = time.perf_counter()
    for frame in range(5000):
        sink(answer(frame))
    assert time.perf_counter() - begun < 2
    held.may.set()
    sink.close()
    assert held.got[-10:] == list(range(4990, 5000))
    assert len(held.got) in (10, 11)  # one may have been in hand
    assert sink.problem == "does not keep up"
    assert sink.delivered + sink.lost == 5000


def test_a_sink_that_is_gone_and_returns_gets_what_waited():
    held, said = Held(), []
    held.may.set()
    held.error = UnavailableError("is gone")
    sink = Sink("gone", Target(held.deliver), capacity=10, say=said.append)
    for frame in range(3):
        sink(answer(frame))
    wait_for(lambda: sink.problem)
    held.error = None
    sink.close()
    assert held.got == [0, 1, 2]
    assert (sink.delivered, sink.lost, sink.problem) == (3, 0, "is gone")
    assert said == ["answers to gone: is gone", "answers to gone: taken again"]


def test_a_sink_that_stays_away_is_counted():
    held = Held()
    held.may.set()
    held.error = UnavailableError("is gone")
    sink = Sink("gone", Target(held.deliver), capacity=10)
    for frame in range(100):
        sink(answer(frame))
    begun = time.monotonic()
    sink.close(0.2)
    assert time.monotonic() - begun < 2
    assert (sink.delivered, sink.lost, held.got) == (0, 100, [])


def test_closing_does_not_wait_for_a_sink_that_hangs():
    held = Held()
    sink = Sink("hangs", Target(held.deliver))
    for frame in range(5):
        sink(answer(frame))
    begun = time.monotonic()
    sink.close(0.1)
    assert time.monotonic() - begun < 2
    assert (sink.delivered, sink.lost, sink.problem) == (0, 5, "does not keep up")
    sink(answer(6))
    assert sink.lost == 6
    held.may.set()


def test_a_callback_that_raises_loses_that_answer_alone():
    got, said = [], []

    def function(item):
        if item.frame % 2:
            raise OSError(f"frame {item.frame}")
        got.append(item.frame)

    sink = callback(function, "mine", say=said.append)
    for frame in range(6):
        sink(answer(frame))
    sink.close()
    assert got == [0, 2, 4]
    assert (sink.delivered, sink.lost, sink.problem) == (3, 3, "raised OSError: frame 5")
    assert said[0] == "answers to mine: raised OSError: frame 1"


def test_a_bug_of_a_target_ends_no_sink():
    held = Held()
    held.may.set()
    held.error = ZeroDivisionError("bug")
    sink = Sink("bug", Target(held.deliver))
    sink(answer(0))
    wait_for(lambda: sink.lost)
    held.error = UndeliveredError("no")
    sink(answer(1))
    sink.close()
    assert (sink.lost, sink.problem) == (2, "no")


# ---- standard output and files


def test_standard_output(capfd):
    sink = open_sink("-")
    for frame in range(3):
        sink(answer(frame))
    sink.close()
    out = capfd.readouterr().out.splitlines()
    assert [msgspec.json.decode(line)["frame"] for line in out] == [0, 1, 2]
    assert all(line.startswith('{"kind":"refusal"') for line in out)


def test_standard_output_that_nobody_reads(monkeypatch):
    def write(descriptor, data):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sinks, "append", write)
    sink = open_sink("-")
    sink(answer())
    sink.close()
    assert (sink.lost, sink.problem) == (1, "nobody reads it: Broken pipe")


def test_a_file_that_is_rotated(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    size = len(sinks.line(answer(10)))
    sink = open_sink(f"{path}?size={3 * size}B&keep=2")
    for frame in range(10, 21):
        sink(answer(frame))
    sink.close()
    assert [lines(p) for p in sorted(path.parent.iterdir())] == [[19, 20], [16, 17, 18], [13, 14, 15]]
    assert sink.delivered == 11


def test_what_is_no_file_is_not_rotated(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = open_sink(f"{path}?size=1B")
    for frame in range(5):
        sink(answer(frame))
    sink.close()
    assert os.listdir(tmp_path) == ["pipe"]
    assert [json.loads(line)["frame"] for line in os.read(reader, 1 << 16).splitlines()] == list(range(5))
    os.close(reader)


def test_a_file_is_appended_to_and_a_torn_answer_taken_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(sinks.line(answer(1)) + sinks.line(answer(2))[:20])
    sink = open_sink(str(path))
    sink(answer(3))
    sink.close()
    assert lines(path) == [1, 3]


def test_the_last_line_of_another_file_is_left(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"mine")
    sink = open_sink(str(path))
    sink(answer(3))
    sink.close()
    assert path.read_bytes() == b"mine\n" + sinks.line(answer(3))


def test_a_full_disk_under_a_file(tmp_path, monkeypatch):
    """What the disk took of a line goes again, and once there is room what waited is written."""
    full, write = threading.Event(), os.write

    def writes(descriptor, data):
        if full.is_set() and descriptor > 2:
            if len(data) > 10:
                return write(descriptor, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(sinks.os, "write", writes)
    path = tmp_path / "answers.jsonl"
    sink = open_sink(str(path))
    sink(answer(0))
    wait_for(lambda: sink.delivered)
    full.set()
    for frame in range(1, 4):
        sink(answer(frame))
    wait_for(lambda: sink.problem)
    assert sink.problem == "cannot be written: No space left on device"
    full.clear()
    sink.close()
    assert lines(path) == [0, 1, 2, 3]
    assert (sink.delivered, sink.lost) == (4, 0)


def test_standard_output_on_a_full_disk_gets_what_waited(monkeypatch):
    taken, full = [], [True]

    def append(descriptor, data):
        if full and full.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(data)

    monkeypatch.setattr(sinks, "append", append)
    sink = open_sink("-")
    sink(answer())
    wait_for(lambda: sink.delivered)
    sink.close()
    assert taken == [sinks.line(answer())]
    assert (sink.delivered, sink.lost, sink.problem) == (1, 0, "cannot be written: No space left on device")


def test_a_file_has_one_sink(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = open_sink(f"{path}?size=200B")
    with pytest.raises(EexError, match=r"answers\.jsonl: another process is writing there; wait for its end"):
        open_sink(str(path))
    for frame in range(5):
        first(answer(frame))
    wait_for(lambda: first.delivered == 5)
    with pytest.raises(EexError, match="another process is writing there"):  # rotated meanwhile
        open_sink(str(path))
    first.close()
    open_sink(str(path)).close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_stays_full():
    said = []
    sink = callback(lambda item: None)
    sink.close()
    sink = Sink("full", Target(lambda item: sinks.append(os.open("/dev/full", os.O_WRONLY), b"x")), say=said.append)
    sink(answer())
    sink.close(0.2)
    assert (sink.delivered, sink.lost) == (0, 1)
    assert "No space left on device" in sink.problem


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", r"^--answers: is empty; expected -, a file, zmq\+pub://… or mqtt://…$"),
        (
            "kafka://10.0.0.7/a",
            r"^kafka://10.0.0.7/a: unknown scheme 'kafka'; expected zmq\+pub, mqtt, mqtts, a file or -$",
        ),
        ("/proc/nowhere/a", r"^/proc/nowhere/a: cannot be written: No such file or directory$"),
        ("a?size=big", r"^a\?size=big: size: expected an amount of bytes such as 100MB or 10GB, got 'big'$"),
        ("a?keep=0", r"keep must be a whole number from 1 to 9999, got '0'$"),
        ("a?siez=1", r"unknown option 'siez'; expected size=BYTES and keep=FILES$"),
        ("zmq+pub://*:5555", "can be reached from other machines"),
        ("zmq+pub://nohost", r"expected zmq\+pub://HOST:PORT"),
    ],
)
def test_a_wrong_specification(spec, reason):
    with pytest.raises(EexError, match=reason):
        open_sink(spec)


# ---- ZeroMQ


def subscribed(context, path, sink, topic=b"", **options):
    """A subscriber that has been heard of."""
    socket = context.socket(zmq.SUB)
    for name, value in options.items():
        socket.set(getattr(zmq, name), value)
    socket.subscribe(topic)
    socket.connect(f"ipc://{path}")
    wait_for(lambda: (sink(answer(-1, "hello")), sink(answer(-1)), socket.poll(20))[-1])
    return socket


def test_a_publisher_by_stream(context, tmp_path):
    sink = open_sink(f"zmq+pub://{tmp_path}/p")
    socket = subscribed(context, f"{tmp_path}/p", sink, b"door")
    for frame in range(3):
        sink(answer(frame))
        sink(answer(frame, "yard"))
    got = []
    while len(got) < 3:
        assert socket.poll(5000)
        topic, data = socket.recv_multipart()
        assert topic == b"door"
        if (frame := msgspec.json.decode(data)["frame"]) >= 0:
            got.append(frame)
    assert got == [0, 1, 2]
    sink.close()


def test_a_subscriber_that_hangs_costs_the_others_nothing_and_is_named(context, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "CAPACITY", 50)
    sink = open_sink(f"zmq+pub://{tmp_path}/p")
    quick = subscribed(context, f"{tmp_path}/p", sink)
    hangs = subscribed(context, f"{tmp_path}/p", sink, RCVHWM=1, RCVBUF=4096)
    got, frame = [], 0
    while not sink.problem:
        assert frame < 1_000_000
        sink(answer(frame))
        frame += 1
        wait_for(lambda: not sink._waiting)
        while quick.poll(20 if frame % 20 == 0 else 0):
            got.append(msgspec.json.decode(quick.recv_multipart()[1])["frame"])
    assert sink.problem == "a subscriber does not keep up and misses answers"
    while quick.poll(300):
        got.append(msgspec.json.decode(quick.recv_multipart()[1])["frame"])
    assert [f for f in got if f >= 0] == list(range(frame))
    hangs.close()
    sink.close()


def wait_for(what):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.001)
