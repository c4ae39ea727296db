"""Keys lie in files that only their owner can read, and say who may come."""

import os

import pytest

from eex.policies.core.errors import EexError
from eex.stream.wire import keys
from eex.stream.wire.keys import edge_keys, make_keys, new_pair, worker_keys


def test_keys_lie_in_files_that_are_secret(tmp_path):
    folder = tmp_path / "keys"
    umask = os.umask(0)
    try:
        make_keys(folder)
        make_keys(folder, ("camera-2",))
    finally:
        os.umask(umask)
    assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == {
        f"{name}.{end}": mode
        for name in ("worker", "edge", "camera-2")
        for end, mode in (("key", 0o600), ("pub", 0o644))
    }
    known = worker_keys(folder).known
    assert known(edge_keys(folder).own.public) == "edge"
    assert known(edge_keys(folder, "camera-2").own.public) == "camera-2"
    assert known(worker_keys(folder).own.public) == ""
    assert known(new_pair().public) == ""
    (folder / "edge.pub").unlink()
    assert known(edge_keys(folder).own.public) == ""
    with pytest.raises(EexError, match="exists already"):
        make_keys(folder)
    (folder / "edge.key").chmod(0o640)
    with pytest.raises(EexError, match=r"others can read this secret key \(mode 640\); chmod 600"):
        edge_keys(folder)
    with pytest.raises(EexError, match="there is no such key; make keys with: eex-keys"):
        edge_keys(folder, "camera-3")
    (folder / "edge.key").write_text("not a key")
    (folder / "edge.key").chmod(0o600)
    with pytest.raises(EexError, match="not a key"):
        edge_keys(folder)
    with pytest.raises(EexError, match="a key's name"):
        make_keys(folder, ("../worker",))
    assert new_pair().secret.decode() not in repr(new_pair())


def test_where_keys_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("EEX_KEYS", str(tmp_path))
    assert keys.default_folder() == tmp_path
    monkeypatch.delenv("EEX_KEYS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.default_folder() == tmp_path / "eex" / "keys"
