"""The face of the room: every name it lists is there, and no module hides one."""

import importlib
import pkgutil

import pytest

import eex.models


@pytest.mark.parametrize("name", eex.models.__all__)
def test_names_are_what_their_modules_hold(name):
    found = getattr(eex.models, name)
    assert getattr(importlib.import_module(found.__module__), name) is found
    assert name in dir(eex.models)


def test_no_module_has_the_name_of_something_listed():
    modules = {module.name for module in pkgutil.iter_modules(eex.models.__path__)}
    assert not modules & set(eex.models.__all__)  # once imported it would stand in its place
    assert set(eex.models.__all__) == set(eex.models._MODULES)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = eex.models.nothing
