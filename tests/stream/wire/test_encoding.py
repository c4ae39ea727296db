"""What is sent: encodings and their inverses, what they lose, and messages that lie about it."""

import contextlib
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.policies.core.errors import EexError, OffloadError
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.encoding import ENCODINGS, Encoding, as_input, decode, encode, layout, parse_encoding, pixels
from eex.stream.wire.protocol import Request, Welcome, features_of, pack, unpack
from eex.stream.worker.serve import serve

RNG = np.random.default_rng(0)
FEATURES = np.maximum(RNG.normal(size=(5, 8, 4, 4)), 0).astype(np.float32)  # half of them 0, as after a ReLU
IMAGES = RNG.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)


def there_and_back(values, encoding):
    sent = encode(values, encoding)
    packed = sent.arrays[0].nbytes if encoding.codec == "zstd" else 0
    expected = layout(sent.dtype, sent.shape, sent.codec, packed)
    assert [(a.dtype, a.shape) for a in sent.arrays] == expected
    assert sent.nbytes == sum(a.nbytes for a in sent.arrays)
    assert len(sent) == len(values)
    wire = [a.tobytes() for a in sent.arrays]
    arrays = tuple(np.frombuffer(w, dtype=d).reshape(s) for w, (d, s) in zip(wire, expected, strict=True))
    return decode(sent.dtype, sent.shape, sent.codec, arrays)


def test_names():
    assert [str(e) for e in ENCODINGS] == [
        *("fp32", "fp32+zstd", "fp16", "fp16+zstd", "int8", "int8+zstd", "input", "input+zstd")
    ]
    assert all(parse_encoding(str(e)) == e for e in ENCODINGS)
    with pytest.raises(EexError, match="no encoding 'int4', expected auto, fp32, fp16, int8, input, or one of them"):
        parse_encoding("int4")


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_each_encoding_loses(codec):
    np.testing.assert_array_equal(there_and_back(FEATURES, Encoding("fp32", codec)), FEATURES)
    half = there_and_back(FEATURES, Encoding("fp16", codec))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, FEATURES.astype(np.float16))
    steps = FEATURES.max(axis=(1, 2, 3), keepdims=True) / 255
    error = np.abs(there_and_back(FEATURES, Encoding("int8", codec)) - FEATURES)
    assert (error <= 0.501 * steps).all()
    assert (error[FEATURES == 0] == 0).all()
    seen = there_and_back(IMAGES, Encoding("input", codec))
    np.testing.assert_array_equal(seen, IMAGES.astype(np.float32) / np.float32(255))
    ids = as_input(RNG.integers(0, 1 << 20, (5, 8)))
    np.testing.assert_array_equal(there_and_back(ids, Encoding("input", codec)), ids)  # of a text
    assert seen.dtype == np.float32


def test_features_that_are_halves_stay_halves():
    half = FEATURES.astype(np.float16)
    assert encode(half, Encoding("fp16")).arrays[0] is half
    np.testing.assert_array_equal(there_and_back(half, Encoding("fp32")), half.astype(np.float32))
    assert there_and_back(half, Encoding("int8")).dtype == np.float32


def test_features_are_not_copied_if_they_need_not_be():
    assert encode(FEATURES).arrays[0] is FEATURES
    strided = FEATURES.transpose(0, 2, 3, 1)
    assert encode(strided).arrays[0].flags.c_contiguous
    np.testing.assert_array_equal(encode(strided).arrays[0], strided)


def test_sizes():
    numbers = FEATURES.size
    sizes = {str(e): encode(FEATURES, e).nbytes for e in ENCODINGS if e.kind != "input"}
    assert (sizes["fp32"], sizes["fp16"], sizes["int8"]) == (4 * numbers, 2 * numbers, numbers + 5 * 8)
    assert all(sizes[f"{kind}+zstd"] < sizes[kind] for kind in ("fp32", "fp16", "int8"))
    assert encode(IMAGES, Encoding("input")).nbytes == IMAGES.size


def test_8_bit_frames_lose_nothing_as_input():
    np.testing.assert_array_equal(pixels(IMAGES.astype(np.float32) / 255), IMAGES)
    np.testing.assert_array_equal(pixels(np.array([-0.5, 0.4999 / 255, 0.5001 / 255, 2.0])), [0, 0, 1, 255])


@pytest.mark.parametrize(
    ("values", "encoding"),
    [(IMAGES, "fp32"), (FEATURES, "input"), (FEATURES[:0], "int8"), (FEATURES[0, 0, 0], "fp32")],
)
def test_what_does_not_belong_together(values, encoding):
    with pytest.raises(ValueError, match=r"expected features|does not send"):
        encode(values, parse_encoding(encoding))


@given(st.integers(0, 2**32 - 1), st.sampled_from([e for e in ENCODINGS if e.kind != "input"]))
@settings(max_examples=100)
def test_any_numbers_go_there_and_back(seed, encoding):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 5, rng.integers(2, 5)))
    x = (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)
    back = there_and_back(x, encoding)
    ends = np.abs(x).max()
    span = x.max() - x.min()
    allowed = {"fp32": 0.0, "fp16": 1e-3 * ends + 1e-7, "int8": span / 500 + 1e-5 * ends}[encoding.kind]
    assert (np.abs(back.astype(np.float64) - x) <= allowed).all()


# ---- messages that lie


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_compressed_values_must_be_what_was_announced():
    sent = encode(FEATURES, Encoding("fp32", "zstd"))
    for shape in [(5, 8, 4, 5), (5, 8, 4, 3), (5, 1, 1, 1)]:
        with pytest.raises(OffloadError, match="compressed values cannot be read"):
            decode("float32", shape, "zstd", sent.arrays)
    for broken in (sent.arrays[0][:-3], sent.arrays[0][3:], RNG.integers(0, 256, 999, dtype=np.uint8)):
        with pytest.raises(OffloadError, match="compressed values cannot be read"):
            decode("float32", FEATURES.shape, "zstd", (broken,))


def test_a_bomb_takes_no_more_memory_than_was_announced():
    bomb = np.frombuffer(pa.Codec("zstd").compress(bytes(1 << 28)), dtype=np.uint8)
    assert bomb.nbytes < 1 << 16
    before = resident()
    tracemalloc.start()
    with pytest.raises(OffloadError):
        decode("float32", (1, 1024), "zstd", (bomb,))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert resident() - before < 4 << 20


def test_a_frame_that_asks_for_a_large_window_takes_no_memory():
    huge = bytes.fromhex("28b52ffd0090") + bytes.fromhex(
        "010000"
    )  # no content size, a window of 256 MB, one empty block
    before = resident()
    with pytest.raises(OffloadError, match="compressed values cannot be read"):
        decode("float32", (1, 1024), "zstd", (np.frombuffer(huge, dtype=np.uint8),))
    assert resident() - before < 4 << 20


def test_compressed_values_are_plain_zstandard():
    sent = encode(FEATURES, Encoding("fp32", "zstd"))
    there = pa.Codec("zstd").decompress(sent.arrays[0], decompressed_size=FEATURES.nbytes)
    assert bytes(there) == FEATURES.tobytes()
    back = np.frombuffer(pa.Codec("zstd").compress(FEATURES.tobytes()), dtype=np.uint8)
    np.testing.assert_array_equal(decode("float32", FEATURES.shape, "zstd", (back,)), FEATURES)


def test_codec_and_size_belong_together():
    with pytest.raises(OffloadError, match="codec none cannot have 7"):
        layout("float32", (1, 2), "none", 7)
    with pytest.raises(OffloadError, match="codec zstd cannot have 0"):
        layout("int8", (1, 2), "zstd", 0)
    with pytest.raises(OffloadError, match="1,033 compressed bytes for values of 8"):
        layout("float32", (1, 2), "zstd", 1033)
    noise = np.random.default_rng(0).integers(0, 256, (4, 100_000), dtype=np.uint8)  # which does not compress
    packed = encode(noise, Encoding("input", "zstd")).arrays[0].nbytes
    assert layout("uint8", noise.shape, "zstd", packed)[0][1] == (packed,)


def test_scales_of_a_peer_may_be_anything():
    values = np.zeros((2, 3), dtype=np.int8)
    scales = np.array([[np.nan, np.inf], [3e38, 3e38]], dtype=np.float32)
    assert not np.isfinite(decode("int8", (2, 3), "none", (values, scales))[0]).any()


def test_features_that_are_not_numbers_stay_that():
    x = np.array([[1.0, np.nan], [np.inf, 0.0]], dtype=np.float32)
    assert np.isnan(there_and_back(x, Encoding("int8"))).any(axis=1).all()


# ---- in messages


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_message_carries_every_encoding(encoding):
    sent = encode(IMAGES if encoding.kind == "input" else FEATURES, encoding)
    request = Request(7, "m", 0, "pristine", sent.dtype, sent.shape, 0.0, sent.codec, sent.packed)
    header, arrays = unpack([bytes(frame) for frame in pack(request, *sent.arrays)])
    assert header == request
    np.testing.assert_array_equal(
        features_of(header, arrays), decode(sent.dtype, sent.shape, sent.codec, sent.arrays), strict=True
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"codec": "none", "packed": 9}, "codec none cannot have 9"),
        ({"codec": "zstd", "packed": 0}, "codec zstd cannot have 0"),
        ({"dtype": "object"}, "not a header"),
        ({"codec": "pickle"}, "not a header"),
        ({"packed": 1 << 40}, "not a header"),
        ({"shape": (1 << 16, 1 << 12)}, "too large for one message"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_made(changed, says):
    sent = encode(FEATURES, Encoding("int8", "zstd"))
    good = Request(7, "m", 0, "pristine", sent.dtype, sent.shape, 0.0, sent.codec, sent.packed)
    frames = pack(good, *sent.arrays)
    with pytest.raises(OffloadError, match=says):
        unpack([msgspec.msgpack.encode(msgspec.structs.replace(good, **changed)), *frames[1:]])
    with pytest.raises(OffloadError, match="3 parts, got 2"):
        unpack(frames[:2])  # without its scales
    with pytest.raises(OffloadError, match=r"float32 \(5, 2\) takes 40 bytes, got 39"):
        unpack([*frames[:2], bytes(frames[2])[:-1]])


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["float32", "float16", "int8", "uint8"]))
@settings(max_examples=300)
def test_damaged_values_are_refused_and_nothing_worse(noise, at, dtype):
    sent = encode(FEATURES[:2], Encoding("fp32", "zstd"))
    whole = sent.arrays[0].tobytes()
    broken = np.frombuffer(whole[:at] + noise + whole[at + len(noise) :], dtype=np.uint8)
    request = Request(1, "m", 0, "p", dtype, (2, 8, 4, 4), 0.0, "zstd", len(broken))
    scales = [np.zeros((2, 2), dtype=np.float32)] if dtype == "int8" else []
    with contextlib.suppress(OffloadError):
        header, arrays = unpack([bytes(frame) for frame in pack(request, broken, *scales)])
        assert features_of(header, arrays).shape == (2, 8, 4, 4)


def test_a_worker_decodes_refuses_and_goes_on():
    got = []

    def tail(stage, expert, features):
        got.append(features)
        return np.full(len(features), 0.5), np.zeros(len(features), dtype=int)

    def reply(offloader, id, stage, sent):
        end = time.monotonic() + 20
        while not offloader.submit(id, stage, "pristine", sent):
            offloader.poll(10)
            assert time.monotonic() < end
        while not (replies := offloader.poll(100)):
            assert time.monotonic() < end
        return replies[0]

    stop = threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        welcome = Welcome("m", 4, ("pristine",), ("cat", "dog"))
        thread = threading.Thread(target=serve, args=(socket, tail, stop, welcome, lambda line: None), daemon=True)
        thread.start()
        try:
            with contextlib.closing(ZmqOffloader(f"tcp://127.0.0.1:{port}", "m", 20_000)) as offloader:
                offloader.connect(20)
                for id, encoding in enumerate(ENCODINGS):
                    values = IMAGES if encoding.kind == "input" else FEATURES
                    sent = encode(values, encoding)
                    assert not reply(offloader, id, 0 if encoding.kind == "input" else 1, sent).failed
                    expected = decode(sent.dtype, sent.shape, sent.codec, sent.arrays)
                    np.testing.assert_array_equal(got.pop(), expected)
                good = encode(FEATURES, Encoding("int8", "zstd"))
                broken = replace(good, arrays=(good.arrays[0][::-1].copy(), good.arrays[1]))
                assert "compressed values cannot be read" in reply(offloader, 100, 1, broken).failed
                assert not reply(offloader, 101, 1, good).failed
        finally:
            stop.set()
            thread.join(20)
    assert len(got) == 1
