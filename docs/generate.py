"""Writes the reference from the code: every command with its options, every policy, every module; and the root's pages.

    python docs/generate.py docs/reference

The options come from the parsers that the commands themselves build, the policies from the registry, so neither can
lag behind the code.
"""

import importlib
import inspect
import os
import pkgutil
import re
import signal
import sys
import tomllib
import warnings
from argparse import Action, ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS: dict[str, str] = PROJECT["project"]["scripts"]
"""Names of the commands, and where each one's function is: "module:function"."""

UNLISTED = ("eex.stream.commands", "eex.models.shipped", "eex.policies.shipped", "eex.stream.shipped")
"""Packages without a page of their own: the commands have theirs, the others hold data."""


def write(folder: Path) -> None:
    """Write the generated pages into a folder and delete others there; pages that did not change stay as they are."""
    fragments = [("columns.inc", columns_table())]
    pages = dict((*command_pages(), *policy_pages(), *api_pages(), *project_pages(), *fragments))
    for path in folder.rglob("*.*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads again what is newer
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


# ---- commands


class _Called(BaseException):
    """A command came to parse its options; not an `Exception`, which a command might handle."""


def call_of(command: str, *arguments: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which a command calls `tyro.cli`; the command goes no further.

    Parameters
    ----------
    command
        One of `COMMANDS`.
    arguments
        What is typed after its name; some commands read --config and the like before they parse.
    """
    module, _, function = COMMANDS[command].partition(":")
    run = getattr(importlib.import_module(module), function)
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.object(tyro, "cli", side_effect=_Called) as cli,
            mock.patch.object(sys, "argv", [command, *arguments]),
            mock.patch.dict(os.environ),
        ):
            try:
                run()
            except _Called:
                return cli.call_args.args, cli.call_args.kwargs
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    raise RuntimeError(f"{command} did not call tyro.cli")


def parser_of(command: str) -> ArgumentParser:
    """The parser of a command's options."""
    args, kwargs = call_of(command)
    kwargs.pop("args", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pinned tyro has it; there is no successor yet
        return tyro.extras.get_parser(*args, **kwargs)


def command_pages() -> Iterator[tuple[str, str]]:
    """Name and text of a page for each command, and of their index."""
    rows = []
    for command in sorted(COMMANDS):
        parser = parser_of(command)
        description = _prose((parser.description or "").strip())
        rows.append((f":doc:`{command} </reference/commands/{command}>`", description.partition("\n")[0]))
        yield f"commands/{command}.rst", _command_page(command, description, parser)
    yield (
        "commands/index.rst",
        _title("Commands")
        + "Every command prints its options with ``--help``. What goes wrong for a user is one line, and the exit "
        "status is 2; after Ctrl-C it is 130.\n\n"
        + _table(("command", "what it does"), rows)
        + _toctree(sorted(COMMANDS)),
    )


def _command_page(command: str, description: str, parser: ArgumentParser) -> str:
    groups = [(group.title or "", [a for a in group._group_actions if a.dest != "help"]) for group in _groups(parser)]
    groups = [(title, actions) for title, actions in groups if actions]
    positional = [_metavar(a) for _, actions in groups for a in actions if not a.option_strings]
    usage = " ".join([command, *positional, "[OPTIONS]"])
    page = _title(command) + f"{description}\n\n.. code-block:: text\n\n   {usage}\n\n.. program:: {command}\n\n"
    several = len([1 for title, _ in groups if "options" in title]) > 1
    for title, actions in groups:
        name = {"options": "Further options" if several else "Options"}.get(title, title.capitalize())
        page += _title(name, "-") + "".join(map(_option, actions))
    return page


def _groups(parser: ArgumentParser) -> list[Any]:
    """The groups of options, those of the command itself last."""
    return sorted(parser._action_groups, key=lambda group: group.title == "options")


def _option(action: Action) -> str:
    """An option's names and what it does; tyro puts the default in brackets at the end of the help text."""
    text, default = action.help or "", ""
    if found := re.search(r"\s*\((?:default: (.*)|required|repeatable)\)$", text, re.S):
        text, default = text[: found.start()], (found[1] or "").strip("'\"")
    text = _prose(text)
    if found and "(required)" in found[0]:
        text += " Required."
    elif default == "True":
        text += " On by default; this turns it off."
    elif default not in ("", "None", "False"):
        text += f" Default: ``{default}``."
    names = [f"{name} {_metavar(action)}".rstrip() for name in action.option_strings] or [_metavar(action)]
    return f".. option:: {', '.join(names)}\n\n{_indent(text)}\n\n"


def _metavar(action: Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    shown = (action.metavar or "").replace("{None}|", "")
    return re.sub(r"\[*([^\[\]]+) \[\1 \.\.\.\]\]*", r"\1 …", shown)


# ---- policies


def policy_pages() -> Iterator[tuple[str, str]]:
    """Name and text of a page for each policy and wrapper, and of their index."""
    from eex.policies.registry import OWN, RECOMMENDED, is_wrapper, list_policies, options_of, policy_class

    summaries = {name.removesuffix("@…"): summary for name, summary, _ in list_policies()}
    rows = []
    for name in OWN:
        cls = policy_class(name)
        typed = f"{name}@{RECOMMENDED}" if is_wrapper(cls) else name
        options = [(f"``{key}``", f"``{_shown(default)}``") for key, (_, default) in options_of(cls).items()]
        table = _table(("option", "default"), options) if options else "It has no options.\n\n"
        rows.append((f":doc:`{name} </reference/policies/{name}>`", _prose(summaries[name])))
        yield (
            f"policies/{name}.rst",
            _title(name)
            + f".. code-block:: sh\n\n   eex-stream --policy {typed}\n\n{table}"
            + f".. autoclass:: {cls.__module__}.{cls.__qualname__}\n   :no-index:\n   :no-members:\n\n",
        )
    yield (
        "policies/index.rst",
        _title("Policies")
        + "All policies that ``--policy``, ``--compare`` and ``eex-regret --policies`` know by name, as "
        "``eex-stream --list-policies`` prints them. Options follow the name after colons, ``ucb:c=0.5``; a wrapper "
        "stands before the policy that it wraps, ``drift@ucb``. How to write your own: "
        ":doc:`/own-policy`; how they compare: :doc:`/comparing-policies`.\n\n"
        + _table(("policy", "what it does"), rows)
        + "Besides these, ``river.bandit.NAME`` plays any bandit of `river <https://riverml.xyz>`_ over the same "
        "thresholds (:py:class:`~eex.policies.algorithms.river_bandit.RiverBandit`), for example "
        "``river.bandit.UCB:delta=1``.\n\n" + _toctree(OWN),
    )


def _shown(value: Any) -> str:
    from eex.policies.registry import _shown as shown

    return shown(value) or '""'


# ---- columns of the records


def columns_table() -> str:
    """A table in Markdown of the columns that records have, from the schema of a frame."""
    from eex.policies.core.columns import COLUMNS
    from eex.stream.run.records import recorded_names

    lines = ["| column | unit | what it holds |", "|---|---|---|"]
    for column in COLUMNS:
        names = recorded_names(column, exits=2)
        shown = names if column.width == "kinds" else names[:1]
        if shown:
            lines.append(f"| {', '.join(f'`{name}`' for name in shown)} | {column.unit} | {column.doc} |")
        if column.name == "answer":
            lines.append("| `correct` | | Whether the answer is the true class; missing where either is. |")
    return "\n".join(lines) + "\n"


# ---- modules


def api_pages() -> Iterator[tuple[str, str]]:
    """Name and text of a page for each module that is installed, of each package, and of their index."""
    packages = [name for name in PROJECT["tool"]["setuptools"]["packages"] if name not in UNLISTED]
    tops = []
    for package in packages:
        inside = [f"{package}.{m.name}" for m in _modules(package) if not m.ispkg]
        below = [other for other in packages if other.rpartition(".")[0] == package]
        rows = [(f":doc:`{name} </reference/api/{name}>`", _summary(name)) for name in [*below, *inside]]
        yield (
            f"api/{package}.rst",
            _title(package)
            + f".. automodule:: {package}\n   :no-members:\n\n"
            + _face(package)
            + _table(("module", "what it holds"), rows)
            + _toctree([f"{name.removeprefix(package + '.')} <{name}>" for name in [*below, *inside]]),
        )
        for name in inside:
            yield f"api/{name}.rst", _title(name) + f".. automodule:: {name}\n"
        if package.count(".") == 1:
            tops.append(package)
    yield (
        "api/index.rst",
        _title("API reference")
        + "The packages, made from the docstrings. What users need most is in :doc:`/python`.\n\n"
        + _table(("package", "what it holds"), [(f":doc:`{n} </reference/api/{n}>`", _summary(n)) for n in tops])
        + _toctree(tops),
    )


def _face(package: str) -> str:
    """The names that users import from a package, where it has such."""
    module = importlib.import_module(package)
    rows = []
    for name in getattr(module, "__all__", ()):
        one = getattr(module, name)
        if inspect.isclass(one) or inspect.isfunction(one):
            what = (inspect.getdoc(one) or "").partition("\n")[0]
            target = f":py:obj:`{name} <{one.__module__}.{one.__qualname__}>`"
            rows.append((f"``{name}``" if one.__module__ == package else target, what))
        else:
            rows.append((f"``{name}``", "A constant."))
    return f"From here users import:\n\n{_table(('name', 'what it is'), rows)}" if rows else ""


def _modules(package: str) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(importlib.import_module(package).__path__))


def _summary(module: str) -> str:
    return (importlib.import_module(module).__doc__ or "").strip().partition("\n")[0]


# ---- pages that stand at the root of the repository


def project_pages() -> Iterator[tuple[str, str]]:
    """Name and text of those pages, with links that hold in the site; links to other files become their text."""
    names = {f"{name}.md": f"{name.lower()}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY")}

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target.startswith(("http", "#")):
            return found[0]
        if target.startswith("docs/"):
            return f"[{text}](../{target.removeprefix('docs/')})"
        return f"[{text}]({names[target]})" if target in names else text

    for source, name in names.items():
        yield name, re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, (ROOT / source).read_text(encoding="utf-8"))


# ---- reStructuredText


def _title(text: str, under: str = "=") -> str:
    return f"{text}\n{under * (len(text) + 2)}\n\n"


def _indent(text: str) -> str:
    return "\n".join(f"   {line}".rstrip() for line in text.splitlines())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", "   :width: 100%", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if k == 0 else '  -'} {cell}" for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n\n"


def _toctree(names: Any) -> str:
    return ".. toctree::\n   :hidden:\n   :maxdepth: 1\n\n" + "".join(f"   {name}\n" for name in names)


def _prose(text: str) -> str:
    """A help text as reStructuredText: options as code, everything else as it stands."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--?[a-z][a-z-]*(?![\w-]))", text)
    return "".join(
        f"``{part.strip('`')}``" if k % 2 else re.sub(r"([\\*_|`])", r"\\\1", part) for k, part in enumerate(parts)
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
