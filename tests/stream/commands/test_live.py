"""`eex-live` as a user runs it."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from PIL import Image

from eex.stream.commands import live
from eex.stream.live import sinks

pytestmark = pytest.mark.timeout(120)

MODULE = [sys.executable, "-m", "eex.stream.commands.live"]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["eex-live", *arguments])
    with pytest.raises(SystemExit) as stop:
        live.main()
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no source"),
        (("--source", "a=ftp://x"), "stream 'a'"),
        (("--source", "http://[::1"), "http://[::1: not a URL: Invalid IPv6 URL"),
        (("--source", "sample", "--answers", "mqtt://[::1/a", "--worker", "none"), "mqtt://[::1/a: not a URL: "),
        (("--source", "sample", "--threads", "-1"), "--threads"),
        (("--source", "sample", "--threads", "100000"), "--threads must lie in [0, 1024], got 100000"),
        (("--source", "sample", "--status-s", "-1"), "--status-s"),
        (("--source", "sample", "--batch", "0"), "--batch"),
        (("--source", "sample", "--streams", "/no/such.toml"), "/no/such.toml: cannot be read"),
        (("--source", "sample", "--keep-records", "much"), "--keep-records"),
        (("--source", "sample", "--answers", "gopher://x", "--worker", "none"), "unknown scheme 'gopher'"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, message):
    status, said = run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.process
def test_sigterm_answers_what_was_taken_in_and_exits_with_0(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 200, 30)).save(picture, "PNG")
    command = [*MODULE, "--source", "door=-", "--worker", "none", "--state", str(tmp_path / "state.npz")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(3):
            process.stdin.write(picture.getvalue())
        process.stdin.flush()
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)  # although its standard input goes on
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == b""
    assert sorted(line["frame"] for line in lines) == [0, 1, 2]
    assert b"door" in err
    assert b"Fatal" not in err
    assert (tmp_path / "state.npz").exists()


@pytest.mark.process
def test_a_run_whose_answers_nobody_reads_any_more_ends(tmp_path):
    command = [*MODULE, "--source", "sample", "--fps", "50", "--worker", "none", "--summary", str(tmp_path / "s.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["frame"] == 0
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 141, err
    assert b"nobody reads it: Broken pipe" in err
    summary = json.loads((tmp_path / "s.json").read_text())
    assert 0 < summary["frames"] < 2000


def test_answers_that_a_full_disk_does_not_take_are_counted_and_the_status_says_so(monkeypatch, capsys, tmp_path):
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / "door.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "door.png", "door.png")

    def append(descriptor, data):
        if descriptor != 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sinks, "append", append)
    full = str(tmp_path / "answers.jsonl")
    options = ("--worker", "none", "--answers", "-", "--answers", full)
    status, said = run(monkeypatch, capsys, "--source", str(tmp_path / "images.zip"), *options)
    assert status == 4
    assert f"error: 1 of 1 answers did not get to {full}: cannot be written: No space left on device\n" in said.err
