"""Records that are kept by size or age."""

import os

import pyarrow as pa
import pytest

from eex.policies.core.errors import EexError
from eex.stream.run import records
from eex.stream.run.records import ROWS_IN_BATCH, RecordWriter, parts_of, read_records
from eex.stream.run.retention import Retention, parse_retention

CLASSES, EXPERTS = ["a", "b", "c", "d"], ["e", "f"]


def write(folder, make_rows, retention, batches, times=lambda k: None):
    with RecordWriter(folder, CLASSES, EXPERTS) as writer:
        for number in range(batches):
            writer.write(make_rows(number * ROWS_IN_BATCH, ROWS_IN_BATCH))
            retention.apply(writer, times(number))


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_oldest_parts_go_when_there_are_too_many_bytes(tmp_path, make_rows):
    retention = parse_retention("2MB")
    write(tmp_path, make_rows, retention, 40)
    assert 1.6e6 < size_of(tmp_path) < 2.4e6
    frames = read_records(tmp_path)["frame"].to_pylist()
    assert frames == list(range(frames[0], 40 * ROWS_IN_BATCH))  # the newest, without a gap
    assert frames[0] > 0


def test_parts_that_are_full_before_they_are_due_go_too(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_PART", ROWS_IN_BATCH)
    write(tmp_path, make_rows, parse_retention("3MB"), 20)
    monkeypatch.undo()
    assert 2e6 < size_of(tmp_path) < 3.3e6


def test_what_earlier_runs_left_goes_at_the_start(tmp_path, make_rows):
    write(tmp_path, make_rows, Retention(), 1)
    write(tmp_path, make_rows, Retention(), 10)
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        gone = parse_retention("1MB").apply(writer)
    assert [path.name for path in gone] == ["part-00000.arrows", "part-00001.arrows"]


def test_old_parts_go_though_nothing_new_comes(tmp_path, make_rows):
    week = parse_retention("7d")
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(make_rows(0, ROWS_IN_BATCH))
        begun = writer.part_begun
        assert week.apply(writer, begun + 86_400) == []  # ends the part
        assert week.apply(writer, begun + 7 * 86_400 - 60) == []
        assert len(week.apply(writer, begun + 8 * 86_400)) == 1


def test_a_later_run_goes_on_and_overwrites_nothing(tmp_path, make_rows):
    retention = parse_retention("1MB")
    write(tmp_path, make_rows, retention, 20)
    last = parts_of(tmp_path)[-1].name
    write(tmp_path, make_rows, retention, 20)
    assert parts_of(tmp_path)[-1].name > last
    assert len({path.name for path in parts_of(tmp_path)}) == len(parts_of(tmp_path))
    assert size_of(tmp_path) < 1.3e6


def test_old_parts_go(tmp_path, make_rows):
    retention = parse_retention("7d")
    day = 86_400
    with RecordWriter(tmp_path / "b", CLASSES, EXPERTS) as writer:
        for number in range(10):
            writer.write(make_rows(number * ROWS_IN_BATCH, ROWS_IN_BATCH))
            path, begun = writer.part, writer.part_begun
            retention.apply(writer, begun + day)  # a part per day, of which the last is from then
            os.utime(path, (begun + number * day, begun + number * day))
        assert len(parts_of(tmp_path / "b")) == 10
        gone = retention.prune(tmp_path / "b", begun + 9.5 * day)
    assert [path.name for path in gone] == [f"part-{k:05d}.arrows" for k in range(3)]


def test_a_part_that_seems_to_come_from_the_future_stops_nothing(tmp_path, make_rows):
    day, now = 86_400, 1e9
    for number, age in enumerate((-400, 30, 20, 3, -400)):
        write(tmp_path, make_rows, Retention(), 1)
        os.utime(tmp_path / f"part-{number:05d}.arrows", (now - age * day,) * 2)
    gone = parse_retention("7d").prune(tmp_path, now)
    assert [path.name for path in gone] == [f"part-{k:05d}.arrows" for k in range(3)]


def test_a_part_that_seems_to_come_from_the_past_takes_no_other_with_it(tmp_path, make_rows):
    day, now = 86_400, 1e9
    for number, age in enumerate((9, 5, 3, 5000, 0)):
        write(tmp_path, make_rows, Retention(), 1)
        os.utime(tmp_path / f"part-{number:05d}.arrows", (now - age * day,) * 2)
    gone = parse_retention("7d").prune(tmp_path, now)
    assert [path.name for path in gone] == ["part-00000.arrows"]


def label(writer, frames, name="a"):
    lines = [f'{{"stream": "", "frame": {frame}, "label": "{name}"}}\n' for frame in frames]
    with writer.labels.open("a") as file:
        file.writelines(lines)


def test_labels_count_and_go_with_their_frames(tmp_path, make_rows):
    retention = parse_retention("2MB")
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        for number in range(30):
            first = number * ROWS_IN_BATCH
            writer.write(make_rows(first, ROWS_IN_BATCH))
            label(writer, range(first, first + ROWS_IN_BATCH))
            retention.apply(writer)
        assert size_of(tmp_path) < 2.4e6
    table = read_records(tmp_path)
    frames = table["frame"].to_pylist()
    assert frames == list(range(frames[0], 30 * ROWS_IN_BATCH))
    assert set(table["label"].to_pylist()) == {"a"}
    assert writer.labels.read_bytes().count(b"\n") == len(frames)


def test_labels_without_end_go_too_and_the_part_under_way_stays(tmp_path, make_rows):
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(make_rows(0, 10))
        writer.commit()
        for number in range(100):
            writer.write(make_rows(10 + number, 1))
            writer.flush()
            for turn in range(30):  # one frame again and again
                label(writer, range(10 + number, 11 + number), "ab"[turn % 2])
            parse_retention("100kB").apply(writer)
        assert size_of(tmp_path) < 150_000
    assert 109 in read_records(tmp_path)["frame"].to_pylist()


def test_a_part_grows_on_until_it_is_due(tmp_path, make_rows):
    write(tmp_path, make_rows, Retention(), 5)
    assert len(parts_of(tmp_path)) == 1


def test_parts_are_read_in_order_beyond_99999(tmp_path, make_rows):
    write(tmp_path, make_rows, Retention(), 1)
    os.rename(tmp_path / "part-00000.arrows", tmp_path / "part-99999.arrows")
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(make_rows(ROWS_IN_BATCH, 5))
    assert (tmp_path / "part-100000.arrows").exists()
    assert read_records(tmp_path)["frame"].to_pylist() == list(range(ROWS_IN_BATCH + 5))


def test_a_part_that_cannot_be_deleted(tmp_path, make_rows, monkeypatch):
    write(tmp_path, make_rows, Retention(), 1)
    monkeypatch.setattr(
        type(tmp_path), "unlink", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(EexError, match="old records cannot be deleted: Permission denied"):
        Retention(bytes=1).prune(tmp_path, 0)


@pytest.mark.parametrize("text", ["", "7", "10", "7x", "GB", "-7d", "10GB7d", "nan", "0GB", "1B", "5s", "1e3GB"])
def test_what_is_no_retention(text):
    with pytest.raises(EexError, match=r"^--keep-records: "):
        parse_retention(text)


@pytest.mark.parametrize(
    ("text", "retention"),
    [
        ("1.5 GiB", Retention(bytes=1_610_612_736)),
        ("36h", Retention(seconds=129_600)),
        ("2w", Retention(seconds=1_209_600)),
    ],
)
def test_amounts(text, retention):
    assert parse_retention(text) == retention


def test_parts_stay_readable(tmp_path, make_rows):
    write(tmp_path, make_rows, parse_retention("300kB"), 10)
    for path in parts_of(tmp_path):
        assert pa.ipc.open_stream(pa.OSFile(str(path))).read_all().num_rows
