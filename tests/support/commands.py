"""The commands as a user types them: in a process of their own, or in this one, which spares loading torch anew."""

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

MODULES = {"regret": "eex.experiments.regret"}
"""Commands that are not in `eex.stream.commands`, and where they are."""
PATIENCE_S = 100.0  # for a command; an idle machine takes a few seconds
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}

Done = subprocess.CompletedProcess[str]


def command(name: str, *arguments: object) -> list[str]:
    """What starts a command by the name of its module, such as "stream"."""
    return [sys.executable, "-m", _module(name), *map(str, arguments)]


def start(name: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A command in a process group of its own, its output in pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(name, *arguments), stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, cwd=cwd, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> Done:
    """What a started command came to."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def play(name: str, *arguments: object, cwd: Path | None = None) -> Done:
    """What a command comes to in a process of its own."""
    return finish(start(name, *arguments, cwd=cwd))


def call(name: str, *arguments: object, cwd: Path | None = None) -> Done:
    """What a command comes to in this process, which is left as it was: folder, modules, handlers, threads."""
    main = importlib.import_module(_module(name)).main
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.chdir(cwd or "."), _restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = [f"eex-{name.replace('_', '-')}", *map(str, arguments)]
        os.environ["COLUMNS"] = ENVIRONMENT["COLUMNS"]
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(sys.argv, int(code or 0), out.getvalue(), err.getvalue())


def _module(name: str) -> str:
    return MODULES.get(name, f"eex.stream.commands.{name}")


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back what a command changes in its process."""
    environment, path, modules, argv = dict(os.environ), list(sys.path), set(sys.modules), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    here = Path.cwd()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:], sys.argv = path, argv
        for name in set(sys.modules) - modules:  # a user's module in this folder may be another one next time
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == here:
                del sys.modules[name]
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)


def refused(done: Done, message: str = "") -> None:
    """Fail unless a command exited with 2 after one line on standard error, with a message in it."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
