"""Records: what was written is read, in parts, by pandas, and from the files of a run that was killed."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.schedule import KINDS
from eex.stream.run import records
from eex.stream.run.records import (
    CAPTURED,
    DROPPED,
    REACHABLE,
    RecordWriter,
    feedback_of,
    labels_of,
    outcomes_of,
    read_batches,
    read_records,
)
from eex.stream.run.scan import scan

pytestmark = pytest.mark.timeout(60)

CLASSES = ("cat", "dog", "ship", "truck")
EXPERTS = ("pristine", "blur")


def write(folder, make_rows, counts):
    with RecordWriter(folder, CLASSES, EXPERTS) as writer:
        for k, count in enumerate(counts):
            writer.write(make_rows(sum(counts[:k]), count))


def named(index, names):
    return [names[i] if i >= 0 else None for i in index]


def test_folders_may_be_named_by_text(tmp_path, make_rows):
    write(tmp_path / "records", make_rows, [20])
    for folder in (str(tmp_path), str(tmp_path / "records")):
        assert len(read_records(folder)) == len(outcomes_of(folder)) == 20
        assert len(labels_of(folder)) == len(feedback_of(folder).frame) == 20


def test_round_trip(tmp_path, make_rows):
    rows = make_rows(5, 300, experts=3)  # the last one stands for none of them
    with RecordWriter(tmp_path / "new" / "folder", CLASSES, EXPERTS) as writer:
        writer.write(rows)
    table = read_records(tmp_path / "new" / "folder").to_pydict()
    expected = {
        "frame": rows.frame.tolist(),
        "name": rows.name.tolist(),
        "label": named(rows.label, CLASSES),
        "answer": named(rows.answer, CLASSES),
        "correct": [None if label < 0 else label == a for label, a in zip(rows.label, rows.answer, strict=True)],
        "expert": named(rows.expert, (*EXPERTS, "unknown")),
        "arm": rows.arm.tolist(),
        "stream": rows.stream.tolist(),
        "audited": rows.audited.tolist(),
        "queue": rows.queue.tolist(),
        "feedback_rank": rows.feedback_rank.tolist(),
        "feedback_at": rows.feedback_at.tolist(),
        "exit": (rows.exit + 1).tolist(),
        "offloaded": rows.offloaded.tolist(),
        "sent": rows.sent.tolist(),
        "fallback": rows.fallback.tolist(),
        "dropped": rows.dropped.tolist(),
        "reachable": rows.reachable.tolist(),
    }
    expected |= {f"prediction_{e + 1}": named(rows.prediction[:, e], CLASSES) for e in range(3)}
    exact = {name: getattr(rows, name) for name in ("probability", "reward", "link_estimate_ms", "captured")}
    exact |= {f"confidence_{e + 1}": rows.confidence[:, e] for e in range(3)}
    expected |= {name: [None if np.isnan(v) else v for v in values] for name, values in exact.items()}
    rounded = {"overhead": rows.overhead} | {kind: rows.levels[:, k] for k, kind in enumerate(KINDS)}
    rounded |= {f"exit_at_{e + 1}": rows.exit_at[:, e] for e in range(3)}
    rounded |= {f"skip_below_{e + 1}": rows.skip_below[:, e] for e in range(2)}
    rounded |= {name: getattr(rows, name) for name in ("bytes", "edge_ms", "link_ms", "cloud_ms", "latency_ms")}
    assert set(table) == set(expected) | set(rounded)
    for name, values in expected.items():
        assert table[name] == values, name
    for name, values in rounded.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-6, err_msg=name)
    assert None in expected["confidence_3"]
    assert None in expected["label"]
    assert np.isinf(rows.exit_at).any()


def test_parts(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 100)
    monkeypatch.setattr(records, "ROWS_IN_PART", 250)
    write(tmp_path, make_rows, [60] * 20)
    parts = sorted(p.name for p in tmp_path.iterdir())
    assert parts == [f"part-{k:05d}.arrows" for k in range(4)]  # batches of 120, three to a part; 1200 rows
    assert [len(batch) for batch in read_batches(tmp_path)] == [120] * 10
    assert read_records(tmp_path)["frame"].to_pylist() == list(range(1200))
    frame = read_records(tmp_path).to_pandas()
    assert frame["answer"].cat.categories.tolist() == list(CLASSES)


def test_a_part_that_ends_with_the_stream_opens_no_other(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 100)
    monkeypatch.setattr(records, "ROWS_IN_PART", 100)
    write(tmp_path, make_rows, [100, 0, 100])
    assert len(list(tmp_path.iterdir())) == 2
    assert len(read_records(tmp_path)) == 200


def test_killed_run_keeps_its_whole_batches(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 10)
    monkeypatch.setattr(records, "ROWS_IN_PART", 25)
    writer = RecordWriter(tmp_path / "running", CLASSES, EXPERTS)
    for first in range(0, 55, 5):
        writer.write(make_rows(first, 5))
        shutil.copytree(tmp_path / "running", tmp_path / "killed", dirs_exist_ok=True)  # nothing was closed
        whole = (first + 5) // 10 * 10
        if whole:
            assert read_records(tmp_path / "killed")["frame"].to_pylist() == list(range(whole))
    writer.close()
    assert read_records(tmp_path / "running")["frame"].to_pylist() == list(range(55))


def test_file_cut_at_any_byte(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 4)
    write(tmp_path / "whole", make_rows, [4, 4, 4])
    data = (tmp_path / "whole" / "part-00000.arrows").read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    found = []
    for length in sorted({*range(0, len(data), 97), *range(len(data) - 40, len(data) + 1)}):
        (cut / "part-00000.arrows").write_bytes(data[:length])
        frames = [k for batch in read_batches(cut) for k in batch["frame"].to_pylist()]
        assert frames == list(range(len(frames)))
        assert len(frames) % 4 == 0
        found.append(len(frames))
    assert found == sorted(found)
    assert set(found) == {0, 4, 8, 12}


def test_a_cut_part_does_not_hide_those_behind_it(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 4)
    monkeypatch.setattr(records, "ROWS_IN_PART", 8)
    write(tmp_path, make_rows, [4] * 4)
    first = tmp_path / "part-00000.arrows"
    first.write_bytes(first.read_bytes()[:-200])  # in its second batch
    with pytest.warns(UserWarning, match="the frames before frame 8 are missing: a part was cut off, deleted or moved"):
        assert read_records(tmp_path)["frame"].to_pylist() == [0, 1, 2, 3, *range(8, 16)]
    first.unlink()
    assert read_records(tmp_path)["frame"].to_pylist() == [*range(8, 16)]  # the oldest may be deleted


@pytest.mark.parametrize(
    ("batches", "lacking"),
    [
        ([("a", [0, 1]), ("b", [0, 1]), ("a", [2, 3]), ("b", [2])], None),
        ([("a", [0, 1]), ("b", [2, 3]), ("a", [4, 5]), ("b", [6])], None),  # they share a learner
        ([("a", [0, 1]), ("a", [0, 1, 2])], None),  # a session that began anew
        ([("a", [0, 1]), ("b", [0, 1]), ("a", [3, 4])], "frame 3 of stream 'a'"),
        ([("a", [0, 1]), ("b", [2, 3]), ("a", [5])], "frame 5 of stream 'a'"),
        ([("", [7, 8]), ("", [9, 12])], "frame 12"),
    ],
)
def test_frames_that_lack_are_noticed(tmp_path, make_rows, batches, lacking):
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        for stream, frames in batches:
            rows = make_rows(0, len(frames))
            rows.frame[:], rows.stream[:] = frames, stream
            writer.write(rows)
    if lacking is None:
        read_records(tmp_path)
        return
    with pytest.warns(UserWarning, match=f"the frames before {lacking} are missing"):
        read_records(tmp_path)


def test_dropped_frames(tmp_path, make_rows):
    rows = make_rows(0, 10)
    rows.dropped[:4], rows.exit[:4], rows.answer[:4] = True, -1, -1
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(rows)
    table = read_records(tmp_path)
    for name in ("exit", "answer", "correct"):
        assert table[name].to_pylist()[:4] == [None] * 4
    assert outcomes_of(table).exit.tolist() == rows.exit.tolist()
    assert feedback_of(table).dropped.tolist() == rows.dropped.tolist()
    assert feedback_of(table).reachable.tolist() == rows.reachable.tolist()


@pytest.mark.parametrize("lacking", [[DROPPED, REACHABLE, CAPTURED], [REACHABLE, CAPTURED], [CAPTURED]])
def test_records_of_an_older_eex(tmp_path, make_rows, lacking):
    """Parts that know neither of dropped frames nor of reachable workers are read, alone and before parts that do."""

    def make_always_reachable(first, count):
        return replace(make_rows(first, count), reachable=np.ones(count, dtype=bool), captured=np.full(count, np.nan))

    write(tmp_path / "new", make_always_reachable, [5, 5])
    table = read_records(tmp_path / "new").drop_columns(lacking)
    (tmp_path / "old").mkdir()
    with pa.OSFile(str(tmp_path / "old" / "part-00000.arrows"), "wb") as sink:
        pa.ipc.new_stream(sink, table.schema).write_table(table)
    assert read_records(tmp_path / "old") == read_records(tmp_path / "new")
    with RecordWriter(tmp_path / "old", CLASSES, EXPERTS) as writer:
        writer.write(make_always_reachable(10, 5))
    assert read_records(tmp_path / "old")[DROPPED].to_pylist() == [False] * 15
    assert feedback_of(tmp_path / "old").reachable.all()
    assert outcomes_of(tmp_path / "old").frame.tolist() == list(range(15))


@pytest.mark.parametrize("lacking", [["video"], ["fog", "rain", "video"], list(KINDS)], ids=["one", "some", "all"])
def test_kinds_of_distortion_that_records_lack_were_not_applied(tmp_path, make_rows, lacking):
    def make_without(first, count):
        rows = make_rows(first, count)
        return replace(rows, levels=np.where([kind in lacking for kind in KINDS], 0.0, rows.levels))

    write(tmp_path / "new", make_without, [5, 5])
    new = read_records(tmp_path / "new")
    (tmp_path / "old").mkdir()
    with pa.OSFile(str(tmp_path / "old" / "part-00000.arrows"), "wb") as sink:
        old = new.drop_columns(lacking)
        pa.ipc.new_stream(sink, old.schema).write_table(old)
    read = read_records(tmp_path / "old")
    assert read.select(new.column_names) == new
    assert read.schema.field(lacking[0]).type == pa.float32()
    assert outcomes_of(read).frame.tolist() == list(range(10))
    assert scan(tmp_path / "old").frames == 10
    with RecordWriter(tmp_path / "old", CLASSES, EXPERTS) as writer:  # a run that is resumed
        writer.write(make_rows(10, 5))
    resumed = read_records(tmp_path / "old")
    assert resumed["frame"].to_pylist() == list(range(15))
    assert resumed[lacking[0]].to_pylist()[:10] == [0.0] * 10
    assert min(resumed[lacking[0]].to_pylist()[10:]) > 0


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nothing_to_read(tmp_path, make_rows):
    with pytest.raises(EexError) as caught:
        read_records(tmp_path)
    assert one_line(caught) == f"{tmp_path}: no records here; expected part-00000.arrows"
    for run in ("first", "last"):
        (tmp_path / "out" / run / "records").mkdir(parents=True)
    with pytest.raises(EexError) as caught:
        read_records(tmp_path / "out")
    last = tmp_path / "out" / "last"
    assert one_line(caught) == f"{tmp_path / 'out'}: no records here; expected the folder of one run, such as {last}"
    write(tmp_path, make_rows, [50])
    part = tmp_path / "part-00000.arrows"
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(EexError) as caught:
        read_records(tmp_path)
    assert one_line(caught) == f"{tmp_path}: the records were cut off before their first batch was whole"


def test_a_part_that_cannot_be_opened_is_no_part_that_was_cut_off(tmp_path, make_rows):
    write(tmp_path, make_rows, [50])
    part = tmp_path / "part-00001.arrows"
    part.symlink_to(part)  # in a circle
    with pytest.raises(EexError) as caught:
        read_records(tmp_path)
    assert one_line(caught).startswith(f"{part}: cannot be read: ")


def test_unwritable_folder(tmp_path, make_rows):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EexError) as caught:
            RecordWriter(folder, CLASSES, EXPERTS)
        assert one_line(caught).startswith(f"{folder}: cannot write records: ")
    writer = RecordWriter(tmp_path, CLASSES, EXPERTS)
    (tmp_path / "part-00000.arrows").mkdir()
    writer.write(make_rows(0, 5))
    with pytest.raises(EexError) as caught:
        writer.flush()
    assert one_line(caught).startswith(f"{tmp_path}: cannot write records: ")


def test_full_disk(tmp_path, make_rows):
    writer = RecordWriter(tmp_path, CLASSES, EXPERTS)
    full = tmp_path / "part-00000.arrows"
    full.symlink_to("/dev/full")
    writer.write(make_rows(0, 5))
    with pytest.raises(EexError) as caught:
        writer.flush()
    assert one_line(caught).startswith(f"{tmp_path}: cannot write records: ")


def test_a_second_writer_adds_parts(tmp_path, make_rows):
    for start in (0, 5):
        with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
            writer.write(make_rows(start, 5))
    assert read_records(tmp_path)["frame"].to_pylist() == list(range(10))


def test_classes_of_one_name_stay_apart(tmp_path, make_rows):
    rows = make_rows(0, 40)
    with RecordWriter(tmp_path, ("crane", "dog", "crane", "truck"), EXPERTS) as writer:
        writer.write(rows)
    assert outcomes_of(tmp_path).prediction.tolist() == rows.prediction.tolist()
    assert set(read_records(tmp_path)["answer"].to_pylist()) == {"crane", "dog", "crane (2)", "truck"}


def test_schema_and_names_are_written_once_in_a_part(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 1)
    classes = [f"class number {k}" for k in range(1000)]
    for count in (1, 100):
        with RecordWriter(tmp_path / str(count), classes, EXPERTS) as writer:
            for k in range(count):
                writer.write(make_rows(k, 1))
    one, hundred = (next((tmp_path / str(count)).glob("part*")).read_bytes() for count in (1, 100))
    assert one.count(b"class number 999") == hundred.count(b"class number 999") > 0


def test_classes_of_every_batch_are_the_same(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 1)
    write(tmp_path, make_rows, [1] * 5)
    for batch in read_batches(tmp_path):
        assert batch["label"].dictionary.to_pylist() == list(CLASSES)
    assert isinstance(read_records(tmp_path), pa.Table)
