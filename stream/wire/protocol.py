"""What edge and worker say to each other: a small versioned header and raw tensor buffers.

A message is a list of frames. The first is the header, msgpack of one of six types; the others are the arrays that it
announces, little-endian and in C order:

    Hello   ─►                          Request ─►  features
            ◄─  Welcome                         ◄─  ReplyHeader, confidence, prediction
    Ping    ─►
            ◄─  Pong

A worker that cannot do what it is asked refuses: a `ReplyHeader` with the kind of refusal and a line that says why.

`pack` and `unpack` are inverses of each other and know no socket. What comes off the wire is checked against the limits
below before an array is made of it, and arrays are views of the frames they came in.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.encoding import STORED, Codec, DType, decode, layout

VERSION = 2
"""Of the protocol: an edge and a worker must agree on it."""

MAX_HEADER_BYTES = 1 << 16
MAX_BYTES = 1 << 26
"""Largest array of a message; also the largest frame that a worker's socket lets in."""

MAX_FRAMES = 1 << 16
"""Most images in one message."""

MESSAGE_FRAMES = 64
"""Images that a worker's largest message holds, of the largest features that its models pass on."""

Refusal = Literal["message", "model", "stage", "expert", "failed", "busy", "clients", "draining"]
"""Why a worker refuses: it cannot read the message; it has no such model, stage, expert; the model failed on these
features; too much of this client, or of all, is under way; it has too many clients; it is about to stop."""

Buffer = bytes | memoryview
_Id = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[str, Meta(max_length=256)]


class Hello(msgspec.Struct, frozen=True, tag_field="kind", tag="hello", forbid_unknown_fields=True):
    """The edge asks for a model by its fingerprint; a worker that does not have it refuses with the id.

    An empty fingerprint asks for whichever the worker names first.
    """

    id: _Id = 0
    model: _Name = ""
    version: int = VERSION


class Welcome(msgspec.Struct, frozen=True, tag_field="kind", tag="welcome", forbid_unknown_fields=True):
    """The worker's answer to a hello.

    Attributes
    ----------
    model
        Fingerprint of its weights.
    stages
        Stages of the network, those that run on the edge included.
    experts, classes
        Names, in the model's order.
    max_bytes
        Largest array that the worker takes.
    window
        Most requests of one client that it keeps at a time.
    models
        Fingerprints of all models that the worker has.
    """

    model: _Name
    stages: Annotated[int, Meta(ge=1, le=1000)]
    experts: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=256)]
    classes: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=1 << 14)]
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)] = MAX_BYTES
    window: Annotated[int, Meta(ge=1, le=1 << 16)] = 32
    models: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()
    version: int = VERSION


class Ping(msgspec.Struct, frozen=True, tag_field="kind", tag="ping", forbid_unknown_fields=True):
    """The edge asks whether the worker is alive; it answers at once, also while its model runs."""

    id: _Id
    version: int = VERSION


class Pong(msgspec.Struct, frozen=True, tag_field="kind", tag="pong", forbid_unknown_fields=True):
    """The worker is alive.

    Attributes
    ----------
    id
        The ping's.
    queue
        Requests that wait in it, of all clients.
    busy_ms
        For how long its longest call of a model has been running; one that hangs shows here.
    draining
        It is about to stop.
    """

    id: _Id
    queue: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    busy_ms: float = 0.0
    draining: bool = False
    version: int = VERSION


class Request(msgspec.Struct, frozen=True, tag_field="kind", tag="request", forbid_unknown_fields=True):
    """The edge asks for the final exit's answer; the features follow, as `eex.stream.wire.encoding` lays them out.

    Attributes
    ----------
    id
        The reply will carry it.
    model
        Fingerprint of the edge's weights.
    stage
        First stage the worker has to run, counted from 0.
    expert
        Whose side branch answers.
    dtype, shape
        Of the features before they are compressed; the first axis is frames. uint8 are the images themselves.
    codec, packed
        What they are compressed by, and to how many bytes; 0 where they are not.
    deadline_ms
        After so long nobody waits for the answer any more; 0 = never.
    """

    id: _Id
    model: _Name
    stage: Annotated[int, Meta(ge=0, lt=1000)]
    expert: _Name
    dtype: DType
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=MAX_BYTES)], ...], Meta(min_length=2, max_length=8)]
    deadline_ms: float = 0.0
    codec: Codec = "none"
    packed: Annotated[int, Meta(ge=0, le=MAX_BYTES)] = 0
    version: int = VERSION


class ReplyHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="reply", forbid_unknown_fields=True):
    """The worker's answer to a request; confidence (frames,) float32 and prediction (frames,) int32 follow.

    Attributes
    ----------
    id
        The request's.
    frames
        Images answered; 0 where the worker refused, with empty arrays.
    compute_ms
        What the model took.
    refusal, error
        What kind of refusal it is, and why, in one line; both empty where there are frames.
    """

    id: _Id
    frames: Annotated[int, Meta(ge=0, le=MAX_FRAMES)] = 0
    compute_ms: float = 0.0
    refusal: Refusal | Literal[""] = ""
    error: Annotated[str, Meta(max_length=1000)] = ""
    version: int = VERSION


_CONFIDENCE, _PREDICTION = np.dtype("<f4"), np.dtype("<i4")
_NOTHING = (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int32))

Header = Hello | Welcome | Ping | Pong | Request | ReplyHeader


class _Envelope(msgspec.Struct):
    """What every version's header has, whatever else is in it."""

    version: int = 0


class _Identity(msgspec.Struct):
    id: _Id


_ENCODER = msgspec.msgpack.Encoder()
_HEADER = msgspec.msgpack.Decoder(Header)
_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_IDENTITY = msgspec.msgpack.Decoder(_Identity)


def pack(header: Header, *arrays: NDArray[Any]) -> list[Buffer]:
    """The frames of a message; the arrays are not copied if they are in C order already.

    Raises
    ------
    OffloadError
        If the arrays are not what the header says, or `unpack` would refuse the message.
    """
    frames: list[Buffer] = [_ENCODER.encode(header)]
    layout = _layout(_read_header(frames[0]))
    if len(arrays) != len(layout):
        raise OffloadError(f"a {_kind(header)} takes {len(layout)} arrays, got {len(arrays)}")
    for array, (dtype, shape) in zip(arrays, layout, strict=True):
        if array.dtype != dtype or array.shape != shape:
            raise OffloadError(f"the header announces {dtype} {shape}, the array is {array.dtype} {array.shape}")
        inside = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        frames.append(inside.data.cast("B") if array.size else b"")
    return frames


def unpack(frames: Sequence[Buffer]) -> tuple[Header, list[NDArray[Any]]]:
    """The header of a message and its arrays, which are views of the frames.

    Raises
    ------
    OffloadError
        If the message is not exactly what its header says, or beyond the limits.
    """
    if not frames:
        raise OffloadError("a message needs a header, got no frames")
    header = _read_header(frames[0])
    layout = _layout(header)
    if len(frames) != 1 + len(layout):
        raise OffloadError(f"a {_kind(header)} has {1 + len(layout)} frames, got {len(frames)}")
    arrays = []
    for frame, (dtype, shape) in zip(frames[1:], layout, strict=True):
        size, takes = memoryview(frame).nbytes, math.prod(shape) * dtype.itemsize
        if size != takes:
            raise OffloadError(f"{dtype} {shape} takes {takes:,} bytes, got {size:,}")
        arrays.append(np.ndarray(shape, dtype, frame) if size else np.zeros(shape, dtype))
    return header, arrays


def features_of(request: Request, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The features of a request, from its arrays as `unpack` gives them; images come in [0, 1].

    Raises
    ------
    OffloadError
        If what was compressed is damaged, or not what was announced.
    """
    return decode(request.dtype, request.shape, request.codec, tuple(arrays))


def readable_id(frames: Sequence[Buffer]) -> int | None:
    """The id in a message that `unpack` refused, if it has one."""
    if not frames or not 0 < memoryview(frames[0]).nbytes <= MAX_HEADER_BYTES:
        return None
    try:
        return _IDENTITY.decode(frames[0]).id
    except (ValueError, RecursionError):
        return None


def one_line(text: str, limit: int = 300) -> str:
    """The text of a peer or an error, fit for a log: printable, on one line, not too long."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _read_header(frame: Buffer) -> Header:
    size = memoryview(frame).nbytes
    if not 0 < size <= MAX_HEADER_BYTES:
        raise OffloadError(f"a header has 1…{MAX_HEADER_BYTES:,} bytes, got {size:,}")
    try:
        version = _ENVELOPE.decode(frame).version
        if version != VERSION:
            raise OffloadError(f"the message speaks version {version} of the protocol, this eex speaks {VERSION}")
        header: Header = _HEADER.decode(frame)
        return header
    except OffloadError:
        raise
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        raise OffloadError(f"not a header of eex: {one_line(str(error))}") from None


def _layout(header: Header) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of the arrays that follow a header, within the limits."""
    if isinstance(header, Request):
        _check_time("deadline_ms", header.deadline_ms)
        size = math.prod(header.shape) * STORED[header.dtype].itemsize
        if header.shape[0] > MAX_FRAMES or size > MAX_BYTES:
            raise OffloadError(
                f"{header.dtype} {header.shape} is too large for one message: it has {size:,} bytes, at most "
                f"{MAX_BYTES:,} bytes and {MAX_FRAMES:,} frames fit"
            )
        return layout(header.dtype, header.shape, header.codec, header.packed)
    if isinstance(header, ReplyHeader):
        _check_time("compute_ms", header.compute_ms)
        if not bool(header.refusal) == bool(header.error) != bool(header.frames):
            raise OffloadError(
                f"a reply has frames or a refusal and its reason, got {header.frames} frames, {header.refusal!r} and "
                f"{header.error!r}"
            )
        return [(_CONFIDENCE, (header.frames,)), (_PREDICTION, (header.frames,))]
    if isinstance(header, Pong):
        _check_time("busy_ms", header.busy_ms)
    return []


def _check_time(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise OffloadError(f"{name} must be a time, got {value}")


def _kind(header: Header) -> str:
    return str(type(header).__struct_config__.tag)


def refusal(id: int, kind: Refusal, error: str) -> list[Buffer]:
    """The message that refuses a request or a hello."""
    return pack(ReplyHeader(id, refusal=kind, error=one_line(error) or "no reason given"), *_NOTHING)
