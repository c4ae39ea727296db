"""Plain text stays on the machine, nothing that arrives is unpickled, and strangers wait at the door."""

from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from eex.policies.core.errors import OffloadError
from eex.stream.wire import protocol
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.keys import new_pair
from eex.stream.wire.security import (
    MOST_STRANGERS,
    STRANGERS_AT_ONCE,
    STRANGERS_PER_S,
    Doorkeeper,
    check_plain,
    is_loopback,
)


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://eth0:1", "tcp://10.0.0.1:1", "tcp://[::]:1"]
)
def test_plain_text_stays_on_the_machine(endpoint):
    assert not is_loopback(endpoint)
    with pytest.raises(OffloadError, match="--plain-beyond-loopback"):
        check_plain(endpoint, anywhere=False)
    with pytest.raises(OffloadError, match="--plain-beyond-loopback"):
        ZmqOffloader(endpoint, "model-a")
    check_plain(endpoint, anywhere=True)
    assert all(is_loopback(f"tcp://{host}:1") for host in ("127.0.0.1", "localhost", "[::1]"))


def test_nothing_is_pickled():
    root = Path(protocol.__file__).parents[1]
    for path in root.rglob("*.py"):
        if path.name not in ("sources.py", "training.py"):  # they read CIFAR-10's pickles without executing them
            text = path.read_text()
            assert not any(word in text for word in ("import pickle", "send_pyobj", "recv_pyobj", "pickle.loads")), path


# ---- who is let in


class Questions:
    """Plays libzmq: asks about clients, and keeps the status of each answer by the request's number."""

    def __init__(self):
        self.asked, self.status = [], {}

    def ask(self, number, public):
        credentials = z85.decode(public)
        self.asked.append([b"zmq", b"", b"1.0", b"%d" % number, b"eex", b"10.0.0.9", b"", b"CURVE", credentials])

    def recv_multipart(self, flags):
        if not self.asked:
            raise zmq.Again
        return self.asked.pop(0)

    def send_multipart(self, frames, flags):
        self.status[int(frames[3])] = frames[4]


def test_the_known_are_let_in_at_once_and_strangers_wait_their_turn():
    friend, questions = new_pair().public, Questions()
    door = Doorkeeper(questions, lambda key: "friend" if key == friend else "", patience_s=3.0)
    for number in range(200):
        questions.ask(number, new_pair().public)
    questions.ask(200, friend)
    lines = door.answer(100.0)
    assert questions.status[200] == b"200"
    assert len(lines) == len(questions.status) - 1 <= STRANGERS_AT_ONCE + 1
    assert all("10.0.0.9" in line and "not known" in line for line in lines)
    assert 0 < door.due_in_ms(100.0) <= 1000 / STRANGERS_PER_S
    lines = [line for k in range(1, 11) for line in door.answer(100.0 + k / 10)]
    assert STRANGERS_PER_S - 1 <= len(lines) <= STRANGERS_PER_S + 1
    answered = len(questions.status)
    questions.ask(201, friend)
    assert len(door.answer(104.0)) == 200 - (answered - 1)  # the rest has waited for too long, and gets no answer
    assert len(questions.status) == answered + 1
    assert questions.status[201] == b"200"
    assert door.due_in_ms(104.0) == float("inf")


def test_strangers_beyond_a_number_are_not_even_kept():
    questions = Questions()
    door = Doorkeeper(questions, lambda key: "")
    public = new_pair().public
    for turn in range(20):
        for number in range(1000 * turn, 1000 * turn + 250):
            questions.ask(number, public)
        door.answer(100.0)
    assert len(door.answer(1000.0)) == MOST_STRANGERS
