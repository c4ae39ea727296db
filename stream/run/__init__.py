"""A run: policies played one after another over the same frames, recorded and summed up.

`run` is loaded when it is first used, so that importing this loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eex.stream.run.runner import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eex.stream.run.runner import run

    return run
