"""Messages: pack and unpack are inverses, and nothing but a good message passes."""

import math
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eex.policies.core.errors import OffloadError
from eex.stream.wire import protocol
from eex.stream.wire.protocol import (
    Hello,
    Ping,
    Pong,
    ReplyHeader,
    Request,
    SumsHeader,
    Welcome,
    one_line,
    pack,
    readable_id,
    unpack,
)

pytestmark = pytest.mark.timeout(60)

IDS = st.integers(0, 2**63 - 1)
NAMES = st.text(max_size=20)
FEATURES = hnp.arrays(st.sampled_from(["float32", "float16"]), hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))


@st.composite
def requests(draw):
    features = draw(FEATURES)
    stage = draw(st.integers(0, 999))
    return Request(draw(IDS), draw(NAMES), stage, draw(NAMES), features.dtype.name, features.shape), [features]


@st.composite
def replies(draw):
    frames = draw(st.integers(0, 5))
    confidence = draw(hnp.arrays(np.float32, frames))
    prediction = draw(hnp.arrays(np.int32, frames))
    kind = "" if frames else draw(st.sampled_from(get_args(protocol.Refusal)))
    error = "" if frames else draw(st.text(min_size=1, max_size=50))
    return ReplyHeader(draw(IDS), frames, draw(st.floats(0, 1e9)), kind, error), [confidence, prediction]


WELCOMES = st.builds(
    Welcome,
    NAMES,
    st.integers(1, 1000),
    st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    st.lists(NAMES, min_size=1, max_size=4).map(tuple),
)
PINGS = st.builds(Ping, IDS) | st.builds(Pong, IDS, st.integers(0, 99), st.floats(0, 1e9), st.booleans())
MESSAGES = requests() | replies() | st.tuples(st.builds(Hello, IDS, NAMES) | WELCOMES | PINGS, st.just([]))


def request_frames(**changes):
    """The frames of a good request whose header is then changed."""
    header = {"kind": "request", "version": protocol.VERSION, "id": 7, "model": "m", "stage": 1, "expert": "blur"}
    header |= {"dtype": "float32", "shape": (2, 3)} | changes
    return [msgspec.msgpack.encode(header), bytes(24)]


def reply_frames(confidence=bytes(4), prediction=bytes(4), **changes):
    header = {"kind": "reply", "version": protocol.VERSION, "id": 7, "frames": 1, "compute_ms": 1.0}
    return [msgspec.msgpack.encode(header | changes), confidence, prediction]


@given(MESSAGES)
def test_pack_and_unpack_are_inverses(message):
    header, arrays = message
    frames = pack(header, *arrays)
    assert [memoryview(f).nbytes for f in frames[1:]] == [a.nbytes for a in arrays]
    received, read = unpack([bytes(f) for f in frames])
    assert received == header
    for a, b in zip(arrays, read, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [bytes(f) for f in pack(received, *read)] == [bytes(f) for f in frames]


def test_arrays_are_not_copied():
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    frames = pack(Request(1, "m", 1, "blur", "float32", (2, 3)), features)
    assert np.shares_memory(np.frombuffer(frames[1], dtype=np.float32), features)
    assert np.shares_memory(unpack(frames)[1][0], features)


def test_arrays_in_another_order_are_sent_in_c_order():
    features = np.arange(6, dtype=np.float32).reshape(3, 2).T
    _, (read,) = unpack(pack(Request(1, "m", 1, "blur", "float32", (2, 3)), features))
    np.testing.assert_array_equal(read, features)


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_damaged_messages_raise_offload_errors_only(message, data):
    frames = [bytearray(f) for f in pack(message[0], *message[1])]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        how = data.draw(st.sampled_from(["flip", "cut", "grow", "drop", "double"]))
        if how == "flip" and frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del frame[data.draw(st.integers(0, len(frame))) :]
        elif how == "grow":
            frame += data.draw(st.binary(max_size=9))
        elif how == "drop" and len(frames) > 1:
            frames.remove(frame)
        elif how == "double":
            frames.append(bytearray(frame))
    check_good_or_refused([bytes(f) for f in frames])


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_random_frames_raise_offload_errors_only(frames):
    check_good_or_refused(frames)


def check_good_or_refused(frames):
    readable_id(frames)
    refusal = ""
    try:
        header, arrays = unpack(frames)
        pack(header, *arrays)
    except OffloadError as error:
        refusal = str(error)
    assert refusal == one_line(refusal)


def test_the_good_messages_of_the_tests_below_pass():
    unpack(request_frames())
    unpack(reply_frames())


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no parts"),
        ([b""], "got 0"),
        ([b"\x80" * (protocol.MAX_HEADER_BYTES + 1)], "65,537"),
        ([b"\x91" * 60_000], "not a header"),
        ([b"\x82\xa1x" + b"\x91" * 60_000], "recursion"),
        ([b"\xdd\xff\xff\xff\xff"], "not a header"),
        (request_frames(version=1), "version 1"),
        ([msgspec.msgpack.encode({"kind": "hello"})], "version 0"),
        (request_frames(kind="pickle"), "pickle"),
        (request_frames(extra=1), "extra"),
        (request_frames(id=-1), "id"),
        (request_frames(id=2**63), "id"),
        (request_frames(id="7"), "id"),
        (request_frames(stage=-1), "stage"),
        (request_frames(expert="x" * 257), "expert"),
        (request_frames(dtype="object"), "object"),
        (request_frames(dtype="float64"), "float64"),
        (request_frames(shape=()), "shape"),
        (request_frames(shape=(6,)), "shape"),
        (request_frames(shape=(0, 6)), "shape"),
        (request_frames(shape=(-2, -3)), "shape"),
        (request_frames(shape=(1,) * 9), "shape"),
        (request_frames(shape=(2.0, 3)), "shape"),
        (request_frames(shape=(2**26,) * 8), "too large"),
        (request_frames(shape=(2**16 + 1, 1)), "too large"),
        (request_frames(shape=(2, 2)), "16 bytes, got 24"),
        (request_frames(shape=(2, 4)), "32 bytes, got 24"),
        (request_frames(dtype="float16"), "12 bytes, got 24"),
        (request_frames()[:1], "2 parts, got 1"),
        ([*request_frames(), b""], "2 parts, got 3"),
        (reply_frames()[:2], "3 parts, got 2"),
        (reply_frames(prediction=bytes(8)), "4 bytes, got 8"),
        (reply_frames(frames=2**16 + 1), "frames"),
        (reply_frames(compute_ms=-1.0), "compute_ms"),
        (reply_frames(compute_ms=math.nan), "compute_ms"),
        (reply_frames(error="no"), "1 frames, '' and 'no'"),
        (reply_frames(refusal="busy"), "1 frames, 'busy'"),
        (reply_frames(b"", b"", frames=0, refusal="busy"), "0 frames, 'busy' and ''"),
        (reply_frames(b"", b"", frames=0, refusal="bored", error="no"), "bored"),
        (request_frames(deadline_ms=-1.0), "deadline_ms"),
        ([msgspec.msgpack.encode({"kind": "pong", "version": protocol.VERSION, "id": 1, "busy_ms": -1.0})], "busy_ms"),
        (reply_frames(b"", b"", frames=0), "0 frames"),
    ],
)
def test_bad_messages_are_refused(frames, says):
    with pytest.raises(OffloadError, match=r"^[^\n]*$") as caught:
        unpack(frames)
    assert says in str(caught.value)


def test_pack_refuses_what_the_header_does_not_say():
    header = Request(1, "m", 1, "blur", "float32", (2, 3))
    with pytest.raises(OffloadError, match="takes 1 arrays, got 0"):
        pack(header)
    with pytest.raises(OffloadError, match="announces float32"):
        pack(header, np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(OffloadError, match="announces float32"):
        pack(header, np.zeros((2, 3), dtype=np.int32))
    with pytest.raises(OffloadError, match="too large"):
        pack(Request(1, "m", 1, "blur", "float32", (1, 2**25)), np.zeros((0, 1), dtype=np.float32))


def test_the_id_of_a_bad_message_is_read_where_it_can_be():
    assert readable_id(request_frames(dtype="object")) == 7
    assert readable_id(request_frames(version=99)) == 7
    assert readable_id(request_frames(id=-1)) is None
    assert readable_id([b"\x91" * 60_000]) is None
    assert readable_id([b"hello"]) is None
    assert readable_id([]) is None


def test_one_line():
    assert one_line("a\n\tb\x1b[31m\x00c") == "a b [31m c"
    assert one_line("x" * 400) == "x" * 299 + "…"


# ---- sums of a fleet


def sums_header(**changes):
    fields = {"id": 1, "model": "m", "policy": "stop-curve", "edge": "e", "exits": 3, "bins": 50, "coarse": 25}
    return SumsHeader(**fields | changes)


def test_sums_of_a_policy_round_trip_within_kilobytes():
    values = np.arange(1703, dtype=np.float32)
    message = pack(sums_header(), values)
    assert sum(memoryview(frame).nbytes for frame in message) < 8192
    header, (array,) = unpack([bytes(frame) for frame in message])
    assert header == sums_header()
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("changes", [{"exits": 1000}, {"bins": 7, "coarse": 2}, {"bins": 1000, "coarse": 1000}])
def test_sums_that_are_too_many_or_of_no_whole_bins_are_refused(changes):
    with pytest.raises(OffloadError, match="cannot be shared"):
        pack(sums_header(**changes), np.zeros(1, dtype=np.float32))
