"""Examples in docstrings run, in the very modules that are installed; commands on pages can be typed."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import tyro

from eex.stream.commands import partition
from eex.stream.commands.stream import _parse

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


@pytest.mark.parametrize("name", ["eex.policies.algorithms.ucb", "eex.policies.core.schedule", "eex.stream.run.tally"])
def test_examples_are_found(name):
    assert doctest.testmod(importlib.import_module(name)).attempted > 0


DOCS = Path(__file__).parent.parent / "docs"


def commands(page):
    """The lines of a page's shell blocks."""
    return [
        line for block in re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.S) for line in block.splitlines()
    ]


OVERHEADS = commands("choosing-the-overhead.md")


@pytest.mark.parametrize("line", OVERHEADS + commands("sending.md"))
def test_commands_on_pages_can_be_typed(line):
    command, *arguments = shlex.split(line)
    assert command in ("eex-stream", "eex-partition")
    parsed = _parse(arguments).stream if command == "eex-stream" else tyro.cli(partition.Command, args=arguments)
    parsed.check()


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
