"""Throw mutated messages at a worker, and see that it survives.

`python -m eex.experiments.bench.fuzz_worker --messages 1000000` takes minutes; the tests run a tenth of that at most.

The worker runs in a process of its own. Another client is served meanwhile; its latency and the growth of the worker's
memory are printed.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import zmq

from eex.policies.core.errors import OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.protocol import Buffer, Hello, Ping, Pong, Request, Welcome, pack, readable_id, refusal, unpack

AT_ONCE = 200  # messages between two requests of the other client


@dataclass(frozen=True)
class Fuzzed:
    """What fuzzing found: messages sent, the other client's round trips and failures, the growth of the worker."""

    messages: int
    seconds: float
    latency_ms: tuple[float, float]  # median, 99th percentile
    failed: int
    grown_kib: int


def seeds(model: str) -> list[list[bytes]]:
    """Good messages to start from."""
    features = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12)
    messages: list[list[Buffer]] = [
        pack(Hello(1, model)),
        pack(Ping(2)),
        pack(Pong(3)),
        pack(Request(4, model, 1, "pristine", "float32", (2, 12)), features),
        pack(Welcome(model, 2, ("pristine",), ("a", "b"))),
        refusal(5, "failed", "no"),
    ]
    return [[bytes(frame) for frame in message] for message in messages]


def mutated(message: list[bytes], rng: random.Random) -> list[bytes]:
    """A copy of a message with one to four defects."""
    frames = [bytearray(frame) for frame in message]
    for _ in range(rng.randint(1, 4)):
        k = rng.randrange(len(frames))
        frame, how = frames[k], rng.randrange(8)
        at = rng.randrange(len(frame) + 1)
        if how == 0 and frame:
            frame[at % len(frame)] ^= 1 << rng.randrange(8)
        elif how == 1:
            del frame[at:]
        elif how == 2:
            frame[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 3 and len(frames) > 1:
            del frames[k]
        elif how == 4 and len(frames) < 8:
            frames.insert(k, bytearray(frame))
        elif how == 5:
            frames[k] = bytearray(rng.randbytes(rng.randrange(200)))
        elif how == 6:
            frames[k] = bytearray(_falsified(bytes(frame), rng))
        else:
            rng.shuffle(frames)
    return [bytes(frame) for frame in frames]


def _falsified(frame: bytes, rng: random.Random) -> bytes:
    """A header with a wrong value in one of its fields, up to terabytes."""
    try:
        header = msgspec.msgpack.decode(frame)
        name = rng.choice(sorted(header.keys()))
    except (ValueError, TypeError, AttributeError, IndexError):  # msgspec's are ValueErrors
        return frame
    numbers: tuple[object, ...] = (-1, 0, 1 << 40, (1 << 63) - 1, 1.5, [], [1 << 26] * 8, [-1, 2])
    header[name] = rng.choice((*numbers, None, "x" * 300, ["a"] * 9, {"a": 1}))
    return bytes(msgspec.msgpack.encode(header))


def fuzz_unpack(messages: int, seed: int = 0) -> None:
    """Give mutated messages to `unpack`, which must either refuse or understand them."""
    rng, good = random.Random(seed), seeds("model")
    for _ in range(messages):
        frames = mutated(rng.choice(good), rng)
        readable_id(frames)
        try:
            header, arrays = unpack(frames)
            pack(header, *arrays)
        except OffloadError:
            pass


def fuzz_worker(
    attack: zmq.Socket[bytes],
    other: ZmqOffloader,
    messages: int,
    resident_kib: Callable[[], int],
    seed: int = 0,
) -> Fuzzed:
    """Throw mutated messages at a worker.

    Parameters
    ----------
    attack
        A connected DEALER that the worker accepts.
    other
        Another client of the same worker, connected.
    messages
        Number of messages.
    resident_kib
        Returns the worker's memory.
    """
    rng, good = random.Random(seed), seeds(other.fingerprint)
    latency: list[float] = []
    failed = sent = before = 0
    features = np.zeros((1, 12), dtype=np.float32)
    start = time.perf_counter()
    while sent < messages:
        for _ in range(min(AT_ONCE, messages - sent)):
            message = mutated(rng.choice(good), rng)
            attack.send_multipart(message if message else [b""])
            sent += 1
            while attack.poll(0):
                attack.recv_multipart()
        if not other.submit(sent, 1, "pristine", features):
            failed += 1
            other.poll(0)
        while other.outstanding:
            for reply in other.poll(1000):
                latency.append(reply.round_trip_ms)
                failed += bool(reply.failed)
        if not before and sent >= messages // 10:  # all buffers have grown by then
            before = resident_kib()
    seconds = time.perf_counter() - start
    p50, p99 = np.quantile(latency or [np.nan], [0.5, 0.99])
    return Fuzzed(sent, seconds, (float(p50), float(p99)), failed, resident_kib() - before)


def main() -> None:
    """Run against a worker with a trivial model, on loopback, in plain text."""
    from eex.experiments.bench.trivial_worker import MODEL, TrivialWorker

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    fuzz_unpack(options.messages, options.seed)
    print(f"unpack: {options.messages:,} mutated messages, seed {options.seed}: refused or understood")
    with TrivialWorker() as worker, zmq.Context() as context, context.socket(zmq.DEALER) as attack:
        attack.linger = 0
        attack.connect(worker.endpoint)
        other = ZmqOffloader(worker.endpoint, MODEL)
        other.connect(30.0)
        found = fuzz_worker(attack, other, options.messages, worker.resident_kib, options.seed)
        other.close()
    print(
        f"worker: {found.messages:,} mutated messages in {found.seconds:.0f} s; the other client's round trip "
        f"{found.latency_ms[0]:.2f} ms (p99 {found.latency_ms[1]:.1f} ms), {found.failed} failed; memory grew by "
        f"{found.grown_kib} KiB after the first tenth"
    )


if __name__ == "__main__":
    main()
