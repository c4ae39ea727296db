"""Who is served, how much of each, and replies that wait for their readers; the clock is moved by hand."""

import pytest

from eex.stream.worker.clients import GONE_S, UNREAD_S, Clients, Limits, RefusedError
from eex.stream.worker.stats import Stats


class Network:
    """What was sent to each client; those in `full` have no room, those in `gone` are not there any more."""

    def __init__(self):
        self.sent, self.full, self.gone = [], set(), set()

    def __call__(self, id, message):
        if id in self.gone:
            raise ConnectionError
        if id in self.full:
            return False
        self.sent.append((id, message[0]))
        return True


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def stats():
    return Stats()


def admitted(network, stats, ids, key="", now=0.0, **limits):
    clients = Clients(Limits(**limits), network, stats)
    return clients, [clients.admit(id, now, key) for id in ids]


def test_a_client_is_known_by_its_id(network, stats):
    clients, (a, b) = admitted(network, stats, [b"a", b"b"])
    assert clients.admit(b"a", 3.0, "") is a
    assert (a.seen, b.seen, len(clients), clients.get(b"c")) == (3.0, 0.0, 2, None)


def test_no_more_clients_than_the_worker_takes(network, stats):
    clients, _ = admitted(network, stats, [b"a", b"b"], clients=2)
    with pytest.raises(RefusedError, match="the worker serves 2 clients already") as refused:
        clients.admit(b"c", 1.0, "")
    assert refused.value.kind == "clients"
    clients.admit(b"a", 1.0, "")  # who is there is served


def test_a_client_whose_connection_ended_makes_room_at_once(network, stats):
    clients, (_, b) = admitted(network, stats, [b"a", b"b"], clients=2)
    b.waiting = 1
    clients.gone(b"a")
    clients.gone(b"b")  # what is under way comes back first
    clients.gone(b"z")
    assert (clients.get(b"a"), clients.get(b"b"), clients.present(0.1)) == (None, b, 0)
    clients.admit(b"c", 0.1, "")
    with pytest.raises(RefusedError):
        clients.admit(b"d", 0.1, "")
    b.waiting = 0
    clients.admit(b"d", 0.1, "")
    assert clients.get(b"b") is None


def test_silent_clients_make_room_but_not_those_that_are_owed_something(network, stats):
    clients, (a, b, c) = admitted(network, stats, [b"a", b"b", b"c"], clients=3)
    b.waiting = 1
    network.full = {b"c"}
    clients.reply(c, [b"x"], 0.0)
    clients.admit(b"d", GONE_S + 0.1, "")
    assert [clients.get(id) for id in (b"a", b"b", b"c")] == [None, b, c]
    with pytest.raises(RefusedError):
        clients.admit(b"e", 2 * GONE_S, "")
    assert a.id == b"a"


def test_one_key_does_not_take_the_room_of_others(network, stats):
    clients, _ = admitted(network, stats, [b"a", b"b", b"c"], key="edge", key_clients=3)
    with pytest.raises(RefusedError, match="the worker serves 3 clients with the key 'edge' already"):
        clients.admit(b"d", 1.0, "edge")
    clients.admit(b"d", 1.0, "camera")


def test_an_id_of_another_key_is_another_client(network, stats):
    clients, (a,) = admitted(network, stats, [b"a"], key="edge")
    a.waiting = 7
    other = clients.admit(b"a", 1.0, "camera")
    assert (other.key, other.waiting) == ("camera", 0)


def test_requests_under_way_are_limited_by_client_and_by_key(network, stats):
    clients, (a, b) = admitted(network, stats, [b"a", b"b"], key="edge", key_requests=5)
    a.waiting = 4
    clients.check_room(a, window=5, nbytes=1)
    with pytest.raises(RefusedError, match="4 requests of this client are under way already"):
        clients.check_room(a, window=4, nbytes=1)
    b.waiting = 1
    for client in (a, b):
        with pytest.raises(RefusedError, match="5 requests of the key 'edge' are under way already") as refused:
            clients.check_room(client, window=32, nbytes=1)
        assert refused.value.kind == "busy"
    clients.check_room(clients.admit(b"c", 0.0, "camera"), window=32, nbytes=1)


def test_replies_wait_until_their_client_reads_in_order(network, stats):
    clients, (a, b) = admitted(network, stats, [b"a", b"b"])
    network.full = {b"a"}
    for k, message in enumerate((b"1", b"2")):
        clients.reply(a, [message], k / 10)
        clients.reply(b, [message], k / 10)
    assert network.sent == [(b"b", b"1"), (b"b", b"2")]
    assert (a.waiting, b.waiting, clients.owed) == (2, 0, True)
    network.full = set()
    clients.reply(a, [b"3"], 0.3)  # not past the others
    assert network.sent[2:] == []
    clients.flush(0.4)
    assert network.sent[2:] == [(b"a", b"1"), (b"a", b"2"), (b"a", b"3")]
    assert (a.waiting, clients.owed, stats.unread) == (0, False, 0)


def test_replies_that_are_not_read_are_dropped_after_a_while(network, stats):
    clients, (a,) = admitted(network, stats, [b"a"])
    network.full = {b"a"}
    clients.reply(a, [b"1"], 0.0)
    clients.reply(a, [b"2"], 0.5)
    clients.flush(UNREAD_S)
    assert (a.waiting, stats.unread) == (2, 0)
    clients.flush(UNREAD_S + 0.1)
    assert (a.waiting, stats.unread) == (1, 1)
    network.full = set()
    clients.flush(UNREAD_S + 0.2)
    assert (network.sent, a.waiting) == ([(b"a", b"2")], 0)


def test_what_nobody_depends_on_is_dropped_at_once(network, stats):
    clients, (a,) = admitted(network, stats, [b"a"])
    network.full = {b"a"}
    clients.notify(a, [b"pong"])
    assert (clients.owed, a.waiting, stats.unread) == (False, 0, 1)


def test_a_client_that_is_gone_is_forgotten_with_what_it_was_owed(network, stats):
    clients, (a,) = admitted(network, stats, [b"a"])
    network.full = {b"a"}
    clients.reply(a, [b"1"], 0.0)
    clients.reply(a, [b"2"], 0.0)
    network.gone = {b"a"}
    clients.flush(0.1)
    assert (len(clients), clients.owed, stats.unread) == (0, False, 0)
    clients.reply(a, [b"3"], 0.2)  # its last request is finished now
    assert len(clients) == 0
