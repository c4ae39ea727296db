"""The decoder: what an image viewer would show, sizes checked before decoding, and nothing unpickled or run."""

import io
import os
import pickle
import struct
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps, features

from eex.models.architecture import Preprocessing
from eex.policies.core.errors import ImageError
from eex.stream.frames import decoding
from eex.stream.frames.decoding import MAX_PIXELS, ORIENTATION, decode, decode_file, resized


def picture(seed=0, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file(array=None, format="PNG", mode="", **options):
    """The bytes of an image file."""
    image = Pillow.fromarray(picture() if array is None else array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def three(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_upright(format, orientation):
    exif = Pillow.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = file(picture(height=16, width=24), format, exif=exif, **options)
    shown = np.array(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))))
    assert shown.shape[:2] == ((24, 16) if orientation > 4 else (16, 24))
    np.testing.assert_array_equal(decode(data), shown)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_is_turned_once():
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    data = file(picture(height=16, width=24), "AVIF", exif=exif)
    assert decode(data).shape == (24, 16, 3)


@pytest.mark.parametrize("value", [0, 9, 77, -1])
def test_an_orientation_that_means_nothing_is_upright(value):
    exif = Pillow.Exif()
    exif[ORIENTATION] = value & 0xFFFF
    np.testing.assert_array_equal(decode(file(exif=exif)), picture())


def test_damaged_exif_costs_no_image():
    np.testing.assert_array_equal(decode(file(exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff")), picture())


# --- transparency, depth, colour ---


def test_transparent_parts_lie_on_white():
    shape = np.zeros((8, 8), dtype=np.uint8)
    shape[2:5, 3:6] = 255
    icon = np.dstack([np.zeros((8, 8, 3), dtype=np.uint8), shape])  # black on nothing
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        np.testing.assert_array_equal(decode(file(icon, format, **options)), three(255 - shape))
    np.testing.assert_array_equal(decode(file(np.dstack([np.zeros_like(shape), shape]))), three(255 - shape))  # LA
    half = np.dstack([np.zeros((8, 8, 3), dtype=np.uint8), np.full((8, 8), 128, dtype=np.uint8)])
    np.testing.assert_allclose(decode(file(half)), 127, atol=1)


def test_transparent_palettes_and_keys_lie_on_white():
    flat = np.full((4, 4, 3), [10, 200, 30], dtype=np.uint8)
    flat[:2] = 250, 0, 0
    palette = Pillow.fromarray(flat).quantize(2)
    index = palette.getpixel((0, 0))
    for format in ("PNG", "GIF"):
        buffer = io.BytesIO()
        palette.save(buffer, format, transparency=index)
        np.testing.assert_array_equal(decode(buffer.getvalue()), np.where(flat == flat[0, 0], 255, flat))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0, 0]))  # Pillow would warn
    np.testing.assert_array_equal(decode(buffer.getvalue()), 255)
    np.testing.assert_array_equal(decode(file(flat, transparency=(250, 0, 0)))[:2], 255)
    np.testing.assert_array_equal(decode(file(flat[:, :, 0], transparency=250))[:2], 255)
    deep = np.array([[0, 1000], [30000, 65535]], dtype=np.uint16)
    assert decode(file(deep, transparency=30000))[:, :, 0].tolist() == [[0, 3], [255, 255]]


def test_opaque_images_keep_their_pixels():
    grey = picture()[:, :, 0]
    np.testing.assert_array_equal(decode(file(grey)), three(grey))
    np.testing.assert_array_equal(decode(file(np.dstack([picture(), np.full((8, 8), 255, np.uint8)]))), picture())
    flat = np.full((4, 4, 3), [10, 200, 30], dtype=np.uint8)
    shown = np.array(Pillow.fromarray(flat).convert("P").convert("RGB"))
    np.testing.assert_array_equal(decode(file(flat, mode="P")), shown)
    assert set(np.unique(decode(file(grey > 128)))) == {0, 255}
    assert decode(file()).flags.writeable  # torch.from_numpy warns otherwise


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(format):
    grey = picture()[:, :, 0]  # clipped, nearly all would be white
    np.testing.assert_array_equal(decode(file(grey.astype(np.uint16) * 257, format)), three(grey))


def test_floats_are_scaled():
    grey = picture()[:, :, 0]
    np.testing.assert_array_equal(decode(file(np.float32(grey / 255), "TIFF")), three(grey))
    with pytest.raises(ImageError, match=r"values must lie in \[0, 1\]"):
        decode(file(np.float32(grey), "TIFF"))


def test_jpeg():
    flat = np.full((16, 16, 3), 90, dtype=np.uint8)
    np.testing.assert_allclose(decode(file(flat, "JPEG", quality=95)), 90, atol=2)
    np.testing.assert_allclose(decode(file(flat, "JPEG", mode="CMYK")), 90, atol=4)


LOSSLESS = [("BMP", {}), ("DIB", {}), ("TIFF", {}), ("TGA", {}), ("PPM", {}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("format", "options"), [*LOSSLESS, ("JPEG2000", {"irreversible": False})])
def test_formats(format, options):
    np.testing.assert_array_equal(decode(file(picture(), format, **options)), picture())


def test_strips_make_the_whole(monkeypatch):
    images = [file(mode=mode) for mode in ("RGB", "RGBA", "P", "L", "I;16", "1")]
    at_once = [decode(data) for data in images]
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 20)  # two rows and a half
    for data, whole in zip(images, at_once, strict=True):
        np.testing.assert_array_equal(decode(data), whole)


def test_the_first_of_several_images_is_taken():
    parts = [Pillow.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8)) for shade in (0, 255)]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        parts[0].save(buffer, format, save_all=True, append_images=parts[1:])
        np.testing.assert_allclose(decode(buffer.getvalue()), 0, atol=2)


# --- sizes ---


def huge_png(width, height):
    """A PNG that announces a size and holds a row of it, or the start of a long one."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    row = b"\0" * min(3 * width + 1, 1 << 20)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(9000, 8000), (40_000, 40_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_large_images_are_refused_before_they_are_decoded(width, height):
    data = huge_png(width, height)
    del width, height
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=f"is too large: .*at most {MAX_PIXELS:,} pixels"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < len(data) + (8 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "TIFF", "WEBP", "JPEG2000", "PPM", "TGA"])
def test_every_format_is_measured(format):
    data = file(picture(height=40, width=50), format)
    assert decode(data, pixels=2000).shape == (40, 50, 3)
    with pytest.raises(ImageError, match=r"is too large: 50x40, at most 1,999 pixels are decoded"):
        decode(data, pixels=1999)


def test_arrays_are_measured_by_their_header():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)})
    with pytest.raises(ImageError, match="is too large: 1000000x1000000"):
        decode(header.getvalue(), "x.npy")


def test_large_files_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(file())
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 20)
    with pytest.raises(ImageError, match="at most 20"):
        decode_file(tmp_path / "x.png")


# --- damage ---


@pytest.mark.parametrize("cut", [0, 0.001, 0.01, 0.1, 0.5, 0.9])
def test_truncated_png(cut):
    data = file(picture(height=64, width=64))
    with pytest.raises(ImageError, match=r"not a readable image: \w"):
        decode(data[: int(len(data) * cut)])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA"])
def test_any_damage_is_an_image_error(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    whole = file(picture(height=16, width=16), format)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        data = data[: rng.integers(1, len(data) + 1)]
        try:
            assert decode(bytes(data)).dtype == np.uint8
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_postscript_never_reaches_ghostscript(monkeypatch):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("ran a program"))
    with pytest.raises(ImageError, match="not a readable image"):
        decode(eps, "x.jpg")


def test_what_pillow_warns_of_stays_quiet():
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    damaged = bytearray(file(picture(height=8, width=16), "JPEG", exif=exif))
    at = damaged.index(b"MM\x00*")
    damaged[at + 8 : at + 10] = b"\x00\xff"  # more entries than there are
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        decode(bytes(damaged))
        threads = [threading.Thread(target=decode, args=(bytes(damaged),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not warned


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "missing.png"):
        with pytest.raises(ImageError, match="cannot be read: not a file"):
            decode_file(tmp_path / name)


def test_resized_keeps_the_middle():
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, 10:20] = 255
    assert (resized(image, 10, 10) == 255).all()


# --- arrays ---


def array_file(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_arrays():
    np.testing.assert_array_equal(decode(array_file(picture()), "x.npy"), picture())
    floats = picture() / 255
    for array in (floats, floats.astype(np.float32), floats.transpose(2, 0, 1), floats.astype(">f8")):
        image = decode(array_file(array), "x.npy")
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, floats, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.where(picture() == picture()[0, 0, 0], np.nan, 0.5), "NaN or infinite"),
        (np.full((8, 8, 3), np.inf), "192 values are NaN or infinite"),
        (np.full((8, 8, 3), 1e300), "values must lie in"),
        (np.full((8, 8, 3), -0.1), "values must lie in"),
        (np.full((8, 8, 3), 2.0), r"values must lie in \[0, 1\], got 0…2"),
        (np.zeros((8, 8)), r"expected an array of shape \(H, W, 3\), got \(8, 8\)"),
        (np.zeros((2, 8, 8, 3)), "expected an array of shape"),
        (np.zeros((0, 8, 3)), "expected an array of shape"),
        (np.float64(0), "expected an array of shape"),
        (np.zeros((8, 8, 3), dtype=np.int64), "uint8 or floats, got int64"),
        (np.zeros((8, 8, 3), dtype=complex), "uint8 or floats"),
        (np.full((8, 8, 3), "a"), "uint8 or floats"),
    ],
)
def test_bad_arrays(array, reason):
    with pytest.raises(ImageError, match=reason):
        decode(array_file(array), "x.npy")


class Bomb:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_object_arrays_are_never_unpickled(tmp_path):
    mark = tmp_path / "mark"
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros((8, 8, 3)))
    objects = array_file(np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    for data in (objects, pickle.dumps(Bomb(mark)), archive.getvalue()):
        with pytest.raises(ImageError):
            decode(data, "x.npy")
    assert not mark.exists()


def test_damaged_arrays():
    whole = array_file(picture() / 255)
    for at in range(0, len(whole), 7):
        with pytest.raises(ImageError):
            decode(whole[:at], "x.npy")
    with pytest.raises(ImageError):
        decode(whole.replace(b"(8, 8, 3)", b"(8" + b"0" * 3 + b",8,3)")[:-1], "x.npy")


# --- files that end early ---


def photograph(height=96, width=120):
    """Something smooth, neither grey nor black."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([40 + rows, 30 + columns, 200 - rows], axis=2).astype(np.uint8)


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("PNG", {})])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_slightly_truncated_file_is_read_as_far_as_it_goes(format, options, mode):
    data = file(photograph(), format, mode, **options)
    whole, cut = decode(data), data[: int(0.8 * len(data))]
    with pytest.raises(ImageError, match="not a readable image"):
        decode(cut)
    image = decode(cut, truncated="read")
    assert image.shape == whole.shape
    np.testing.assert_array_equal(image[:48], whole[:48])
    np.testing.assert_array_equal(image[-1], decoding.LACKING)
    np.testing.assert_array_equal(decode(data, truncated="read"), whole)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_a_truncated_png_of_any_kind_is_read(mode):
    data = file(photograph(), mode=mode)
    image = decode(data[:-30], truncated="read")
    np.testing.assert_array_equal(image[:48], decode(data)[:48])


def test_a_truncated_file_is_turned_upright():
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    data = file(photograph(), "JPEG", quality=95, exif=exif)
    image = decode(data[: int(0.8 * len(data))], truncated="read")
    assert image.shape == (120, 96, 3)
    np.testing.assert_array_equal(image[:, 48:], decode(data)[:, 48:])
    np.testing.assert_array_equal(image[:, 0], decoding.LACKING)


def test_a_truncated_progressive_jpeg_becomes_less_sharp():
    data = file(photograph(), "JPEG", quality=95, progressive=True)
    image = decode(data[: int(0.9 * len(data))], truncated="read")
    assert np.abs(image.astype(int) - photograph()).mean() < 8


@pytest.mark.parametrize(("format", "options"), [("JPEG", {}), ("PNG", {})])
def test_a_file_of_which_little_is_left_is_refused_with_the_reason(format, options):
    rng = np.random.default_rng(0)
    data = file(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), format, **options)
    at = data.index(b"\xff\xda") if format == "JPEG" else 60
    with pytest.raises(ImageError, match=r"^is truncated: \d+ % of its rows are there, at least 50 % are needed$"):
        decode(data[: at + (len(data) - at) // 4], truncated="read")
    for end in (0, 1, 5, 20):
        with pytest.raises(ImageError, match="not a readable image"):
            decode(data[:end], truncated="read")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_damage_is_no_end(format):
    whole = file(photograph(), format)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        data[rng.integers(8, len(data))] ^= 255
        data = data[: rng.integers(1, len(data) + 1)]
        try:
            assert decode(bytes(data), truncated="read").dtype == np.uint8
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017


# --- scaled while they are decoded, and afterwards ---


@pytest.mark.parametrize(
    ("size", "least", "shape"), [(800, 100, (100, 150, 3)), (800, 101, (200, 300, 3)), (90, 64, 0)]
)
def test_a_large_jpeg_is_decoded_small(size, least, shape):
    data = file(np.repeat(np.repeat(picture(), size // 8 + 1, 0), size // 5, 1)[:size, : size * 3 // 2], "JPEG")
    small = decode(data, least=least)
    assert small.shape == (shape or (90, 135, 3))
    assert decode(data).shape == (size, size * 3 // 2, 3)
    near = resized(decode(data), *small.shape[:2])
    assert np.abs(small.astype(int) - near).mean() < 4


def test_only_the_middle_is_kept():
    image = np.zeros((80, 120, 3), dtype=np.uint8)
    image[5:75, 25:95] = 255  # 7/8 of the shorter side
    assert not (resized(image, 56, 56) == 255).all()
    for interpolation in ("bilinear", "bicubic"):
        kept = resized(image, 56, 56, Preprocessing(0.875, interpolation))
        assert (kept[2:-2, 2:-2] == 255).all()
        assert kept[0].mean() > 200


def test_interpolation_is_that_of_pillow():
    image = photograph()
    for name, method in (("bilinear", Pillow.Resampling.BILINEAR), ("bicubic", Pillow.Resampling.BICUBIC)):
        expected = Pillow.fromarray(image).resize((40, 32), method)
        np.testing.assert_array_equal(resized(image, 32, 40, Preprocessing(1.0, name)), expected)
