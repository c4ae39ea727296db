"""What users install: every module and file of the rooms, the commands, and nothing that only a checkout needs."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]

ROOT = Path(__file__).parent.parent
ROOMS = ("policies", "envs", "models", "stream", "experiments")
ONLY_IN_A_CHECKOUT = ("papers", "bench", "results", "shipped")  # of experiments
DATA = {".json", ".safetensors", ".zip", ".typed", ".html", ".css", ".js"}

# each argument is folder, then module:function; the module must come from the folder
RESOLVE = """
import importlib, sys
folder = sys.argv[1]
sys.path.insert(0, folder)
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for target in sys.argv[2:]:
    module, _, function = target.partition(":")
    found = importlib.import_module(module)
    assert found.__file__.startswith(folder), found.__file__
    assert callable(getattr(found, function)), target
"""


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=150, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as setuptools leaves folders behind where it works."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder / "out", ".", cwd=folder)
    (path,) = (folder / "out").glob("eex-*.whl")
    return path


def shipped(path):
    """Whether a file of a room, by its path in the checkout, belongs into the wheel."""
    if path.parts[0] == "experiments" and path.parts[1] in ONLY_IN_A_CHECKOUT:
        return False
    return path.suffix == ".py" or path.suffix in DATA or path.name == "NOTICE"


def test_it_holds_the_rooms_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    assert names == {f"eex/{path.as_posix()}" for path in files if shipped(path)}
    for name in (
        "eex/models/shipped/weights.safetensors",
        "eex/policies/shipped/rl-1/weights.safetensors",
        "eex/stream/shipped/cifar10-sample.zip",
        "eex/stream/py.typed",
        "eex/experiments/regret.py",
    ):
        assert name in names


def test_every_command_resolves(wheel, tmp_path):
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (listed,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert all(f"{name} = {target}" in archive.read(listed).decode() for name, target in targets.items())
    run(sys.executable, "-c", RESOLVE, tmp_path, *targets.values(), cwd=tmp_path)
