"""What sources yield: watched folders, standard input, images, ZeroMQ sockets."""

import io
import itertools
import os
import socket
import sys
import threading
import time
from itertools import islice

import msgspec
import numpy as np
import pytest
import zmq
from clips import clip, jpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from eex.policies.core.errors import EexError
from eex.stream.frames.video import VideoError
from eex.stream.live import inputs, sockets
from eex.stream.live.inputs import Broken, Shot, Taken, open_input, read_pipe, split_images, watch
from eex.stream.live.streams import SourceOptions
from eex.stream.wire import keys

pytestmark = pytest.mark.timeout(60)
OPTIONS = SourceOptions(source="-")


def png(grey=128, size=(48, 64), mode="RGB"):
    data = io.BytesIO()
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).convert(mode).save(data, "PNG")
    return data.getvalue()


def only_shots(shots, count):
    return list(islice((s for s in shots if s is not None), count))


# ---- a watched folder


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A folder, and a function that gives what one look into it yields."""
    monkeypatch.setattr(inputs, "POLL_S", 0)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(jpeg())
    looks = {}

    def look(**options):
        key = str(options)
        if key not in looks:
            looks[key] = watch(folder, threading.Event(), **options)
        seen = []
        for shot in looks[key]:
            if shot is None:
                return seen
            seen.append(shot)
        return seen

    return folder, look


def test_new_files_come_once_when_they_stand_still(watched):
    folder, look = watched
    assert look() == []
    (folder / "b.jpg").write_bytes(jpeg(50))
    os.utime(folder / "b.jpg", (5, 5))
    (folder / "a.png").write_bytes(png(60)[:100])
    assert look() == []  # they may still grow
    (folder / "a.png").write_bytes(png(60))
    os.utime(folder / "a.png", (7, 7))
    assert [(s.name, s.captured) for s in look()] == [("b.jpg", 5)]
    assert [(s.name, s.captured, s.image.shape) for s in look()] == [("a.png", 7, (48, 64, 3))]
    assert look() == []


def test_a_file_that_is_written_anew_comes_again(watched):
    folder, look = watched
    look()
    for number in (1, 2):
        (folder / "latest.part").write_bytes(jpeg(100 * number))
        os.utime(folder / "latest.part", (number, number))
        os.replace(folder / "latest.part", folder / "latest.jpg")
        assert look() == []
        assert [int(s.image[0, 0, 0]) for s in look()] == [100 * number]


def test_files_that_are_there_already_if_asked_for_oldest_first(watched):
    folder, look = watched
    os.utime(folder / "old.jpg", (9, 9))
    (folder / "older.jpg").write_bytes(jpeg())
    os.utime(folder / "older.jpg", (8, 8))
    assert look(existing=True) == []
    assert [s.name for s in look(existing=True)] == ["older.jpg", "old.jpg"]


def test_a_folder_that_comes_back_is_watched_on(watched):
    folder, look = watched
    taken = Taken()
    assert look(taken=taken) == []
    os.rename(folder, folder.with_name("away"))
    with pytest.raises(VideoError, match="cannot be watched"):
        look(taken=taken)
    os.rename(folder.with_name("away"), folder)
    (folder / "new.jpg").write_bytes(jpeg(50))
    again = watch(folder, threading.Event(), taken=taken)
    assert [shot and shot.name for shot in itertools.islice(again, 2)] == [None, "new.jpg"]


def test_a_folder_whose_disk_is_away_for_a_while_is_watched_on(watched):
    folder, look = watched
    look()
    os.rename(folder / "old.jpg", folder.with_name("old.jpg"))
    assert look() == []
    os.rename(folder.with_name("old.jpg"), folder / "old.jpg")
    (folder / "new.jpg").write_bytes(jpeg(50))
    assert look() == []
    assert [s.name for s in look()] == ["new.jpg"]


def test_what_is_no_image_in_a_folder(watched):
    folder, look = watched
    look()
    for name, data in [
        ("a.jpg", b""),
        ("b.jpg", b"no image"),
        (".c.jpg", jpeg()),
        ("d.txt", b""),
        ("e.jpg.part", jpeg()),
    ]:
        (folder / name).write_bytes(data)
    (folder / "f.jpg").mkdir()
    (folder / "h.jpg").symlink_to("h.jpg")
    (folder / "g.jpg").write_bytes(jpeg())
    look()
    seen = look()
    assert [(type(s), s.name) for s in sorted(seen, key=lambda s: s.name)] == [
        (Broken, "a.jpg"),
        (Broken, "b.jpg"),
        (Broken, "f.jpg"),
        (Shot, "g.jpg"),
        (Broken, "h.jpg"),
    ]
    (folder / "g.jpg").unlink()
    assert look() == []


def test_a_name_that_is_not_utf_8(watched):
    folder, look = watched
    look()
    for name in (b"a\xff.jpg", b"b\xff.jpg"):
        (folder / os.fsdecode(name)).write_bytes(jpeg() if name.startswith(b"a") else b"")
    look()
    assert sorted(s.name for s in look()) == ["a\ufffd.jpg", "b\ufffd.jpg"]


def test_a_folder_that_goes_may_come_back(watched):
    folder, look = watched
    (folder / "old.jpg").unlink()
    folder.rmdir()
    with pytest.raises(EexError, match="cannot be watched: No such file or directory"):
        look()
    assert open_input(SourceOptions(source=str(folder.parent))).endless


# ---- images


@pytest.mark.parametrize("name", ["anim.gif", "anim.png", "images:anim.gif", "images:clip.mp4"])
def test_images_that_move_are_videos(tmp_path, name):
    first, *others = [Image.new("RGB", (32, 32), (40 * k, 0, 0)) for k in range(4)]
    for kind in ("gif", "png"):
        first.save(tmp_path / f"anim.{kind}", save_all=True, append_images=others, duration=100)
    clip(tmp_path / "clip.mp4", frames=4)
    kind, mark, file = name.rpartition(":")
    source = SourceOptions(source=f"{kind}{mark}{tmp_path / file}")
    assert [shot.name for shot in open_input(source, (32, 32)).read(threading.Event())] == ["#0", "#1", "#2", "#3"]


def test_a_camera_gives_no_images():
    with pytest.raises(EexError, match="camera: cannot be read as images"):
        list(open_input(SourceOptions(source="images:camera")).read(threading.Event()))


def test_a_gap_in_a_file_takes_some_time(monkeypatch):
    now, stop = [100.0], threading.Event()
    for clock in ("time", "monotonic"):
        monkeypatch.setattr(inputs.time, clock, lambda: now[0])
    monkeypatch.setattr(stop, "wait", lambda seconds: now.__setitem__(0, now[0] + seconds))
    paced = inputs._Paced(stop)
    assert [paced(seconds) for seconds in (0, 5, 20, 21, 51)] == pytest.approx([100, 105, 115, 116, 126])


def test_the_sample_has_the_models_labels():
    classes = ("truck", "cat")
    shots = only_shots(open_input(SourceOptions(source="sample"), None, classes).read(threading.Event()), 300)
    assert {s.label for s in shots} == {None, 0, 1} or {s.label for s in shots} <= {None, 0, 1}
    assert all(s.label == classes.index(s.name.split("/")[-2]) for s in shots if s.label is not None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: zero bytes"),
        (b"hello", "not a readable image"),
        (jpeg()[:300], "not a readable image"),
        (b"\x93NUMPY\x01\x00", "not a readable array"),
    ],
)
def test_what_cannot_be_decoded(data, reason):
    shot = inputs._shot(data, "a")
    assert isinstance(shot, Broken)
    assert reason in shot.reason


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P", "1"])
def test_images_of_one_channel_16_bit_and_others_become_rgb(mode):
    if mode == "I;16":
        data = io.BytesIO()
        Image.fromarray(np.full((8, 8), 200 * 256, dtype=np.uint16)).save(data, "PNG")
        shot = inputs._shot(data.getvalue(), "a")
        assert shot.image[0, 0].tolist() == [200, 200, 200]
    else:
        shot = inputs._shot(png(255, mode=mode), "a")
        assert shot.image[0, 0].tolist() == [255, 255, 255]
    assert (shot.image.dtype, shot.image.shape[2]) == (np.uint8, 3)


# ---- standard input


class Dribble(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data, step):
        self.data, self.step = io.BytesIO(data), step

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.data.read(min(self.step, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_images_one_after_another(step):
    greys = [10, 200, 30, 40]
    data = b"".join((jpeg if k % 2 else png)(grey) for k, grey in enumerate(greys))
    shots = only_shots(read_pipe(io.BufferedReader(Dribble(data, step)), OPTIONS), 10)
    assert [(s.name, int(s.image[0, 0, 0])) for s in shots] == [(f"#{k}", grey) for k, grey in enumerate(greys)]


def test_a_progressive_jpeg_with_a_thumbnail_is_one_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = io.BytesIO()
    exif = b"Exif\x00\x00" + jpeg()  # a JPEG within a segment
    image.save(data, "JPEG", progressive=True, exif=exif, quality=95)
    assert list(split_images(io.BytesIO(data.getvalue() * 2).read)) == [data.getvalue()] * 2


@pytest.mark.parametrize("torn", [jpeg()[:200], jpeg()[:-2], png()[:60], png()[:-5], b"\xff\xd8\xff", b"noise" * 50])
def test_a_torn_image_takes_no_other_with_it(torn):
    data = jpeg(10) + torn + png(20) + torn + jpeg(30)
    shots = only_shots(read_pipe(io.BufferedReader(Dribble(data, 64)), OPTIONS), 10)
    good = [int(s.image[0, 0, 0]) for s in shots if isinstance(s, Shot)]
    assert {10, 20, 30} <= set(good)


@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from([jpeg(10), png(20), png(30, mode="L"), jpeg(40, (9, 9))]).map(lambda image: (True, image)),
            st.binary(max_size=40)
            .filter(lambda noise: b"\xff" not in noise and b"\x89" not in noise)
            .map(lambda noise: (False, noise)),
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(1, 900), min_size=1, max_size=8),
)
@settings(max_examples=60)
def test_whole_images_are_found_however_they_come(pieces, cuts):
    """Between noise, and in pieces of any size."""
    data = b"".join(piece for _, piece in pieces)
    chunks, at, turn = [], 0, 0
    while at < len(data):
        chunks.append(data[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1
    chunks.append(b"")
    left = iter(chunks)
    assert list(split_images(lambda _: next(left))) == [piece for whole, piece in pieces if whole]


@given(
    data=st.binary(max_size=300),
    begin=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]),
    size=st.integers(1, 1000),
)
@example(data=b"\x00abc", begin=b"\xff\xd8\xff", size=7)  # a damaged image that ends with a read
@settings(max_examples=60)
def test_no_bytes_hang_or_break_the_cutter(data, begin, size):
    source = io.BytesIO(begin + data + jpeg(7))
    pieces = list(split_images(lambda _: source.read(size)))
    assert all(pieces)
    assert sum(map(len, pieces)) <= len(begin) + len(data) + len(jpeg(7))


def test_an_image_without_end_is_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(inputs, "MAX_IMAGE_BYTES", 10_000)
    chunks = [b"\xff\xd8\xff\xdb\x00\x04ab\xff\xda\x00\x04ab", *[bytes(4000)] * 50]
    pieces = list(split_images(lambda n: chunks.pop(0) if chunks else b""))
    assert pieces
    assert max(map(len, pieces)) <= 14_100


def test_a_video_by_standard_input(tmp_path):
    data = clip(tmp_path / "a.mkv").read_bytes()
    shots = only_shots(read_pipe(io.BufferedReader(Dribble(data, 999)), OPTIONS, (16, 16)), 99)
    assert [s.image.shape for s in shots] == [(16, 16, 3)] * 20


def test_raw_frames_by_standard_input(monkeypatch):
    frames = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)
    data = frames.tobytes() + b"half"
    piped, into = os.pipe()
    with open(piped) as stdin, open(into, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        pipe.write(data[:50])
        shots_to_come = open_input(SourceOptions(source="-:6x4")).read(threading.Event())
        assert next(shots_to_come) is None
        pipe.write(data[50:])
        pipe.close()
        shots = only_shots(shots_to_come, 9)
    assert np.array_equal([s.image for s in shots[:3]], frames)
    assert shots[3:] == [Broken("#3", "is cut off: 4 of 72 bytes")]


def test_nothing_on_standard_input():
    assert only_shots(read_pipe(io.BufferedReader(io.BytesIO()), OPTIONS), 9) == []


# ---- ZeroMQ


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_frames_by_a_socket(context, tmp_path):
    spec = f"zmq+pull://{tmp_path}/s"
    shots = open_input(SourceOptions(source=spec)).read(threading.Event())
    assert next(shots) is None  # it is open
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{tmp_path}/s")
    array = io.BytesIO()
    np.save(array, np.full((8, 8, 3), 9, dtype=np.uint8))
    push.send(jpeg(10))
    push.send_multipart([msgspec.json.encode({"name": "x", "captured": 5.0, "more": 1}), array.getvalue()])
    push.send_multipart([b"{", jpeg()])
    push.send(b"")
    first, second, third, fourth = only_shots(shots, 4)
    assert (first.name, int(first.image[0, 0, 0])) == ("#0", 10)
    assert abs(first.captured - time.time()) < 20  # when it came
    assert (second.name, second.captured, int(second.image[0, 0, 0])) == ("x", 5.0, 9)
    assert third.name == "#2"
    assert third.reason.startswith("its header is not JSON with name and captured: ")
    assert fourth == Broken("#3", "is empty: zero bytes")
    shots.close()


def test_frames_of_a_publisher(context):
    pub = context.socket(zmq.PUB)
    number = pub.bind_to_random_port("tcp://127.0.0.1")
    shots = open_input(SourceOptions(source=f"zmq+sub://127.0.0.1:{number}")).read(threading.Event())
    for shot in shots:
        if shot is not None:
            break
        pub.send(jpeg(70))
    assert int(shot.image[0, 0, 0]) == 70
    shots.close()


def test_an_address_in_use_ends_that_stream_alone(context):
    other = context.socket(zmq.PULL)
    number = other.bind_to_random_port("tcp://127.0.0.1")
    shots = open_input(SourceOptions(source=f"zmq+pull://127.0.0.1:{number}")).read(threading.Event())
    with pytest.raises(EexError, match=r"cannot be bound: Address already in use$"):
        next(shots)


@pytest.mark.parametrize("known", [True, False], ids=["known", "stranger"])
def test_beyond_this_machine_only_who_is_known(context, tmp_path, known):
    here, there = tmp_path / "here", tmp_path / "there"
    own, other = keys.write_pair(here, "edge"), keys.write_pair(there, "sender")
    if known:
        (here / "sender.pub").write_bytes(other.public)
    port = free_port()
    with sockets.opened(f"zmq+pull://0.0.0.0:{port}?keys={here}", {}) as pull:
        push = context.socket(zmq.PUSH)
        push.curve_publickey, push.curve_secretkey, push.curve_serverkey = other.public, other.secret, own.public
        push.connect(f"tcp://127.0.0.1:{port}")
        push.send(b"hello")
        assert bool(pull.poll(5000 if known else 300)) == known


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("zmq+pull://*:5555", "can be reached from other machines; add \\?keys=FOLDER"),
        ("zmq+sub://10.0.0.7:5555", "can be reached from other machines"),
        ("zmq+pull://127.0.0.1", "expected zmq\\+pull://HOST:PORT"),
        ("zmq+pull://127.0.0.1:99999", "expected zmq\\+pull://HOST:PORT"),
        ("zmq+pull://:5555", "expected zmq\\+pull://HOST:PORT"),
        ("zmq+pull://127.0.0.1:5555?key=a", "unknown option 'key'; expected keys=FOLDER or plain"),
        ("zmq+req://127.0.0.1:5555", "unknown scheme 'zmq\\+req'"),
    ],
)
def test_a_wrong_address(spec, reason):
    with pytest.raises(EexError, match=reason):
        sockets.parse(spec)


def test_plain_beyond_this_machine_if_asked_for():
    assert sockets.parse("zmq+pull://*:5555?plain") == ("PULL", True, "tcp://*:5555", None)
