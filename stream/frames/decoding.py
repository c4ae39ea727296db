"""From the bytes of a file to an image: the one decoder of everything that reads images."""

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import EexError, ImageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of damaged files is printed

Image = NDArray[np.uint8] | NDArray[np.float32]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
        *(".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".npy"),
    }
)
"""Suffixes of the files that are decoded, in lower case."""
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
"""The readers of Pillow that are used. Some of the others run programs (EPS runs Ghostscript) or read containers that
announce another size than that of the image inside (ICO)."""
MAX_FILE_BYTES = 1 << 28
MAX_PIXELS = 1 << 26
"""Pixels of the largest image that is decoded, 67 million: half a gigabyte while it is decoded."""
STRIP_PIXELS = 1 << 22
"""Pixels that are converted at once, so that a conversion takes little memory beside the image."""
ORIENTATION = 0x0112
"""EXIF's tag for how the camera was held."""
Truncated = Literal["read", "refuse"]
"""What to do with a file that ends early: read what is there, as a browser does, or refuse it."""
LEAST_READ = 0.5
"""Share of an image's rows that a truncated file must hold to be read."""
LACKING = 128
"""Grey that stands for the pixels that a truncated file lacks; libjpeg's."""
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel by the colour type of a PNG."""


def decode(
    data: bytes, name: str = "", *, pixels: int = MAX_PIXELS, least: int = 0, truncated: Truncated = "refuse"
) -> Image:
    """Decode the bytes of a file, as an image viewer would show it.

    The announced size is checked before anything is decoded. The image is turned upright by its EXIF orientation,
    transparent parts lie on white, 16 bits are scaled to 8, and grey, palettes and other colour spaces become RGB. Of
    several images in a file, the first is taken.

    Parameters
    ----------
    data
        The whole file.
    name
        Name of the file. One that ends in `.npy` holds a NumPy array; other formats are recognised by their content.
    pixels
        Maximum number of pixels.
    least
        Pixels that either side must keep: a JPEG that is at least twice as large is decoded at 1/2, 1/4 or 1/8 of its
        size, which takes a part of the time. 0 keeps the size.
    truncated
        Whether to read a JPEG or PNG file that ends early, if at least `LEAST_READ` of its rows are there. The rest of
        the image is grey; a progressive JPEG becomes less sharp instead.

    Returns
    -------
    array
        uint8 (H, W, 3), or float32 (H, W, 3) in [0, 1] from a `.npy` array of floats.

    Raises
    ------
    ImageError
        If the format is unknown, the file is damaged or too large, or a value is not finite or outside [0, 1]. The
        message gives the reason, without the name.
    """
    if name.lower().endswith(".npy"):
        return _decode_array(data, pixels)
    try:
        return _upright(*_decoded(data, pixels, least))
    except ImageError:
        if truncated == "refuse" or (completed := _completed(data, pixels)) is None:
            raise
    whole, there = completed
    shown, orientation = _decoded(whole, pixels, least)
    shown[int(there * len(shown)) :] = LACKING
    return _upright(shown, orientation)


def _decoded(data: bytes, pixels: int, least: int) -> tuple[NDArray[np.uint8], int]:
    """Pixels of an image file as they are stored, uint8 (H, W, 3), and its orientation."""
    from PIL import Image as Pillow

    Pillow.init()
    formats = [name for name in FORMATS if name in Pillow.OPEN]  # a Pillow may have been built without some
    try:
        with warnings.catch_warnings():  # of Pillow, about damage that it can live with
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Pillow.open(io.BytesIO(data), formats=formats) as image:
                check_pixels(image.width, image.height, pixels)
                if least:
                    image.draft(None, (least, least))  # of the formats' readers, only JPEG's can
                return _rgb(image), _orientation(image)
    except ImageError:
        raise
    except Pillow.DecompressionBombError:
        raise ImageError(f"is too large: at most {pixels:,} pixels are decoded") from None
    except MemoryError:
        raise ImageError("is too large: there is not enough memory to decode it") from None
    except Exception as error:  # Pillow's readers raise all kinds of exceptions on damaged files
        reason = " ".join(str(error).split("<")[0].split()).rstrip(".") or type(error).__name__
        raise ImageError(f"not a readable image: {reason}") from None


def decode_file(path: Path, *, pixels: int = MAX_PIXELS, least: int = 0, truncated: Truncated = "refuse") -> Image:
    """Decode a file by `decode`.

    Raises
    ------
    ImageError
        If it cannot be read or decoded; pipes and devices are not read.
    """
    return decode(read_bytes(path), path.name, pixels=pixels, least=least, truncated=truncated)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_FILE_BYTES`.

    Raises
    ------
    ImageError
        If it is something else, larger, or cannot be read.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            raise ImageError("cannot be read: not a file")
        check_bytes(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def check_bytes(size: int) -> None:
    """Raise `ImageError` if a file is larger than `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise ImageError(f"cannot be read: {size:,} bytes, at most {MAX_FILE_BYTES:,} are possible")


def check_pixels(width: int, height: int, pixels: int = MAX_PIXELS) -> None:
    """Raise `ImageError` if an image of this size is not to be decoded."""
    if width * height > pixels:
        raise ImageError(f"is too large: {width}x{height}, at most {pixels:,} pixels are decoded")


def check_finite(image: NDArray[Any]) -> NDArray[Any]:
    """Return the image if all its values lie in [0, 1].

    Raises
    ------
    ImageError
        If a value is not finite or outside [0, 1].
    """
    if not np.isfinite(image).all():
        raise ImageError(f"{int((~np.isfinite(image)).sum())} values are NaN or infinite")
    low, high = float(image.min(initial=0)), float(image.max(initial=0))
    if low < 0 or high > 1:
        raise ImageError(f"values must lie in [0, 1], got {low:g}…{high:g}")
    return image


def as_uint8(image: Image) -> NDArray[np.uint8]:
    """The image as uint8; floats in [0, 1] are scaled and rounded."""
    return (image if image.dtype == np.uint8 else (image * 255).round()).astype(np.uint8)


def resized(image: Image, height: int, width: int, preprocessing: Preprocessing = USUAL) -> NDArray[np.uint8]:
    """The image scaled so that the shorter side fits, and cropped at the middle: uint8 (height, width, 3)."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    method = Pillow.Resampling[preprocessing.interpolation.upper()]
    border = (1 - preprocessing.crop) / 2  # on each side
    return np.array(ImageOps.fit(Pillow.fromarray(as_uint8(image)), (width, height), method, border))


def grey(image: Image) -> Image:
    """The luma of an image by ITU-R BT.601, (H, W, 1) from (H, W, 3); what is grey keeps its values."""
    if image.dtype == np.uint8:
        from PIL import Image as Pillow

        return np.asarray(Pillow.fromarray(image).convert("L"))[:, :, None]
    return (image @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)).clip(0, 1)


def check_channels(shape: tuple[int, ...]) -> None:
    """Raise `EexError` if a network takes texts, or images (C, H, W) of another kind than RGB or grey."""
    if len(shape) != 3:
        raise EexError(
            f"the network takes texts of {shape[0]} token ids, not images; stream them from Python, as "
            "eex.experiments.text does"
        )
    if shape[0] not in (1, 3):
        raise EexError(
            f"the network takes images of {shape[0]} channels, {shape}; images have 3 channels (RGB), or 1 (grey)"
        )


def _completed(data: bytes, pixels: int) -> tuple[bytes, float] | None:
    """A truncated JPEG or PNG file with an end, and the share of its rows that are there; None for other files.

    Raises
    ------
    ImageError
        If too little of it is there.
    """
    if data.startswith(b"\xff\xd8"):
        ended = data + b"\xff\xd9"
        found: tuple[bytes, float] | None = (ended, _rows_of_jpeg(ended, pixels))
    else:
        found = _completed_png(data, pixels) if data.startswith(PNG) else None
    if found is not None and found[1] < LEAST_READ:
        raise ImageError(
            f"is truncated: {100 * found[1]:.0f} % of its rows are there, at least {100 * LEAST_READ:.0f} % are needed"
        )
    return found


def _rows_of_jpeg(data: bytes, pixels: int) -> float:
    """The share of a JPEG's rows that have any data: libjpeg makes the others grey."""
    rows, _ = _decoded(data, pixels, 1)  # at an eighth
    known = np.flatnonzero((rows != LACKING).any(axis=(1, 2)))
    return float(known[-1] + 1) / len(rows) if len(known) else 0.0


def _completed_png(data: bytes, pixels: int) -> tuple[bytes, float] | None:
    """A truncated PNG with black in place of what it lacks, and the share of its rows that are there.

    None if it is damaged otherwise, or interlaced.
    """
    at, head, first = len(PNG), b"", b""
    packed: list[bytes] = []
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) == 4 and zlib.crc32(kind + body) != struct.unpack(">I", check)[0]:
            return None
        if kind == b"IDAT":
            packed.append(body)
        elif len(check) < 4 or kind == b"IEND":
            break
        elif not packed:
            first = first or body
            head += data[at : at + 12 + length]
        at += 12 + length
    if len(first) != 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", first)
    if interlaced or colour not in PNG_CHANNELS:
        return None
    check_pixels(width, height, pixels)
    row = 1 + (width * PNG_CHANNELS[colour] * depth + 7) // 8
    try:
        rows = zlib.decompressobj().decompress(b"".join(packed), height * row) if packed else b""
    except zlib.error:
        return None
    there = len(rows) // row
    chunks = [(b"IDAT", zlib.compress(rows[: there * row].ljust(height * row, b"\0"), 1)), (b"IEND", b"")]
    tail = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return PNG + head + tail, there / height


def _rgb(image: "Pillow.Image") -> NDArray[np.uint8]:
    """Pixels of an opened image on white, uint8 (H, W, 3)."""
    image.load()  # TIFF's reader turns it now, which changes its size
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _rgb_strip(image.crop((0, top, width, bottom)))
    return pixels


def _rgb_strip(image: "Pillow.Image") -> NDArray[np.uint8]:
    from PIL import Image as Pillow

    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to 0…255, not scale them
        return _scaled(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    with_alpha = image.convert("RGBA")
    white = Pillow.new("RGB", image.size, (255, 255, 255))
    white.paste(with_alpha, mask=with_alpha)
    return np.asarray(white)


def _scaled(image: "Pillow.Image") -> NDArray[np.uint8]:
    """Grey of 16 bits, or floats in [0, 1], as uint8 (H, W, 3)."""
    values = np.asarray(image)
    if image.mode == "F":
        grey = as_uint8(check_finite(values))
    else:
        grey = (values // 256).clip(0, 255).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey = np.where(values == clear, np.uint8(255), grey)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _orientation(image: "Pillow.Image") -> int:
    """EXIF's orientation, 1…8; 1 is upright, and what an image without a readable one has.

    Ask for it after the pixels have been read: some readers turn the image themselves, and then delete the tag.
    """
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata raise all kinds of exceptions, and are no reason to do without the image
        return 1


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image, (H, W, 3), as EXIF's orientation says it is to be shown; (W, H, 3) for orientations 5 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _decode_array(data: bytes, pixels: int) -> Image:
    """A `.npy` file's array; its header is checked before its values are read."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # a damaged header raises more than is documented
        raise ImageError(f"not a readable array: {' '.join(str(error).split())}") from None
    if dtype != np.uint8 and dtype.kind != "f":
        raise ImageError(f"expected an array of uint8 or floats, got {dtype}")
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or min(shape) < 1:
        raise ImageError(f"expected an array of shape (H, W, 3), got {shape}")
    height, width = shape[:2] if shape[2] == 3 else shape[1:]
    check_pixels(width, height, pixels)
    stream.seek(0)
    try:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise ImageError(f"not a readable array: {' '.join(str(error).split())}") from None
    if array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(check_finite(array), dtype=np.float32)
