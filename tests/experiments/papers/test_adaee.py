"""Paper adaee: the quick command as a user types it, and what its figures are computed by."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eex.experiments.papers import adaee
from eex.experiments.papers.adaee import (
    RECIPES,
    THEIRS,
    Stream,
    _authors,
    _play,
    _play_bins,
    at_marks,
    first_exits,
    less_in_median,
    slowing,
)
from eex.experiments.papers.paper import Work
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace

AUTHORS = Path(__file__).parents[3].parent / "shared" / "data" / "adaee"


@pytest.fixture(scope="module")
def quick(paper):
    return paper("adaee")


def test_quick_run_writes_tables_and_figures(quick):
    out = quick.out
    assert "claim nothing" in quick.output
    for name in ("regret-1", "regret-3", "thresholds-1", "chosen-3", "accuracy-1"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    assert len(pd.read_csv(out / "claims.csv")) == 9
    assert json.loads((out / "run.json").read_text())["paper"] == "adaee"


def test_rows_are_sane(quick):
    rows = pd.read_csv(quick.out / "ours.csv")
    recipe = RECIPES["quick"]
    assert set(rows["stream"]) == {"pristine", "blur 1", "noise 20", "changing"}
    assert set(rows["exits"]) == {1, 3}
    assert set(rows["overhead"]) == set(recipe.overheads)
    assert rows["threshold"].between(0, 1).all()
    last = rows["round"] == rows["round"].max()  # points of a curve before it tell of regret alone
    shares = rows[["accuracy", "offloaded"]]
    assert ((shares[last] >= 0) & (shares[last] <= 1)).all(axis=None)
    assert shares[~last].isna().all(axis=None)
    fixed = rows[rows["policy"] == "fixed"]
    for _, cell in fixed.groupby(["stream", "exits", "overhead"]):
        offloaded = cell.sort_values("threshold")["offloaded"].to_numpy()
        assert (np.diff(offloaded) >= 0).all()  # a higher threshold lets fewer leave early
        assert offloaded[0] == 0
    # the best fixed threshold of hindsight has a regret of about 0, were each run's own the best: never below
    steady = fixed[fixed["stream"] != "changing"]
    assert (steady.groupby(["stream", "exits", "overhead"])["regret"].min() > -1e-9).all()
    assert (rows["regret_oracle"] >= rows["regret"] - 1e-9)[rows["round"] == recipe.rounds].all()


def test_second_start_does_nothing_anew_and_says_what_is_left_out(quick):
    assert quick.again() == quick.times()
    assert "--published" in quick.errors


def trace(confidence):
    confidence = np.array(confidence, dtype=float)
    prediction = np.zeros(confidence.shape, dtype=np.int64)
    return Trace(confidence, prediction, np.zeros(len(confidence), dtype=np.int64), ("a", "b"))


def test_fixed_thresholds_by_hand():
    """One kind of frame, sure by 0.55 at the edge and by 0.95 in the cloud: offloading at 0.1 gains 0.3 a frame."""
    recipe = RECIPES["quick"].__class__((), frames=0, rounds=40, runs=2, overheads=(0.1,))
    rows = _play(Stream("one", trace([[0.55, 0.95]] * 5)), recipe, 0, ("ucb",))
    fixed = rows[rows["policy"] == "fixed"].round({"threshold": 3}).set_index("threshold")
    assert fixed.loc[0.5, "offloaded"] == 0
    assert fixed.loc[0.6, "offloaded"] == 1
    assert fixed.loc[0.5, "regret"] == pytest.approx(40 * 0.3)
    assert fixed.loc[0.6, "regret"] == pytest.approx(0)
    assert (rows["best_threshold"] == 0.6).all()
    last = rows[(rows["policy"] == "ucb") & (rows["round"] == 40)].iloc[0]
    # what is offloaded loses nothing, what is not 0.3
    assert last["regret"] == pytest.approx(0.3 * 40 * (1 - last["offloaded"]))


def test_at_marks_by_hand():
    table = at_marks(np.array([2, 4]), np.array([[1.0, 1, 0, 0], [3, 1, 0, 0]]), np.array([[0.2, 0.4, 1, 1]] * 2))
    assert table["regret"].tolist() == [3, 3]
    assert table["threshold"].tolist() == pytest.approx([0.3, 1.0])
    # two runs, 2 and 4: standard deviation sqrt(2), Student's t of one degree of freedom 12.706
    assert table["half"].iloc[0] == pytest.approx(12.706, abs=1e-3)


def test_slowing_by_hand():
    assert slowing(np.array([[4.0, 5.0]]))[0] == 0.25
    assert slowing(np.array([[4.0, 8.0]]))[0] == 1.0  # grows as fast as before
    assert np.isnan(slowing(np.zeros((2, 4)))).all()
    share, half = slowing(np.array([[4.0, 5.0], [4.0, 7.0]]))
    assert share == 0.5
    # residuals -1 and 1 over a first half of 4: standard deviation sqrt(2) / 4, Student's t 12.706, over sqrt(2)
    assert half == pytest.approx(12.706 / 4, abs=1e-3)


def test_the_median_may_be_off_by_as_much_as_its_row():
    margin = less_in_median(pd.Series([0.9, 0.3, 0.1, np.nan]), pd.Series([0.5, 0.05, 0.7, np.nan]))
    assert (margin.value, margin.half) == (pytest.approx(0.2), 0.05)


def test_streams_that_were_played_are_not_played_again(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    recipe = dataclasses.replace(RECIPES["quick"], rounds=64, runs=2)
    streams = [Stream(name, trace([[0.55, 0.9], [0.55, 0.55]])) for name in ("one", "two")]
    played, play = [], adaee._play

    def interrupted(stream, *given):
        played.append(stream.name)
        if played == ["one", "two"]:
            raise KeyboardInterrupt
        return play(stream, *given)

    monkeypatch.setattr(adaee, "_play", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaee._play_all(Work(tmp_path), "ours", lambda: streams, recipe)
    rows = adaee._play_all(Work(tmp_path), "ours", lambda: streams, recipe)
    assert played == ["one", "two", "two"]
    assert list(dict.fromkeys(rows["stream"])) == ["one", "two"]


def test_bins_by_hand(tmp_path):
    """A bin of frames that gain 0.35 and one of frames that gain nothing: where nothing is gained nothing is lost."""
    recipe = dataclasses.replace(RECIPES["quick"], rounds=64, runs=2)
    streams = [Stream("one", trace([[0.55, 0.9], [0.55, 0.55], [0.9, 0.2]]))]  # the last loses confidence: in no bin
    (tmp_path / "work").mkdir()
    rows = _play_bins(Work(tmp_path), lambda: streams, recipe)
    assert set(rows["bin"]) == {"0.0 to 0.1", "0.3 to 0.4"}
    assert set(rows["overhead"]) == set(THEIRS)
    # all frames of a bin are alike, so that one threshold does what the oracle does
    np.testing.assert_allclose(rows["regret_oracle"], rows["regret"], atol=1e-12)
    free = rows[(rows["bin"] == "0.0 to 0.1") & (rows["overhead"] == 0)]
    assert (free["regret"].abs() < 1e-12).all()


def test_first_exits_keep_the_cloud():
    cut = first_exits(trace([[0.1, 0.2, 0.3, 0.4]]), 1)
    assert cut.confidence.tolist() == [[0.1, 0.4]]
    with pytest.raises(EexError, match="1 edge exits, 2 are wanted"):
        first_exits(cut, 2)


def test_folder_without_traces_is_told(tmp_path):
    with pytest.raises(EexError, match=r"has no \.csv files"):
        _authors(tmp_path)


@pytest.mark.skipif(not AUTHORS.exists(), reason="its authors' traces are not here")
def test_authors_traces_are_read():
    streams = _authors(AUTHORS)
    assert {s.trace.edge_exits for s in streams} == {1}
    assert all(len(s.trace) == 10_000 for s in streams)
