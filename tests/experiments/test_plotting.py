"""Figures as specifications: columns in braces, the unit of x, one figure per value."""

import numpy as np
import pandas as pd
import pytest

from eex.experiments.plotting import Plot, draw_all


def test_columns_in_braces_name_lines_and_panels():
    rows = pd.DataFrame({"macs": [1e6, 2e6] * 2, "accuracy": [0.5, 0.6, 0.7, 0.8], "exit": [1, 1, 2, 2], "kind": "a"})
    plot = Plot("cost-{kind}", "costs", "macs", "accuracy", "exit {exit}", "kind {kind}", per=1e6, each="exit")
    drawn = list(draw_all([plot], {"costs": rows}))
    assert [name for name, _ in drawn] == ["cost-a", "cost-a"]
    for (_, figure), exit in zip(drawn, (1, 2), strict=True):
        (axis,) = figure.axes
        assert axis.get_title(loc="left") == "kind a"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"exit {exit}"]
        np.testing.assert_allclose(axis.lines[0].get_xdata(), [1, 2])


def test_empty_rows_make_no_figure():
    empty = pd.DataFrame(columns=["x", "y", "line"])
    assert not list(draw_all([Plot("none", "t", "x", "y", "{line}", "{line} too", each="line")], {"t": empty}))


def test_a_long_label_is_not_clipped():
    rows = pd.DataFrame({"x": [1, 2], "y": [0.1, 0.2], "line": "a"})
    plot = Plot("long", "t", "x", "y", "line", ylabel="accuracy of what leaves at the third branch")
    ((_, figure),) = draw_all([plot], {"t": rows})
    figure.canvas.draw()
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert figure.bbox.ymin <= box.ymin < box.ymax <= figure.bbox.ymax


def test_few_published_values_are_points():
    ours = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 0.2, 0.3], "line": "a", "source": "ours"})
    published = pd.DataFrame({"x": [1, 3], "y": [0.2, 0.4], "line": "a", "source": "published"})
    full = published.merge(pd.DataFrame({"x": [1, 2, 3]}), how="right").assign(line="a", source="published", y=0.5)
    for rows, dashes in ((published, "None"), (full, "--")):
        ((_, figure),) = draw_all([Plot("few", "t", "x", "y", "line")], {"t": pd.concat([ours, rows])})
        assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", dashes]


def test_a_line_upon_another_is_dotted():
    rows = pd.DataFrame({"x": [1, 2] * 3, "y": [0.1, 0.2, 0.1, 0.2, 0.1, 0.3], "line": list("aabbcc")})
    ((_, figure),) = draw_all([Plot("same", "t", "x", "y", "line")], {"t": rows})
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", ":", "-"]


def test_whole_numbers_get_whole_ticks_and_panels_their_own_scales():
    rows = pd.DataFrame({"x": [1, 2, 3] * 2, "y": [1.0, 2, 3, 100, 200, 300], "line": "a", "panel": list("pppqqq")})
    for scales in (False, True):
        ((_, figure),) = draw_all([Plot("s", "t", "x", "y", "line", "panel", scales=scales)], {"t": rows})
        first, second = figure.axes
        assert all(tick % 1 == 0 for tick in first.get_xticks())
        assert (first.get_ylim() == second.get_ylim()) != scales


def test_a_wide_interval_does_not_flatten_the_lines():
    rows = pd.DataFrame({"x": [1, 2, 3], "y": [0.2, 0.5, 0.8], "half": [0.1, 20.0, 0.1], "line": "a"})
    ((_, figure),) = draw_all([Plot("wide", "t", "x", "y", "line")], {"t": rows})
    low, high = figure.axes[0].get_ylim()
    assert -0.1 < low < high < 1.1


def test_bands_of_shares_stay_between_nothing_and_all():
    rows = pd.DataFrame({"x": [0.0, 1.0], "y": [0.05, 0.9], "line": "a", "half": 0.2})
    for share, ends in ((True, (0.0, 1.0)), (False, (-0.15, 1.1))):
        ((_, figure),) = draw_all([Plot("s", "t", "x", "y", "line", share=share)], {"t": rows})
        heights = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx(ends)
