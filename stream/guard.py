"""Setup and error handling shared by all commands."""

import ctypes
import functools
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from eex.policies.core.errors import EexError

SOURCE_LOST = 3
"""Exit status of a run whose source broke off: what was played until then is finished and saved."""
UNRECORDED = 4
"""Exit status of a run that was played whole, but whose records, state, summary or answers are not all where they
were to be."""
UNREAD = 141
"""Exit status of a run that ended because nobody reads its output any more: that of a shell for a broken pipe."""
WORKER_LOST = 5
"""Exit status of a run whose embedded worker died, so that frames fell back which need not have."""

EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "pyarrow": "records",
    "gymnasium": "train",
    "stable_baselines3": "train",
} | dict.fromkeys(("scipy", "river", "pandas", "matplotlib"), "all")
"""Libraries that an edge device does without, and the extra that installs each."""


def guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status. An `EexError` is printed in one line, without a traceback.

    Exit status 2 stands for a user's mistake or a file, folder or peer that cannot be used; `SOURCE_LOST`, `UNRECORDED`
    and `WORKER_LOST` for a run that went to its end but lacks something; 130 for an interruption.

    What a library warns of is one line on standard error, or nothing after `hush`.
    """
    for output in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends no run
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _interrupt)  # not by way of SIGINT, which shells make background jobs ignore
    disabled, inherited = logging.root.manager.disable, os.environ.get("PYTHONWARNINGS")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return command() or 0
    except EexError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in EXTRAS:
            raise
        print(f"error: this needs {library}: pip install 'eex[{EXTRAS[library]}]'", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: not enough memory{f': {error}' * bool(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return UNREAD
    finally:
        logging.disable(disabled)
        if inherited is None:
            os.environ.pop("PYTHONWARNINGS", None)


def hush() -> None:
    """Show nothing that a library warns of, until the command ends: what --quiet does."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes that it starts
    logging.disable(logging.WARNING)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning in one line, with the package that it comes from and without a terminal's colours."""
    parts = Path(filename).parts
    package = parts[parts.index("site-packages") + 1].removesuffix(".py") if "site-packages" in parts[:-1] else ""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(message)).split())
    print(f"warning: {package + ': ' if package else ''}{text}", file=sys.stderr)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def say_unless(quiet: bool) -> Callable[[str], None]:
    """What says a line on standard error, and with `quiet` nothing."""
    return (lambda line: None) if quiet else say


def say(line: str) -> None:
    """Say a line on standard error; nothing ends because a full disk does not take it.

    Raises
    ------
    BrokenPipeError
        In the main thread, if nobody reads any more.
    """
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and threading.current_thread() is threading.main_thread():
            raise


def share_cores() -> None:
    """Make waiting OpenMP threads sleep soon. Call it before torch is loaded, which reads the setting once.

    Edge and worker often share the cores of a machine. Threads that spin while they wait take time from the other
    process; threads that sleep at once are slow to wake between two small layers. So they spin for 10,000 turns and
    then sleep. If a process has its cores to itself, as in training, spinning is faster.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU's OpenMP only; overrides the policy


GIVE_BACK_S = 10.0
"""Seconds between two times at which memory that lies free is given back."""


@functools.cache
def keep_memory_flat(every_s: float = GIVE_BACK_S) -> None:
    """Let this process give the memory that lies free in its heap back to the system every few seconds.

    Tensors of batches whose size changes from stage to stage leave holes in glibc's heap, and the process grows for
    hours: by hundreds of megabytes with batches of 256. That it maps every large block anew instead
    (``MALLOC_MMAP_THRESHOLD_``) keeps memory flat too, but cost a quarter of the speed or more at batches of 32. With
    another C library, nothing happens.
    """
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return

    def go_on() -> None:
        while True:
            time.sleep(every_s)
            give_back(0)

    threading.Thread(target=go_on, name="eex-memory", daemon=True).start()
