"""What every command of eex begins and ends with."""

import os
import signal
import sys
from collections.abc import Callable

from eex.policies.core.errors import EexError


def guarded(command: Callable[[], int | None]) -> int:
    """Run a command; its exit status. What goes wrong for a user is told in one line, without a traceback.

    Exit statuses: 2 for a user's mistake or a file, folder or peer that cannot be used, 130 when interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # not by way of SIGINT, which shells make background jobs ignore
    try:
        return command() or 0
    except EexError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def share_cores() -> None:
    """Let OpenMP threads that wait sleep soon; to be called before torch is loaded, which reads this once.

    Edge and worker often share a machine's cores. Threads that spin while they wait take what the other process
    needs; threads that sleep at once take long to wake between two small layers. So they spin for 10,000 turns, then
    sleep. Where a process has its cores to itself, as in training, spinning is faster.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # of GNU's OpenMP; goes before the policy
