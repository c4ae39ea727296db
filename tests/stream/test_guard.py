"""What commands begin and end with: exit statuses, libraries' warnings, memory."""

import errno
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from commands import ENVIRONMENT, command

from eex.policies.core.errors import EexError
from eex.stream.guard import guarded, hush, say_unless
from eex.stream.run.recorder import warn

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
FRAMES = 60_000  # a third of them takes longer than the ten seconds after which memory is given back
HOLES = """
import re, time
from eex.stream.guard import keep_memory_flat
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
del bytearray(30 << 20)[:]  # glibc keeps blocks of this size from now on
blocks, between = [], []
for _ in range(200):
    blocks.append(bytearray(b"x" * (1 << 20)))
    between.append(bytearray(1 << 10))
most = resident()
blocks.clear()
keep_memory_flat(0.05)
end = time.monotonic() + 20
while most - resident() < 150 and time.monotonic() < end:
    time.sleep(0.05)
print(most - resident())
"""


@LINUX
@pytest.mark.process
def test_large_blocks_go_back_to_the_system_though_small_ones_lie_between():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150  # MiB


@LINUX
@pytest.mark.soak
@pytest.mark.process
@pytest.mark.timeout(3000)
def test_the_shipped_model_takes_no_more_memory_however_long_it_plays(tmp_path):
    arguments = ["--frames", FRAMES, "--batch", 256, "--worker", "none", "--no-regret", "--quiet", "--threads", 1]
    resident = []
    with subprocess.Popen(command("stream", *arguments, "--out", tmp_path), env=ENVIRONMENT) as process:
        try:
            while process.poll() is None:
                if found := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()):
                    resident.append(int(found[1]) >> 10)
                time.sleep(0.2)
        finally:
            process.kill()
    assert process.returncode == 0
    third = len(resident) // 3
    # medians: memory rises until it is given back every ten seconds, and pictures are drawn at the end
    middle, late = median(resident[third : 2 * third]), median(resident[2 * third :])
    assert late - middle < 0.1 * middle, f"grew from {middle} to {late} MiB"


def warn_much():
    warnings.warn("\x1b[33mWARN: a library says\n  this and that\x1b[0m", UserWarning, stacklevel=1)
    logging.getLogger("some.library").warning("a library logs this")


@pytest.mark.filterwarnings("default")
def test_a_librarys_warning_is_one_line(capsys):
    assert guarded(warn_much) == 0
    assert capsys.readouterr().err.splitlines()[0] == "warning: WARN: a library says this and that"


@pytest.mark.filterwarnings("default")
def test_the_library_is_named(capsys):
    def command():
        warnings.warn_explicit("odd", UserWarning, "/x/site-packages/stable_baselines3/common/base_class.py", 7)
        warnings.warn_explicit("odd", UserWarning, "/x/site-packages/six.py", 7)

    guarded(command)
    assert capsys.readouterr().err == "warning: stable_baselines3: odd\nwarning: six: odd\n"


@pytest.mark.filterwarnings("default")
def test_quiet_hushes_libraries_and_nothing_else(capsys):
    def command():
        hush()
        warn_much()
        subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('a child')"], check=True)
        raise EexError("what the user must know")

    before = logging.root.manager.disable, os.environ.get("PYTHONWARNINGS"), warnings.showwarning
    assert guarded(command) == 2
    assert capsys.readouterr().err == "error: what the user must know\n"
    assert (logging.root.manager.disable, os.environ.get("PYTHONWARNINGS"), warnings.showwarning) == before


def test_what_does_not_fit_into_memory_is_one_line(capsys):
    assert guarded(lambda: np.zeros(2**50)) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory: Unable to allocate 8.00 PiB")

    def command():
        raise MemoryError

    assert guarded(command) == 2
    assert capsys.readouterr().err == "error: not enough memory\n"


def test_a_full_disk_under_standard_error_ends_nothing(monkeypatch):
    class Standard(io.StringIO):
        problem: OSError

        def flush(self):
            raise self.problem

    monkeypatch.setattr(sys, "stderr", Standard())
    Standard.problem = OSError(errno.ENOSPC, "No space left on device")
    say_unless(quiet=False)("a line")
    warn("a warning")
    assert sys.stderr.getvalue() == "a line\nwarning: a warning\n"
    Standard.problem = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        say_unless(quiet=False)("nobody reads any more")
    warn("nobody reads any more")
    ended = []
    thread = threading.Thread(target=lambda: ended.append(say_unless(quiet=False)("of a source")))  # which goes on
    thread.start()
    thread.join(20)
    assert ended == [None]
