"""The records of a run, read once: what the columns say, counted another way."""

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.metrics import reliability
from eex.stream.run.records import RecordWriter, outcomes_of, read_records
from eex.stream.run.scan import APART, BINS, scan

CLASSES, EXPERTS = ("a", "b", "c", "d"), ("pristine", "blur")


@pytest.fixture
def folder(tmp_path, make_rows):
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        for first in range(0, 5000, 1000):
            writer.write(make_rows(first, 1000))
    return tmp_path


def test_curves_and_totals_are_those_of_the_rows(folder):
    found, table = scan(folder), read_records(folder)
    wide = found.curves("p").pivot(index="start", columns="quantity", values="value")
    assert found.frames == 5000 == wide["frames"].sum()
    exit = np.array(table["exit"].to_pylist())
    for e in range(found.exits):
        assert wide[f"exit_{e + 1}"].sum() == (exit == e + 1).sum()
    assert wide["fallback"].sum() == sum(table["fallback"].to_pylist())
    assert wide["correct"].sum() == sum(c for c in table["correct"].to_pylist() if c)
    latency = np.array(table["latency_ms"])
    assert found.latency_ms(0.5) == pytest.approx(np.median(latency), rel=0.06)


def test_reliability_is_as_measured_elsewhere(folder):
    found, outcomes = scan(folder), outcomes_of(folder)
    labels = np.array([-1 if v is None else CLASSES.index(v) for v in read_records(folder)["label"].to_pylist()])
    for e in range(found.exits):
        seen = (labels >= 0) & ~np.isnan(outcomes.confidence[:, e])
        known = reliability(outcomes.confidence[seen, e], outcomes.prediction[seen, e] == labels[seen], BINS)
        np.testing.assert_array_equal(found.reliability[e, :, 0], known.counts)
        bins = found.bins()
        mine = bins[bins["exit"] == e + 1]
        np.testing.assert_allclose(mine["accuracy"], known.accuracy[known.counts > 0])


def test_faults_are_told_apart(tmp_path, make_rows):
    rows = make_rows(0, 1000)
    rows.fallback[:], rows.reachable[:] = False, True
    rows.fallback[[10, 12, 12 + APART, 500]] = True
    rows.reachable[500:] = False
    rows.captured[:] = 1.8e9 + np.arange(1000) / 10
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(rows)
    found = scan(tmp_path)
    faults = [(f.first, f.last, f.frames, f.unreachable) for f in found.faults]
    assert faults == [(10, 12 + APART, 3, 0), (500, 500, 1, 1)]
    assert [round(t - 1.8e9, 1) for f in found.faults for t in (f.began, f.ended)] == [1.0, (12 + APART) / 10, 50, 50]
    assert (round(found.began - 1.8e9, 1), round(found.ended - 1.8e9, 1)) == (0.0, 99.9)


def test_no_records_are_said(tmp_path):
    with pytest.raises(EexError, match="no records here"):
        scan(tmp_path)
