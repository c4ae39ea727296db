"""The face of a room: names that users import from it, each loaded when it is first used."""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are in its modules.

    Parameters
    ----------
    package
        Its `__name__`.
    modules
        Where each name is, relative to the package.
    """

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattr_, dir_


def moved(old: str, new: str) -> None:
    """Keep imports from a moved module working; the module is loaded when one of its names is first used.

    Parameters
    ----------
    old, new
        Full names of the module, before and now. The package may have a name like the old module's.
    """

    def getattr_(name: str) -> Any:
        if name.startswith("__"):  # looking through all modules loads nothing
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        return getattr(importlib.import_module(new), name)

    module = types.ModuleType(old, f"Moved to {new}.")
    vars(module)["__getattr__"] = getattr_
    sys.modules[old] = module
