"""What a module imports is found in its source, whether it has been imported yet or not."""

import importlib
import sys

import pytest

from eex.experiments.imports import imported_by
from eex.experiments.regret import fingerprint
from eex.policies.registry import make_policy

WRITTEN = {
    "late_plugin.py": """
from eex.policies.algorithms.fixed import Fixed

class P(Fixed):
    def choose(self, context):
        import late_pack.inner
        return super().choose(context)
""",
    "late_pack/__init__.py": "",
    "late_pack/inner.py": "from . import deeper\nimport not_there\n",
    "late_pack/deeper.py": "from .deepest import VALUE\n",
    "late_pack/deepest.py": "VALUE = 1\n",
    "late_unrelated.py": "",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "late_pack").mkdir()
    for name, text in WRITTEN.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("late_")]:
        del sys.modules[name]


def test_all_that_is_imported_is_found(folder):
    found = {str(path.relative_to(folder)) for path in imported_by("late_plugin", lambda p: p.is_relative_to(folder))}
    assert found == set(WRITTEN) - {"late_unrelated.py"}


@pytest.mark.parametrize("wrapper", ["", "drift@", "safe@"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_sweep_is_not_resumed_once_any_of_it_has_changed(folder, name, wrapper):
    text = f"{wrapper}late_plugin:P"
    before = fingerprint([make_policy(text, exits=1)], [text])
    (folder / name).write_text(WRITTEN[name] + "# changed")
    assert (fingerprint([make_policy(text, exits=1)], [text]) == before) == (name == "late_unrelated.py")
