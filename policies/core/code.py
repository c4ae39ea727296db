"""Fingerprints of a user's code: a result that depends on code is stale once the code has changed."""

import ast
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path


def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 of the source files of modules and of all that they import, wherever in the module the import stands.

    Only a user's own code counts: neither the standard library, nor installed packages, nor eex itself. A module
    without a source file gets another fingerprint each time, because a change of it could not be noticed.

    Parameters
    ----------
    modules
        Names of importable modules.

    Examples
    --------
    >>> code_digest(["json", "numpy", "eex.policies"]) == code_digest([])
    True
    """
    files, hidden = own_sources(modules)
    digest = hashlib.sha256(os.urandom(32) if hidden else b"")
    for name, path in sorted(files.items()):
        source = path.read_bytes()
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def own_sources(modules: Iterable[str]) -> tuple[dict[str, Path], bool]:
    """Source files of a user's modules and of all that they import, by name, and whether one of them has no file.

    Modules that are not imported yet count as well, such as those imported inside a function.
    """
    waiting, seen, files, hidden = list(modules), set(), {}, False
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = own_source(name)
        if path is None:
            hidden |= _hidden(name)
            continue
        files[name] = path
        waiting += _imports(path.read_bytes(), name, package=path.name == "__init__.py")
    return files, hidden


def own_source(name: str) -> Path | None:
    """The source file of a user's module; None for eex, the standard library and installed packages."""
    if name.partition(".")[0] == "eex":
        return None
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = find_spec(name)
        except (ImportError, AttributeError, ValueError):
            return None
        origin = None if spec is None else spec.origin
    if not isinstance(origin, str) or not origin.endswith(".py"):
        return None
    path = _resolved(origin)
    installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(_standard_library())
    return None if installed or not path.is_file() else path


def _hidden(name: str) -> bool:
    """Whether a loaded module has no file at all and is not built in, such as a notebook's."""
    module = sys.modules.get(name)
    if module is None or name.partition(".")[0] == "eex":
        return False
    spec = getattr(module, "__spec__", None)
    return getattr(module, "__file__", None) is None and getattr(spec, "origin", None) is None


@functools.cache
def _resolved(origin: str) -> Path:
    return Path(origin).resolve()  # of thousands of modules, again and again


@functools.cache
def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _imports(source: bytes, module: str, package: bool) -> Iterator[str]:
    """Names of the modules that a source file imports, of what may be one, and of the packages that they are in."""
    inside = module if package else module.rpartition(".")[0]
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                start = resolve_name("." * node.level + (node.module or ""), inside) if node.level else node.module
            except ImportError:
                continue
            if start:
                names = [start, *(f"{start}.{alias.name}" for alias in node.names if alias.name != "*")]
        for parts in (name.split(".") for name in names):
            yield from (".".join(parts[: k + 1]) for k in range(len(parts)))
