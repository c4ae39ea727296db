"""True labels that come after the answers."""

import errno
import json
import os

import pytest
from livenet import Cloud, images, three_exits
from loopback import until

from eex.policies.core.errors import EexError
from eex.stream.live import labels as labels_module
from eex.stream.live.labels import Labels, UnknownFrame, Unrecorded
from eex.stream.live.session import Session
from eex.stream.run.records import RecordWriter, read_records
from eex.stream.run.retention import Retention

CLASSES = ("cat", "dog")


def test_a_label_replaces_the_one_before(tmp_path):
    given = Labels(CLASSES, tmp_path / "labels.jsonl")
    given.answered("door", 3, 103, 1, -1)
    first, again, other = (given.give("door", 3, name) for name in ("dog", "dog", "cat"))
    assert (first.before, first.label, first.answer) == (-1, 1, 1)
    assert (again.before, again.label) == (1, 1)
    assert (other.before, other.label) == (1, 0)
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert lines == [
        {"stream": "door", "frame": 103, "label": name} for name in ("dog", "cat")
    ]  # what is known already is not written


def test_what_is_not_known_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(labels_module, "AWAITED", 2)
    given = Labels(CLASSES, None)
    for frame in range(3):
        given.answered("door", frame, frame, 0, -1)
    with pytest.raises(UnknownFrame, match="frame 0 of stream 'door' is not known"):
        given.give("door", 0, "cat")
    with pytest.raises(EexError, match="'zebra' is none of the model's classes"):
        given.give("door", 1, "zebra")
    assert given.give("door", 1, "cat").label == 0
    (tmp_path / "folder").mkdir()
    blocked = Labels(CLASSES, tmp_path / "folder")
    blocked.answered("door", 0, 0, 0, -1)
    with pytest.raises(Unrecorded, match="cannot be recorded"):
        blocked.give("door", 0, "cat")


def opened(folder, **options):
    return Session(net=three_exits(), offloader=Cloud(), worker="none", records=folder, **options)


def test_labels_count_for_the_frames_of_their_own_session(tmp_path):
    for label in ("h", None):
        with opened(tmp_path) as session:
            session.take_labels()
            session.answer(images(1)[0], "door")
            if label is not None:
                session.label("door", 0, label)
                assert session.summary()["accuracy"] is not None
    assert read_records(tmp_path)["label"].to_pylist() == ["h", None]


def test_a_label_that_meets_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    given = Labels(CLASSES, tmp_path / "labels.jsonl")
    for frame in range(2):
        given.answered("door", frame, frame, 1, -1)
    given.give("door", 0, "dog")
    before, write = (tmp_path / "labels.jsonl").read_bytes(), os.write

    def writes(descriptor, data):
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "write", writes)
        with pytest.raises(EexError, match="the label cannot be recorded: No space left on device"):
            given.give("door", 1, "cat")
    assert (tmp_path / "labels.jsonl").read_bytes() == before
    assert given.give("door", 1, "cat").before == -1  # nothing was changed
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 2


def test_labels_of_frames_that_were_never_recorded_count_for_no_others(tmp_path):
    """As after a kill: labels are written at once, frames a little later."""
    (tmp_path / "labels-00000.jsonl").write_text('{"stream": "door", "frame": 0, "label": "h"}\n')
    with opened(tmp_path) as session:
        session.answer(images(1)[0], "door")
    assert read_records(tmp_path)["label"].to_pylist() == [None]


def test_labels_of_parts_that_are_all_gone_count_for_no_others(tmp_path):
    for name in ("a", "b"):
        with opened(tmp_path) as session:
            session.take_labels()
            session.answer(images(1)[0], name)
            session.label(name, 0, "h")
        for part in tmp_path.glob("part-*"):
            if name == "b":
                part.unlink()
    with opened(tmp_path) as session:
        session.take_labels()
        session.answer(images(1)[0], "c")
        session.label("c", 0, "g")
        session.answer(images(1)[0], "b")
    assert read_records(tmp_path)["label"].to_pylist() == ["g", None]


def test_labels_of_a_closed_stream_count_in_its_row_too(tmp_path):
    with opened(tmp_path) as session:
        session.take_labels()
        session.answer(images(1)[0], "door")
        session.close_stream("door")
        until(lambda: not session.summary()["open_streams"])
        right = session.label("door", 0, "h")
        summary = session.summary()
    assert summary["accuracy"] == summary["streams"][0]["accuracy"] == float(right)


def test_without_take_labels_none_are_taken(tmp_path):
    with opened(tmp_path) as session:
        session.answer(images(1)[0])
        with pytest.raises(EexError, match="take_labels"):
            session.label("", 0, "h")


def test_a_line_that_was_cut_off_is_left_out_and_a_damaged_one_named(tmp_path):
    with opened(tmp_path) as session:
        session.take_labels()
        session.answer(images(1)[0])
        session.label("", 0, "h")
    (path,) = tmp_path.glob("labels-*.jsonl")
    with path.open("a") as file:
        file.write('{"stream": "", "fra')
    assert read_records(tmp_path)["label"].to_pylist() == ["h"]
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(EexError, match=r"labels-00000\.jsonl: line 2 is no label"):
        read_records(tmp_path)


def test_labels_of_parts_that_are_gone_go_too(tmp_path, make_rows):
    for _ in range(3):
        with RecordWriter(tmp_path, "abcd", ("pristine", "blur")) as writer:
            writer.labels.touch()
            writer.write(make_rows(0, 500))
    parts = sorted(tmp_path.glob("part-*"))
    Retention(bytes=parts[-1].stat().st_size + 1).prune(tmp_path, 0.0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["labels-00002.jsonl", "part-00002.arrows"]
