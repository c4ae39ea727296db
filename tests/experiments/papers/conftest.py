"""A paper's quick run, as a user types it: once for all tests of a module, which are marked `paper`."""

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LIMIT_S = 600


@dataclass
class QuickRun:
    name: str
    out: Path
    output: str = ""
    kept: dict[str, int] = field(default_factory=dict)
    """Networks that an interrupted start left, and when they were written."""

    @property
    def command(self) -> list[str]:
        name = [sys.executable, "-m", "eex.experiments.papers", self.name]
        return [*name, "--quick", "--threads", "1", "--out", str(self.out)]

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *more], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def until(self, line: str) -> int:
        """Start it, interrupt it once this line is said, and give its exit status."""
        with subprocess.Popen(self.command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            stuck = threading.Timer(LIMIT_S, process.kill)
            stuck.start()
            for said in process.stderr:
                if line in said:
                    process.send_signal(signal.SIGTERM)
                    break
            rest = process.stderr.read()
            status = process.wait()
            stuck.cancel()
        assert "interrupted" in rest
        return status


def pytest_collection_modifyitems(items):
    for item in items:
        if "paper" in getattr(item, "fixturenames", ()):
            item.add_marker("paper")


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    def run(name: str, *more: str, interrupt: str = "") -> QuickRun:
        made = QuickRun(name, tmp_path_factory.mktemp(name))
        if interrupt:
            assert made.until(interrupt) == 130
            made.kept = {p.name: p.stat().st_mtime_ns for p in (made.out / "work").glob("*.safetensors")}
        done = made.again(*more)
        assert done.returncode == 0, done.stderr
        made.output = done.stdout
        return made

    return run
