"""What commands begin and end with: exit statuses, and libraries' warnings."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded, hush


def warn_much():
    warnings.warn("\x1b[33mWARN: a library says\n  this and that\x1b[0m", UserWarning, stacklevel=1)
    logging.getLogger("some.library").warning("a library logs this")


@pytest.mark.filterwarnings("default")
def test_a_librarys_warning_is_one_line(capsys):
    assert guarded(warn_much) == 0
    assert capsys.readouterr().err.splitlines()[0] == "warning: WARN: a library says this and that"


@pytest.mark.filterwarnings("default")
def test_the_library_is_named(capsys):
    def command():
        warnings.warn_explicit("odd", UserWarning, "/x/site-packages/stable_baselines3/common/base_class.py", 7)
        warnings.warn_explicit("odd", UserWarning, "/x/site-packages/six.py", 7)

    guarded(command)
    assert capsys.readouterr().err == "warning: stable_baselines3: odd\nwarning: six: odd\n"


@pytest.mark.filterwarnings("default")
def test_quiet_hushes_libraries_and_nothing_else(capsys):
    def command():
        hush()
        warn_much()
        subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('a child')"], check=True)
        raise EexError("what the user must know")

    before = logging.root.manager.disable, os.environ.get("PYTHONWARNINGS"), warnings.showwarning
    assert guarded(command) == 2
    assert capsys.readouterr().err == "error: what the user must know\n"
    assert (logging.root.manager.disable, os.environ.get("PYTHONWARNINGS"), warnings.showwarning) == before
