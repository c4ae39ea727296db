"""What edge and worker say to each other: a small versioned header and raw tensor buffers.

A message is a list of frames. The first is the header, msgpack of one of four types; the others are the arrays that it
announces, little-endian and in C order:

    Hello   ─►                                  Request ─►  features
            ◄─  Welcome                                 ◄─  ReplyHeader, confidence, prediction

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

from eex.policies.errors import OffloadError

VERSION = 1
"""Of the protocol: an edge and a worker must agree on it."""

MAX_HEADER_BYTES = 1 << 16
MAX_BYTES = 1 << 26
"""Largest array of a message; also the largest frame that a worker's socket lets in."""

MAX_FRAMES = 1 << 16
"""Most images in one message."""

Buffer = bytes | memoryview
_Id = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[str, Meta(max_length=256)]


class Hello(msgspec.Struct, frozen=True, tag_field="kind", tag="hello", forbid_unknown_fields=True):
    """The edge asks which model the worker has; one that cannot say refuses with the id."""

    id: _Id = 0
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
    """

    model: _Name
    stages: Annotated[int, Meta(ge=1, le=1000)]
    experts: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=256)]
    classes: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=1 << 14)]
    version: int = VERSION


class Request(msgspec.Struct, frozen=True, tag_field="kind", tag="request", forbid_unknown_fields=True):
    """The edge asks for the final exit's answer; one array of features follows.

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
        Of the features; the first axis is frames.
    """

    id: _Id
    model: _Name
    stage: Annotated[int, Meta(ge=0, lt=1000)]
    expert: _Name
    dtype: Literal["float32", "float16"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=MAX_BYTES)], ...], Meta(min_length=2, max_length=8)]
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
    error
        Why it refused, one line.
    """

    id: _Id
    frames: Annotated[int, Meta(ge=0, le=MAX_FRAMES)] = 0
    compute_ms: float = 0.0
    error: Annotated[str, Meta(max_length=1000)] = ""
    version: int = VERSION


Header = Hello | Welcome | Request | ReplyHeader


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
        flat = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
        frames.append(flat.view(np.uint8).data)
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
    views = [memoryview(frame) for frame in frames[1:]]
    for view, (dtype, shape) in zip(views, layout, strict=True):
        if view.nbytes != math.prod(shape) * dtype.itemsize:
            raise OffloadError(
                f"{dtype} {shape} takes {math.prod(shape) * dtype.itemsize:,} bytes, got {view.nbytes:,}"
            )
    return header, [np.frombuffer(v, dtype=d).reshape(s) for v, (d, s) in zip(views, layout, strict=True)]


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
        dtype = np.dtype(header.dtype).newbyteorder("<")
        size = math.prod(header.shape) * dtype.itemsize
        if header.shape[0] > MAX_FRAMES or size > MAX_BYTES:
            raise OffloadError(
                f"{header.dtype} {header.shape} is too large for one message: it has {size:,} bytes, at most "
                f"{MAX_BYTES:,} bytes and {MAX_FRAMES:,} frames fit"
            )
        return [(dtype, header.shape)]
    if isinstance(header, ReplyHeader):
        if not (math.isfinite(header.compute_ms) and header.compute_ms >= 0):
            raise OffloadError(f"compute_ms must be a time, got {header.compute_ms}")
        if bool(header.error) == bool(header.frames):
            raise OffloadError(f"a reply has frames or an error, got {header.frames} frames and {header.error!r}")
        return [(np.dtype("<f4"), (header.frames,)), (np.dtype("<i4"), (header.frames,))]
    return []


def _kind(header: Header) -> str:
    return str(type(header).__struct_config__.tag)
