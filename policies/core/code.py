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
    waiting, files, unknown = list(modules), {}, False
    while waiting:
        name = waiting.pop()
        if name in files or name.partition(".")[0] == "eex":
            continue
        path = _source(name)
        if path is None:
            unknown = unknown or (name in sys.modules and _hidden(name))
            continue
        files[name] = path.read_bytes()
        waiting += _imports(files[name], name, package=path.name == "__init__.py")
    digest = hashlib.sha256(os.urandom(32) if unknown else b"")
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])} ".encode() + files[name])
    return digest.hexdigest()


def _source(name: str) -> Path | None:
    """The file of a user's module; None for all others."""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = find_spec(name)
        except (ImportError, AttributeError, ValueError):
            return None
        origin = None if spec is None else spec.origin
    if not origin or not origin.endswith(".py"):
        return None
    path = Path(origin).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(_standard_library())
    return None if installed or not path.is_file() else path


def _hidden(name: str) -> bool:
    """Whether a loaded module has no file at all and is not built in, such as a notebook's."""
    module = sys.modules[name]
    spec = getattr(module, "__spec__", None)
    return getattr(module, "__file__", None) is None and getattr(spec, "origin", None) is None


@functools.cache
def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _imports(source: bytes, module: str, package: bool) -> Iterator[str]:
    """Names of the modules that a source file imports, and of what may be one."""
    inside = module if package else module.rpartition(".")[0]
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                start = resolve_name("." * node.level + (node.module or ""), inside) if node.level else node.module
            except ImportError:
                continue
            if start:
                yield start
                yield from (f"{start}.{alias.name}" for alias in node.names if alias.name != "*")
