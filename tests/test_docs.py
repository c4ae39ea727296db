"""Examples in docstrings run, in the very modules that are installed; commands on pages can be typed."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from eex.stream.main import _parse

PACKAGES = ("eex.policies", "eex.models", "eex.stream")
MODULES = [
    f"{package}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
]


def test_every_package_has_modules():
    assert {"eex.policies.ucb", "eex.models.network", "eex.stream.engine"} <= set(MODULES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0, "the captured output says which, and what was expected"


@pytest.mark.parametrize("name", ["eex.policies.ucb", "eex.policies.schedule", "eex.stream.tally"])
def test_examples_are_found(name):
    assert doctest.testmod(importlib.import_module(name)).attempted > 0


PAGE = (Path(__file__).parent.parent / "docs" / "choosing-the-overhead.md").read_text()
OVERHEADS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", OVERHEADS)
def test_commands_about_the_overhead_can_be_typed(line):
    command, *arguments = shlex.split(line)
    assert command == "eex-stream"
    _parse(arguments).stream.check()


def test_the_page_on_the_overhead_reckons_right():
    from eex.policies.price import parse_price

    price = {re.split(r"--overhead ", line)[1].split()[0]: None for line in OVERHEADS}
    price = {text: parse_price(text) for text in price}
    assert price["0.2/s"].of(round_trip_ms=100) == pytest.approx(0.02)
    assert price["2/MB"].of(bytes=5000) == pytest.approx(0.01)
    assert price["20/J@0.3W+20/J@0.1J/MB"].of(round_trip_ms=50, bytes=5000) == pytest.approx(0.31)
