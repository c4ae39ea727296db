"""Options that many commands have, and what they may be."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from eex.policies.core.errors import EexError

MOST_THREADS = 1024
"""CPU threads that may be asked for: far more than help, far fewer than end the process as they start."""
MOST_SEED = 2**32 - 1
"""Largest seed: libraries take no larger ones."""


def check_threads(count: int) -> None:
    """Raise `EexError` if `--threads` is out of range; 0 leaves the number open."""
    if not 0 <= count <= MOST_THREADS:
        raise EexError(f"--threads must lie in [0, {MOST_THREADS}], got {count}")


def check_seed(seed: int) -> None:
    """Raise `EexError` if `--seed` is out of range."""
    if not 0 <= seed <= MOST_SEED:
        limit = "at least 0" if seed < 0 else f"at most {MOST_SEED}"
        raise EexError(f"--seed must be {limit}, got {seed}")


def check_word(name: str, value: Any, words: Any) -> None:
    """Raise `EexError` if a value is none of a `Literal`'s words.

    Examples
    --------
    >>> check_word("kind", "utilty", Literal["adaee", "utility"])
    Traceback (most recent call last):
        ...
    eex.policies.core.errors.EexError: kind must be adaee or utility, got 'utilty'
    """
    if value not in (allowed := get_args(words)):
        *others, last = (repr(word) if word == "" else str(word) for word in allowed)
        raise EexError(f"{name} must be {', '.join(others)}{' or ' * bool(others)}{last}, got {value!r}")


def check_words(options: Any) -> None:
    """Raise `EexError` if an option of a dataclass, declared as a `Literal`, is none of its words.

    tyro checks what a command line says; a program may say anything.
    """
    for field in fields(options):
        if get_origin(field.type) is Literal:
            check_word(f"--{field.name.replace('_', '-')}", getattr(options, field.name), field.type)
