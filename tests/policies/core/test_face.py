"""The faces of the rooms: each name is there, and typed as it is loaded."""

import importlib

import pytest


@pytest.mark.parametrize("room", ["eex.policies", "eex.envs", "eex.models", "eex.stream"])
def test_the_face_shows_what_it_names(room):
    face = importlib.import_module(room)
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None
        assert name in dir(face)
    with pytest.raises(AttributeError, match=rf"module '{room}' has no attribute 'nothing'"):
        face.nothing  # noqa: B018


def test_a_module_that_was_moved_is_there_by_its_old_name_too():
    import eex.models
    from eex.models.cut import cut

    assert cut is eex.models.cut
    assert callable(cut)
