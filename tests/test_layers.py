"""Who may import whom, over every module, and what loads what: a room that imports more than its share makes every
command slow to start."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# A module belongs to the room with the longest name that it begins with. It imports from its own room and from those
# listed beside it, wherever in the module the import stands.
SHARED = ("eex.policies.core", "eex.models")
FRAMES = ("eex.stream.config", "eex.stream.frames", "eex.stream.network", "eex.stream.wire")
LIVE = ("eex.stream.guard", "eex.stream.planning", "eex.stream.run", "eex.stream.worker")
LIBRARY = (*FRAMES, "eex.stream", "eex.stream.live", "eex.stream.serving", *LIVE)
ROOMS = {
    "eex.policies.core": (),
    "eex.policies": ("eex.policies.core",),
    "eex.models": ("eex.policies.core",),
    "eex.envs": ("eex.policies.core", "eex.policies"),
    "eex.stream.guard": ("eex.policies.core",),
    "eex.stream.wire": ("eex.policies.core", "eex.stream.guard"),
    "eex.stream.frames": SHARED,
    "eex.stream.config": ("eex.policies.core", "eex.policies", "eex.stream.frames", "eex.stream.wire"),
    "eex.stream.network": (*SHARED, "eex.stream.frames"),
    "eex.stream.training": (*SHARED, "eex.stream.frames", "eex.stream.network"),
    "eex.stream": (*SHARED, "eex.policies", *FRAMES),  # the engine
    "eex.stream.worker": (*SHARED, "eex.stream.guard", "eex.stream.network", "eex.stream.wire"),
    "eex.stream.planning": (*SHARED, *FRAMES, "eex.stream"),
    "eex.stream.run": (*SHARED, *FRAMES, "eex.policies", "eex.stream", "eex.stream.planning", "eex.stream.worker"),
    "eex.stream.live": (*SHARED, *FRAMES, "eex.policies", "eex.stream", *LIVE),
    "eex.stream.serving": (*SHARED, *FRAMES, "eex.policies", "eex.stream", "eex.stream.live", *LIVE),
    "eex.stream.commands": (*SHARED, *LIBRARY, "eex.policies", "eex.envs", "eex.stream.training"),
    "eex.experiments": (*SHARED, *LIBRARY, "eex.policies", "eex.envs", "eex.stream.training", "eex.stream.commands"),
}
FACES = {"eex.stream": LIBRARY}  # modules that show what the rooms inside hold

# prints the first module that brings in something forbidden, with what it was
IMPORTS = """
import importlib, sys
forbidden = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    importlib.import_module(name)
    if leaked := forbidden & set(sys.modules):
        sys.exit(f"{name} loads {', '.join(sorted(leaked))}")
"""

COMMAND = """
import importlib, sys
forbidden, module, function = set(sys.argv[1].split(",")), *sys.argv[2].split(":")
del sys.argv[1:3]
try:
    getattr(importlib.import_module(module), function)()
except SystemExit as stop:
    if stop.code:
        raise
if leaked := forbidden & set(sys.modules):
    sys.exit(f"loads {', '.join(sorted(leaked))}")
"""


def modules_of(package):
    """All modules of a package, nested ones too."""
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.walk_packages(path, f"{package}.")]


MODULES = [
    name
    for package in ("eex.policies", "eex.models", "eex.envs", "eex.stream", "eex.experiments")
    for name in (package, *modules_of(package))
]


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def room_of(name):
    return max((room for room in ROOMS if within(name, room)), key=len)


def imported(source):
    """Modules of eex that a source imports: at its top, in functions, for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and within(node.module, "eex"):
            for alias in node.names:  # a name may be a module itself
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if within(alias.name, "eex"))


def trespasses(name, source):
    room = room_of(name)
    allowed = {room, *ROOMS[room], *FACES.get(name, ())}
    return [f"{name} imports {other}" for other in imported(source) if room_of(other) not in allowed]


# ---- who may import whom


def test_every_module_is_seen():
    files = [
        path.relative_to(ROOT).with_suffix("")
        for room in ("policies", "models", "envs", "stream", "experiments")
        for path in (ROOT / room).rglob("*.py")
    ]
    names = {".".join(("eex", *path.parts)).removesuffix(".__init__") for path in files}
    assert names == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_from_the_rooms_they_may(name):
    source = Path(importlib.util.find_spec(name).origin).read_text()
    assert trespasses(name, source) == []


def test_rooms_stand_in_no_circle():
    TopologicalSorter(ROOMS).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("eex.models.card", "import eex.stream.engine"),
        ("eex.models.card", "def f():\n    from eex.envs.threshold import ThresholdEnv"),
        ("eex.stream.run.runner", "from eex.stream.commands.stream import Command"),
        ("eex.envs.train", "import eex.stream.commands.stream"),
        ("eex.stream.engine", "from eex.stream.run.runner import run"),
        ("eex.stream.wire.client", "from eex.stream import engine"),
        ("eex.stream.engine", "if TYPE_CHECKING:\n    from eex.experiments.regret import compare"),
    ],
)
def test_a_wrong_import_is_seen(name, source):
    assert len(trespasses(name, source)) == 1


# ---- what loads what


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
        (["eex.models"], "torch,numpy,safetensors"),
        (modules_of("eex.models"), "zmq,pyarrow,gymnasium,pandas,river,stable_baselines3,matplotlib,eex.stream"),
        (["eex.stream", "eex.stream.live.session"], "tyro,rich,torch,pyarrow,pandas,matplotlib"),
    ],
    ids=["eex.policies", "registry", "every-policy", "eex.models", "every-model", "session"],
)
def test_rooms_load_no_more_than_they_may(modules, forbidden):
    python(IMPORTS, forbidden, *modules)


def test_the_check_itself_sees_a_leak():
    with pytest.raises(AssertionError, match=r"eex\.policies\.core\.base loads numpy"):
        python(IMPORTS, "numpy", "eex.policies", "eex.policies.core.base")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_every_command_is_quick(script):
    heavy = "torch,river,stable_baselines3,pandas,matplotlib,pyarrow"
    assert f"usage: {script}" in python(COMMAND, heavy, SCRIPTS[script], "--help")


def test_policies_are_listed_quickly():
    heavy = "torch,river,stable_baselines3,pandas,matplotlib,pyarrow"
    assert "deex" in python(COMMAND, heavy, SCRIPTS["eex-stream"], "--list-policies")
