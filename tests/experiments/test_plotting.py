"""Figures as specifications: columns in braces, the unit of x, one figure per value."""

import numpy as np
import pandas as pd

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
