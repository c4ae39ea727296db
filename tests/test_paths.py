"""Wherever a public call takes the path of a file or folder, text will do."""

import importlib
import inspect
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from eex.models import load, read_card, save
from eex.models.onnx import load_onnx
from eex.policies import read_trace, write_trace
from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace
from eex.stream import LiveConfig, Session, StreamConfig, open_source, read_records
from eex.stream.wire.keys import edge_keys, make_keys

FACES = ("eex.policies", "eex.models", "eex.envs", "eex.stream", "eex.stream.run")
SHIPPED = Path(importlib.import_module("eex.models").__path__[0]) / "shipped"


def _public():
    """Every function and class that a room's face shows, by its full name."""
    for room in FACES:
        face = importlib.import_module(room)
        for name in face.__all__:
            if callable(shown := getattr(face, name)):
                yield pytest.param(shown, id=f"{room}.{name}")


def _hints(call):
    """The parameters of a call that are paths, each with what it may be."""
    function = call.__init__ if inspect.isclass(call) else call
    try:
        hints = typing.get_type_hints(function)
    except (AttributeError, NameError, TypeError):  # names for type checkers alone
        hints = getattr(function, "__annotations__", {})
    return {k: str(v) for k, v in hints.items() if k != "return" and ("Path" in str(v))}


@pytest.mark.parametrize("call", list(_public()))
def test_paths_may_be_text(call):
    if is_dataclass(call):
        named = {f.name for f in fields(call) if f.type in (Path, Path | None)}
        rest = {f.name: "x" for f in fields(call) if f.type is str and f.name not in named}
        if named:
            made = call(**rest | dict.fromkeys(named, "a/folder"))
            assert {getattr(made, name) for name in named} == {Path("a/folder")}
        return
    for name, kind in _hints(call).items():
        assert "str" in kind, f"{name} of {call.__qualname__} takes a Path and no text"


def test_options_take_paths_for_text():
    config = StreamConfig(source=Path("photos"), out="elsewhere", keys="keys", answer_with=Path("model"))
    assert (config.source, config.out, config.keys) == ("photos", Path("elsewhere"), Path("keys"))
    assert config.answer_with == "model"


def test_a_session_of_folders_and_files_as_text(tmp_path):
    frame = np.zeros((32, 32, 3), dtype=np.uint8)
    folders = {"model": str(SHIPPED), "records": str(tmp_path / "records"), "state": str(tmp_path / "state.npz")}
    with Session(worker="none", **folders) as session:
        assert session.answer(frame).label
    assert len(read_records(folders["records"])) == 1
    assert (tmp_path / "state.npz").exists()
    assert LiveConfig(**folders) == LiveConfig(**{name: Path(path) for name, path in folders.items()})


def test_models(tmp_path):
    net = load(str(SHIPPED))
    save(net, str(tmp_path / "copy"))
    assert read_card(str(tmp_path / "copy")).sha256 == read_card(tmp_path / "copy").sha256
    with pytest.raises(Exception, match="eex-export"):
        load_onnx(str(tmp_path / "copy"))


def test_traces(tmp_path):
    half = np.full((4, 2), 0.5)
    trace = Trace(half, half.astype(int), np.zeros(4, int), ("a", "b"), np.full(4, "pristine"), np.zeros(4))
    write_trace(str(tmp_path / "trace.arrow"), trace)
    assert len(read_trace(str(tmp_path / "trace.arrow"))) == 4


def test_sources_and_keys(tmp_path):
    with pytest.raises(EexError, match="no such source"):
        open_source(tmp_path / "nothing")
    make_keys(str(tmp_path / "keys"))
    assert edge_keys(str(tmp_path / "keys")).own.public == edge_keys(tmp_path / "keys").own.public
