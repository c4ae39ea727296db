"""Who loads what: a room that imports more than its share makes every command slow to start."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)

# prints each module that brings in something forbidden, with what it was
IMPORTS = """
import importlib, sys
forbidden = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    importlib.import_module(name)
    if leaked := forbidden & set(sys.modules):
        sys.exit(f"{name} loads {', '.join(sorted(leaked))}")
"""

COMMAND = """
import sys
forbidden = set(sys.argv[1].split(","))
del sys.argv[1]
from eex.stream.commands.stream import main
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
if leaked := forbidden & set(sys.modules):
    sys.exit(f"loads {', '.join(sorted(leaked))}")
"""


def modules_of(package):
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.walk_packages(path, f"{package}.")]


def python(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (["eex.policies"], "torch,zmq,pyarrow,scipy,river,pandas,stable_baselines3,gymnasium,matplotlib"),
        (["eex.policies.registry"], "torch,zmq,pyarrow,river,pandas,stable_baselines3,gymnasium,matplotlib"),
        (modules_of("eex.policies"), "torch,zmq,pyarrow,river,pandas,stable_baselines3,gymnasium,matplotlib"),
        (modules_of("eex.models"), "zmq,pyarrow,gymnasium,pandas,river,stable_baselines3,matplotlib,eex.stream"),
    ],
    ids=["eex.policies", "registry", "every-policy", "every-model"],
)
def test_rooms_load_no_more_than_they_may(modules, forbidden):
    python(IMPORTS, forbidden, *modules)


def test_the_check_itself_sees_a_leak():
    with pytest.raises(AssertionError, match=r"eex\.policies\.core\.base loads numpy"):
        python(IMPORTS, "numpy", "eex.policies", "eex.policies.core.base")


@pytest.mark.parametrize(("argument", "shown"), [("--help", "--policy"), ("--list-policies", "deex")])
def test_commands_that_only_talk_are_quick(argument, shown):
    assert shown in python(COMMAND, "torch,river,stable_baselines3,pandas,matplotlib,pyarrow", argument)
