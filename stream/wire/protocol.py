"""The protocol between edge and worker: a small versioned header, then raw tensor buffers.

**Transport.** A worker binds a ZeroMQ ROUTER socket; an edge connects one DEALER socket to each worker it uses. Both
sides authenticate and encrypt with CURVE, unless plain text was asked for (`eex.stream.wire.security`). A message
arrives whole or not at all. Nothing else is assumed: replies may come in any order, late, twice or never.

**Messages.** A message is a ZeroMQ multipart message. Its first part is the header: a msgpack map with the fields of
one of the eight structures below, tagged by `kind`. The other parts are the arrays that the header announces,
little-endian, in C order, without padding. A message with unknown fields, more or fewer parts, or a part of another
length than announced is refused as a whole.

    edge                          worker
    Hello                  ─►
                           ◄─     Welcome
    Request, features      ─►
                           ◄─     ReplyHeader, confidence, prediction
    Ping                   ─►
                           ◄─     Pong
    SumsHeader, sums       ─►
                           ◄─     FleetHeader, sums

**Greeting.** Once connected, an edge sends a `Hello` with the fingerprint of its model's weights, and repeats it
every half second until it is answered. The worker answers with the `Welcome` of that model, or refuses the hello by
its id. An edge sends requests only after a welcome with its own fingerprint, and greets again after every
reconnection.

**Requests.** A `Request` asks for the final exit's answers to n images, computed from `stage` on with the side
branches of `expert`. The edge chooses the `id`, and does not use it for another request while it awaits the reply.
One array follows with the values, of type `dtype` and shape `shape`, whose first axis is n; or, where `codec` is
"zstd", one uint8 array with the `packed` bytes they are compressed to. For int8 a second array follows, float32 of
shape (n, 2): each frame's smallest value and step, by which a value q stands for (q + 128) · step + smallest. uint8
values are the pixels of the images themselves, which stand for q / 255. `deadline_ms` counts from the request's
arrival; a worker that has not begun by then drops the request without a reply.

**Answerers.** A worker may answer the images themselves, which are what stage 0 takes, by another model of the same
classes. The welcome names it by its fingerprint, `answerer`, beside the edge's own.

**Replies.** A `ReplyHeader` carries the id of the request. Two arrays follow: confidence, float32 of shape (n,) in
[0, 1], and prediction, int32 of shape (n,), an index into the welcome's `classes`.

**Refusals.** A worker that cannot do what it is asked answers with a `ReplyHeader` whose `frames` are 0, two empty
arrays, the kind of refusal and a line with the reason. A message whose id cannot be read is dropped. The kinds:

- "message": the message is malformed or beyond a limit, or its features do not fit the stage;
- "model", "stage", "expert": the worker has no such thing;
- "failed": the model raised an error on these features;
- "busy": too many requests or bytes are under way, of this client, of its key, or of all;
- "clients": the worker serves as many connections as it can, or as it may with this key;
- "draining": the worker is about to stop.

After "busy", "model", "clients" and "draining" an edge may send the request to another worker; the others are final.

**Heartbeats.** An edge pings a worker ten times a second. The worker answers at once, also while its model runs, and
says how many requests it has under way, for how long its longest model call has been running, and whether it is about
to stop. An edge does not use a worker whose answer is overdue, or whose model has been running for longer than the
deadline, until that changes (`eex.stream.wire.peer`).

**Fleets.** An edge that was told to (`--share`) sends what its policy has learned every so often: a `SumsHeader` with
one array, float32 of shape (n,), the sums of counts that `eex.policies.core.fleet` describes; `exits`, `bins` and
`coarse` say how many they are. There is nothing of a single frame in them. The worker keeps the latest sums of each
edge, and answers with a `FleetHeader` and one array of as many numbers: what all other edges with the same model,
policy and sizes have shared, added up. It refuses sums that no stream can have as "message", and those that come
more often than ten times a second as "busy".

**Limits.** A header has at most 64 KiB, an array at most 64 MiB or the welcome's `max_bytes`, and a message at most
65,536 images. A client may have as many requests under way as the welcome's `window` allows.

**Versions.** Every header carries the `version` of the protocol. A receiver refuses any version but its own, with
both numbers in the reason; a change to the structures is a new version.

**Safety.** Nothing that is received is unpickled or evaluated. A header is checked against the limits before any
array is made, and arrays are views of the parts they came in.

`pack` and `unpack` are inverses of each other and know no socket.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.policies.core.fleet import MOST_VALUES, Layout
from eex.stream.wire.encoding import STORED, Codec, DType, decode, layout

VERSION = 4
"""Version of the protocol, on which edge and worker must agree."""

MAX_HEADER_BYTES = 1 << 16
MAX_BYTES = 1 << 26
"""Bytes of the largest array in a message; with a header's, also the largest frame that a worker's socket accepts."""

MAX_FRAMES = 1 << 16
"""Most images in one message."""

SHARE_EVERY_S = 0.1
"""Seconds between two messages of sums, at least."""

MESSAGE_FRAMES = 64
"""Images that fit into a worker's largest message, with the largest features that its models take."""

Refusal = Literal["message", "model", "stage", "expert", "failed", "busy", "clients", "draining"]
"""Why a worker refuses a message; the text at the top of this module explains each."""

Buffer = bytes | memoryview
_Id = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[str, Meta(max_length=256)]


class Hello(msgspec.Struct, frozen=True, tag_field="kind", tag="hello", forbid_unknown_fields=True):
    """The edge asks for a model by its fingerprint; a worker without it refuses the id.

    An empty fingerprint asks for the worker's first model.
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
        Most requests of one client that may be under way.
    models
        Fingerprints of all models that the worker has.
    answerer
        Fingerprint of the model that answers frames sent as images in place of the edge's own; empty if there is none.
    """

    model: _Name
    stages: Annotated[int, Meta(ge=1, le=1000)]
    experts: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=256)]
    classes: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=1 << 14)]
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)] = MAX_BYTES
    window: Annotated[int, Meta(ge=1, le=1 << 16)] = 32
    models: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()
    answerer: _Name = ""
    version: int = VERSION


class Ping(msgspec.Struct, frozen=True, tag_field="kind", tag="ping", forbid_unknown_fields=True):
    """The edge asks whether the worker is alive."""

    id: _Id
    version: int = VERSION


class Pong(msgspec.Struct, frozen=True, tag_field="kind", tag="pong", forbid_unknown_fields=True):
    """The worker is alive.

    Attributes
    ----------
    id
        The ping's.
    queue
        Requests under way, of all clients.
    busy_ms
        For how long no replica has been free, because calls of the models are running; models that hang show here.
    draining
        Whether the worker is about to stop.
    """

    id: _Id
    queue: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    busy_ms: float = 0.0
    draining: bool = False
    version: int = VERSION


class Request(msgspec.Struct, frozen=True, tag_field="kind", tag="request", forbid_unknown_fields=True):
    """The edge asks for the final exit's answer; features follow, laid out by `eex.stream.wire.encoding`.

    Attributes
    ----------
    id
        Carried by the reply.
    model
        Fingerprint of the edge's weights.
    stage
        First stage the worker has to run, counted from 0.
    expert
        Name of the expert whose side branch answers.
    dtype, shape
        Of the features before compression; the first axis is frames. uint8 values are the images themselves.
    codec, packed
        How the features are compressed, and to how many bytes; 0 if they are not.
    deadline_ms
        After this time nobody waits for the answer any more; 0 for never.
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
        Images answered; 0 in a refusal, with empty arrays.
    compute_ms
        Milliseconds that the model took, for the whole batch that the request was part of.
    refusal, error
        The kind of refusal, and why, in one line; both empty where there are frames.
    """

    id: _Id
    frames: Annotated[int, Meta(ge=0, le=MAX_FRAMES)] = 0
    compute_ms: float = 0.0
    refusal: Refusal | Literal[""] = ""
    error: Annotated[str, Meta(max_length=1000)] = ""
    version: int = VERSION


class SumsHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="sums", forbid_unknown_fields=True):
    """What an edge has learned; its sums follow, float32, laid out as `eex.policies.core.fleet.Layout` says.

    Attributes
    ----------
    id
        Carried by the answer.
    model, policy
        Fingerprint of the edge's weights; name of the policy that learned.
    edge
        By which an edge is told from others with the same key: a text that it makes up when it starts.
    exits, bins, coarse
        Sizes of the sums.
    """

    id: _Id
    model: _Name
    policy: _Name
    edge: _Name
    exits: Annotated[int, Meta(ge=1, le=1000)]
    bins: Annotated[int, Meta(ge=1, le=1000)]
    coarse: Annotated[int, Meta(ge=1, le=1000)]
    version: int = VERSION


class FleetHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="fleet", forbid_unknown_fields=True):
    """The worker's answer to the sums of an edge; those of the others follow, float32, in the same layout.

    Attributes
    ----------
    id
        That of the edge's message.
    values
        How many numbers follow.
    edges
        How many other edges have shared what they learned.
    """

    id: _Id
    values: Annotated[int, Meta(ge=1, le=MOST_VALUES)]
    edges: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    version: int = VERSION


_SUM = np.dtype("<f4")
_CONFIDENCE, _PREDICTION = np.dtype("<f4"), np.dtype("<i4")
_NOTHING = (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int32))

Header = Hello | Welcome | Ping | Pong | Request | ReplyHeader | SumsHeader | FleetHeader


class _Envelope(msgspec.Struct):
    """What the headers of all versions have in common."""

    version: int = 0


class _Identity(msgspec.Struct):
    id: _Id


_ENCODER = msgspec.msgpack.Encoder()
_HEADER = msgspec.msgpack.Decoder(Header)
_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_IDENTITY = msgspec.msgpack.Decoder(_Identity)


def pack(header: Header, *arrays: NDArray[Any]) -> list[Buffer]:
    """The parts of a message; arrays that are in C order already are not copied.

    Raises
    ------
    OffloadError
        If the arrays do not match the header, or `unpack` would refuse the message.
    """
    parts: list[Buffer] = [_ENCODER.encode(header)]
    layout = _layout(_read_header(parts[0]))
    if len(arrays) != len(layout):
        raise OffloadError(f"a {_kind(header)} takes {len(layout)} arrays, got {len(arrays)}")
    for array, (dtype, shape) in zip(arrays, layout, strict=True):
        if array.dtype != dtype or array.shape != shape:
            raise OffloadError(f"the header announces {dtype} {shape}, the array is {array.dtype} {array.shape}")
        inside = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        parts.append(inside.data.cast("B") if array.size else b"")
    return parts


def unpack(parts: Sequence[Buffer]) -> tuple[Header, list[NDArray[Any]]]:
    """The header of a message and its arrays, which are views of the parts.

    Raises
    ------
    OffloadError
        If the message is not exactly what its header announces, or beyond the limits.
    """
    if not parts:
        raise OffloadError("a message needs a header, got no parts")
    header = _read_header(parts[0])
    layout = _layout(header)
    if len(parts) != 1 + len(layout):
        raise OffloadError(f"a {_kind(header)} has {1 + len(layout)} parts, got {len(parts)}")
    arrays = []
    for part, (dtype, shape) in zip(parts[1:], layout, strict=True):
        size, takes = memoryview(part).nbytes, math.prod(shape) * dtype.itemsize
        if size != takes:
            raise OffloadError(f"{dtype} {shape} takes {takes:,} bytes, got {size:,}")
        arrays.append(np.ndarray(shape, dtype, part) if size else np.zeros(shape, dtype))
    return header, arrays


def features_of(request: Request, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The features of a request, from its arrays as `unpack` returns them; images come in [0, 1].

    Raises
    ------
    OffloadError
        If compressed features are damaged, or not of the announced size.
    """
    return decode(request.dtype, request.shape, request.codec, tuple(arrays))


def readable_id(parts: Sequence[Buffer]) -> int | None:
    """The id of a message that `unpack` refused; None if it has none."""
    if not parts or not 0 < memoryview(parts[0]).nbytes <= MAX_HEADER_BYTES:
        return None
    try:
        return _IDENTITY.decode(parts[0]).id
    except (ValueError, RecursionError):
        return None


def one_line(text: str, limit: int = 300) -> str:
    """Text of a peer or an error, made fit for a log: printable, on one line, not too long."""
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
    if isinstance(header, SumsHeader):
        if header.bins % header.coarse or (size := layout_of(header).size) > MOST_VALUES:
            sizes = f"{header.exits} exits, {header.bins} bins and {header.coarse} coarse ones"
            raise OffloadError(f"sums of {sizes} cannot be shared: at most {MOST_VALUES:,} numbers fit, in whole bins")
        return [(_SUM, (size,))]
    if isinstance(header, FleetHeader):
        return [(_SUM, (header.values,))]
    if isinstance(header, Pong):
        _check_time("busy_ms", header.busy_ms)
    return []


def layout_of(header: SumsHeader) -> Layout:
    """Sizes of the sums that follow a header."""
    return Layout(header.exits, header.bins, header.coarse)


def _check_time(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise OffloadError(f"{name} must be a time, got {value}")


def _kind(header: Header) -> str:
    return str(type(header).__struct_config__.tag)


def refusal(id: int, kind: Refusal, error: str) -> list[Buffer]:
    """The message that refuses a request or a hello."""
    return pack(ReplyHeader(id, refusal=kind, error=one_line(error) or "no reason given"), *_NOTHING)
