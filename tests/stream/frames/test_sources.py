"""Sources: what is read, what is skipped and reported, and that nothing is ever unpickled."""

import dataclasses
import itertools
import os
import pickle
import struct
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from clips import clip, pyav
from PIL import Image as Pillow

from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames import decoding, sources
from eex.stream.frames.sources import Frame, Skipped, Source, download_cifar10, frames, load_all, open_source
from eex.stream.frames.video import Damaged, Picture, VideoError


def picture(seed=0, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array=None, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Pillow.fromarray(picture() if array is None else array)
    (image if mode == image.mode else image.convert(mode)).save(path, **options)


def one_pass(source, seed=None):
    return list(itertools.islice(frames(source, seed), len(source)))


def only(path):
    """The one image of a folder."""
    source = open_source(str(path))
    assert len(source) == 1
    return source.read(0)


@pytest.fixture
def labelled(tmp_path):
    for i, name in enumerate(("cat/b.png", "cat/a.png", "dog/c.png")):
        save(tmp_path / "images" / name, picture(i))
    return tmp_path / "images"


# --- folders and zips ---


def test_folder(labelled):
    source = open_source(str(labelled))
    assert source.name == str(labelled)
    assert source.classes == ("cat", "dog")
    assert list(source.names) == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert source.labels.tolist() == [0, 0, 1]
    for i, drawn in enumerate((1, 0, 2)):
        np.testing.assert_array_equal(source.read(i), picture(drawn))
    assert source.read(0).flags.writeable  # torch.from_numpy warns otherwise


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_zip_is_as_its_folder(labelled, tmp_path):
    from_zip = open_source(str(zipped(labelled, tmp_path / "images.zip")))
    from_folder = open_source(str(labelled))
    assert from_zip.classes == from_folder.classes
    assert from_zip.names == from_folder.names
    assert from_zip.labels.tolist() == from_folder.labels.tolist()
    for i in range(3):
        np.testing.assert_array_equal(from_zip.read(i), from_folder.read(i))


def test_zip_skips_what_macos_adds(labelled, tmp_path):
    path = zipped(labelled, tmp_path / "images.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/cat/._a.png", b"x")
        archive.writestr("cat/._a.png", b"x")
    assert open_source(str(path)).classes == ("cat", "dog")
    assert len(open_source(str(path))) == 3


def test_unlabelled_folder(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", picture(i))
    source = open_source(str(tmp_path))
    assert source.classes == ()
    assert source.labels.tolist() == [-1, -1, -1]
    assert [f.label for f in one_pass(source)] == [-1, -1, -1]


@pytest.mark.parametrize("top", ["", "mydata/"])
@pytest.mark.parametrize("validation", ["validation", "val"])
def test_splits(tmp_path, top, validation):
    for name in ("train/cat/1.png", "train/dog/2.png", f"{validation}/dog/3.png", "test/dog/4.png", "test/emu/5.png"):
        save(tmp_path / (top + name))
    for split, count in (("train", 2), ("validation", 1), ("test", 2), ("all", 5)):
        source = open_source(str(tmp_path), split=split)
        assert len(source) == count
        assert source.classes == ("cat", "dog", "emu")  # numbered alike, though no split has all three
    assert open_source(str(tmp_path), split="test").labels.tolist() == [1, 2]


def test_splits_without_classes(tmp_path):
    save(tmp_path / "train/1.png")
    save(tmp_path / "test/2.png")
    source = open_source(str(tmp_path), split="all")
    assert source.classes == ()
    assert source.labels.tolist() == [-1, -1]


def test_a_stray_image_does_not_mix_the_splits(tmp_path):
    for name in ("train/cat/1.png", "test/cat/2.png", "logo.png", "extra/3.png"):
        save(tmp_path / name)
    assert list(open_source(str(tmp_path), split="test").names) == ["test/cat/2.png"]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/1.png", "bus/2.png"):
        save(tmp_path / name)
    assert open_source(str(tmp_path)).classes == ("bus", "train")


def test_missing_split_and_empty_folder(tmp_path):
    with pytest.raises(EexError, match=r"no images \(.*png.*\) in split 'test'"):
        open_source(str(tmp_path))
    save(tmp_path / "train/cat/1.png")
    with pytest.raises(EexError, match=r"no images .* in split 'test'"):
        open_source(str(tmp_path))


def test_missing_path():
    with pytest.raises(EexError, match=r"^/no/such/place: no such source; expected"):
        open_source("/no/such/place")


def test_impossible_path():
    with pytest.raises(EexError, match="cannot be read: File name too long"):
        open_source("x" * 5000)


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EexError, match="neither a folder nor a zip"):
        open_source(str(tmp_path / "notes.txt"))


# --- single images ---


def test_what_cannot_be_read_is_skipped_alone(tmp_path):
    save(tmp_path / "good.png", picture())
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    cut = tmp_path / "cut" / "x.png"
    save(cut, picture(height=40, width=40))
    cut.write_bytes(cut.read_bytes()[:-300])
    got = one_pass(open_source(str(tmp_path)))
    assert [f.name for f in got if isinstance(f, Frame)] == ["good.png"]
    assert all(f.reason for f in got if isinstance(f, Skipped))
    assert {f.name: f.reason for f in got if isinstance(f, Skipped)}["folder.jpg"] == "cannot be read: not a file"


def test_a_locked_file_is_skipped(labelled, monkeypatch):
    def read_bytes(path, real=Path.read_bytes):  # root, who runs containers, may read any file
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    got = one_pass(open_source(str(labelled)))
    assert [f for f in got if isinstance(f, Skipped)] == [Skipped("cat/b.png", "cannot be read: Permission denied")]
    assert len(got) == 3


def test_a_file_that_went_away_is_skipped(labelled):
    source = open_source(str(labelled))
    (labelled / "cat" / "a.png").unlink()
    assert [type(f) for f in one_pass(source)] == [Skipped, Frame, Frame]


def test_huge_files_are_skipped(labelled, tmp_path, monkeypatch):
    path = zipped(labelled, tmp_path / "images.zip")
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 20)
    for spec in (path, labelled):
        with pytest.raises(ImageError, match="at most 20"):
            open_source(str(spec)).read(0)


def test_damaged_zip_entries_are_skipped(labelled, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(labelled.rglob("*.png")):
            archive.write(file, file.relative_to(labelled).as_posix())
    data = bytearray(path.read_bytes())
    at = data.index(b"cat/b.png") + 40
    data[at : at + 30] = b"\xff" * 30
    at = data.index(b"dog/c.png", data.index(b"PK\x01\x02")) - 46  # its entry in the directory
    data[at + 8] |= 1  # encrypted
    head = data.index(b"dog/c.png") - 30
    data[head + 6] |= 1
    path.write_bytes(bytes(data))
    assert [type(f) for f in one_pass(open_source(str(path)))] == [Frame, Skipped, Skipped]


def test_odd_sizes(tmp_path):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture(height=11, width=23))
    save(tmp_path / "c.png", picture(height=1, width=300))
    plain = one_pass(open_source(str(tmp_path), shape=(3, 8, 8)))
    assert [type(f) for f in plain] == [Frame, Skipped, Skipped]
    assert plain[1].reason == "is 23x11, the model takes 8x8 (--resize scales images)"
    scaled = one_pass(open_source(str(tmp_path), shape=(3, 8, 8), resize=True))
    assert [f.image.shape for f in scaled] == [(8, 8, 3)] * 3
    np.testing.assert_array_equal(scaled[0].image, picture())


def test_resizing_keeps_the_middle(tmp_path):
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, 10:20] = 255
    save(tmp_path / "a.png", image)
    assert (open_source(str(tmp_path), shape=(3, 10, 10), resize=True).read(0) == 255).all()


class Bomb:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# --- passes ---


def numbered(count, bad=()):
    """A source whose image i is full of i."""

    def read(i):
        if i in bad:
            raise ImageError("torn")
        return np.full((4, 4, 3), i, dtype=np.uint8)

    return Source("numbers", ("a",), [str(i) for i in range(count)], np.zeros(count, dtype=np.int64), read)


def test_each_pass_is_another_permutation():
    stream = frames(numbered(20), seed=1)
    passes = [[int(f.name) for f in itertools.islice(stream, 20)] for _ in range(3)]
    assert all(sorted(p) == list(range(20)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert [int(f.name) for f in itertools.islice(frames(numbered(20), seed=1), 20)] == passes[0]
    assert [int(f.name) for f in itertools.islice(frames(numbered(20), seed=2), 20)] != passes[0]


def test_without_a_seed_they_come_as_they_lie():
    assert [f.name for f in itertools.islice(frames(numbered(3), seed=None), 7)] == list("0120120")


def test_a_bad_image_is_reported_once():
    told = list(itertools.islice(frames(numbered(4, bad={2}), seed=0), 4 + 3 + 3))
    assert [f.reason for f in told if isinstance(f, Skipped)] == ["torn"]
    assert sorted(f.name for f in told if isinstance(f, Frame)) == sorted("013" * 3)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_when_all_are_bad_the_stream_ends(count):
    assert [type(f) for f in frames(numbered(count, bad=set(range(count))))] == [Skipped] * count


def test_load_all(labelled):
    images, labels, skipped = load_all(open_source(str(labelled)))
    assert images.shape == (3, 3, 8, 8)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images[1], picture(0).transpose(2, 0, 1))
    assert labels.tolist() == [0, 0, 1]
    assert labels.dtype == np.int64
    assert skipped == []


def test_load_all_leaves_out_bad_images():
    images, labels, skipped = load_all(numbered(5, bad={0, 3}))
    assert images[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert labels.tolist() == [0, 0, 0]
    assert skipped == [Skipped("0", "torn"), Skipped("3", "torn")]


def test_load_all_takes_floats(tmp_path):
    np.save(tmp_path / "x.npy", picture() / 255)
    np.testing.assert_array_equal(load_all(open_source(str(tmp_path)))[0][0], picture().transpose(2, 0, 1))


def test_load_all_of_nothing_good():
    with pytest.raises(EexError, match=r"numbers: none of its 2 images can be used; the first, 0: torn"):
        load_all(numbered(2, bad={0, 1}))


def test_load_all_needs_one_size(tmp_path):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture(height=9))
    with pytest.raises(EexError, match=r"b\.png is 8x9, others are 8x8"):
        load_all(open_source(str(tmp_path)))


def test_load_all_of_a_video():
    with pytest.raises(EexError, match="cannot be loaded at once"):
        load_all(Source("film", (), stream=lambda: iter(())))


# --- CIFAR-10 ---


def python2_batch(title, labels, pixels, filenames):
    """The bytes of CIFAR-10's own files: what Python 2's cPickle wrote at protocol 2, opcode by opcode."""
    memo = itertools.count(1)

    def put():
        i = next(memo)
        return b"q" + bytes([i]) if i < 256 else b"r" + struct.pack("<I", i)

    def string(text):
        return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<I", len(text))) + text + put()

    def batches(items):  # cPickle appends a thousand at a time
        return b"".join(b"(" + b"".join(items[i : i + 1000]) + b"e" for i in range(0, len(items), 1000))

    rows, columns = pixels.shape
    out = b"\x80\x02}" + put() + b"("
    out += string(b"batch_label") + string(title)
    out += string(b"labels") + b"]" + put() + batches([b"K" + bytes([label]) for label in labels])
    out += string(b"data")
    out += b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
    out += b"K\x00\x85U\x01b\x87R" + put()
    out += b"(K\x01M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
    out += b"cnumpy\ndtype\n" + put() + b"U\x02u1K\x00K\x01\x87R" + put()
    out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(pixels.tobytes()) + b"tb"
    out += string(b"filenames") + b"]" + put() + batches([string(name) for name in filenames])
    return out + b"u."


def cifar_batch(k, count):
    rng = np.random.default_rng(k)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    names = [b"leptodactylus_pentadactylus_s_%06d.png" % i for i in range(count)]
    return rng.integers(0, 10, count).tolist(), pixels, names


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        (folder / name).write_bytes(python2_batch(b"batch %d of 6" % k, *cifar_batch(k, 1100 if k == 5 else 20)))
    return folder


def test_the_handmade_batch_is_a_true_pickle():
    labels, pixels, names = cifar_batch(0, 1100)
    with warnings.catch_warnings(action="ignore"):  # numpy has moved what the file names
        batch = pickle.loads(python2_batch(b"title", labels, pixels, names), encoding="bytes")
    assert batch[b"batch_label"] == b"title"
    assert batch[b"labels"] == labels
    assert batch[b"filenames"] == names
    np.testing.assert_array_equal(batch[b"data"], pixels)


@pytest.mark.parametrize("above", [False, True])
def test_cifar10(cifar, above):
    spec = str(cifar.parent if above else cifar)
    test = open_source(spec)
    labels, pixels, _ = cifar_batch(5, 1100)
    assert test.labels.tolist() == labels
    assert test.classes[3] == "cat"
    assert len(test.classes) == 10
    for i in (0, 999, 1000, 1099):
        np.testing.assert_array_equal(test.read(i), pixels[i].reshape(3, 32, 32).transpose(1, 2, 0))
    images, _, _ = load_all(test)
    np.testing.assert_array_equal(images.reshape(-1, 3072), pixels)
    assert len(open_source(spec, split="train")) == 100
    assert len(open_source(spec, split="all")) == 1200
    assert test.names[1099] == "test_batch#1099"


def test_cifar10_has_no_validation_split(cifar):
    with pytest.raises(EexError, match="no split 'validation'"):
        open_source(str(cifar), split="validation")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_written_again_by_python_3(cifar, protocol):
    labels, pixels, names = cifar_batch(5, 30)
    batch = {b"batch_label": b"t", b"labels": labels, b"data": pixels.tobytes(), b"filenames": names}
    (cifar / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    source = open_source(str(cifar))
    assert source.labels.tolist() == labels
    np.testing.assert_array_equal(source.read(7), pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_batch_is_never_executed(cifar, tmp_path):
    mark = tmp_path / "mark"
    labels, pixels, names = cifar_batch(5, 30)
    honest = python2_batch(b"title", labels, pixels, names)
    bomb = b"cos\nsystem\n(U" + bytes([len(f"touch {mark}")]) + f"touch {mark}".encode() + b"tR0"
    evil = honest[:2] + bomb + honest[2:]
    pickle.loads(bomb[:-1] + b".")  # the bomb works
    assert mark.exists()
    mark.unlink()
    (cifar / "test_batch").write_bytes(evil)
    assert open_source(str(cifar)).labels.tolist() == labels
    (cifar / "test_batch").write_bytes(pickle.dumps({"labels": Bomb(mark), "data": Bomb(mark)}, 2))
    with pytest.raises(EexError, match="not a batch of CIFAR-10"):
        open_source(str(cifar))
    assert not mark.exists()


def test_damaged_batches(cifar):
    whole = (cifar / "test_batch").read_bytes()
    torn = [b"", b"hello", whole[:100], whole[: len(whole) // 2], whole.replace(b"K\x01", b"K\x0b", 50)]
    for data in torn:
        (cifar / "test_batch").write_bytes(data)
        with pytest.raises(EexError, match="test_batch: not a batch of CIFAR-10"):
            open_source(str(cifar))
    (cifar / "test_batch").unlink()
    with pytest.raises(EexError, match="test_batch: cannot be read: No such file"):
        open_source(str(cifar))


@pytest.mark.parametrize(
    "error", [OSError("no\nroute to host"), ValueError("MD5 hash does not match"), ConnectionError("x")]
)
def test_failed_download(tmp_path, monkeypatch, error):
    def retrieve(*args, **options):
        raise error

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(EexError, match=r"^could not download https://.*: .*by hand") as caught:
        download_cifar10(tmp_path)
    assert "\n" not in str(caught.value)


def test_download(cifar, monkeypatch):
    asked = {}

    def retrieve(url, known_hash, name, path, **options):
        asked.update(url=url, known_hash=known_hash)
        return sorted(str(p) for p in Path(path).rglob("*_batch*"))

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert download_cifar10(cifar.parent) == cifar
    assert asked["known_hash"] == "md5:c58f30108f718f92721af3b95e74349a"


# --- Caltech-256 ---


@pytest.fixture
def caltech(tmp_path):
    root = tmp_path / "caltech" / "256_ObjectCategories"
    for name, count in (("001.ak47", 20), ("002.american-flag", 33), ("257.clutter", 5)):
        for i in range(count):
            save(root / name / f"{name[:3]}_{i:04}.jpg")
    (root / "002.american-flag" / "RENAME2").write_text("no image")
    return root


def test_caltech256_is_split(caltech):
    parts = {s: open_source(str(caltech.parent), split=s) for s in ("train", "validation", "test", "all")}
    assert all(p.classes == ("001.ak47", "002.american-flag") for p in parts.values())
    assert [len(p) for p in parts.values()] == [42, 6, 5, 53]
    names = [n for s in ("train", "validation", "test") for n in parts[s].names]
    assert len(set(names)) == len(names)  # disjoint
    assert set(names) == set(parts["all"].names)  # complete
    test = parts["test"]
    assert [n.split("/")[0] for n in test.names] == [test.classes[i] for i in test.labels]
    assert test.labels.tolist().count(0) == 2


def test_caltech256_is_seeded(caltech):
    one, again, other = (open_source(str(caltech.parent), split="test", seed=s) for s in (0, 0, 1))
    assert one.names == again.names
    assert one.names != other.names


def test_caltech256_named_itself(caltech):
    assert open_source(str(caltech)).names == open_source(str(caltech.parent)).names


def test_caltech256_skips_a_bad_image_alone(caltech):
    source = open_source(str(caltech), shape=(3, 8, 8))
    (caltech / source.names[0]).unlink()
    assert [type(f) for f in one_pass(source)] == [Skipped] + [Frame] * (len(source) - 1)


# --- video ---


@pytest.mark.parametrize("spec", ["camera", "camera:1", "film.mp4"])
def test_video_without_pyav(tmp_path, monkeypatch, spec):
    monkeypatch.setitem(sys.modules, "av", None)
    if spec.endswith("mp4"):
        spec = str(tmp_path / spec)
        Path(spec).write_bytes(b"")
    with pytest.raises(EexError, match=r"reading video needs PyAV: pip install 'eex\[video\]'$"):
        open_source(spec)


def test_a_video_is_played_once_and_scaled(tmp_path):
    path = str(clip(tmp_path / "film.m4v"))
    got = list(frames(open_source(path, shape=(3, 16, 16))))
    assert [f.name for f in got] == [f"{path}#{k}" for k in range(20)]
    assert {f.image.shape for f in got} == {(16, 16, 3)}


def test_what_is_no_video(tmp_path):
    pyav()
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(EexError, match=r"film\.mp4: cannot be opened: "):
        next(frames(open_source(str(tmp_path / "film.mp4"))))


def camera(monkeypatch, *lives):
    """A camera that gives two frames per life, after attempts that fail; how often it was opened."""
    opened = []
    monkeypatch.setattr(sources, "REOPEN_S", (0.0, 0.0))

    def decode(device, options):
        opened.append(device)
        life = lives[min(len(opened), len(lives)) - 1]
        if life == "gone":
            raise VideoError("cannot be opened: No such device")
        yield Picture(0, 0.0, np.full((6, 8, 3), [0, 0, 200], dtype=np.uint8))
        yield Damaged(1, "a part of it is damaged")

    monkeypatch.setattr(sources, "decode_video", decode)
    return opened


def test_a_lost_camera_is_opened_again_and_its_end_is_an_error(monkeypatch):
    pyav()
    opened = camera(monkeypatch, "there", "gone", "there", "gone")
    got = []
    with pytest.raises(EexError, match=r"^camera:1: cannot be opened: No such device$"):
        got.extend(frames(open_source("camera:1", shape=(3, 4, 4))))  # keeps what came before the error
    assert [f.name for f in got] == [f"camera:1#{k}" for k in range(4)]
    assert [type(f) for f in got] == [Frame, Skipped] * 2
    assert got[0].image.shape == (4, 4, 3)
    assert got[0].image[0, 0].tolist() == [0, 0, 200]
    assert len(opened) == 5


def test_a_camera_that_cannot_be_opened_is_not_tried_again(monkeypatch):
    pyav()
    opened = camera(monkeypatch, "gone")
    with pytest.raises(EexError, match=r"^camera:9: cannot be opened: No such device$"):
        next(frames(open_source("camera:9")))
    assert len(opened) == 1


@pytest.mark.parametrize("spec", ["camera:x", "camera:-1", "camera:1.5"])
def test_camera_needs_a_number(spec):
    with pytest.raises(EexError, match="expected 'camera' or 'camera:N'"):
        open_source(spec)


@pytest.mark.parametrize("floats", [False, True])
def test_a_network_of_one_channel_gets_grey_images(tmp_path, floats):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels[0] = pixels[0, :, :1]  # a row that is grey keeps its values
    np.save(tmp_path / "a" / "1.npy", (pixels / 255).astype(np.float32) if floats else pixels)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    image = open_source(str(tmp_path), shape=(1, 8, 8)).read(0)
    assert image.shape == (8, 8, 1)
    np.testing.assert_allclose(image[:, :, 0] * (255 if floats else 1), luma, atol=0.6)
    assert np.abs(image[0, :, 0] * (255 if floats else 1) - pixels[0, :, 0]).max() < 1e-3
    assert open_source(str(tmp_path), shape=(1, 4, 6), resize=True).read(0).shape == (4, 6, 1)
    assert load_all(open_source(str(tmp_path), shape=(1, 8, 8)))[0].shape == (1, 1, 8, 8)
    with pytest.raises(EexError, match=r"takes images of 2 channels, \(2, 8, 8\)"):
        open_source(str(tmp_path), shape=(2, 8, 8))


# --- of the size that a network takes ---


def test_all_ways_of_images_to_a_network_give_the_same_pixels(tmp_path):
    from eex.models.architecture import Preprocessing
    from eex.stream.live.images import as_taken

    rows, columns = np.mgrid[:900, :600] % 256
    large = np.stack([rows, columns, 255 - rows], axis=2).astype(np.uint8)
    shape, bicubic = (3, 140, 140), Preprocessing(0.875, "bicubic")
    for name in ("a/large.jpg", "b/large.png", "b/sideways.jpg"):
        exif = Pillow.Exif()
        exif[decoding.ORIENTATION] = 6 if "sideways" in name else 1
        save(tmp_path / name, large, exif=exif)
    source = open_source(str(tmp_path), shape=shape, resize=True, preprocessing=bicubic)
    for i, name in enumerate(source.names):
        expected = source.read(i)
        assert expected.shape == (140, 140, 3)
        np.testing.assert_array_equal(as_taken((tmp_path / name).read_bytes(), shape, bicubic), expected)
        usual = open_source(str(tmp_path), shape=shape, resize=True).read(i)
        assert np.abs(usual.astype(int) - expected).mean() > 1


def test_images_decoded_in_threads_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "AHEAD", 3)
    for i in range(12):
        save(tmp_path / f"{i:02}.png", picture(i, 160, 150))
    (tmp_path / "05.png").write_bytes(b"no image")
    source = open_source(str(tmp_path), shape=(3, 128, 128), resize=True)
    assert source.threads == sources.THREADS
    for threads in (1, 4):
        given = one_pass(dataclasses.replace(source, threads=threads))
        assert [f.name for f in given] == list(source.names)
        assert isinstance(given[5], Skipped)
        for i, frame in enumerate(given):
            if isinstance(frame, Frame):
                np.testing.assert_array_equal(frame.image, source.read(i))
    begun = frames(dataclasses.replace(source, threads=4), once=True)
    next(begun)
    begun.close()  # waits for no image that is not under way
    assert not [t for t in threading.enumerate() if t.name.startswith("decoding")]
    assert open_source(str(tmp_path), shape=(3, 64, 64), resize=True).threads == 1  # small ones are not worth it


def test_truncated_files_are_read_if_that_is_wanted(tmp_path):
    save(tmp_path / "cut.jpg", np.full((64, 64, 3), 200, dtype=np.uint8))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-6])
    assert open_source(str(tmp_path), truncated="read").read(0).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="not a readable image: image file is truncated"):
        open_source(str(tmp_path)).read(0)
