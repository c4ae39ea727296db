"""Records and state on a disk that fills up, on resumption with other options, and with two writers at once."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.price import Meter, parse_price
from eex.policies.registry import make_policy
from eex.stream import StreamConfig
from eex.stream.run import records, run, state
from eex.stream.run.recorder import Attempts
from eex.stream.run.records import RecordWriter, gaps, parts_of, read_records
from eex.stream.run.tally import Tally

pytestmark = pytest.mark.timeout(120)

CLASSES, EXPERTS = ("cat", "dog", "ship", "truck"), ("pristine", "blur")
OPTIONS = {"worker": "none", "frames": 600, "commit": 100, "regret": False}


def frames_of(folder):
    return read_records(folder)["frame"].to_pylist()


@pytest.fixture
def full(monkeypatch):
    """A disk that can be filled: while `full[0]`, a part of each batch reaches it and the rest does not."""
    is_full = [False]
    opened = Path.open

    class Disk(io.FileIO):
        def write(self, data):
            if is_full[0]:
                super().write(bytes(data)[: len(data) // 2])
                raise OSError(28, "No space left on device")
            return super().write(data)

    def open_part(path, mode="r", *rest, **options):
        return Disk(path, mode) if path.suffix == ".arrows" and "w" in mode else opened(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_part)
    return is_full


# ---- a full disk


def test_a_disk_that_is_full_for_a_while_costs_no_frame(tmp_path, make_rows, full, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 10)
    said = []
    writer = RecordWriter(tmp_path, CLASSES, EXPERTS)
    attempt = Attempts(writer, said.append)
    for first in range(0, 200, 5):
        full[0] = 50 <= first < 120
        attempt(lambda first=first: writer.write(make_rows(first, 5)))
        if first == 100:
            attempt(writer.commit)
            assert attempt.unrecorded["unrecorded"].endswith("cannot write records: No space left on device")
    attempt(writer.close)
    assert frames_of(tmp_path) == list(range(200))
    assert attempt.unrecorded == {"unrecorded": "", "unrecorded_frames": 0}
    assert [text.split(": ")[-1] for text in said] == [
        "No space left on device; frames are held, and the next write is tried as usual",
        "records are written again",
    ]


def test_a_disk_that_stays_full_holds_no_more_than_so_many_frames(tmp_path, make_rows, full, monkeypatch):
    monkeypatch.setattr(records, "ROWS_IN_BATCH", 10)
    monkeypatch.setattr(records, "HELD", 40)
    writer = RecordWriter(tmp_path, CLASSES, EXPERTS)
    attempt = Attempts(writer, lambda text: None)
    for first in range(0, 100, 10):
        full[0] = first >= 20
        attempt(lambda first=first: writer.write(make_rows(first, 10)))
    attempt(writer.close)
    assert frames_of(tmp_path) == list(range(20))
    assert attempt.unrecorded["unrecorded_frames"] == 80
    assert "No space left" in attempt.unrecorded["unrecorded"]


def test_a_run_tries_again_at_the_next_commit_and_says_so(tmp_path, full, capsys, monkeypatch):
    commits, committed = [], RecordWriter.commit

    def commit(writer):
        commits.append(len(commits))
        full[0] = len(commits) in (2, 3)
        return committed(writer)

    monkeypatch.setattr(RecordWriter, "commit", commit)
    summary = run(StreamConfig(out=tmp_path, **OPTIONS))
    (folder,) = tmp_path.iterdir()
    assert (summary["unrecorded"], summary["unrecorded_frames"]) == ("", 0)
    assert frames_of(folder) == list(range(600))
    assert int(state.read(folder)["frames"]) == 600
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("warning: ")
    assert "No space left on device" in said[0]
    assert said[1] == "warning: records are written again"


# ---- resumption


def test_parts_that_were_deleted_are_not_numbered_again(tmp_path, make_rows):
    run(StreamConfig(out=tmp_path, **OPTIONS))
    (folder,) = tmp_path.iterdir()
    committed = int(state.read(folder)["parts"])
    assert committed == len(parts_of(folder / "records")) > 1
    for part in parts_of(folder / "records"):
        part.unlink()
    with RecordWriter(folder / "records", CLASSES, EXPERTS) as writer:
        writer.go_on_from(committed)
        writer.write(make_rows(600, 5))
    assert [part.name for part in parts_of(folder / "records")] == [f"part-{committed:05d}.arrows"]


def test_a_resumption_with_another_policy_changes_nothing(tmp_path):
    run(StreamConfig(out=tmp_path, policy="ucb", **OPTIONS))
    (folder,) = tmp_path.iterdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(EexError, match=r"does not belong to this run"):
        run(StreamConfig(out=tmp_path, policy="exp3", **OPTIONS), resume=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    again = run(StreamConfig(out=tmp_path, policy="ucb", **OPTIONS), resume=folder)
    assert again["frames"] == 600
    assert json.loads((folder / "config.json").read_text())["policy"] == "ucb"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "adaee"}, "began with --reward utility, not adaee, and a run goes on as it began"),
        ({"exit_cost": 0.5}, "began with --exit-cost auto, not 0.5"),
        ({"overhead": 0.9}, "began with --overhead 0.1, not 0.9"),
        ({"seed": 3}, "began with --seed 0, not 3"),
        ({"policy_option": ("c=2",)}, "began with --policy-option"),
        ({"frames": 100}, "--frames 100: 600 frames of this run are done already"),
    ],
)
def test_a_resumption_with_other_frames_or_prices_changes_nothing(finished, changes, message):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(EexError, match=message):
        run(StreamConfig(out=finished.parent, **{**OPTIONS, "policy": "ucb", **changes}), resume=finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(EexError, match=r"nowhere/config\.json: cannot be read"):
        run(StreamConfig(**OPTIONS), resume=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    return Path(run(StreamConfig(out=tmp_path_factory.mktemp("finished"), policy="ucb", **OPTIONS))["folder"])


@pytest.mark.parametrize("left", [0, 8, -300])
def test_a_part_that_a_loss_of_power_cut_is_named_with_its_frames(tmp_path, capsys, left):
    run(StreamConfig(out=tmp_path, **OPTIONS))
    (folder,) = tmp_path.iterdir()
    part = parts_of(folder / "records")[2]
    with pa.OSFile(str(part), "rb") as source:
        frames = pa.ipc.open_stream(source).read_all()["frame"].to_pylist()
    part.write_bytes(part.read_bytes()[:left])
    summary = run(StreamConfig(out=tmp_path, **OPTIONS), resume=folder)
    assert summary["unrecorded_frames"] == len(frames)
    assert "damaged" in summary["unrecorded"]
    said = f"{part}: the part was cut off: frames {frames[0]:,}…{frames[-1]:,} are missing"
    assert capsys.readouterr().err == f"warning: {said}\n"


def test_parts_that_are_whole_or_deleted_are_no_gaps(tmp_path, make_rows):
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        for first in (0, 5, 10):
            writer.write(make_rows(first, 5))
            writer.commit()
    assert gaps(tmp_path, 3, 15) == []
    parts_of(tmp_path)[0].unlink()
    assert gaps(tmp_path, 3, 15) == []


def test_a_folder_has_one_writer(tmp_path):
    writer = RecordWriter(tmp_path, CLASSES, EXPERTS)
    with pytest.raises(EexError, match=r"another process is writing there"):
        RecordWriter(tmp_path, CLASSES, EXPERTS)
    writer.close()
    RecordWriter(tmp_path, CLASSES, EXPERTS).close()


# ---- damaged records and states


@pytest.mark.filterwarnings("ignore:.*are missing")
def test_damaged_parts_are_read_or_refused_in_one_line(tmp_path, make_rows):
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(make_rows(0, 40))
    (part,) = parts_of(tmp_path)
    whole, rng = part.read_bytes(), np.random.default_rng(0)
    refused = []
    for _ in range(300):
        spoilt = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 9)):
            spoilt[at] = rng.integers(256)
        part.write_bytes(spoilt)
        try:
            table = read_records(tmp_path)
            table.to_pandas()
            records.outcomes_of(table)
            records.labels_of(table)
            records.feedback_of(table)
        except EexError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in text for text in refused)


SPOILT = {
    "frames below 0": ("frames", -1),
    "no frames": ("frames", float("nan")),
    "many parts": ("parts", 2**62),
    "seconds": ("seconds", float("inf")),
    "text": ("frames", "many"),
    "a list": ("parts", [1, 2]),
    "counts below 0": ("policy.counts", -1.0),
    "counts that are none": ("policy.counts", float("nan")),
    "rewards that are none": ("policy.totals", float("inf")),
    "totals below 0": ("tally.frames", -5),
    "windows of no frames": ("tally.windows.length", 0),
    "windows beyond the last": ("tally.windows.used", 10**6),
    "withheld": ("meter.withheld", -3),
    "counts beyond all": ("policy.pending", 2.0**60),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_state_of_impossible_values_is_refused_in_one_line(tmp_path, case):
    name, value = SPOILT[case]
    policy, meter, tally = make_policy("ucb", exits=1), Meter(parse_price("0.1")), Tally(2)
    state.write(tmp_path, policy, meter, tally, 1000, 1, 5.0)
    arrays = state.read(tmp_path)
    arrays[name] = np.full_like(arrays[name], value) if arrays[name].ndim else np.array(value)
    np.savez(tmp_path / "state.npz", **arrays)
    with pytest.raises(EexError, match=r"not the state of a stream|does not belong to this run") as caught:
        state.restore(state.read(tmp_path), policy, meter, tally)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_larger_than_its_file_is_refused_before_it_is_made(tmp_path, kind):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (125000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80)
    with zipfile.ZipFile(tmp_path / "state.npz", "w", kind) as archive:
        archive.writestr("policy.counts.npy", array)
    with pytest.raises(EexError, match=r"not the state of a stream: .*(array of shape|compressed)"):
        state.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "value"),
    [
        ("gain-curve", "policy.known", float("nan")),
        ("gain-curve", "policy.weight", -1.0),
        ("gain-curve", "policy.curve", float("nan")),
        ("gain-curve", "policy.change.count", -1.0),
        ("sw-ucb", "policy.recent_arm", -1),
        ("stop-curve", "policy.known", float("nan")),
        ("deex-ucb", "policy.counts", -1.0),
    ],
)
def test_a_state_that_no_policy_can_choose_by_is_refused_in_one_line(tmp_path, name, array, value):
    policy, meter, tally = make_policy(name, exits=3), Meter(parse_price("0.1")), Tally(4)
    state.write(tmp_path, policy, meter, tally, 1000, 1, 5.0)
    arrays = state.read(tmp_path)
    arrays[array] = np.full_like(arrays[array], value)
    np.savez(tmp_path / "state.npz", **arrays)
    with pytest.raises(EexError, match="does not belong to this run") as caught:
        state.restore(state.read(tmp_path), policy, meter, tally)
    assert "\n" not in str(caught.value)
