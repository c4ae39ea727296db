"""The picture of what stop-curve learns: in hindsight by hand, and written whole."""

import sys
from pathlib import Path

import numpy as np
import pytest

from eex.experiments import stop_curves
from eex.experiments.stop_curves import Picture, draw, hindsight
from eex.policies.core.trace import Trace, write_trace


@pytest.fixture
def trace():
    """Two edge exits; half of the frames gain 0.4 on their way to the second, all gain 0.1 in the cloud."""
    first = np.full(100, 0.51)
    second = np.where(np.arange(100) % 2, 0.91, 0.51)
    nothing = np.zeros((100, 3), dtype=np.int64)
    return Trace(np.column_stack([first, second, np.minimum(second + 0.1, 1.0)]), nothing, nothing[:, 0], ("a",))


def test_hindsight_is_optimal_stopping(trace):
    worth, frames = hindsight(trace, overhead=0.05, exit_cost=0.02)
    assert worth[1, 25] == pytest.approx(0.56)  # 0.61 in the cloud, less the overhead
    assert worth[1, 45] == pytest.approx(0.95)
    assert worth[0, 25] == pytest.approx((0.56 + 0.95) / 2 - 0.02)
    assert frames[:, 25].tolist() == [100, 50]


def test_each_exit_has_a_panel(trace):
    figure = draw(Picture(Path(), rounds=50), trace)
    assert [panel.get_title() for panel in figure.axes] == ["exit 1", "exit 2"]


def test_the_kind_of_picture_is_checked(trace, tmp_path, monkeypatch, capsys):
    write_trace(tmp_path / "t.arrow", trace)
    for name, status in (("x.png", 0), ("x.xyz", 2)):
        monkeypatch.setattr(sys, "argv", ["stop_curves", str(tmp_path / "t.arrow"), "--out", str(tmp_path / name)])
        with pytest.raises(SystemExit) as end:
            stop_curves.main()
        assert (end.value.code, (tmp_path / name).exists()) == (status, not status)
    assert "x.xyz: no picture ends so; expected one of" in capsys.readouterr().err
