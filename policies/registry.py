"""Policies by name, and how they are made from text: eex's, the user's own, wrappers, river's, plug-ins."""

import contextlib
import functools
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError

POLICIES: dict[str, str] = {
    "fixed": "eex.policies.algorithms.fixed:Fixed",
    "deex": "eex.policies.algorithms.deex:DEEx",
    "deex-ucb": "eex.policies.algorithms.deex_ucb:DEExUCB",
    "random": "eex.policies.algorithms.random_arm:Random",
    "ucb": "eex.policies.algorithms.ucb:UCB",
    "ucb-v": "eex.policies.algorithms.ucb_v:UCBV",
    "ucb-tuned": "eex.policies.algorithms.ucb_tuned:UCBTuned",
    "bayes-ucb": "eex.policies.algorithms.bayes_ucb:BayesUCB",
    "kl-ucb": "eex.policies.algorithms.kl_ucb:KLUCB",
    "thompson": "eex.policies.algorithms.thompson:Thompson",
    "epsilon-greedy": "eex.policies.algorithms.epsilon_greedy:EpsilonGreedy",
    "exp3": "eex.policies.algorithms.exp3:EXP3",
    "sw-ucb": "eex.policies.algorithms.sw_ucb:SlidingWindowUCB",
    "d-ucb": "eex.policies.algorithms.d_ucb:DiscountedUCB",
    "gain-curve": "eex.policies.algorithms.gain_curve:GainCurve",
    "stop-curve": "eex.policies.algorithms.stop_curve:StopCurve",
    "hi-lcb": "eex.policies.algorithms.hi_lcb:HILCB",
    "hedge-hi": "eex.policies.algorithms.hedge_hi:HedgeHI",
    "splitee-s": "eex.policies.algorithms.splitee_s:SplitEES",
    "ucb-bwk": "eex.policies.algorithms.ucb_bwk:UCBBwK",
    "h2t2": "eex.policies.algorithms.h2t2:H2T2",
    "policy-gradient": "eex.policies.algorithms.policy_gradient:PolicyGradient",
    "eenet": "eex.policies.algorithms.eenet:EENet",
    "linucb": "eex.policies.algorithms.linucb:LinUCB",
    "rl": "eex.policies.algorithms.rl:RL",
}
"""Policies by name: where each one's class is, imported when it is asked for."""

WRAPPERS: dict[str, str] = {
    "drift": "eex.policies.wrappers.drift:Drift",
    "safe": "eex.policies.wrappers.safe:Safe",
    "aim": "eex.policies.wrappers.aim:Aims",
    "by-expert": "eex.policies.wrappers.by_expert:ByExpert",
}
"""Wrappers, written before another policy and an @: their first parameter is a `Policy`."""

OWN = ChainMap(WRAPPERS, POLICIES)
RECOMMENDED = "stop-curve"
GROUP = "eex.policies"
"""Entry points of this group are policies of other packages."""

RIVER = "river.bandit."
"""Names that start like this are policies of river.bandit, over the grid."""


LISTS = (Sequence, list, tuple)
"""Types of options that hold several values."""
UNIONS = (types.UnionType, typing.Union)
GIVEN = ("self", "exits", "runs", "seed")  # by whoever plays the policy, not by options


def policy_class(name: str) -> type[Policy]:
    """The class of a policy or wrapper by name, plug-ins included, or by "module:Class".

    Raises
    ------
    EexError
        If no policy has this name, or a plug-in cannot be imported or is not a policy.
    """
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        found: type[Policy] = getattr(importlib.import_module(module), attribute)
        return found
    plugins = _plugins()
    if name not in plugins and ":" not in name:
        raise EexError(f"unknown policy '{name}'{_close(name, OWN | plugins)}; eex-stream --list-policies shows all")
    return _plugin_class(plugins.get(name, name))


def make_policy(name: str, options: Mapping[str, Any] | None = None, **given: Any) -> Policy:
    """A policy by name.

    Parameters
    ----------
    name
        A name in `POLICIES`, with options after it if wanted: "ucb", "fixed:p_tar=0.9", "ucb:c=0.5:grid=0.5 0.7 0.9".
        A wrapper stands before its policy: "drift:detector=kswin@ucb:c=0.5", "drift@safe:bound=0.05@ucb". A policy of
        river's goes by its class: "river.bandit.UCB:delta=1"; one of the user's own by its module and class:
        "my_module:MyPolicy:option=1".
    options
        Further options, of the outermost wrapper if there is one, as text or as they are; in text, the values of a
        list are separated by commas, semicolons or spaces.
    given
        `exits`, `runs` and `seed`.

    Raises
    ------
    EexError
        If the policy or an option is unknown, or a value does not fit.
    """
    if unknown := sorted(set(given) - set(GIVEN)):
        raise EexError(
            f"a policy is given exits, runs and seed, not '{unknown[0]}'; options of its own go into a mapping"
        )
    text, at, within = name.partition("@")
    name, inline = _split_name(text)
    texts = dict(split_option(pair) for pair in inline.split(":") if pair)
    texts |= {key: _text(value) for key, value in (options or {}).items()}
    if name.startswith(RIVER):
        if at:
            raise EexError(f"policy {name} is not a wrapper; remove what follows the @")
        return _make_river(name, name.removeprefix(RIVER), texts, given)
    cls = policy_class(name)
    if not issubclass(cls, Policy):
        return _make_river(name, cls, texts, given)
    wraps = is_wrapper(cls)
    if wraps and not within:
        raise EexError(f"{name} wraps another policy: write {name}@{RECOMMENDED}, say")
    if at and not wraps:
        raise EexError(f"policy {name} is not a wrapper; remove what follows the @")
    known = options_of(cls)
    values: dict[str, Any] = {}
    for key, value in texts.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise EexError(f"policy {name} has no option '{key}'{_close(key, known)}; its options: {listed}")
        values[key] = _parse(name, key, value, known[key][0])
    if missing := [
        key for key, (_, default) in known.items() if default is inspect.Parameter.empty and key not in values
    ]:
        raise EexError(f"policy {name} needs the option '{missing[0]}': {name}:{missing[0]}=…")
    make: Callable[..., Policy] = cls
    if wraps:
        make = functools.partial(cls, make_policy(within, **given))  # type: ignore[arg-type]
        given = {k: v for k, v in given.items() if k in _parameters(cls)}
    try:
        return make(**values, **given)
    except ValueError as error:
        raise EexError(f"policy {name}: {error}") from None
    except TypeError as error:
        if name in OWN:
            raise
        raise EexError(f"policy {name} cannot be made with exits, runs and seed: {error}") from None


def split_policies(text: str) -> list[str]:
    """The policies of a comma-separated list, whose options may hold comma-separated numbers themselves.

    >>> split_policies("ucb:grid=0.5,0.9, fixed:p_tar=0.8")
    ['ucb:grid=0.5,0.9', 'fixed:p_tar=0.8']
    """
    found: list[str] = []
    for piece in filter(None, map(str.strip, text.split(","))):
        if found and "=" in found[-1] and re.match(r"[+-]?[\d.]", piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def is_wrapper(cls: type[Policy]) -> bool:
    """Whether a policy's first parameter is another policy."""
    return next(iter(_parameters(cls).values()), None) is Policy


def split_option(pair: str, what: str = "a policy option") -> tuple[str, str]:
    """Name and value of "name=value", the form in which `what` is written.

    Raises
    ------
    EexError
        If there is no equals sign.
    """
    key, equals, value = pair.partition("=")
    if not equals or not key.strip():
        raise EexError(f"{what} is written name=value, got '{pair}'")
    return key.strip(), value.strip()


def options_of(cls: type[Policy]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option a user can set."""
    kinds = _parameters(cls)
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    return {n: (kind, defaults[n]) for n, kind in kinds.items() if n not in GIVEN and kind is not Policy}


def _parameters(cls: type[Policy]) -> dict[str, Any]:
    """Types of the parameters of a class; text where none is given."""
    hints = typing.get_type_hints(cls.__init__)
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: hints.get(p.name, str) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def playable() -> list[str]:
    """Names of all policies but wrappers: eex's own, and plug-ins', by "module:Class" if eex has the name."""
    return [*POLICIES, *sorted(where if name in OWN else name for name, where in _plugins().items())]


def list_policies() -> list[tuple[str, str, str]]:
    """Name, one-line description, and options with defaults of every policy, wrapper and plug-in."""
    rows = [_row(name, policy_class(name)) for name in OWN]
    for name, where in sorted(_plugins().items()):
        if name in OWN:
            rows.append((where, f"A plug-in by the name of eex's own {name}; write {where}.", ""))
            continue
        try:
            rows.append(_row(name, policy_class(name)))
        except EexError as error:
            rows.append((name, str(error), ""))
    return [*rows, (RIVER + "…", "Any policy of river.bandit over the grid: UCB, EpsilonGreedy, …", "grid, its own")]


def _row(name: str, cls: type[Policy]) -> tuple[str, str, str]:
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    summary = re.sub(r"(?::[\w:]+:)?`+([^`]*)`+", r"\1", summary).replace("\\", "")  # without the site's markup
    if name == RECOMMENDED and "recommended" not in summary:
        summary += " (recommended)"
    defaults = ", ".join(f"{k}={_shown(v)}" for k, (_, v) in options_of(cls).items())
    return name + "@…" if is_wrapper(cls) else name, summary, defaults


# ---- river's, and other packages'


def _make_river(name: str, kind: str | type, texts: Mapping[str, str], given: Mapping[str, Any]) -> Policy:
    from eex.policies.algorithms.river_bandit import RiverBandit, river_class

    cls = river_class(kind) if isinstance(kind, str) else kind
    parameters = inspect.signature(cls).parameters
    known = ["grid", *(p for p in parameters if p not in ("seed", "reward_scaler"))]
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            close = _close(key, dict.fromkeys(known))
            raise EexError(f"policy {name} has no option '{key}'{close}; its options: {', '.join(known)}")
        if key == "reward_obj":
            values[key] = text
        elif key != "grid":
            values[key] = _parse(name, key, text, int if key == "burn_in" else float)
    grid = {"grid": _parse(name, "grid", texts["grid"], Sequence[float])} if "grid" in texts else {}
    try:
        return RiverBandit(kind, values, **grid, **given)
    except ValueError as error:
        raise EexError(f"policy {name}: {error}") from None


def _plugins() -> dict[str, str]:
    """Names and places ("module:Class") of the policies that other packages bring."""
    from importlib.metadata import entry_points  # takes as long as all of this room

    return {point.name: point.value for point in entry_points(group=GROUP)}


def _plugin_class(where: str) -> type[Policy]:
    module, _, attribute = where.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # commands do not look there by themselves
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever a stranger's module may raise
        reason = (str(error).splitlines() or [""])[0]
        raise EexError(f"plug-in {where} cannot be imported: {type(error).__name__}: {reason}") from None
    if inspect.isclass(found) and any(c.__module__ == "river.bandit.base" for c in found.__mro__):
        return found  # a policy as river has them
    if not (inspect.isclass(found) and issubclass(found, Policy)):
        raise EexError(f"plug-in {where} is not a subclass of eex.policies.core.base.Policy, nor of river.bandit's")
    try:
        options_of(found)
    except (NameError, TypeError, ValueError) as error:
        raise EexError(f"plug-in {where}: the types of its options cannot be read: {error}") from None
    return found


def _split_name(text: str) -> tuple[str, str]:
    """Name and options of "name:option=value:…", where the name may be "module:Class"."""
    name, _, rest = text.partition(":")
    word, _, more = rest.partition(":")
    if word and "=" not in word and not name.startswith(RIVER) and name not in OWN | _plugins():
        return f"{name}:{word}", more
    return name, rest


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            return " ".join(map(str, value))
        if len(value) > 3:
            step = (value[-1] - value[0]) / (len(value) - 1)
            if all(abs(v - value[0] - k * step) < 1e-9 for k, v in enumerate(value)):
                return f"{value[0]:g} {value[1]:g} … {value[-1]:g}"
        return " ".join(f"{v:g}" for v in value)
    return "…" if value is inspect.Parameter.empty else str(value)


def _text(value: Any) -> str:
    """An option's value as text; of several, with spaces between them."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple | np.ndarray) else str(value)


def _parse(policy: str, key: str, text: str, kind: Any) -> Any:
    try:
        return _value(text, kind)
    except ValueError:
        raise EexError(f"policy {policy}: option {key} must be {_wanted(kind)}, got '{text}'") from None


def _value(text: str, kind: Any) -> Any:
    """A text as a value of a type; of a union, as the first of its types that can hold it.

    Raises
    ------
    ValueError
        If it is not a value of the type.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        truth = {"true": True, "false": False, "1": True, "0": False}
        if text.lower() not in truth:
            raise ValueError(text)
        return truth[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    if origin in UNIONS or origin is typing.Literal:
        for part in parts:
            with contextlib.suppress(ValueError):
                if origin in UNIONS and part is not types.NoneType:
                    return _value(text, part)
                if origin is typing.Literal and _value(text, type(part)) == part:
                    return part
    elif origin in LISTS:
        words = text.replace(";", " ").replace(",", " ").split()
        if origin is tuple and parts[-1] is not Ellipsis:
            return tuple(_value(word, part) for word, part in zip(words, parts, strict=True))
        return (tuple if origin is tuple else list)(_value(word, parts[0]) for word in words)
    raise ValueError(text)


def _wanted(kind: Any) -> str:
    """The values of a type, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        return "a whole number" if kind is int else "a number"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text"
    if origin in UNIONS:
        return " or ".join(_wanted(part) for part in parts if part is not types.NoneType)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"{len(parts)} comma-separated values: {', '.join(map(_wanted, parts))}"
    if origin in LISTS:
        several = {int: "whole numbers such as 1,2", float: "numbers such as 0.5,0.7", str: "words such as a,b"}
        return several.get(parts[0], f"comma-separated values, each {_wanted(parts[0])}")
    return f"a {getattr(kind, '__name__', kind)}, which cannot be written as an option"


def _close(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
