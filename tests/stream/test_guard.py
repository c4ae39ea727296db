"""What commands do to their process before they begin."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ENVIRONMENT, command

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
FRAMES = 60_000
HOLES = """
import os, re, sys
from eex.stream.guard import keep_memory_flat
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
keep_memory_flat()
del bytearray(30 << 20)[:]  # glibc would keep blocks of this size from now on
blocks, between = [], []
for _ in range(200):
    blocks.append(bytearray(b"x" * (1 << 20)))
    between.append(bytearray(1 << 10))
most = resident()
blocks.clear()
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
    middle, late = max(resident[third : 2 * third]), max(resident[2 * third :])
    assert late - middle < 0.1 * middle, f"grew from {middle} to {late} MiB"
