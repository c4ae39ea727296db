"""A paper's quick run, as a user types it: once for all tests of a module."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LIMIT_S = 600


@dataclass
class QuickRun:
    name: str
    out: Path
    output: str = ""

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "eex.experiments.papers.main", self.name, "--quick", "--threads", "1"]
        return subprocess.run(
            [*command, "--out", str(self.out), *more], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    def run(name: str, *more: str) -> QuickRun:
        made = QuickRun(name, tmp_path_factory.mktemp(name))
        done = made.again(*more)
        assert done.returncode == 0, done.stderr
        made.output = done.stdout
        return made

    return run
