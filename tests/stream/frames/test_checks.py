"""`check_source` passes sources that keep the contract, and names the clause that a broken one breaks."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eex.policies.core.errors import ContractError, ImageError
from eex.stream import Frame, Skipped, Source, check_source, open_source


def good():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    return Source("made up", ("a", "b"), [f"{k}.png" for k in range(5)], np.array([0, 1, -1, 0, 1]), images.__getitem__)


def test_shipped_and_folder_sources_keep_the_contract(tmp_path):
    check_source(lambda: open_source("sample"))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 9)).save(tmp_path / name / "one.png")
    (tmp_path / "dog" / "broken.png").write_bytes(b"no picture")
    check_source(lambda: open_source(str(tmp_path)))
    check_source(good)


def test_a_stream_keeps_the_contract():
    def stream():
        yield Frame("0", np.zeros((2, 2, 3), dtype=np.float32))
        yield Skipped("1", "too dark")

    check_source(lambda: Source("camera", (), stream=stream))


def always(image):
    return lambda i: image if i < 5 else good().read(i)


def unreadable(i):
    raise ImageError("broken")


BROKEN = {
    "twice the same class": (lambda: replace(good(), classes=("a", "a")), "classes must differ"),
    "nothing to read": (lambda: replace(good(), read=None), "either `read`"),
    "two ways to read": (lambda: replace(good(), stream=lambda: iter(())), "either `read`"),
    "no images": (lambda: replace(good(), names=[]), "names is empty"),
    "too few labels": (lambda: replace(good(), labels=np.array([0, 1])), r"labels must be int64, one per name, \(5,\)"),
    "labels of another type": (lambda: replace(good(), labels=np.zeros(5)), "got float64"),
    "a label that is no class": (lambda: replace(good(), labels=np.array([0, 1, 2, 0, 0])), "got 0…2"),
    "grey": (lambda: replace(good(), read=always(np.zeros((4, 4), np.uint8))), r"\(height, width, 3\), got \(4, 4\)"),
    "doubles": (lambda: replace(good(), read=always(np.zeros((4, 4, 3)))), "uint8 or float32, got float64"),
    "beyond 1": (lambda: replace(good(), read=always(np.full((4, 4, 3), 255, np.float32))), "got 255…255"),
    "not a number": (lambda: replace(good(), read=always(np.full((4, 4, 3), np.nan, np.float32))), r"lie in \[0, 1\]"),
    "drawn anew": (
        lambda: replace(good(), read=always(np.random.default_rng().random((4, 4, 3), dtype=np.float32))),
        "another image when it is made a second time",
    ),
    "no end": (lambda: replace(good(), read=lambda i: good().read(0)), "reading image 5 of 5 must raise IndexError"),
    "a stream with names": (lambda: replace(good(), read=None, stream=lambda: iter(())), "must be empty"),
    "a stream of arrays": (
        lambda: Source("s", (), stream=lambda: iter([np.zeros(3)])),
        "Skipped, got ndarray",
    ),
    "skipped without a reason": (lambda: Source("s", (), stream=lambda: iter([Skipped("x", "")])), "needs a reason"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_clause_is_named(name):
    make, message = BROKEN[name]
    with pytest.raises(ContractError, match=message):
        check_source(make)


def test_images_that_cannot_be_read_are_skipped_and_no_fault():
    check_source(lambda: replace(good(), read=lambda i: unreadable(i) if i < 5 else good().read(i)))
