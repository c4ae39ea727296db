"""Keys lie in files that only their owner can read, and say who may come."""

import errno
import os

import pytest

from eex.policies.core.errors import EexError
from eex.stream.wire import keys
from eex.stream.wire.keys import KeyFolder, edge_keys, make_keys, new_pair, worker_keys


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
    (folder / "edge.key").write_text("#" * 40)  # more than 32 bytes hold
    with pytest.raises(EexError, match="not a key, expected 40 characters of Z85 that stand for 32 bytes"):
        edge_keys(folder)
    (folder / "worker.key").write_text("%nSc1" * 8)
    with pytest.raises(EexError, match="not a key"):
        worker_keys(folder)
    with pytest.raises(EexError, match="a key's name"):
        make_keys(folder, ("../worker",))
    assert new_pair().secret.decode() not in repr(new_pair())


@pytest.mark.parametrize("half", ["edge.key", "edge.pub"])
def test_a_pair_of_which_half_is_there_is_not_made(tmp_path, half):
    make_keys(tmp_path, ("edge",))
    for path in list(tmp_path.iterdir()):
        if path.name != half:
            path.unlink()
    before = (tmp_path / half).read_bytes()
    with pytest.raises(EexError, match=f"{half}: exists already"):
        make_keys(tmp_path, ("camera", "edge"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(half, before)]
    with pytest.raises(EexError, match="'camera' is named twice"):
        make_keys(tmp_path, ("camera", "camera"))
    with pytest.raises(EexError, match="'a b': a key's name is at most 64 letters"):
        make_keys(tmp_path, ("camera", "a b"))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pair_of_which_half_cannot_be_written_is_not_made(tmp_path, monkeypatch):
    chmod = os.fchmod

    def full(descriptor, mode):
        if mode == 0o644:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        chmod(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(EexError, match="cannot be written: No space left on device"):
        make_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_keys_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("EEX_KEYS", str(tmp_path))
    assert keys.default_folder() == tmp_path
    monkeypatch.delenv("EEX_KEYS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.default_folder() == tmp_path / "eex" / "keys"


# ---- clients' keys in a folder


@pytest.fixture
def folder(tmp_path):
    make_keys(tmp_path, ("door", "gate"))
    return tmp_path


def public(folder, name):
    return (folder / f"{name}.pub").read_bytes().strip()


def test_keys_come_and_go(folder):
    keys = KeyFolder(folder)
    assert keys.known(public(folder, "door")) == "door"
    assert keys.known(b"0" * 40) == ""
    other = new_pair().public
    (folder / "late.pub").write_bytes(other + b"\n")
    keys.refresh()
    assert keys.known(other) == "late"
    gone = public(folder, "door")
    (folder / "door.pub").unlink()
    keys.refresh()
    assert keys.known(gone) == ""
    assert keys.known(public(folder, "gate")) == "gate"


def test_what_is_no_key_is_named_once_and_waited_for_never(folder):
    os.mkfifo(folder / "a.pub")
    (folder / "folder.pub").mkdir()
    (folder / "long.pub").write_bytes(b"x" * 5000)
    (folder / "short.pub").write_bytes(b"no key")
    (folder / "undecodable.pub").write_bytes(b"#" * 40)
    (folder / "dangling.pub").symlink_to(folder / "nothing")
    with open(os.fsencode(folder) + b"/\xff\xfe.pub", "wb") as file:
        file.write(new_pair().public)
    lines: list[str] = []
    keys = KeyFolder(folder, lines.append)
    keys.refresh()
    assert len(lines) == 7
    assert all("not used as a client's key" in line and line.isascii() for line in lines)
    assert sorted(name for name in ("door", "gate") if keys.known(public(folder, name)) == name) == ["door", "gate"]
    assert len(keys) == 2


def test_without_a_free_descriptor_what_was_known_still_is(folder, monkeypatch):
    keys = KeyFolder(folder)
    door = public(folder, "door")

    def none_left(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "scandir", none_left)
    keys.refresh()
    assert keys.known(door) == "door"


@pytest.mark.parametrize("changed", [1, 4_000_000_000])  # also where the clock was put back since
def test_looking_up_reads_no_file(folder, monkeypatch, changed):
    os.utime(folder, (changed, changed))
    keys = KeyFolder(folder)
    door = public(folder, "door")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("the folder was read"))
    assert keys.known(door) == "door"
    assert keys.known(b"0" * 40) == ""
