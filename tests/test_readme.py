"""The README is short, and its ten lines of Python run as they stand there."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_it_is_short():
    assert len(README.read_bytes()) < 6000


def test_ten_lines_of_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert " edge " in said or " cloud " in said
    assert "'ship'" in said
