"""A paper's quick run, once for all tests of a module, which are marked `paper`."""

import contextlib
import io
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from eex.experiments.papers import __main__ as command
from eex.experiments.papers import paper as shared
from eex.experiments.papers.paper import Work

LIMIT_S = 600


@dataclass
class QuickRun:
    """A run in this process, as the command runs it, with what it writes to standard output and error."""

    name: str
    out: Path
    output: str = ""
    errors: str = ""
    kept: dict[str, int] = field(default_factory=dict)
    """Networks that an interrupted start left, and when they were written."""

    def start(self) -> None:
        config = command.Run(self.name, quick=True, threads=1, out=self.out)
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            command.print_claims(config, command.run(config))
        self.output, self.errors = output.getvalue(), errors.getvalue()

    def again(self) -> dict[Path, int]:
        """Start it a second time, without its figures; when tables and networks were written before that."""
        before = self.times()
        with mock.patch.object(shared, "draw"):
            self.start()
        return before

    def times(self) -> dict[Path, int]:
        """When tables and networks were written."""
        made = [*self.out.glob("[!c]*.csv"), *(self.out / "work").iterdir()]
        return {path: path.stat().st_mtime_ns for path in made}

    def stop_before(self, network: str) -> None:
        """Start it, and interrupt it when this network is about to be trained."""
        train = Work.train

        def stopped(work, name, *given, **options):
            if name == network:
                raise KeyboardInterrupt
            return train(work, name, *given, **options)

        with mock.patch.object(Work, "train", stopped), pytest.raises(KeyboardInterrupt):
            self.start()
        self.remember()

    def stop_at(self, line: str) -> None:
        """Start it as a user does, in a process, and end that by a signal once it writes this line."""
        typed = [sys.executable, "-m", "eex.experiments.papers", self.name, "--quick", "--threads", "1"]
        with subprocess.Popen([*typed, "--out", self.out], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            stuck = threading.Timer(LIMIT_S, process.kill)
            stuck.start()
            for written in process.stderr:
                if line in written:
                    process.send_signal(signal.SIGTERM)
                    break
            rest = process.stderr.read()
            assert process.wait() == 130
            stuck.cancel()
        assert "interrupted" in rest
        self.remember()

    def remember(self) -> None:
        self.kept = {p.name: p.stat().st_mtime_ns for p in (self.out / "work").glob("*.safetensors")}

    def goes_on(self) -> bool:
        """Whether what an interrupted start left was used as it was."""
        return all((self.out / "work" / name).stat().st_mtime_ns == time for name, time in self.kept.items())


def pytest_collection_modifyitems(items):
    for item in items:
        if "paper" in getattr(item, "fixturenames", ()):
            item.add_marker("paper")


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    def run(name: str, *, stop_before: str = "", stop_at: str = "") -> QuickRun:
        made = QuickRun(name, tmp_path_factory.mktemp(name))
        if stop_before:
            made.stop_before(stop_before)
        if stop_at:
            made.stop_at(stop_at)
        made.start()
        return made

    return run
