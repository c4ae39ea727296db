"""What a module imports, read from its source: also what it has not imported yet, inside a function for example."""

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def imported_by(module: str, follow: Callable[[Path], bool]) -> set[Path]:
    """Sources of a module and of all that it imports, directly or not, as far as `follow` allows.

    Parameters
    ----------
    module
        Its full name.
    follow
        Whether a source counts, and what it imports is looked at.
    """
    found: set[Path] = set()
    left = [module]
    while left:
        name = left.pop()
        path = _source(name)
        if path is None or path in found or not follow(path):
            continue
        found.add(path)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        left += _names(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of the modules that a module of this package may import, with the packages that they are in."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for parts in (name.split(".") for name in names if name):
            yield from (".".join(parts[: k + 1]) for k in range(len(parts)))


def _source(name: str) -> Path | None:
    """Where a module's source is; None where it has none or is not there."""
    try:
        file = getattr(sys.modules[name], "__file__", None) if name in sys.modules else _origin(name)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(file).resolve() if file and file.endswith(".py") and Path(file).is_file() else None


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return spec.origin if spec is not None else None
