"""Traces: what is written is read, AdaEE's CSV files in both layouts, and what is no trace is told in one line."""

import pickle
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eex.policies.algorithms.ucb import UCB
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace, read_trace, write_trace
from eex.policies.registry import make_policy

pytestmark = pytest.mark.timeout(60)

ADAEE = Path(__file__).parents[4] / "shared" / "data" / "adaee"
CLASSES = ("cat", "dog", "ship")

PLAIN = """\
,target,id,conf_branch_1,infered_class_branches_1,correct_branch_1,\
conf_branch_2,infered_class_branches_2,correct_branch_2
0,3.0,1.0,0.75,3.0,1.0,0.9375,3.0,1.0
1,0.0,2.0,0.5,2.0,0.0,1.0,0.0,1.0
"""
TIMED = """\
,device,target,class_name,conf_branch_1,correct_branch_1,delta_inf_time_branch_1,cum_inf_time_branch_1,\
prediction_branch_1,conf_branch_2,correct_branch_2,delta_inf_time_branch_2,cum_inf_time_branch_2,prediction_branch_2
0,cpu,2,ship,0.75,1,0.25,0.25,2,0.9375,1,0.5,0.75,2
1,cpu,0,cat,0.5,0,0.125,0.125,1,1.0,1,0.25,0.375,0
"""


def make_trace(frames=50, exits=3, seed=0):
    rng = np.random.default_rng(seed)
    kinds = np.array(["pristine", "gaussian_blur", "gaussian_blur+gaussian_noise"])
    kind = np.sort(rng.integers(3, size=frames))
    return Trace(
        confidence=rng.uniform(0, 1, (frames, exits + 1)),
        prediction=rng.integers(3, size=(frames, exits + 1)),
        label=rng.integers(-1, 3, size=frames),
        classes=CLASSES,
        distortion=kinds[kind],
        level=kind * 0.5,
        probabilities=rng.dirichlet(np.ones(2), frames),
        experts=("pristine", "gaussian_blur"),
        seconds=np.cumsum(rng.uniform(0, 1, (frames, exits + 1)), axis=1),
        model="abc",
    )


def assert_same(one, other):
    for f in fields(Trace):
        np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), err_msg=f.name)


def refusal(path, **options):
    with pytest.raises(EexError) as caught:
        read_trace(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# ---- what is written is read


@pytest.mark.parametrize("exits", [1, 3])
def test_round_trip(tmp_path, exits):
    trace = make_trace(exits=exits)
    path = tmp_path / "new" / "trace.arrow"
    write_trace(path, trace)
    assert_same(read_trace(path), trace)
    assert_same(read_trace(path, classes=CLASSES), trace)
    assert [p.name for p in path.parent.iterdir()] == ["trace.arrow"]


def test_round_trip_of_what_need_not_be_there(tmp_path):
    whole = make_trace()
    bare = Trace(whole.confidence, whole.prediction, np.full(50, -1), CLASSES)
    write_trace(tmp_path / "t.arrow", whole)
    write_trace(tmp_path / "t.arrow", bare)  # over the other
    again = read_trace(tmp_path / "t.arrow")
    assert_same(again, bare)
    assert (again.probabilities, again.seconds, again.experts, again.model) == (None, None, (), "")
    assert set(again.distortion) == {"pristine"}
    assert not again.correct.any()
    assert (again.segments == 0).all()


def test_rows():
    trace = make_trace()
    for rows in (slice(10, 20), np.array([3, 1, 1]), trace.level > 0):
        some = trace[rows]
        np.testing.assert_array_equal(some.confidence, trace.confidence[rows])
        np.testing.assert_array_equal(some.distortion, trace.distortion[rows])
        np.testing.assert_array_equal(some.probabilities, trace.probabilities[rows])
        assert some.classes == CLASSES


def test_segments_and_correctness():
    trace = make_trace()
    changes = np.flatnonzero(np.diff(trace.segments))
    assert len(changes) == 2
    assert (trace.distortion[changes] != trace.distortion[changes + 1]).all()
    for e in range(4):
        np.testing.assert_array_equal(trace.correct[:, e], trace.prediction[:, e] == trace.label)


def test_a_softmax_may_round_above_1():
    trace = make_trace()
    trace.confidence[3, 1] = 1 + 1e-7
    assert replace(trace).confidence.max() == 1.0
    trace.confidence[3, 1] = 1.001
    with pytest.raises(EexError, match=r"confidence must lie in \[0, 1\]: frame 3 \(of 50\) has 1.001"):
        replace(trace)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch, error):
    path = tmp_path / "trace.arrow"
    write_trace(path, make_trace())
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else EexError) as caught:
        write_trace(path, make_trace(seed=1))
    if error is not KeyboardInterrupt:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert [p.name for p in tmp_path.iterdir()] == ["trace.arrow"]
    assert path.read_bytes() == before


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "trace.arrow", tmp_path):
        with pytest.raises(EexError, match=f"{path}: cannot be written"):
            write_trace(path, make_trace())
    assert [p.name for p in tmp_path.parent.glob("*.part")] == []


# ---- columns that do not fit

WRONG = {
    "NaN": (dict(confidence=np.where(np.arange(200).reshape(50, 4) == 29, np.nan, 0.5)), "frame 7 (of 50) has nan"),
    "below 0": (dict(confidence=np.full((50, 4), -0.1)), "confidence must lie in [0, 1]: frame 0 (of 50) has -0.1"),
    "above 1": (dict(confidence=np.full((50, 4), 97.0)), "confidence must lie in [0, 1]: frame 0 (of 50) has 97"),
    "one exit": (dict(confidence=np.full((50, 1), 0.5)), "an edge exit and of the cloud, got shape (50, 1)"),
    "no frames": (dict(confidence=np.zeros((0, 4))), "at least one frame"),
    "shapes": (dict(prediction=np.zeros((50, 3), dtype=int)), "prediction must have shape (50, 4), got (50, 3)"),
    "class": (dict(prediction=np.full((50, 4), 3)), "prediction must lie in [0, 2]: frame 0 (of 50) has 3"),
    "label": (dict(label=np.full(50, -2)), "label must lie in [-1, 2]"),
    "level": (dict(level=np.full(50, np.nan)), "level must lie in [0, inf]"),
    "probabilities": (dict(probabilities=np.full((50, 2), 1.5)), "probabilities must lie in [0, 1]"),
    "experts": (dict(experts=("pristine",)), "probabilities must have shape (50, 1), got (50, 2)"),
    "seconds": (dict(seconds=np.full((50, 4), -1.0)), "seconds must lie in [0, inf]"),
    "texts": (dict(confidence=[["a"] * 4] * 50), "column confidence must hold numbers, got <U1"),
    "fractions": (dict(prediction=np.full((50, 4), 0.5)), "column prediction must hold whole numbers, got float64"),
    "classes": (dict(classes=("a", "b", "a")), "classes must have different names, got a, b, a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_that_hold_what_they_must_not(case):
    columns, told = WRONG[case]
    with pytest.raises(EexError) as caught:
        replace(make_trace(), **columns)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- Arrow files that are no trace


def rewritten(path, change):
    """A trace's file with its table changed."""
    write_trace(path, make_trace())
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    table = change(table)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


OTHER = {
    "without a column": (
        lambda t: t.drop_columns(["confidence_2"]),
        "column confidence_2 is missing; its columns: label, ",
    ),
    "without the cloud's column": (lambda t: t.drop_columns(["confidence_4"]), "column confidence_4 is missing"),
    "without confidences": (
        lambda t: t.drop_columns([f"confidence_{e}" for e in (1, 2, 3, 4)]),
        "column confidence_1 is missing",
    ),
    "without the label": (lambda t: t.drop_columns(["label"]), "column label is missing"),
    "seconds of some exits": (lambda t: t.drop_columns(["seconds_3"]), "column seconds_3 is missing"),
    "no rows": (lambda t: t[:0], "has no rows"),
    "no format": (
        lambda t: t.drop_columns(["confidence_1"]).replace_schema_metadata({}),
        "is an Arrow file, but not a trace; its columns",
    ),
    "NaN": (with_column("confidence_2", [np.nan] * 50), "confidence must lie in [0, 1]: frame 0 (of 50) has nan"),
    "null": (with_column("confidence_2", [0.5, None] * 25), "frame 1 (of 50) has nan"),
    "above 1": (with_column("confidence_2", [1.5] * 50), "frame 0 (of 50) has 1.5"),
    "text": (with_column("confidence_2", ["much"] * 50), "confidence_2 must hold numbers, got string"),
    "numbers for classes": (with_column("label", list(range(50))), "label must hold names, got int64"),
    "numbered classes": (
        lambda t: t.set_column(0, "label", pa.array([0] * 50).dictionary_encode()),
        "label must hold names, got dictionary",
    ),
    "classes of its own": (
        lambda t: t.set_column(
            t.column_names.index("prediction_2"), "prediction_2", pa.array(["fox"] * 50).dictionary_encode()
        ),
        "prediction_2 has other classes (fox) than label (cat, dog, ship)",
    ),
    "no distortion": (
        lambda t: t.set_column(
            1, "distortion", pa.DictionaryArray.from_arrays(pa.array([0] * 49 + [None], pa.int32()), pa.array(["x"]))
        ),
        "distortion must be named: frame 49 has none",
    ),
    "no answer": (
        lambda t: t.set_column(
            t.column_names.index("prediction_2"),
            "prediction_2",
            pa.DictionaryArray.from_arrays(pa.array([None] * 50, pa.int32()), pa.array(CLASSES)),
        ),
        "prediction must lie in [0, 2]: frame 0 (of 50) has -1",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_arrow_files_that_are_no_trace(tmp_path, case):
    change, told = OTHER[case]
    assert told in refusal(rewritten(tmp_path / "trace.arrow", change))


def test_other_classes_than_the_models_card(tmp_path):
    write_trace(tmp_path / "trace.arrow", make_trace())
    assert refusal(tmp_path / "trace.arrow", classes=[str(k) for k in range(20)]) == (
        "its classes (cat, dog, ship) are not those of the model's card (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (20))"
    )


def test_a_file_cut_off_anywhere(tmp_path):
    path, cut = tmp_path / "trace.arrow", tmp_path / "cut.arrow"
    write_trace(path, make_trace())
    data = path.read_bytes()
    for length in [*range(0, len(data), 211), len(data) - 1]:
        cut.write_bytes(data[:length])
        assert refusal(cut) == "is neither a trace that eex-record wrote (Arrow) nor a .csv file, or is cut off"


def test_damaged_bytes_raise_nothing_else(tmp_path):
    """Flipped bits of numbers may go unseen; whatever is seen is an `EexError`."""
    path, damaged = tmp_path / "trace.arrow", tmp_path / "damaged.arrow"
    write_trace(path, make_trace())
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        copy = data.copy()
        at = rng.integers(len(data), size=3)
        copy[at] = rng.integers(256, size=3)
        damaged.write_bytes(copy.tobytes())
        try:
            read_trace(damaged)
        except EexError:
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["random.arrow", "random.csv", "random"])
def test_random_bytes(tmp_path, name):
    for seed in range(20):
        path = tmp_path / name
        path.write_bytes(np.random.default_rng(seed).bytes(5000))
        refusal(path)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "nowhere.arrow", tmp_path / "nowhere.csv"):
        assert refusal(path) == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"


# ---- CSV files of AdaEE's authors


def csv(folder, text):
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_plain_layout(tmp_path):
    trace = read_trace(csv(tmp_path, PLAIN))
    np.testing.assert_array_equal(trace.confidence, [[0.75, 0.9375], [0.5, 1.0]])
    np.testing.assert_array_equal(trace.prediction, [[3, 3], [2, 0]])
    np.testing.assert_array_equal(trace.label, [3, 0])
    np.testing.assert_array_equal(trace.correct, [[True, True], [False, True]])
    assert (trace.classes, trace.seconds, trace.model) == (("0", "1", "2", "3"), None, "trace")
    assert trace.distortion.tolist() == ["pristine", "pristine"]


def test_timed_layout(tmp_path):
    trace = read_trace(csv(tmp_path, TIMED.replace("\n", "\r\n")))
    np.testing.assert_array_equal(trace.confidence, [[0.75, 0.9375], [0.5, 1.0]])
    np.testing.assert_array_equal(trace.prediction, [[2, 2], [1, 0]])
    np.testing.assert_array_equal(trace.seconds, [[0.25, 0.75], [0.125, 0.375]])
    assert trace.classes == ("cat", "1", "ship")  # no image of class 1 is in it


def test_csv_becomes_arrow(tmp_path):
    for text in (PLAIN, TIMED):
        trace = read_trace(csv(tmp_path, text))
        write_trace(tmp_path / "trace.arrow", trace)
        assert_same(read_trace(tmp_path / "trace.arrow"), trace)


@pytest.mark.skipif(not ADAEE.is_dir(), reason="AdaEE's files are not here")
# the timed one is a MobileNetV2 in spite of its name
@pytest.mark.parametrize("name", ["alexnet-cifar10-one-branch", "alexnet-cifar10-one-branch-timed"])
def test_adaees_own_files(name):
    trace = read_trace(ADAEE / f"{name}.csv")
    assert (len(trace), trace.edge_exits, len(trace.classes)) == (10_000, 1, 10)
    assert (trace.seconds is not None) == name.endswith("timed")
    assert np.bincount(trace.label).tolist() == [1000] * 10
    assert trace.correct[:, 1].mean() > trace.correct[:, 0].mean() > 0.6
    if name.endswith("timed"):
        assert trace.classes[3] == "cat"


BAD_CSV = {
    "empty": ("", "is empty"),
    "header alone": (PLAIN.splitlines()[0] + "\n", "has no rows"),
    "another table": ("a,b\n1,2\n", "has columns of no layout that is known (adaptive_early_exit: conf_branch_1, "),
    "no cloud": (
        "target,conf_branch_1,prediction_branch_1,correct_branch_1,cum_inf_time_branch_1\n0,0.5,0,1,0.5\n",
        "column conf_branch_2 is missing",
    ),
    "no cloud's confidence": (PLAIN.replace("conf_branch_2", "x"), "column conf_branch_2 is missing"),
    "no target": (PLAIN.replace("target", "goal"), "column target is missing; its columns: , goal"),
    "no cloud's class": (PLAIN.replace("infered_class_branches_2", "x"), "column infered_class_branches_2 is missing"),
    "no time": (TIMED.replace(",cum_inf_time_branch_2", ",x"), "column cum_inf_time_branch_2 is missing"),
    "NaN": (PLAIN.replace("0.9375", "nan"), "confidence must lie in [0, 1]: frame 0 (of 2) has nan"),
    "nothing": (PLAIN.replace("0.9375", ""), "row 1: conf_branch_2 must be a number, got ''"),
    "above 1": (PLAIN.replace("0.9375", "93.75"), "confidence must lie in [0, 1]: frame 0 (of 2) has 93.75"),
    "text": (TIMED.replace("0.9375", "high"), "row 1: conf_branch_2 must be a number, got 'high'"),
    "half a class": (PLAIN.replace("0,3.0", "0,3.5"), "row 1: label must be a class 0, 1, …, got 3.5"),
    "endless classes": (PLAIN.replace("0,3.0", "0,3e15"), "row 1: label must be a class 0, 1, …, got 3e+15"),
    "contradiction": (PLAIN.replace("0.75,3.0,1.0", "0.75,3.0,0.0"), "row 1: correct_branch contradicts"),
    "cut off": (PLAIN[:-5], "row 2 has 8 fields, the header 9: cut off?"),
    "field without end": (PLAIN + '2,"' + "9" * 200_000, "is not CSV: field larger than field limit"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_csv_files_that_are_no_trace(tmp_path, case):
    text, told = BAD_CSV[case]
    assert told in refusal(csv(tmp_path, text))


def written_csv(path, rows="0.5,0.9,0,0,1,1,0\n", extra=""):
    header = "conf_branch_1,conf_branch_2,infered_class_branches_1,infered_class_branches_2,correct_branch_1,"
    path.write_text(header + "correct_branch_2,target" + extra + "\n" + rows)
    return path


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = written_csv(tmp_path / "twice.csv", "0.5,0.9,0,0,1,1,0,0.8\n", ",conf_branch_1")
    with pytest.raises(EexError, match="has the column conf_branch_1 twice"):
        read_trace(path)


def test_a_column_of_a_billionth_exit_is_refused_before_anything_is_made_of_it(tmp_path):
    path = written_csv(tmp_path / "many.csv", "0.5,0.9,0,0,1,1,0,0.8\n", ",conf_branch_1000000000")
    with pytest.raises(EexError, match="conf_branch_1000000000 is for an exit beyond the 1000th"):
        read_trace(path)


def test_gzipped_csv(tmp_path):
    import gzip

    plain = written_csv(tmp_path / "plain.csv")
    (tmp_path / "packed.CSV.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_trace(tmp_path / "packed.CSV.gz").confidence.tolist() == [[0.5, 0.9]]
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(plain.read_bytes() * 50)[:-12])
    with pytest.raises(EexError, match="not a whole gzip file"):
        read_trace(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("text", [True, False])
def test_a_trace_that_pandas_wrote(text, tmp_path):
    import pandas as pd

    rng = np.random.default_rng(0)
    names = ("cat", "dog", "emu")
    prediction = rng.integers(0, 3, (40, 3))
    trace = Trace(rng.random((40, 3)), prediction, np.where(rng.random(40) < 0.2, -1, prediction[:, 0]), names)
    write_trace(tmp_path / "own.arrow", trace)
    with pa.OSFile(str(tmp_path / "own.arrow"), "rb") as source, pa.ipc.open_file(source) as reader:
        frame = reader.read_all().to_pandas()
    if text:
        frame = frame.astype({c: "str" for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)})
        frame["label"] = frame["label"].where(frame["label"] != "nan", None)
    frame.to_feather(tmp_path / "pandas.arrow", compression="uncompressed")
    found = read_trace(tmp_path / "pandas.arrow")
    np.testing.assert_array_equal(found.confidence, trace.confidence)
    np.testing.assert_array_equal(found.label >= 0, trace.label >= 0)
    right = (found.prediction == found.label[:, None])[found.label >= 0]
    np.testing.assert_array_equal(right, (trace.prediction == trace.label[:, None])[trace.label >= 0])


# ---- one row per frame and exit

LONG = """Sample_ID,Exit,Confidence,Prediction,Label
7,1,0.5,0,1
7,2,0.75,1,1
7,12,0.9,1,1
3,12,0.8,2,0
3,1,0.6,0,0
3,2,0.7,0,0
"""


def read_text(tmp_path, text, name="long.csv"):
    (tmp_path / name).write_text(text)
    return read_trace(tmp_path / name)


def test_one_row_per_frame_and_exit(tmp_path):
    trace = read_text(tmp_path, LONG)
    assert trace.confidence.tolist() == [[0.5, 0.75, 0.9], [0.6, 0.7, 0.8]]  # 12 is the cloud's, frame 7 came first
    assert trace.prediction.tolist() == [[0, 1, 1], [0, 0, 2]]
    assert trace.label.tolist() == [1, 0]
    assert (trace.classes, trace.edge_exits, trace.model) == (("0", "1", "2"), 2, "long")
    write_trace(tmp_path / "long.arrow", trace)
    assert (read_trace(tmp_path / "long.arrow").prediction == trace.prediction).all()


def test_numbers_of_classes_may_have_leading_zeros(tmp_path):
    padded = LONG.replace(",0\n", ",00\n").replace(",1\n", ",01\n").replace("2,0", "02,0")
    assert_same(read_text(tmp_path, padded), read_text(tmp_path, LONG))


@pytest.mark.parametrize(
    "header",
    [
        "sample id,exit_layer,conf,pred,true label",
        "image-id,Branch,max_prob,Predicted Class,TARGET",
        "id,LAYER,score,predicted_label,Ground Truth",
    ],
)
def test_columns_are_known_by_other_names(tmp_path, header):
    renamed = read_text(tmp_path, LONG.replace("Sample_ID,Exit,Confidence,Prediction,Label", header), "renamed.csv")
    expected = read_text(tmp_path, LONG)
    assert (renamed.confidence == expected.confidence).all()
    assert (renamed.label == expected.label).all()


def test_other_columns_are_passed_over_and_the_plainest_name_counts(tmp_path):
    head, *rows = LONG.split()
    text = "\n".join([f",index,{head},entropy", *(f"{k},{k},{row},0.1" for k, row in enumerate(rows))])
    assert len(read_text(tmp_path, text)) == 2


def test_classes_by_name_and_labels_that_lack(tmp_path):
    text = "Sample_ID,Exit,Confidence,Prediction,Label\na,0,0.5,dog,\na,1,0.6,cat,\nb,0,0.5,dog,cow\nb,1,0.6,cow,cow\n"
    trace = read_text(tmp_path, text)
    assert trace.classes == ("cat", "cow", "dog")
    assert trace.label.tolist() == [-1, 1]
    assert trace.prediction.tolist() == [[2, 0], [2, 1]]


def test_labels_are_optional_and_may_be_written_as_floats(tmp_path):
    lines = LONG.splitlines()
    without = read_text(tmp_path, "\n".join(line.rpartition(",")[0] for line in lines))
    assert without.label.tolist() == [-1, -1]
    floats = read_text(tmp_path, "\n".join([lines[0], *(line + ".0" for line in lines[1:])]))
    assert floats.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("3,2,0.7,0,0\n", "", "Sample_ID 3 has no row for Exit 2, expected 1"),
        ("3,2,0.7,0,0\n", "3,2,0.7,0,0\n3,2,0.7,0,0\n", "Sample_ID 3 has 2 rows for Exit 2, expected 1"),
        ("3,2,0.7,0,0", "3,2,0.7,0,1", "Sample_ID 3 has different labels at different exits"),
        ("3,2,0.7,0,0", "3,2,0.7,,0", "a prediction is empty"),
        ("3,2,0.7,0,0", "3,2,1.7,0,0", "confidence must lie in .*frame 1"),
        ("3,2,0.7,0,0", "3,2,high,0,0", "row 6: Confidence must be a number, got 'high'"),
        ("3,2,0.7,0,0", "3,nan,0.7,0,0", "Exit must number 2 to 1000 exits"),
        ("3,2,0.7,0,0", "3,2,0.7,9999999,0", "classes must be numbers below 1,000,000"),
        ("3,2,0.7,0,0", "3,2,0.7", "row 6 has 3 fields, the header 5: cut off?"),
        ("Sample_ID,Exit,", "Exit,Exit,", "Exit twice|columns of no layout"),
    ],
)
def test_long_tables_that_are_no_trace(tmp_path, before, after, said):
    with pytest.raises(EexError, match=said):
        read_text(tmp_path, LONG.replace(before, after))


# ---- traces larger than memory


def test_a_large_trace_plays_in_little_memory(tmp_path, monkeypatch):
    trace = make_trace(frames=250_000)
    write_trace(tmp_path / "trace.arrow", trace)
    expected = replay(UCB([0.5, 0.8], exits=3, runs=20), trace, 0.1, rounds=50, order="segments").reward
    size = sum(column.nbytes for column in vars(trace).values() if isinstance(column, np.ndarray))
    assert size > 50e6
    monkeypatch.setattr("eex.policies.core.pieces.MOST_IN_MEMORY", 1 << 20)
    monkeypatch.setattr("eex.policies.core.trace.PIECE", 1 << 12)
    tracemalloc.start()
    mapped = read_trace(tmp_path / "trace.arrow")
    played = replay(UCB([0.5, 0.8], exits=3, runs=20), mapped, 0.1, rounds=50, order="segments")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8
    np.testing.assert_array_equal(played.reward, expected)
    assert_same(mapped, trace)
    assert len(pickle.dumps(mapped)) < 5000  # for other processes, which map the same files


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is resident")
def test_a_large_trace_that_was_read_is_not_resident(tmp_path, monkeypatch):
    def resident():
        status = Path("/proc/self/status").read_text()
        return sum(1024 * int(status.split(f"{kind}:")[1].split()[0]) for kind in ("RssAnon", "RssFile"))

    trace = make_trace(frames=250_000)
    write_trace(tmp_path / "trace.arrow", trace)
    size = sum(column.nbytes for column in vars(trace).values() if isinstance(column, np.ndarray))
    monkeypatch.setattr("eex.policies.core.pieces.MOST_IN_MEMORY", 1 << 20)
    monkeypatch.setattr("eex.policies.core.trace.PIECE", 1 << 12)
    before = resident()
    mapped = read_trace(tmp_path / "trace.arrow")
    assert resident() - before < size / 3
    assert_same(mapped, trace)


@pytest.mark.parametrize("text", [PLAIN, TIMED])
def test_a_large_csv_file_is_the_same_in_pieces(tmp_path, monkeypatch, text):
    header, *rows = text.splitlines(keepends=True)
    path = csv(tmp_path, header + "".join(rows * 50))
    expected = read_trace(path)
    monkeypatch.setattr("eex.policies.core.pieces.MOST_IN_MEMORY", 100)
    monkeypatch.setattr("eex.policies.core.trace.PIECE", 7)
    assert_same(read_trace(path), expected)
    path.write_text(path.read_text() + rows[0].replace("0.75", "much", 1))
    assert refusal(path) == "row 101: conf_branch_1 must be a number, got 'much'"


@pytest.mark.parametrize("pieces", [True, False])
def test_parquet(tmp_path, monkeypatch, pieces):
    trace = make_trace()
    write_trace(tmp_path / "trace.arrow", trace)
    with pa.OSFile(str(tmp_path / "trace.arrow"), "rb") as file:
        pq.write_table(pa.ipc.open_file(file).read_all(), tmp_path / "trace.parquet")
    if pieces:
        monkeypatch.setattr("eex.policies.core.pieces.MOST_IN_MEMORY", 100)
        monkeypatch.setattr("eex.policies.core.trace.PIECE", 7)
    assert_same(read_trace(tmp_path / "trace.parquet"), trace)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "trace.parquet").read_bytes()[:-100])
    assert refusal(tmp_path / "cut.parquet") == "is no Parquet file, or is cut off"


def test_the_frame_that_is_wrong_is_named_in_any_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("eex.policies.core.trace.PIECE", 7)
    values = np.full(50, 0.5)
    values[30] = 1.5
    told = refusal(rewritten(tmp_path / "trace.arrow", with_column("confidence_2", values)))
    assert told == "confidence must lie in [0, 1]: frame 30 (of 50) has 1.5"


@pytest.mark.parametrize("dtype", [np.uint8, bool, list])
def test_columns_of_any_numbers_can_be_played(tmp_path, dtype):
    right = np.array([[0, 1], [1, 1], [0, 0]])
    cast = (lambda column: column.tolist()) if dtype is list else (lambda column: column.astype(dtype))
    trace = Trace(cast(np.ones((3, 2))), cast(right), cast(right[:, 0]), ("a", "b"))
    done = replay(make_policy("fixed:p_tar=0.5"), trace, 0.1, order="in-order")
    assert done.answer.tolist() == [[0, 1, 0]]
    write_trace(tmp_path / "t.arrow", trace)
    np.testing.assert_array_equal(read_trace(tmp_path / "t.arrow").prediction, right)


def test_a_parquet_file_without_labels(tmp_path):
    columns = {"confidence_1": [0.5, 0.6], "confidence_2": [0.7, 0.8], "prediction_1": ["a", "b"]}
    columns |= {"prediction_2": ["a", "a"], "label": pa.array([None, None], pa.string())}
    pq.write_table(pa.table(columns | {"distortion": ["pristine"] * 2, "level": [0.0, 0.0]}), tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.label.tolist() == [-1, -1]
    assert trace.prediction.tolist() == [[0, 0], [1, 0]]


def test_experts_have_different_names():
    nothing = np.zeros((1, 2), dtype=np.int64)
    with pytest.raises(EexError, match="experts must have different names, got a, a"):
        Trace(np.ones((1, 2)), nothing, nothing[:, 0], ("x",), probabilities=np.ones((1, 2)) / 2, experts=("a", "a"))
