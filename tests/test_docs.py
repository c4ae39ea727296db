"""Examples in docstrings run, in the very modules that are installed; what pages tell to type can be typed."""

import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import tyro
from generate import COMMANDS, api_pages, call_of, command_pages, parser_of, policy_pages

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.glob("*.md"))

PACKAGES = ("eex.policies", "eex.models", "eex.envs", "eex.stream", "eex.experiments")
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
]


def test_every_package_has_modules():
    assert {"eex.policies.algorithms.ucb", "eex.models.network", "eex.stream.engine"} <= set(MODULES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0, "the captured output says which, and what was expected"


@pytest.mark.parametrize(
    "name",
    [
        "eex.policies.algorithms.ucb",
        "eex.policies.core.schedule",
        "eex.stream.run.tally",
        "eex.envs.threshold",
        "eex.experiments.papers.claims",
    ],
)
def test_examples_are_found(name):
    assert doctest.testmod(importlib.import_module(name)).attempted > 0


# ---- what pages say


def commands(page):
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    return [shlex.join(words) for block in blocks for line in block.splitlines() if (words := shlex.split(line, True))]


TYPED = sorted({line for page in PAGES for line in commands(page)})
OVERHEADS = commands(DOCS / "choosing-the-overhead.md")
EARLIER_RUN = "runs/20261121-173855-ucb"


def test_commands_are_found():
    assert len(TYPED) > 60
    assert len(OVERHEADS) > 8


@pytest.mark.parametrize("line", TYPED)
def test_commands_on_pages_can_be_typed(line, tmp_path, monkeypatch):
    command, *arguments = shlex.split(line)
    if command == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert next(a for a in arguments if "=" not in a) in targets
    elif Path(command).name == "python":
        assert arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1])
    elif command != "pip":
        monkeypatch.chdir(tmp_path)
        parse(command, arguments)


def parse(command, arguments):
    """The options of a command as it parses them, checked as it checks them."""
    from eex.stream.config import StreamConfig, to_json

    earlier = Path(EARLIER_RUN)
    earlier.mkdir(parents=True)
    (earlier / "config.json").write_text(json.dumps(to_json(StreamConfig())))
    arguments = arguments[: arguments.index("|")] if "|" in arguments else arguments
    args, kwargs = call_of(command, *arguments)
    parsed = tyro.cli(*args, **kwargs | {"args": arguments})
    for options in (parsed, getattr(parsed, "stream", None), getattr(parsed, "measure", None)):
        if hasattr(options, "check"):
            options.check()
    return parsed


def test_a_command_that_does_not_exist_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse("eex-stream", ["--polic", "ucb"])
    assert "--polic" in capsys.readouterr().err
    with pytest.raises(KeyError):
        call_of("eex-strem")


@pytest.mark.parametrize(
    "distortion", sorted(set(re.findall(r'--distortion "([^"]+)"', "\n".join(p.read_text() for p in PAGES))))
)
def test_schedules_are_readable(distortion):
    from eex.policies.core.schedule import parse_schedule

    assert parse_schedule(distortion).length > 0


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def is_generated(target):
    """Whether `docs/generate.py` writes this page; the build, where warnings are errors, looks again."""
    from eex.policies.registry import OWN

    kind, _, name = target.removeprefix("reference/").rpartition("/")
    name = name.rpartition(".")[0]
    if kind == "":
        return (ROOT / f"{name.upper()}.md").exists()
    if kind == "api":
        return name == "index" or importlib.util.find_spec(name) is not None
    return name == "index" or name in {"commands": COMMANDS, "policies": OWN}[kind]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("reference/"):
            assert is_generated(path), target
            continue
        to = page.parent / path if path else page
        assert to.exists(), target
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.*)$", to.read_text(), re.M)}, target


def test_every_page_is_in_the_contents():
    contents = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    listed = {line for block in contents for line in block.splitlines()}
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


def test_the_reference_has_every_command_option_and_policy():
    from eex.policies.registry import OWN

    pages = dict(command_pages())
    assert set(pages) == {f"commands/{name}.rst" for name in [*COMMANDS, "index"]}
    assert ".. option:: --overhead FLOAT|STR\n\n   " in pages["commands/eex-stream.rst"]
    for name in COMMANDS:
        for action in parser_of(name)._actions:
            assert all(
                option in pages[f"commands/{name}.rst"] for option in action.option_strings[-1:] if option != "--help"
            )
    assert set(dict(policy_pages())) == {f"policies/{name}.rst" for name in [*OWN, "index"]}


def test_the_reference_has_every_name_that_users_import():
    import eex.policies

    page = dict(api_pages())["api/eex.policies.rst"]
    assert all(f"`{name} <eex." in page or f"``{name}``" in page for name in eex.policies.__all__)


def test_the_page_on_the_overhead_reckons_right():
    from eex.policies.core.price import parse_price

    price = {re.split(r"--overhead ", line)[1].split()[0]: None for line in OVERHEADS}
    price = {text: parse_price(text) for text in price}
    assert price["0.2/s"].of(round_trip_ms=100) == pytest.approx(0.02)
    assert price["2/MB"].of(bytes=5000) == pytest.approx(0.01)
    assert price["20/J@0.3W+20/J@0.1J/MB"].of(round_trip_ms=50, bytes=5000) == pytest.approx(0.31)


def test_the_page_on_sending_knows_the_links_and_the_encodings():
    from eex.policies.core.link import PRESETS, parse_link
    from eex.stream.wire.encoding import ENCODINGS

    page = (DOCS / "sending.md").read_text()
    for name in PRESETS:
        piece = parse_link(name).pieces[0]
        assert f"| `{name}` | {piece.round_trip_ms:g} ms | {piece.mbit:g} Mbit/s |" in page
    assert all(f"| `{encoding}` |" in page for encoding in ENCODINGS)
