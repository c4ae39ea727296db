"""What a worker says to each message, and which batches it makes. No sockets; the clock is moved by hand."""

import msgspec
import numpy as np
import pytest

from eex.policies.core.errors import OffloadError
from eex.policies.core.fleet import Layout
from eex.stream.wire import protocol
from eex.stream.wire.protocol import (
    FleetHeader,
    Hello,
    Ping,
    Pong,
    Request,
    SumsHeader,
    Welcome,
    pack,
    refusal,
    unpack,
)
from eex.stream.worker.clients import Limits
from eex.stream.worker.pool import Finished, LocalReplica, answer
from eex.stream.worker.service import Service
from eex.stream.worker.stats import Stats

A = Welcome("model-a", 3, ("pristine", "blur"), ("cat", "dog"), models=("model-a", "model-b"))
B = Welcome("model-b", 2, ("pristine",), ("cat", "dog"), models=("model-a", "model-b"))


class Played:
    """A service whose clients are the test: `sent` holds what they were sent, (client, header)."""

    def __init__(self, welcomes=(A, B), shapes=None, **limits):
        self.sent, self.lines, self.stats, self.busy, self.full = [], [], Stats(), 0.0, set()
        options = {"limits": Limits(**limits), "shapes": shapes or {}, "stats": self.stats}
        self.service = Service(welcomes, self._send, busy_ms=lambda now: self.busy, log=self.lines.append, **options)

    def _send(self, id, message):
        if id in self.full:
            return False
        self.sent.append((id, *unpack([bytes(frame) for frame in message])))
        return True

    def give(self, header, *arrays, now=0.0, client=b"a", key=""):
        """A message of a client; the header of its answer, if it has one at once."""
        before = len(self.sent)
        self.service.take_in(now, client, pack(header, *arrays), key)
        return self.sent[before][1] if len(self.sent) > before else None

    def ask(self, id, n=1, *, now=0.0, client=b"a", key="", value=0.0, shape=(4,), **changes):
        fields = {"model": "model-a", "stage": 1, "expert": "blur", "dtype": "float32", "shape": (n, *shape)} | changes
        features = np.full(fields["shape"], value, dtype=np.float32)
        return self.give(Request(id, **fields), features, now=now, client=client, key=key)

    def run(self, now=0.0, tail=None):
        """Run the next batch; ids and frames of its requests."""
        batch = self.service.next_batch(now)
        if batch is None:
            return None
        tail = tail or (lambda stage, expert, x: (np.full(len(x), 0.5), x.reshape(len(x), -1)[:, 0].astype(int)))
        answers, seconds = answer(LocalReplica({model: tail for model in ("model-a", "model-b")}), batch)
        self.service.finish(now, Finished(batch, answers, seconds))
        return [(queued.header.id, queued.frames) for queued in batch.requests]

    def refusals(self):
        return [
            (header.id, header.refusal, header.error) for _, header, _ in self.sent if getattr(header, "refusal", "")
        ]


def test_a_hello_is_welcomed_with_the_model_that_it_names_or_the_first():
    worker = Played()
    assert worker.give(Hello(1, "model-b")) == B
    assert worker.give(Hello(2, "")) == A
    refused = worker.give(Hello(3, "model-c\n"))
    assert (refused.id, refused.refusal) == (3, "model")
    assert refused.error == "the worker has model model-a, model-b, the edge model-c"
    assert worker.stats.refusals == {"model": 1}


def test_a_ping_is_answered_with_how_busy_it_is_also_while_it_drains():
    worker = Played()
    worker.ask(1)
    worker.ask(2)
    worker.busy = 7.5
    assert worker.give(Ping(9)) == Pong(9, 2, 7.5, False)
    worker.service.drain()
    assert worker.give(Ping(10)) == Pong(10, 2, 7.5, True)


def test_requests_are_answered_each_with_its_own_rows():
    worker = Played()
    worker.ask(1, n=2, value=1.0, client=b"a")
    worker.ask(2, n=3, value=0.0, client=b"b")
    assert (worker.service.queued, worker.service.queued_bytes, worker.service.busy) == (2, 80, True)
    assert worker.run(now=0.25) == [(1, 2), (2, 3)]
    (a, one, (_, first)), (b, two, (_, second)) = worker.sent
    assert (a, one.id, one.frames, first.tolist()) == (b"a", 1, 2, [1, 1])
    assert (b, two.id, two.frames, second.tolist()) == (b"b", 2, 3, [0, 0, 0])
    assert (worker.service.queued, worker.service.queued_bytes, worker.service.busy) == (0, 0, False)
    assert (worker.stats.frames, worker.stats.batch_frames.total, worker.stats.requests) == (5, 5, {"model-a": 2})
    assert worker.stats.latency_ms.total == pytest.approx(2 * 250.0)
    assert worker.run() is None


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model": "model-c"}, "model", "the worker has model model-a, model-b, the edge model-c"),
        ({"stage": 9}, "stage", "there is no stage 9, the model has 3"),
        ({"expert": "fog"}, "expert", "unknown expert 'fog', expected one of pristine, blur"),
        ({"model": "model-b"}, "expert", "unknown expert 'blur', expected one of pristine"),
        ({"shape": (2, 2)}, "message", "stage 1 takes features (n, 4), got (1, 2, 2)"),
        ({"n": 5}, "message", "80 bytes in one message, the worker takes 64"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_sees_it(changes, kind, says):
    small = msgspec.structs.replace(A, max_bytes=64)
    worker = Played([small, B], shapes={"model-a": [(3, 2, 2), (4,), (4,)]})
    worker.ask(7, **changes)
    assert worker.refusals() == [(7, kind, says)]
    assert (worker.stats.refusals, worker.lines) == ({kind: 1}, [f"refused a message: {says}"])
    assert worker.run() is None


def test_who_has_too_much_under_way_is_refused():
    worker = Played([msgspec.structs.replace(A, window=2)])
    for id in range(3):
        worker.ask(id)
    assert worker.refusals() == [(2, "busy", "2 requests of this client are under way already")]
    worker.ask(3, client=b"b")
    assert len(worker.refusals()) == 1
    assert worker.run() == [(0, 1), (1, 1), (3, 1)]
    worker.ask(4)
    assert len(worker.refusals()) == 1


def test_all_clients_together_are_limited_in_bytes():
    worker = Played(queued_bytes=3 * 16)
    for id in range(4):
        worker.ask(id, client=bytes([id]))
    assert worker.refusals() == [(3, "busy", "48 bytes wait already")]
    worker.run()
    worker.ask(4)
    assert len(worker.refusals()) == 1


def test_a_key_is_limited_over_all_its_connections():
    worker = Played(key_clients=2, key_requests=3)
    for id in range(4):
        worker.ask(id, client=bytes([id % 2]), key="edge")
    worker.ask(5, client=b"third", key="edge")
    assert worker.refusals() == [
        (3, "busy", "3 requests of the key 'edge' are under way already"),
        (5, "clients", "the worker serves 2 clients with the key 'edge' already"),
    ]


def test_a_key_does_not_take_all_bytes():
    worker = Played(key_bytes=3 * 16)
    for id in range(4):
        worker.ask(id, client=bytes([id]), key="edge")
    worker.ask(4, client=b"other", key="camera")
    assert worker.refusals() == [(3, "busy", "48 bytes of the key 'edge' are under way already")]
    worker.run()
    worker.ask(5, client=b"a", key="edge")
    assert len(worker.refusals()) == 1


def test_replies_that_a_client_does_not_read_count_as_under_way():
    worker = Played([msgspec.structs.replace(A, window=2)])
    worker.full = {b"a"}
    for id in range(2):
        worker.ask(id)
    worker.run()
    worker.full = set()
    worker.ask(2)  # its refusal is dropped: it would overtake the replies
    assert (worker.sent, worker.stats.refusals, worker.service.busy) == ([], {"busy": 1}, True)
    worker.service.clients.flush(0.1)
    assert [header.id for _, header, _ in worker.sent] == [0, 1]
    assert not worker.service.busy


def test_a_request_that_nobody_waits_for_is_not_run():
    worker = Played()
    worker.ask(1, deadline_ms=50.0)
    worker.ask(2, deadline_ms=50.0, stage=2)
    worker.ask(3, deadline_ms=500.0)
    assert worker.run(now=0.1) == [(3, 1)]
    assert worker.run(now=0.1) is None
    assert (worker.stats.expired, worker.service.queued, worker.service.queued_bytes) == (2, 0, 0)
    assert [header.id for _, header, _ in worker.sent] == [3]


def test_requests_wait_for_company_and_not_while_it_drains():
    worker = Played(batch=3, wait_ms=100.0)
    worker.ask(1)
    worker.ask(2, now=0.01)
    assert worker.run(now=0.02) is None
    worker.ask(3, now=0.03)
    assert worker.run(now=0.03) == [(1, 1), (2, 1), (3, 1)]
    worker.ask(4, now=1.0)
    assert worker.run(now=1.05) is None
    assert worker.run(now=1.11) == [(4, 1)]
    worker.ask(5, now=2.0)
    worker.service.drain()
    assert worker.run(now=2.0) == [(5, 1)]


def test_it_finishes_what_it_has_accepted_and_refuses_the_rest():
    worker = Played()
    worker.ask(1)
    worker.service.drain()
    worker.ask(2)
    assert worker.give(Hello(3, "model-a")).refusal == "draining"
    assert worker.refusals() == [(id, "draining", "the worker is about to stop") for id in (2, 3)]
    assert worker.run() == [(1, 1)]


def test_messages_that_make_no_sense_are_answered_where_their_id_can_be_read():
    worker = Played(clients=1)
    worker.give(Hello(1, "model-a"))
    good = pack(Request(5, "model-a", 1, "blur", "float32", (1, 1)), np.zeros((1, 1), dtype=np.float32))
    with_id = [[good[0]], [good[0], b"short"], [*good, b"more"], refusal(5, "failed", "confused")]
    version = [msgspec.msgpack.encode({"kind": "hello", "version": 99, "id": 5})]
    without = [[], [b""], [b"\x80\x04\x95."], [b"\x91" * 60_000], [bytes(protocol.MAX_HEADER_BYTES + 1)], pack(A)]
    for message in [*with_id, version, *without]:
        worker.service.take_in(0.0, b"a", [bytes(frame) for frame in message])
        worker.service.take_in(0.0, b"stranger", [bytes(frame) for frame in message])  # takes nobody's place
    refused = worker.refusals()
    assert [(id, kind) for id, kind, _ in refused] == [(5, "message")] * 10
    text = f"the message speaks version 99 of the protocol, this eex speaks {protocol.VERSION}"
    assert refused[-1][2] == text
    assert refused[6][2] == "a worker takes a hello, a ping, a request or sums, got a worker's own message"
    assert worker.stats.refusals == {"message": 22}
    assert all(line.isprintable() for line in worker.lines)
    assert len(worker.service.clients) == 1


def test_a_message_that_comes_twice_is_answered_twice():
    worker = Played()
    worker.ask(7, n=2)
    worker.ask(7, n=2)
    worker.run()
    assert [(header.id, header.frames) for _, header, _ in worker.sent] == [(7, 2), (7, 2)]


def test_a_model_that_fails_is_counted_and_said():
    worker = Played()
    worker.ask(1)

    def broken(stage, expert, x):
        raise RuntimeError("out\nof luck")

    worker.run(tail=broken)
    assert worker.refusals() == [(1, "failed", "RuntimeError: out of luck")]
    assert (worker.stats.refusals, worker.service.queued) == ({"failed": 1}, 0)
    assert worker.lines == ["refused a message: RuntimeError: out of luck"]


def test_a_welcome_beyond_the_protocols_limits_is_an_error_at_start():
    with pytest.raises(OffloadError, match="classes"):
        Played([Welcome("m", 4, ("pristine",), ())])


# ---- what edges share


def shared(edge="a", model="model-a", value=0.0):
    flat = np.zeros(Layout(1).size, dtype=np.float32)
    of = Layout(1).views(flat)
    of["seen"][0, 3] = of["offloads"][0, 3] = value
    return SumsHeader(5, model, "stop-curve", edge, exits=1, bins=50, coarse=25), flat


def test_sums_are_answered_with_those_of_the_others():
    worker = Played()
    assert worker.give(*shared("a", value=7.0), client=b"a") == FleetHeader(5, Layout(1).size, 0)
    assert worker.give(*shared("b", value=1.0), client=b"b", now=1.0).edges == 1
    (_, _, (others,)) = worker.sent[-1]
    assert others.sum() == pytest.approx(14.0)  # seen, and offloaded
    assert worker.stats.shared == 2


def test_sums_that_no_stream_has_are_refused_and_so_are_those_of_another_model_or_too_many():
    worker = Played()
    assert worker.give(*shared(value=-1.0)).refusal == "message"
    assert worker.give(*shared(value=1.0), now=0.05).refusal == "busy"
    assert worker.give(*shared(model="model-c"), now=2.0).refusal == "model"
    assert isinstance(worker.give(*shared(value=1.0), now=4.0), FleetHeader)
    assert [line for line in worker.lines if "no stream has such sums: a sum is negative: -1" in line]
    worker.service.drain()
    assert worker.give(*shared(value=1.0), now=6.0).refusal == "draining"
