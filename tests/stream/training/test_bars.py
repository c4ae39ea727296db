"""Progress of a training on a terminal of 80 columns."""

import functools
import io

import rich.console
from rich.console import Console

from eex.models.training import Progress
from eex.stream.training.bars import training_bars


def shown(monkeypatch, quiet=False, terminal=True):
    """What a screen of 80 columns, or a file, shows of a training of three parts."""
    screen = io.StringIO()
    console = functools.partial(Console, file=screen, force_terminal=terminal, width=80, color_system=None)
    monkeypatch.setattr(rich.console, "Console", lambda **options: console(**options))
    with training_bars(quiet, ["2 classes"]) as bars:
        for name in ("pristine", "gaussian_blur", "gaussian_noise"):
            report = bars(name)
            report(Progress("joint", 3, 20, 0, 10, 0.0, 0.0, resumed=True))
            report(Progress("joint", 3, 20, 10, 10, 1.234, 12_345.0, 0.5, (0.71, 0.72, 0.731, 0.74)))
    return screen.getvalue()


def test_names_and_accuracy_fit(monkeypatch):
    text = shown(monkeypatch)
    for name in ("gaussian_blur ", "gaussian_noise ", "71.0/72.0/73.1/74.0 %"):
        assert name in text
    assert "…" not in text
    assert text.count("2 classes") == 1
    assert "gaussian_blur: goes on from its checkpoint: joint, after epoch 3 of 20" in text


def test_quiet_shows_nothing(monkeypatch):
    assert shown(monkeypatch, quiet=True) == ""


def test_a_file_gets_a_line_for_each_epoch(monkeypatch):
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert "pristine: epoch 4/20: validation 71.0 / 72.0 / 73.1 / 74.0 %, 12,345 images/s" in lines
    assert len(lines) == 1 + 2 * 3
