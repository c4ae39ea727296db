"""How offloaded frames are sent: their features in 32, 16 or 8 bits, or the image itself.

    fp32    the features as float32
    fp16    the features as float16
    int8    the features as 8-bit steps from the smallest to the largest value of each frame, with smallest value and
            step beside them
    input   the image as 8-bit pixels, for the cloud to run all stages. A frame that came in with 8 bits loses
            nothing; one that was distorted here is rounded to 256 levels. Of a text, its token ids as float32

Each may be compressed by Zstandard ("int8+zstd"). `encode` and `decode` are inverses up to what
the encoding loses. `layout` gives type and shape of the arrays that a header announces, to be checked before anything
is made of them; what is received is numbers and stays numbers.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError, OffloadError

Kind = Literal["fp32", "fp16", "int8", "input"]
DType = Literal["float32", "float16", "int8", "uint8"]
Codec = Literal["none", "zstd"]

DTYPES: dict[Kind, DType] = {"fp32": "float32", "fp16": "float16", "int8": "int8", "input": "uint8"}
STORED: dict[DType, np.dtype[Any]] = {name: np.dtype(name).newbyteorder("<") for name in DTYPES.values()}
"""Types as they are sent, little-endian."""

ZSTD_LEVEL = 1
"""Higher levels gain nothing on features (level 3: 1 % larger to 1 % smaller) and take half as long again."""

Layout = list[tuple[np.dtype[Any], tuple[int, ...]]]


@dataclass(frozen=True)
class Encoding:
    """How frames are sent; `str` is the inverse of `parse_encoding`.

    Examples
    --------
    >>> str(parse_encoding("int8+zstd"))
    'int8+zstd'
    """

    kind: Kind = "fp32"
    codec: Codec = "none"

    def __str__(self) -> str:
        return self.kind if self.codec == "none" else f"{self.kind}+{self.codec}"


ENCODINGS = tuple(Encoding(kind, codec) for kind in get_args(Kind) for codec in get_args(Codec))
"""All encodings."""


_AS_FP32, _AS_FP16 = Encoding("fp32"), Encoding("fp16")


def parse_encoding(text: str) -> Encoding:
    """An encoding from its name.

    Raises
    ------
    EexError
        If there is none of that name.
    """
    for encoding in ENCODINGS:
        if text.strip() == str(encoding):
            return encoding
    names = ", ".join(get_args(Kind))
    raise EexError(f"there is no encoding '{text}', expected auto, {names}, or one of them with +zstd")


@dataclass(frozen=True)
class Encoded:
    """Frames as they are sent.

    Attributes
    ----------
    dtype, shape
        Of the values before compression; the first axis is frames.
    codec
        How the values are compressed.
    arrays
        The values, of shape `shape`, or compressed, (bytes,) uint8; for int8 followed by smallest value and step of
        each frame, (frames, 2) float32.
    """

    dtype: DType
    shape: tuple[int, ...]
    codec: Codec
    arrays: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays)

    @property
    def packed(self) -> int:
        """Bytes of the compressed values; 0 if they are not compressed."""
        return 0 if self.codec == "none" else self.arrays[0].nbytes


def encode(features: NDArray[Any], encoding: Encoding = Encoding()) -> Encoded:
    """Encode frames; values that are in an uncompressed encoding already are not copied.

    Parameters
    ----------
    features
        (frames, ...), float32 or float16; for "input" what `as_input` makes of the frames: images (frames, C, H, W)
        uint8, or token ids (frames, T) float32.
    encoding
        How to send them.

    Raises
    ------
    ValueError
        If there is no frame, or the encoding does not send values of this type.

    Examples
    --------
    >>> features = np.array([[0.0, 51.0, 255.0], [2.0, 2.0, 2.0]], dtype=np.float32)
    >>> sent = encode(features, Encoding("int8"))
    >>> sent.arrays[0].tolist(), sent.nbytes
    ([[-128, -77, 127], [-128, -128, -128]], 22)
    >>> decode(sent.dtype, sent.shape, sent.codec, sent.arrays).tolist()
    [[0.0, 51.0, 255.0], [2.0, 2.0, 2.0]]
    """
    if features.ndim < 2 or not features.size:
        raise ValueError(f"expected features (frames, ...), got shape {features.shape}")
    ids = encoding.kind == "input" and features.ndim == 2 and features.dtype == np.float32
    if (features.dtype == np.uint8) != (encoding.kind == "input") and not ids:
        raise ValueError(f"{encoding} does not send {features.dtype}: input takes uint8 images, the others features")
    dtype: DType = "float32" if ids else DTYPES[encoding.kind]
    as_it_is = encoding.codec == "none" and encoding.kind != "int8"
    if as_it_is and features.dtype == STORED[dtype] and features.flags.c_contiguous:
        return Encoded(dtype, features.shape, "none", (features,))
    scales: tuple[NDArray[Any], ...] = ()
    if encoding.kind == "int8":
        values, scale = _quantised(features)
        scales = (scale,)
    else:
        values = features.astype(STORED[dtype], order="C", copy=False)
    if encoding.codec == "zstd":
        values = np.frombuffer(_zstd().compress(np.ascontiguousarray(values), ZSTD_LEVEL), dtype=np.uint8)
    return Encoded(dtype, features.shape, encoding.codec, (values, *scales))


def as_they_are(features: NDArray[Any]) -> Encoded:
    """Features, (frames, ...) float32 or float16, encoded in the type they have.

    Raises
    ------
    OffloadError
        If they have another type.
    """
    if features.dtype == np.float32:
        return encode(features, _AS_FP32)
    if features.dtype == np.float16:
        return encode(features, _AS_FP16)
    raise OffloadError(f"features are float32 or float16, got {features.dtype}")


def layout(dtype: DType, shape: tuple[int, ...], codec: Codec, packed: int) -> Layout:
    """Type and shape of the arrays that encoded frames consist of.

    Parameters
    ----------
    dtype, shape, codec
        As in `Encoded`.
    packed
        Bytes of the compressed values; 0 if they are not compressed.

    Raises
    ------
    OffloadError
        If compressed bytes are announced without a codec, none with one, or more than the values can take.
    """
    if (codec == "none") != (packed == 0):
        raise OffloadError(f"values with codec {codec} cannot have {packed} compressed bytes")
    size = math.prod(shape) * STORED[dtype].itemsize
    if packed > size + size // 256 + 1024:  # Zstandard's bound, and a little more
        raise OffloadError(f"{packed:,} compressed bytes for values of {size:,}")
    values: Layout = [(STORED[dtype], shape)] if codec == "none" else [(np.dtype(np.uint8), (packed,))]
    return values + ([(np.dtype("<f4"), (shape[0], 2))] if dtype == "int8" else [])


def decode(dtype: DType, shape: tuple[int, ...], codec: Codec, arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """The frames that were sent: features as float32 or float16, images as float32 in [0, 1].

    The arrays must match `layout`; uncompressed float32 and float16 values are returned as they came.

    Raises
    ------
    OffloadError
        If compressed values are damaged, or more or fewer than announced. Never more memory is taken than announced.
    """
    values = arrays[0]
    if codec == "zstd":
        kind = STORED[dtype]
        raw = _decompressed(values, math.prod(shape) * kind.itemsize)
        values = np.frombuffer(raw, dtype=kind).reshape(shape)
    if dtype == "uint8":
        return values.astype(np.float32) / np.float32(255)
    if dtype == "int8":
        low, step = (arrays[1][:, k].reshape(-1, *(1,) * (len(shape) - 1)) for k in range(2))
        with np.errstate(all="ignore"):  # a peer's numbers may be anything, NaN too
            return np.asarray((values.astype(np.float32) + np.float32(128)) * step + low, dtype=np.float32)
    return values


def _quantised(features: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Steps from -128 to 127, and each frame's smallest value and step, (frames, 2).

    There is one step per frame rather than one per channel: answers agree as often, to within one frame in 500, while
    steps per channel would take an eighth more bytes and compress less.
    """
    axes = tuple(range(1, features.ndim))
    x = features.astype(np.float32, copy=False)
    low, high = x.min(axis=axes), x.max(axis=axes)
    step = (high - low) / np.float32(255)
    ends = np.column_stack([low, step]).astype("<f4")
    shape = (-1, *(1,) * (features.ndim - 1))
    with np.errstate(invalid="ignore"):  # NaN stays without meaning, and the answer will show it
        steps = (x - low.reshape(shape)) / np.where(step > 0, step, 1).reshape(shape)
        return (np.rint(steps) - 128).astype(np.int8), ends


def _decompressed(values: NDArray[Any], size: int) -> bytes:
    """What a Zstandard frame of `size` uncompressed bytes holds.

    Raises
    ------
    OffloadError
        If it is damaged, or holds more or fewer.
    """
    zstd = _zstd()
    window = {zstd.DecompressionParameter.window_log_max: max(10, (size - 1).bit_length())}  # memory beside the result
    reader = zstd.ZstdDecompressor(options=window)
    try:
        raw: bytes = reader.decompress(np.ascontiguousarray(values), max_length=size + 1)
    except zstd.ZstdError as error:
        raise OffloadError(f"the compressed values cannot be read: {error}") from None
    if len(raw) != size or not reader.eof or reader.unused_data:
        raise OffloadError(f"the compressed values cannot be read: they are not the {size:,} bytes that were announced")
    return raw


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def as_input(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames as they are sent for the cloud to run all stages: the pixels of images (n, C, H, W), or token ids (n, T)
    as float32, which holds them exactly below 2^24."""
    return pixels(frames) if frames.ndim == 4 else frames.astype(np.float32, copy=False)


def pixels(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Images in [0, 1] as 8-bit pixels: the nearest of 256 levels."""
    return cast(NDArray[np.uint8], np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8))
