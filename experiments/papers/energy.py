"""Joules of a pass, where the machine counts them: Linux's powercap (RAPL) counters of its processors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """Counters of microjoules, one per processor package, which wrap around at their `largest`; empty without any.

    Examples
    --------
    >>> Meter().joules([], [])  # a machine that counts nothing
    nan
    """

    counters: tuple[Path, ...] = ()
    largest: tuple[int, ...] = ()

    def read(self) -> list[int]:
        """Microjoules of each package so far."""
        return [int(path.read_text()) for path in self.counters]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Joules between two readings, in which no counter wraps around twice; NaN without counters."""
        if not self.counters:
            return float("nan")
        turned = zip(before, after, self.largest, strict=True)
        return sum((b - a) % (most + 1) for a, b, most in turned) / 1e6


def find_meter(folder: Path = POWERCAP) -> tuple[Meter, str]:
    """The machine's meter, and in words what it reads or why there is nothing to read.

    Only whole packages are read: their parts (cores, memory), named like "intel-rapl:0:0", are included in them or do
    not exist on all machines. AMD's processors have the same names.
    """
    packages = sorted(p for p in folder.glob("intel-rapl:*") if p.name.count(":") == 1)
    if not packages:
        return Meter(), f"no energy counter: {folder} has no intel-rapl (a virtual machine, say)"
    found = Meter(tuple(p / "energy_uj" for p in packages), ())
    try:
        largest = tuple(int((p / "max_energy_range_uj").read_text()) for p in packages)
        found.read()
    except (OSError, ValueError) as error:
        return Meter(), f"energy counters cannot be read: {error} (on most systems only root may)"
    return Meter(found.counters, largest), f"RAPL, {len(packages)} package{'s' * (len(packages) > 1)}"
