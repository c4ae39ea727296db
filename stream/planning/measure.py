"""Measurements: of stages on this machine and on a worker, of the link, and of each way of sending a frame.

`eex-stream --send auto` chooses by these how frames are sent, and `eex-partition` where the network is cut.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.models.arrays import laid_out, on_cpu, to_numpy
from eex.policies.core.errors import EexError
from eex.policies.core.link import DOWN, SimulatedLink, transfer_ms
from eex.stream.wire.encoding import ENCODINGS, Encoding, as_input, decode, encode
from eex.stream.wire.offload import Offloader, Reply

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.policies.core.base import Floats

LEAST_AGREEMENT = 0.98
"""Share of frames whose answer an encoding must leave as it is with unencoded features, to be chosen by itself."""
ROUNDS = 5
"""How often everything is measured; the median counts, and of a link the minimum."""
PROBE_FRAMES = 16
"""Most frames in the larger message that a link is measured with."""
TRIES, PATIENCE_S = 3, 5.0
"""How often a request that fails is sent, and how long to wait for each reply."""
_IDS = itertools.count(1 << 40)  # of measuring requests; an engine counts from 1


@dataclass(frozen=True)
class LinkSpeed:
    """Speed of a link: round trip of an empty message, in milliseconds, and megabits per second."""

    round_trip_ms: float
    mbit: float

    def trip_ms(self, bytes: float) -> float:
        """Milliseconds from sending a frame of a number of bytes over an idle connection to its short reply."""
        return transfer_ms(bytes, self.round_trip_ms, self.mbit) + self.round_trip_ms / 2


@dataclass(frozen=True)
class Candidate:
    """One way to send a frame from a partition point.

    Attributes
    ----------
    encoding
        How it is encoded.
    stage
        First stage that the cloud runs, counted from 0.
    bytes
        Bytes per frame.
    encode_ms, decode_ms
        Milliseconds per frame on this machine.
    agreement
        Share of frames whose answer is the one that unencoded features give; NaN where it was not measured.
    """

    encoding: Encoding
    stage: int
    bytes: float
    encode_ms: float
    decode_ms: float
    agreement: float = math.nan

    @property
    def agrees(self) -> bool:
        """Whether it may be chosen unasked."""
        return not self.agreement < LEAST_AGREEMENT


@dataclass(frozen=True)
class Sending:
    """How a run sends its frames, and why.

    Attributes
    ----------
    encoding
        The encoding; None sends the features as they are.
    why
        The reason, in one line.
    candidates
        What was compared, as plain JSON values; empty if nothing was.
    """

    encoding: Encoding | None
    why: str
    candidates: tuple[dict[str, Any], ...] = ()


def first_condition(link: SimulatedLink) -> LinkSpeed:
    """The speed of an emulated link at first, or once it is up.

    Raises
    ------
    EexError
        If it never is.
    """
    for piece in link.pieces:
        if piece.round_trip_ms < DOWN:
            return LinkSpeed(piece.round_trip_ms, piece.mbit)
    raise EexError("the link is always down")


def stage_times(net: "Network", images: Any, at_once: int = 1) -> "tuple[Floats, Floats]":
    """Milliseconds per frame of each stage and of each exit on the network's device, both (stages,).

    Parameters
    ----------
    images
        (n, C, H, W) on the network's device.
    at_once
        Frames in a micro-batch.
    """

    def now() -> float:
        if not on_cpu(images):
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    stage_ms, exit_ms = np.zeros((ROUNDS, net.exits)), np.zeros((ROUNDS, net.exits))
    batch = images[np.resize(np.arange(len(images)), at_once).tolist()]
    with net.inferring():
        for warming in (True, False):
            for k in range(ROUNDS):
                x = laid_out(batch)
                for i in range(net.exits):
                    start = now()
                    x = net.stage(i, x)
                    between = now()
                    to_numpy(net.confident(net.branch(i, net.experts[0], x))[0])
                    stage_ms[k, i], exit_ms[k, i] = between - start, now() - between
                if warming and k:
                    break
    return 1000 * np.median(stage_ms, axis=0) / at_once, 1000 * np.median(exit_ms, axis=0) / at_once


def features_at(net: "Network", images: Any) -> list[Any]:
    """The input of each stage: the images, then the features after each stage but the last."""
    found = [laid_out(images)]
    with net.inferring():
        for i in range(net.exits - 1):
            found.append(net.stage(i, found[-1]))
    return found


def candidates(net: "Network", images: Any, cut: int, agreement: bool = True) -> list[Candidate]:
    """Every way to send frames from a partition point, with its cost and whether it changes answers.

    Parameters
    ----------
    images
        (n, C, H, W) in [0, 1], on the network's device, distorted as the network is to see them.
    cut
        Stages that run on the edge; with 0, only images can be sent.
    agreement
        Run the rest of the network on what arrives, to see whether the answers are the same.
    """
    features = to_numpy(features_at(net, images)[cut]) if cut else None
    inputs = as_input(_floats(images))
    reference = _answers(net, to_numpy(images), 0) if agreement else None
    agreements: dict[str, float] = {}
    found = []
    for encoding in ENCODINGS:
        if encoding.kind != "input" and features is None:
            continue
        values: NDArray[Any] = inputs if encoding.kind == "input" else np.asarray(features)
        stage = 0 if encoding.kind == "input" else cut
        encode_s, decode_s = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            sent = encode(values, encoding)
            between = time.perf_counter()
            arrived = decode(sent.dtype, sent.shape, sent.codec, sent.arrays)
            encode_s.append(between - start)
            decode_s.append(time.perf_counter() - between)
        if reference is not None and encoding.kind not in agreements:
            agreements[encoding.kind] = float((_answers(net, arrived, stage) == reference).mean())
        found.append(
            Candidate(
                encoding,
                stage,
                sent.nbytes / len(sent),
                1000 * float(np.median(encode_s)) / len(sent),
                1000 * float(np.median(decode_s)) / len(sent),
                agreements.get(encoding.kind, math.nan),
            )
        )
    return found


def _answers(net: "Network", arrived: NDArray[Any], stage: int) -> NDArray[np.int64]:
    """The final exit's answers to frames that continue from a stage, with the first expert."""
    x = net.array(np.array(arrived, np.float32), stage)
    with net.inferring():
        for i in range(stage, net.exits):
            x = net.stage(i, x)
        answers: NDArray[np.int64] = to_numpy(net.branch(net.exits - 1, net.experts[0], x).argmax(1))
    return answers


def _floats(x: Any) -> NDArray[np.float32]:
    return to_numpy(x).astype(np.float32, copy=False)


# ---- a worker, and the link to it


def worker_times(offloader: Offloader, net: "Network", images: Any, stages: Sequence[int]) -> dict[int, float]:
    """Milliseconds per frame that a worker needs from each of some stages to the final exit.

    Raises
    ------
    EexError
        If the worker does not answer.
    """
    features = features_at(net, images[:1])
    found = {}
    for stage in stages:
        x = _floats(features[stage])
        sent = encode(x, Encoding("int8")) if stage else encode(as_input(x), Encoding("input"))  # small: links are slow
        found[stage] = float(np.median([_ask(offloader, net, stage, sent).compute_ms for _ in range(ROUNDS)]))
    return found


def measure_link(offloader: Offloader, net: "Network", images: Any, cut: int) -> LinkSpeed:
    """Round trip and rate to a worker, from messages of one frame and of several that continue from a partition point.

    The model's own time there is subtracted. A rate that is lost in the noise counts as infinite.

    Raises
    ------
    EexError
        If the worker does not answer.
    """
    features = _floats(features_at(net, images[:PROBE_FRAMES])[cut])

    def least(count: int, rounds: int) -> tuple[float, float]:
        """Milliseconds on the link, and bytes, of a message of some frames."""
        part = features[:count]
        sent = encode(part, Encoding()) if cut else encode(as_input(part), Encoding("input"))
        replies = [_ask(offloader, net, cut, sent) for _ in range(rounds)]
        return min(r.round_trip_ms - r.compute_ms for r in replies), sent.nbytes

    small, small_bytes = least(1, ROUNDS)
    if len(features) < 2:
        return LinkSpeed(small, math.inf)
    large, large_bytes = least(len(features) if small < 100 else 4, 3)  # the first of them makes the connection fast
    per_byte = max(0.0, large - small) / (large_bytes - small_bytes)
    if per_byte * large_bytes < 0.05 * large:
        return LinkSpeed(small, math.inf)
    return LinkSpeed(max(0.0, small - per_byte * small_bytes), 8e-3 / per_byte)


def _ask(offloader: Offloader, net: "Network", stage: int, features: Any) -> Reply:
    """The reply to one request. A request that fails is sent again: the first that a worker ever runs may be late."""
    failed = "it takes no requests; is it still running?"
    for _ in range(TRIES):
        id, end = next(_IDS), time.monotonic() + PATIENCE_S
        while not (sent := offloader.submit(id, stage, net.experts[0], features)) and time.monotonic() < end:
            offloader.poll(10)
            time.sleep(0.002)
        while sent and time.monotonic() < end:
            for reply in offloader.poll(100):
                if reply.id == id and not reply.failed:
                    return reply
                if reply.id == id:
                    sent, failed = False, reply.failed
    raise EexError(f"the worker and the link cannot be measured: {failed}")


# ---- the choice


def cost_ms(candidate: Candidate, link: LinkSpeed, cloud_ms: float) -> float:
    """Milliseconds from the partition point to the answer on the edge."""
    return candidate.encode_ms + link.trip_ms(candidate.bytes) + candidate.decode_ms + cloud_ms


def smallest(found: Sequence[Candidate], problem: str) -> Sending:
    """The way of sending with the fewest bytes that leaves the answers as they are: for a link of unknown speed."""
    best = min((c for c in found if c.agrees), key=lambda c: c.bytes, default=found[0])
    return Sending(best.encoding, f"{best.bytes:,.0f} bytes per frame, the fewest; {problem}")


def cheapest(found: Sequence[Candidate], link: LinkSpeed, cloud_ms: dict[int, float]) -> Sending:
    """The fastest way of sending among those that leave the answers as they are.

    Parameters
    ----------
    found
        Candidates of one partition point.
    link
        Speed of the link to the worker.
    cloud_ms
        Milliseconds per frame on the worker, by the stage that it continues from.
    """
    costs = {c.encoding: cost_ms(c, link, cloud_ms[c.stage]) for c in found}
    best = min((c for c in found if c.agrees), key=lambda c: costs[c.encoding], default=found[0])
    plain = next((c for c in found if c.encoding == Encoding()), best)
    rows = tuple(
        {
            "send": str(c.encoding),
            "bytes": c.bytes,
            "encode_ms": c.encode_ms,
            "decode_ms": c.decode_ms,
            "link_ms": link.trip_ms(c.bytes),
            "cloud_ms": cloud_ms[c.stage],
            "ms": costs[c.encoding],
            "agreement": None if math.isnan(c.agreement) else c.agreement,
        }
        for c in found
    )
    rate = "too fast to measure" if math.isinf(link.mbit) else f"{link.mbit:.3g} Mbit/s"
    why = (
        f"{best.bytes:,.0f} bytes per frame take {costs[best.encoding]:.1f} ms to the answer "
        f"({link.round_trip_ms:.3g} ms round trip, {rate})"
    )
    if plain is not best:
        why += f"; fp32's {plain.bytes:,.0f} bytes would take {costs[plain.encoding]:.1f} ms"
    if not math.isnan(best.agreement):
        why += f"; {100 * best.agreement:.1f} % of {'the' if best is plain else 'its'} answers are fp32's"
    return Sending(best.encoding, why, rows)
