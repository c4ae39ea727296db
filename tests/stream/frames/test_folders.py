"""Folders and zips: which folder is a class, which a split, and what is said of the rest."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from eex.policies.core.errors import EexError
from eex.stream.frames.folders import arrange, split_of
from eex.stream.frames.sources import Frame, frames, open_source


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)


def labels_of(found):
    return [found.classes[i] if i >= 0 else None for i in found.labels]


# --- splits ---


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        *[(name, "train") for name in ("train", "Train", "TRAINING", "training_set", "train-images", "trainingSet")],
        *[(name, "validation") for name in ("valid", "val", "Validation", "dev", "val_data", "val2")],
        *[(name, "test") for name in ("test", "Test", "testing", "test1", "TEST_SET", "evaluation")],
        *[(name, None) for name in ("trainer", "cat", "contest", "valley", "device", "tests", "")],
    ],
)
def test_names_of_splits(folder, part):
    assert split_of(folder) == part


@pytest.mark.parametrize(
    ("train", "valid"), [("train", "valid"), ("Train", "Test"), ("training_set", "test_set"), ("a/b/train", "a/b/val")]
)
def test_usual_names_of_splits(train, valid):
    files = [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{valid}/cat/3.png", f"{valid}/dog/4.png"]
    found = arrange(files, "train")
    assert (found.names, labels_of(found)) == (tuple(files[:2]), ["cat", "dog"])
    assert found.classes == ("cat", "dog")
    assert sorted(found.parts.values()) == [2, 2]


def test_a_missing_split_names_those_that_are_there(tmp_path):
    save(tmp_path / "Train/cat/1.png")
    save(tmp_path / "valid/cat/1.png")
    with pytest.raises(EexError, match=r"in split 'test'; it has 'train' \(1 images\), 'validation' \(1 images\)"):
        open_source(str(tmp_path))


# --- classes ---


def test_the_first_folder_below_the_split_is_the_class():
    files = ["train/n01/images/a.JPEG", "train/n02/images/b.JPEG", "train/n02/boxes.txt", "val/images/c.JPEG"]
    found = arrange(files, "train")
    assert found.classes == ("n01", "n02")
    assert labels_of(found) == ["n01", "n02"]
    assert labels_of(arrange(files, "validation")) == [None]  # "images" is no class
    without_splits = arrange(["cat/x/1.png", "cat/y/2.png", "dog/3.png"], "test")
    assert labels_of(without_splits) == ["cat", "cat", "dog"]


def test_folders_that_hold_everything_are_no_classes():
    for top in ("data/", "data/v1/"):
        found = arrange([f"{top}cat/1.png", f"{top}dog/2.png", f"{top}logo.png"], "test")
        assert labels_of(found) == ["cat", "dog", None]
    assert labels_of(arrange(["cat/1.png", "cat/2.png"], "test")) == ["cat", "cat"]


@pytest.mark.parametrize("folder", ["test", "test/unknown", "test/images"])
def test_unlabelled_test_part(folder):
    files = ["train/cat/1.png", "train/dog/2.png", f"{folder}/3.png"]
    found = arrange(files, "test")
    assert (found.labels.tolist(), found.classes) == ([-1], ("cat", "dog"))


def test_a_class_of_one_split_alone_stays_one():
    found = arrange(["train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "test/emu/4.png"], "test")
    assert labels_of(found) == ["dog", "emu"]


# --- links ---


def test_links_to_folders_are_followed(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "elsewhere" / name / "1.png")
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "images" / "cat" / "again").symlink_to(tmp_path / "images")  # a circle
    source = open_source(str(tmp_path / "images"))
    assert source.classes == ("cat", "dog")
    assert "cat/1.png" in source.names
    assert all(isinstance(frame, Frame) for frame in frames(source, once=True))


# --- what is left out ---


def test_what_is_left_out_is_counted():
    found = arrange(
        ["train/cat/1.png", "train/owl/a.HEIC", "train/owl/b.heic", "train/readme.txt", "val/cat/1.png"], "all"
    )
    assert found.notes == ("3 files were not read: 2 .heic, 1 .txt", "no images in owl/: 2 .heic")
    assert found.unreadable == {"owl": "2 .heic"}
    outside = arrange(["train/cat/1.png", "test/cat/2.png", "logo.png", "extra/3.png"], "all")
    assert outside.notes == ("2 files were outside the splits test, train: extra/3.png, …",)
    assert arrange([".DS_Store", "cat/._1.png", "cat/1.png", "__MACOSX/cat/1.png"], "all").notes == ()


def test_formats_that_pillow_reads_are_images(tmp_path):
    for suffix in ("tif", "gif", "jfif", "jp2", "ppm"):
        (tmp_path / suffix).mkdir()
        form = {"jfif": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / suffix / f"a.{suffix}", form)
    source = open_source(str(tmp_path))
    assert source.classes == ("gif", "jfif", "jp2", "ppm", "tif")
    assert all(isinstance(frame, Frame) for frame in frames(source, once=True))


# --- names ---


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    save(tmp_path / name / f"{name}.png")
    save(tmp_path / "tea" / "1.png")
    source = open_source(str(tmp_path))
    assert source.classes == ("caf\\xe9", "tea")
    assert source.names[0] == "caf\\xe9/caf\\xe9.png"
    assert all(isinstance(frame, Frame) for frame in frames(source, once=True))
    for text in (*source.names, *source.classes, *source.notes):
        text.encode()


def as_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"not an image")
    return path


def test_zips_from_windows(tmp_path):
    source = open_source(str(as_zip(tmp_path / "a.zip", ["train\\cat\\1.png", "train\\dog\\2.png"])), split="train")
    assert source.classes == ("cat", "dog")


def test_zip_whose_names_are_marked_wrongly(tmp_path):
    path = as_zip(tmp_path / "a.zip", ["é/1.png"])
    broken = path.read_bytes().replace("é".encode(), b"\xff\xff")  # marked as UTF-8
    path.write_bytes(broken)
    with pytest.raises(EexError, match=r"names as UTF-8 that are not; unpack it"):
        open_source(str(path))


def test_zip_of_names_in_unmarked_utf8(tmp_path):
    path = as_zip(tmp_path / "a.zip", ["é/1.png", "a/1.png"])
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := data.find(magic, place + 1)) >= 0:
            data[place + at + 1] &= 0xF7
    path.write_bytes(data)
    assert open_source(str(path)).classes == ("a", "é")
