"""Videos as PyAV decodes them: their pictures, times, rotation and colours, and what is damaged."""

import io
import shutil
import struct
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from clips import clip, pyav, shade

from eex.policies.core.errors import EexError
from eex.stream.frames import video
from eex.stream.frames.video import Damaged, Picture, VideoError, camera, decode_video


def test_frames_come_in_order_with_their_times(tmp_path):
    pictures = list(decode_video(str(clip(tmp_path / "a.mp4"))))
    assert [p.number for p in pictures] == list(range(20))
    assert [p.seconds for p in pictures] == pytest.approx(np.arange(20) / 25)
    assert all(p.image.shape == (48, 64, 3) and p.image.dtype == np.uint8 for p in pictures)
    assert [int(p.image[-10, -10, 0]) for p in pictures] == pytest.approx([shade(k) for k in range(20)], abs=4)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".avi", "mpeg4"), (".mkv", "mpeg4"), (".ts", "mpeg2video"), (".mjpeg", "mjpeg"), (".mov", "mpeg4")],
)
def test_containers(tmp_path, suffix, codec):
    assert len(list(decode_video(str(clip(tmp_path / f"a{suffix}", codec=codec))))) == 20


def rotated(path, degrees):
    """Turn an MP4 by the matrix in its track header, as a telephone does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))], ids=["right", "over", "left"]
)
def test_a_turned_video_is_upright(tmp_path, degrees, corner):
    path = rotated(clip(tmp_path / "a.mp4", 1, grey=lambda k: 0), degrees)
    for size in (None, (24, 24), (20, 40)):
        image = next(decode_video(str(path), size=size)).image
        assert image.shape[:2] == (size or ((64, 48) if degrees != 180 else (48, 64)))
        bright = {(r, c): int(image[r, c, 0]) > 128 for r in (0, -1) for c in (0, -1)}
        if size != (20, 40) or degrees == 180:  # else the corner is cropped
            assert [where for where, is_bright in bright.items() if is_bright] == [corner]


@pytest.mark.parametrize("full", [True, False])
def test_the_range_of_colours_is_the_files(tmp_path, full):
    """The same grey, written in both ranges, comes out the same: 60 of 255."""
    av = pyav()
    luma = 60 if full else round(16 + 60 * 219 / 255)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.color_range = 2 if full else 1
        planes = np.full((72, 64), 128, dtype=np.uint8)
        planes[:48] = luma
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.color_range = 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    image = next(decode_video(str(tmp_path / "a.mkv"))).image
    assert image.reshape(-1, 3).mean(axis=0) == pytest.approx([60, 60, 60], abs=2)


def test_scaling_fits_the_shorter_side_and_crops_the_middle(tmp_path):
    path = clip(tmp_path / "a.mp4", 1, size=(64, 128), grey=lambda k: 0)  # white: rows 0…31, columns 0…63
    image = next(decode_video(str(path), size=(32, 32))).image
    assert image.shape == (32, 32, 3)
    assert image[4, 4, 0] > 200  # column 34 of the original's 128
    assert image[4, 27, 0] < 50
    assert image[27, 4, 0] < 50


@pytest.mark.parametrize(("ratio", "width"), [((2, 1), 128), ((1, 2), 32), ((50, 1), 64)])
def test_pixels_need_not_be_square(tmp_path, ratio, width):
    av = pyav()
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.codec_context.sample_aspect_ratio = Fraction(*ratio)
        grey = np.zeros((64, 64, 3), dtype=np.uint8)
        grey[:, 32:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    path = str(tmp_path / "a.mp4")
    assert next(decode_video(path)).image.shape == (64, width, 3)
    image = next(decode_video(path, size=(64, 32))).image
    assert image.shape == (64, 32, 3)
    assert (image[32, 1, 0] < 60, image[32, 30, 0] > 200) == (True, True)  # the middle lies in the middle


def test_an_open_file_is_only_read(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    pipe = io.BufferedReader(Pipe(clip(tmp_path / "a.mkv").read_bytes()))
    assert len(list(decode_video(pipe))) == 20


def damaged(path, numbers):
    """Overwrite frames of an AVI."""
    data = bytearray(path.read_bytes())
    at = data.index(b"movi") + 4
    for number in range(20):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if number in numbers:
            data[at + 8 : at + 8 + size] = bytes(size)
        at += 8 + size + size % 2
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("codec", "lost"), [("mjpeg", {9}), ("mjpeg", {3, 4, 19}), ("mpeg2video", {10})])
def test_damaged_frames_are_passed_over_and_counted(tmp_path, codec, lost):
    path = damaged(clip(tmp_path / "a.avi", codec=codec, size=(96, 128)), lost)
    frames = list(decode_video(str(path)))
    assert [f.number for f in frames] == list(range(20))
    assert lost <= {f.number for f in frames if isinstance(f, Damaged)}
    good = {f.number: int(f.image[-10, -10, 0]) for f in frames if isinstance(f, Picture)}
    assert len(good) >= 14  # a group of pictures at most is lost
    assert list(good.values()) == pytest.approx([shade(k) for k in good], abs=4)


def test_videos_one_after_another_in_a_file_are_not_damaged(tmp_path):
    """Their timestamps jump back, while frames of the first are still in the decoder."""
    path = clip(tmp_path / "a.ts", codec="mpeg2video", reordered=2)
    path.write_bytes(path.read_bytes() * 3)
    frames = list(decode_video(str(path)))
    assert [type(f) for f in frames] == [Picture] * 60
    assert [int(f.image[-10, -10, 0]) for f in frames] == pytest.approx([shade(k) for k in range(20)] * 3, abs=8)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg to cut a video")
def test_frames_that_a_file_says_are_not_to_be_shown_are_not_missed(tmp_path):
    path, part = clip(tmp_path / "a.mp4", gop=20), tmp_path / "cut.mp4"
    subprocess.run(["ffmpeg", "-loglevel", "error", "-ss", "0.4", "-i", path, "-c", "copy", part], check=True)
    assert {type(f) for f in decode_video(str(part))} == {Picture}


def test_a_video_cut_short_gives_what_there_is(tmp_path):
    path = clip(tmp_path / "a.mkv", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert 5 < len([f for f in decode_video(str(path)) if isinstance(f, Picture)]) < 20


def test_a_video_of_damage_alone_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "DAMAGED_IN_A_ROW", 10)
    path = damaged(clip(tmp_path / "a.avi", codec="mjpeg"), range(1, 20))
    with pytest.raises(VideoError, match=r"^is damaged: 10 packets in a row give no picture$"):
        list(decode_video(str(path)))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nowhere.mp4", "cannot be opened: No such file or directory"),
        ("http://127.0.0.1:1/", "cannot be opened: Connection refused"),
        ("rtsp://127.0.0.1:1/", "cannot be opened: Connection refused"),
    ],
)
def test_what_cannot_be_opened(spec, reason):
    pyav()
    with pytest.raises(VideoError) as raised:
        next(decode_video(spec, patience=5))
    assert str(raised.value) == reason


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video(tmp_path, content):
    pyav()
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"^cannot be opened: "):
        next(decode_video(str(tmp_path / "a.mp4")))


def test_frames_that_are_too_large(tmp_path, monkeypatch):
    path = str(clip(tmp_path / "a.mp4"))
    monkeypatch.setattr(video, "MAX_PIXELS", 48 * 64 * 20)  # FFmpeg counts what its buffers take
    assert len(list(decode_video(path))) == 20
    monkeypatch.setattr(video, "MAX_PIXELS", 3000)
    with pytest.raises(VideoError, match=r"^is too large: 64x48, at most 3,000 pixels are decoded$"):
        next(decode_video(path))


def test_a_camera_that_is_not_there():
    pyav()
    device, options = camera(99)
    with pytest.raises(VideoError, match=r"^cannot be opened: "):
        next(decode_video(device, options))


def test_a_codec_that_nobody_knows(tmp_path):
    """As in a file whose description of the video is damaged."""
    path = clip(tmp_path / "a.mp4")
    data = path.read_bytes().replace(b"mp4v", b"zzzz")
    described = data.index(b"\x20\x11", data.index(b"esds"))  # MPEG-4 Visual, a video
    path.write_bytes(data[:described] + b"\0" + data[described + 1 :])
    with pytest.raises(VideoError, match=r"^cannot be used: FFmpeg does not know its codec$"):
        next(decode_video(str(path)))


def test_sound_alone_is_no_video(tmp_path):
    av = pyav()
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="sound only"):
        next(decode_video(str(tmp_path / "a.wav")))


def test_without_pyav(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EexError, match=r"^reading video needs PyAV: pip install 'eex\[video\]'$"):
        next(decode_video("a.mp4"))
