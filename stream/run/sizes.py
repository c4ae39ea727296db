"""Amounts as people write them: 10GB, 7d."""

import re

from eex.policies.core.errors import EexError

BYTES = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
BYTES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_bytes(text: str, what: str) -> int:
    """Bytes, at least one.

    >>> parse_bytes("10GB", "--keep-records")
    10000000000

    Raises
    ------
    EexError
        If it is no amount of bytes; `what` begins the message.
    """
    amount = _amount(text, BYTES)
    if amount is None or amount < 1:
        raise EexError(f"{what}: expected an amount of bytes such as 100MB or 10GB, got '{text}'")
    return int(amount)


def parse_seconds(text: str) -> float | None:
    """Seconds; None if the text is no time.

    >>> parse_seconds("7d")
    604800.0
    """
    return _amount(text, SECONDS)


def _amount(text: str, units: dict[str, int]) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip())
    return float(match[1]) * units[match[2]] if match and match[2] in units else None
