"""The edge's socket to one worker: made in the background, sent on only while somebody is there."""

import contextlib
import errno
import socket
import time

import pytest
import zmq
from loopback import PATIENCE_S, endpoint_of

from eex.policies.core.errors import OffloadError
from eex.stream.wire.channel import MOST_PARTS, Channel, timed_out


@contextlib.contextmanager
def channel(endpoint):
    with zmq.Context() as context, contextlib.closing(Channel(context, endpoint, None)) as made:
        yield made


def test_messages_both_ways(router):
    with channel(endpoint_of(router)) as made:
        assert made.socket.poll(1000 * PATIENCE_S, zmq.POLLOUT)
        assert made.send([b"header", b"array"])
        client, *frames = router.recv_multipart()
        assert frames == [b"header", b"array"]
        router.send_multipart([client, *[b"part"] * (MOST_PARTS + 5)])
        assert made.socket.poll(1000 * PATIENCE_S)
        assert made.receive() == [b"part"] * MOST_PARTS
        assert made.receive() is None
        assert made.monitor.poll(1000 * PATIENCE_S)
        assert zmq.EVENT_HANDSHAKE_SUCCEEDED in [event for event, _ in made.events()]


def test_nothing_is_sent_without_a_connection_and_closing_twice_is_fine():
    with channel("tcp://127.0.0.1:9") as made:
        assert not made.send([b"header"])
        made.close()
        made.open()
        assert not made.misses_ipv6


def test_a_name_without_an_address_is_looked_up_again(monkeypatch):
    families = []
    monkeypatch.setattr("eex.stream.wire.channel.LOOKUP_EVERY_S", 0.0)

    def addresses(*_, **__):
        if not families:
            raise OSError("unknown")
        return [(family, None, None, "", ()) for family in families]

    monkeypatch.setattr("socket.getaddrinfo", addresses)
    with channel("tcp://late.example:9") as made:
        assert not made.misses_ipv6
        families.append(socket.AF_INET6)
        end = time.monotonic() + PATIENCE_S
        while not made.misses_ipv6 and time.monotonic() < end:
            time.sleep(0.01)
        assert made.misses_ipv6
        made.close()
        made.open()
        assert not made.misses_ipv6


@pytest.mark.parametrize("endpoint", ["tcp://a", "tcp://127.0.0.1:99999", "inproc://a"])
def test_an_endpoint_that_is_none(endpoint):
    with zmq.Context() as context, pytest.raises(OffloadError):
        Channel(context, endpoint, None)


def test_a_handshake_that_times_out_is_told_from_one_that_fails():
    assert timed_out(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, errno.EAGAIN)
    assert not timed_out(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, errno.EPIPE)
    assert not timed_out(zmq.EVENT_HANDSHAKE_FAILED_AUTH, errno.EAGAIN)
