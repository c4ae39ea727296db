"""`eex-report` writes one file, or says in one line why not."""

import sys

import pytest

from eex.stream.commands import report
from eex.stream.run.records import RecordWriter


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eex-report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    return stop.value.code


def test_a_file_is_written(tmp_path, make_rows, monkeypatch, capsys):
    with RecordWriter(tmp_path / "records", "abcd", ("pristine", "blur")) as writer:
        writer.write(make_rows(0, 500))
    assert run(monkeypatch, tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert run(monkeypatch, tmp_path, "--out", tmp_path / "a.html") == 0
    assert (tmp_path / "a.html").exists()


def test_no_run_is_one_line(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path / "nowhere") == 2
    assert "no records here" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    assert run(monkeypatch) == 2
