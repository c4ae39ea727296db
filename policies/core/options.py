"""Options that many commands have, and what they may be."""

from eex.policies.core.errors import EexError

MOST_THREADS = 1024
"""CPU threads that may be asked for: far more than help, far fewer than end the process as they start."""
MOST_SEED = 2**32 - 1
"""Largest seed: libraries take no larger ones."""


def check_threads(count: int) -> None:
    """Raise `EexError` if `--threads` is out of range; 0 leaves the number open."""
    if not 0 <= count <= MOST_THREADS:
        raise EexError(f"--threads must lie in [0, {MOST_THREADS}], got {count}")


def check_seed(seed: int) -> None:
    """Raise `EexError` if `--seed` is out of range."""
    if not 0 <= seed <= MOST_SEED:
        limit = "at least 0" if seed < 0 else f"at most {MOST_SEED}"
        raise EexError(f"--seed must be {limit}, got {seed}")
