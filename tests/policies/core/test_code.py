"""Fingerprints of code: they follow imports, and leave out what is installed."""

import importlib
import sys
import types

import pytest

from eex.policies.core.code import code_digest


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    files = {
        "mine.py": "import numpy\nfrom part import helper\n\ndef late():\n    import later.inner, not_there\n",
        "part/__init__.py": "",
        "part/helper.py": "from . import deeper\nfrom .deeper import *\n",
        "part/deeper.py": "import mine\nSIZE = 1\n",
        "later/__init__.py": "",
        "later/inner.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "part", "later", "other")]:
        del sys.modules[name]


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize(
    "name", ["mine.py", "part/__init__.py", "part/helper.py", "part/deeper.py", "later/__init__.py", "later/inner.py"]
)
def test_any_file_that_is_imported_counts(home, name, imported):
    if imported:
        importlib.import_module("mine")
    before = code_digest(["mine"])
    assert code_digest(["mine"]) == before
    (home / "other.py").write_text("changed = 1")
    assert code_digest(["mine"]) == before
    with (home / name).open("a") as file:
        file.write("\nchanged = 1\n")
    assert code_digest(["mine"]) != before


def test_what_is_installed_does_not_count():
    assert code_digest(["torch", "json", "sys", "eex.models", "no_such_module"]) == code_digest([])


def test_code_without_a_file_is_never_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "notebook_cell", types.ModuleType("notebook_cell"))
    assert code_digest(["notebook_cell"]) != code_digest(["notebook_cell"])


def test_a_file_that_does_not_parse_counts_itself(home):
    (home / "mine.py").write_text("def (")
    before = code_digest(["mine"])
    (home / "mine.py").write_text("def )")
    assert code_digest(["mine"]) != before
