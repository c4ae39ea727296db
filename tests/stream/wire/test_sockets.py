"""Messages go in and out of sockets whole, or not at all."""

import pytest
import zmq

from eex.stream.wire.sockets import COPIED, receive, send


@pytest.fixture
def pair():
    with zmq.Context() as context, context.socket(zmq.PAIR) as a, context.socket(zmq.PAIR) as b:
        for socket in (a, b):
            socket.linger, socket.sndhwm, socket.rcvhwm = 0, 1, 1
        a.bind("inproc://pair")
        b.connect("inproc://pair")
        yield a, b


def test_small_and_large_frames_arrive_in_order(pair):
    frames = [b"header", bytes(COPIED), bytes(COPIED + 1), b""]
    send(pair[0], frames)
    assert pair[1].poll(1000)
    assert [frame.bytes for frame in receive(pair[1], 8)] == frames
    assert receive(pair[1], 8) is None


def test_frames_after_the_first_few_are_dropped(pair):
    send(pair[0], [b"%d" % k for k in range(20)])
    send(pair[0], [b"next"])
    assert pair[1].poll(1000)
    assert [frame.bytes for frame in receive(pair[1], 3)] == [b"0", b"1", b"2"]
    assert [frame.bytes for frame in receive(pair[1], 3)] == [b"next"]


def test_without_room_nothing_is_sent(pair):
    def fill():
        for k in range(100):
            sent.append(k)
            send(pair[0], [b"a", b"b"])

    sent: list[int] = []
    with pytest.raises(zmq.Again):
        fill()
    for _ in sent[:-1]:
        assert len(receive(pair[1], 8)) == 2
    assert receive(pair[1], 8) is None
