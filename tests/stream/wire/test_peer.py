"""A worker as the edge knows it, by a clock that is moved: greeting, heartbeats, patience, reasons."""

import math

import pytest

from eex.stream.wire.peer import (
    GIVE_UP_S,
    HELLO_EVERY_S,
    HELLO_ID,
    MOST_PINGS,
    PING_EVERY_S,
    REOPEN_S,
    SILENT_S,
    Peer,
)
from eex.stream.wire.protocol import Hello, Ping, Pong, Welcome, unpack

WELCOME = Welcome("model-a", 4, ("pristine",), ("cat", "dog"))


class Played(Peer):
    """A peer whose messages a test can see; `room` says whether they can be sent."""

    def __init__(self, greeted=True):
        self.sent, self.room = [], True
        super().__init__("tcp://worker:1", self._keep)
        if greeted:
            self.opened()
            self.greeted(WELCOME)

    def _keep(self, message):
        if self.room:
            self.sent.append(unpack(message)[0])
        return self.room

    def at(self, now, longest_s=1.0):
        return self.tend(now, "model-a", longest_s)

    def pong(self, now, id=None, **state):
        id = self.sent[-1].id if id is None else id
        self.answered_ping(Pong(id, **state), 1000.0, now)
        self.spoke()


def test_it_is_greeted_once_connected_and_again_until_it_answers():
    peer = Played(greeted=False)
    peer.at(0.0)
    assert (peer.sent, peer.due(), peer.state) == ([], math.inf, "not connected")
    peer.opened()
    assert peer.due() <= 0.0
    peer.at(1.0)
    peer.at(1.0 + HELLO_EVERY_S / 2)
    assert peer.sent == [Hello(HELLO_ID, "model-a")]
    assert peer.due() == 1.0 + HELLO_EVERY_S
    peer.at(peer.due())
    assert len(peer.sent) == 2
    assert not peer.alive(1.5)
    peer.greeted(WELCOME)
    assert (peer.alive(1.6), peer.state) == (True, "up")


def test_a_hello_that_could_not_be_sent_is_sent_as_soon_as_it_can():
    peer = Played(greeted=False)
    peer.room = False
    peer.opened()
    peer.at(1.0)
    peer.room = True
    peer.at(1.001)
    assert peer.sent == [Hello(HELLO_ID, "model-a")]


def test_it_is_pinged_and_silent_once_the_oldest_ping_is_too_old():
    peer = Played()
    assert not peer.at(1.0)
    peer.at(1.0 + PING_EVERY_S / 2)
    assert peer.sent == [Ping(1)]
    assert peer.due() == 1.0 + PING_EVERY_S
    for k in range(1, 4):
        assert not peer.at(1.0 + k * PING_EVERY_S)
    assert peer.due() == pytest.approx(1.0 + SILENT_S)
    assert peer.at(1.0 + SILENT_S)  # just now
    assert not peer.at(1.0 + SILENT_S + 0.01)
    assert (peer.alive(1.4), peer.state, peer.counts["silences"]) == (False, "does not answer", 1)
    peer.spoke()  # any message will do
    assert (peer.alive(1.5), peer.state) == (True, "up")


def test_whose_pings_usually_take_long_is_waited_for_up_to_the_deadline():
    peer = Played()
    peer.at(1.0)
    peer.pong(1.3)
    assert peer.ping_ms == pytest.approx(300)
    peer.at(2.0)
    assert not peer.at(2.85)  # three usual pings: 0.9 s
    assert peer.at(2.91)
    peer.spoke()
    peer.at(4.0, longest_s=0.5)
    assert peer.at(4.51, longest_s=0.5)


def test_few_pings_are_remembered_and_the_oldest_is_one_of_them():
    peer = Played()
    for k in range(3 * MOST_PINGS):
        peer.at(1.0 + k * PING_EVERY_S)
    assert len(peer._pings) == MOST_PINGS
    assert next(iter(peer._pings.values())) == 1.0


def test_it_hangs_while_its_model_runs_for_longer_than_the_deadline():
    peer = Played()
    peer.at(1.0)
    peer.pong(1.01, busy_ms=1001.0)
    assert (peer.alive(1.1), peer.state) == (False, "does not answer")
    peer.at(1.2)
    peer.pong(1.21, busy_ms=3.0)
    assert peer.alive(1.3)


def test_it_drains_when_it_says_so_and_is_greeted_anew():
    peer = Played()
    peer.at(1.0)
    peer.pong(1.01, draining=True)
    assert (peer.alive(1.1), peer.state) == (False, "is about to stop")
    assert peer.closed()
    assert peer.state == "not connected"
    peer.opened()
    peer.greeted(WELCOME)
    assert peer.alive(2.0)


def test_a_pong_that_was_not_asked_for_says_nothing_of_the_round_trip():
    peer = Played()
    peer.at(1.0)
    peer.pong(1.5, id=99)
    assert math.isnan(peer.ping_ms)


def test_an_end_is_counted_where_there_was_a_connection():
    peer = Played()
    assert peer.closed()
    assert not peer.closed()
    assert peer.counts["connections_lost"] == 1
    assert peer.welcome is None


def test_a_worker_that_is_gone_is_no_reason_to_give_up_but_one_that_keeps_failing_is():
    peer = Played(greeted=False)
    peer.handshake_failed(1.0, "it closed the connection", final=False, hangs=False)
    assert (peer.turned_away, peer.problem) == (False, "it closed the connection")
    peer.handshake_failed(1.0 + GIVE_UP_S + 0.01, "it closed the connection", final=False, hangs=False)
    assert peer.turned_away
    peer.opened()
    peer.closed()
    peer.handshake_failed(9.0, "it closed the connection", final=False, hangs=False)
    assert not peer.turned_away  # it had worked in between


def test_a_handshake_that_nobody_answers_may_still_succeed():
    peer = Played(greeted=False)
    for now in (1.0, 9.0):
        peer.handshake_failed(now, "something hangs", final=False, hangs=True)
    assert not peer.turned_away


def test_a_rejected_key_is_final_and_the_socket_is_made_anew_after_a_while():
    peer = Played(greeted=False)
    peer.handshake_failed(1.0, "unknown key", final=True, hangs=False)
    assert (peer.turned_away, peer.state) == (True, "unknown key")
    assert peer.due() == peer.reopen_at == 1.0 + REOPEN_S
    peer.reopened()
    assert peer.due() == math.inf


def test_a_worker_of_no_use_is_asked_again_every_now_and_then():
    peer = Played()
    peer.rejected("it has another model")
    assert (peer.alive(1.0), peer.state, peer.turned_away) == (False, "it has another model", True)
    peer.at(1.0)
    peer.at(1.0 + HELLO_EVERY_S)
    assert peer.sent == [Hello(HELLO_ID, "model-a")] * 2
    peer.greeted(WELCOME)
    assert (peer.alive(2.0), peer.problem, peer.turned_away) == (True, "", False)
