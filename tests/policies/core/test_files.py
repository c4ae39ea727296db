import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from eex.policies.core import files
from eex.policies.core.errors import EexError
from eex.policies.core.files import MOST_LEVELS, alone_in, alone_with, parse_json, replacing, write_file

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("content", "read"), [("naïve\n", "naïve\n"), (b"\x00\xff", None)], ids=["text", "bytes"])
def test_writes_what_was_given_and_makes_the_folder(tmp_path, content, read):
    path = tmp_path / "new" / "file"
    write_file(path, content)
    assert (path.read_text("utf-8") if read else path.read_bytes()) == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_replaces_only_at_the_end(tmp_path, durable):
    path = tmp_path / "file"
    write_file(path, "old")
    with replacing(path, durable) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


FAILURES = {"ctrl-c": KeyboardInterrupt(), "bug": RuntimeError("a bug"), "disk full": FULL}


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_a_failure_leaves_what_was_there(tmp_path, error):
    one, two = tmp_path / "one", tmp_path / "two"
    write_file(one, "old")

    def write():
        with replacing(one) as a, replacing(two) as b:
            a.write_text("new")
            b.write_text("n")
            raise error

    with pytest.raises(EexError if error is FULL else type(error)) as caught:
        write()
    if error is FULL:
        assert str(caught.value) == f"{two}: cannot be written: No space left on device"
    assert one.read_text() == "old"
    assert list(tmp_path.iterdir()) == [one]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(EexError, match=rf"^{path}: cannot be written: \w.*$"):
            write_file(path, "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested deeper than"),
        ('{"a":' * (MOST_LEVELS + 1) + "1" + "}" * (MOST_LEVELS + 1), "nested deeper than"),
        ('{"path": "a\\u0000b"}', "NUL"),
        ('["\\ud800"]', "surrogate"),
        ('{"a\\u0000": 1}', "NUL"),
        ("1" * 10_000, "digits"),
        (b"\xff\xfe\xff", "decode"),
        ("", "Expecting value"),
    ],
    ids=["100,000 levels", "a level too many", "NUL", "surrogate", "key", "digits", "not text", "nothing"],
)
def test_json_of_others_is_bounded(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_of_a_usual_depth_is_read():
    assert parse_json("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    assert parse_json('{"a": ["é", 1.5, null, true]}') == {"a": ["é", 1.5, None, True]}


def test_a_name_that_is_too_long(tmp_path):
    named = pytest.raises(EexError, match=r"aaa: cannot be written: File name too long")
    with named, replacing(tmp_path / ("a" * 300)) as part:
        part.write_text("x")


def test_a_folder_is_no_file_to_write():
    for path in (Path("."), Path("/")):
        with pytest.raises(EexError, match="cannot be written: it is a folder"):
            write_file(path, "")


def test_a_folder_has_one_process_in_it_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    with alone_in(folder):
        with alone_in(tmp_path):  # another folder
            pass
        busy = r"run: another process is writing there; wait for its end, or stop it$"
        with pytest.raises(EexError, match=busy), alone_in(folder):
            pytest.fail("two at once")
    with pytest.raises(KeyboardInterrupt), alone_in(folder):
        raise KeyboardInterrupt
    with alone_in(folder):
        pass
    assert list(folder.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(EexError, match=r"file: cannot write there \(--out\): File exists"), alone_in(tmp_path / "file"):
        pass


def test_a_file_that_is_replaced_has_one_process_at_a_time(tmp_path):
    path = tmp_path / "new" / "state.npz"
    with alone_with(path):
        write_file(path, "as it is now")
        with alone_with(tmp_path / "other"):
            pass
        with pytest.raises(EexError, match=r"state.npz: another process is writing there"), alone_with(path):
            pytest.fail("two at once")
        program = f"from eex.policies.core.files import *\nwith alone_with(Path({str(path)!r})): pass"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert "another process is writing there" in other.stderr
    with alone_with(path):
        pass
    assert [at.name for at in path.parent.iterdir()] == ["state.npz"]
    (tmp_path / "file").touch()
    with alone_with(tmp_path / "file" / "state.npz"):  # whoever writes there is told
        pass


def test_a_lock_that_is_removed_as_another_waits_for_it_is_made_anew(tmp_path, monkeypatch):
    """A process may open the lock's file just before its holder removes it; a third would then make another."""
    path, real, gone = tmp_path / "state.npz", files.lock, []

    def lock(descriptor, name):
        if not gone:
            gone.append((tmp_path / "state.npz.lock").unlink())
        real(descriptor, name)

    monkeypatch.setattr(files, "lock", lock)
    with alone_with(path), pytest.raises(EexError, match="another process"), alone_with(path):
        pytest.fail("two at once")


def test_a_device_is_no_file_to_write(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(EexError, match=r"pipe: cannot be written: it is a device, a pipe or a socket"), replacing(pipe):
        pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)
