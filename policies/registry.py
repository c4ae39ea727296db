"""The policies by name, and how they are made from a user's words."""

import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from eex.policies.base import Policy
from eex.policies.errors import EexError

POLICIES: dict[str, str] = {
    "fixed": "eex.policies.fixed:Fixed",
    "deex": "eex.policies.deex:DEEx",
    "ucb": "eex.policies.ucb:UCB",
}
"""Policies by name: where each one's class is, imported when it is asked for."""

GIVEN = ("self", "exits", "runs", "seed")  # by whoever plays the policy, not by options


def policy_class(name: str) -> type[Policy]:
    """The class of a named policy.

    Raises
    ------
    EexError
        If no policy has this name.
    """
    if name not in POLICIES:
        raise EexError(f"unknown policy '{name}'{_close(name, POLICIES)}; eex-stream --list-policies shows all")
    module, _, attribute = POLICIES[name].partition(":")
    found: type[Policy] = getattr(importlib.import_module(module), attribute)
    return found


def make_policy(name: str, options: Mapping[str, str] | None = None, **given: Any) -> Policy:
    """A policy by name.

    Parameters
    ----------
    name
        A name in `POLICIES`, with options behind it if wanted: "ucb", "fixed:p_tar=0.9", "ucb:c=0.5:grid=0.5 0.7 0.9".
    options
        More of its options, as text; lists are numbers between spaces.
    given
        `exits`, `runs` and `seed`.

    Raises
    ------
    EexError
        If the policy or an option is unknown, or a value does not fit.
    """
    name, _, inline = name.partition(":")
    texts = dict(split_option(pair) for pair in inline.split(":") if pair) | dict(options or {})
    cls = policy_class(name)
    known = options_of(cls)
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise EexError(f"policy {name} has no option '{key}'{_close(key, known)}; its options: {listed}")
        values[key] = _parse(name, key, text, known[key][0])
    try:
        return cls(**values, **given)
    except ValueError as error:
        raise EexError(f"policy {name}: {error}") from None


def split_option(pair: str) -> tuple[str, str]:
    """Name and value of "name=value".

    Raises
    ------
    EexError
        If there is no equals sign.
    """
    key, equals, value = pair.partition("=")
    if not equals or not key.strip():
        raise EexError(f"a policy option is written name=value, got '{pair}'")
    return key.strip(), value.strip()


def options_of(cls: type[Policy]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option a user can set."""
    hints = typing.get_type_hints(cls.__init__)
    parameters = inspect.signature(cls).parameters
    return {name: (hints[name], p.default) for name, p in parameters.items() if name not in GIVEN}


def list_policies() -> list[tuple[str, str, str]]:
    """Name, what it does in one line, and options with their defaults, of every policy."""
    rows = []
    for name in POLICIES:
        cls = policy_class(name)
        summary = (inspect.getdoc(cls) or "").splitlines()[0]
        defaults = {k: v for k, (_, v) in options_of(cls).items()}
        rows.append((name, summary, ", ".join(f"{k}={_shown(v)}" for k, v in defaults.items())))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(f"{v:g}" for v in value)
    return str(value)


def _parse(policy: str, key: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):  # "float | None": what is not None
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if typing.get_origin(kind) is Sequence:
            return [float(word) for word in text.replace(";", " ").split()]
    except (ValueError, KeyError):
        pass
    wanted = "numbers between spaces" if typing.get_origin(kind) is Sequence else getattr(kind, "__name__", str(kind))
    raise EexError(f"policy {policy}: option {key} must be {wanted}, got '{text}'")


def _close(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
