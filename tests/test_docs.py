"""Examples in docstrings run, in the very modules that are installed."""

import doctest
import importlib
import pkgutil

import pytest

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
