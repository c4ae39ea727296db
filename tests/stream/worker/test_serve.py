"""`serve` and `listen`: what has arrived is answered, and a worker process ends when it should."""

import contextlib
import signal
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pytest
import zmq
from loopback import PATIENCE_S, collect, endpoint_of, frames, offloading, serving, submit
from simulated import WELCOME, tail
from worker_process import SCRIPT

from eex.policies.core.errors import OffloadError
from eex.stream.wire import protocol
from eex.stream.wire.protocol import Welcome, pack, refusal, unpack
from eex.stream.worker.serve import serve

pytestmark = pytest.mark.timeout(60)


def test_a_stopped_worker_answers_what_has_arrived(router):
    stop = threading.Event()
    stop.set()
    with offloading(router, by_hand=True) as offloader:
        submit(offloader, 1, 1, "blur", frames())
        assert router.poll(1000 * PATIENCE_S)
        serve(router, tail, stop, WELCOME)
        assert not collect(offloader, 1)[1].failed


def test_bad_messages_do_not_stop_the_service(router):
    def picky(stage, expert, features):
        if features.max() > 1:
            raise RuntimeError("mat1 and mat2\ncannot be multiplied")
        return tail(stage, expert, features)

    with (
        serving(router, picky) as lines,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as stranger,
        offloading(router) as offloader,
    ):
        stranger.linger = 0
        stranger.connect(endpoint_of(router))
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
        assert len(lines) == len(bad) + 2  # the two that are refused alike are logged once
        assert all(line.isprintable() for line in lines)


def test_an_edge_of_another_version_is_told(router):
    with serving(router), zmq.Context() as context, context.socket(zmq.DEALER) as edge:
        edge.linger = 0
        edge.connect(endpoint_of(router))
        edge.send_multipart([msgspec.msgpack.encode({"kind": "hello", "version": 99, "id": 0})])
        assert edge.poll(1000 * PATIENCE_S)
        header, _ = unpack(edge.recv_multipart())
        assert header.error == f"the message speaks version 99 of the protocol, this eex speaks {protocol.VERSION}"


def test_a_welcome_that_cannot_be_said_is_an_error_at_start(router):
    with pytest.raises(OffloadError, match="classes"):
        serve(router, tail, threading.Event(), Welcome("m", 4, ("pristine",), ()))


# ---- the process


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


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_well_on_a_signal(number):
    with process() as child:
        child.send_signal(number)
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.process
def test_a_worker_ends_with_its_parent_only_if_asked():
    with process("--with-parent") as child:
        child.stdin.close()
        assert child.wait(PATIENCE_S) == 0
    with process() as child:
        child.stdin.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
