"""Records that do not grow without bound: the oldest parts go, by size or by age."""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eex.policies.core.errors import EexError
from eex.stream.run.sizes import BYTES, parse_bytes, parse_seconds

if TYPE_CHECKING:
    from eex.stream.run.records import RecordWriter

PARTS = 10
"""A part is ended when it holds this share of what is kept, so that never much more than a tenth of it goes at once."""
LEAST_BYTES = 100_000
LEAST_S = 60.0


@dataclass(frozen=True)
class Retention:
    """How much of the records is kept.

    Attributes
    ----------
    bytes
        Of all parts together, and of the labels that came later; None = no limit.
    seconds
        Age of a part's last frame; None = no limit.
    """

    bytes: int | None = None
    seconds: float | None = None

    def apply(self, writer: "RecordWriter", now: float | None = None) -> list[Path]:
        """End the part that is being written if it is due, and delete the oldest; the parts deleted.

        It is cheap, as it looks at the folder only where a part has ended or a tenth of the time has passed: call it
        after each `write`, or every second.

        Parameters
        ----------
        now
            Seconds since 1970; by default the time that it is.

        Raises
        ------
        EexError
            If the disk is full or not writable.
        """
        if self == Retention():
            return []
        now = time.time() if now is None else now
        if self.bytes is not None and writer.labels_bytes - writer.labels_pruned > self.bytes / PARTS:
            writer.commit()
            writer.pruned = -math.inf
        if writer.part is not None:
            large = self.bytes is not None and writer.part_bytes > self.bytes / PARTS
            old = self.seconds is not None and now - writer.part_begun > self.seconds / PARTS
            if large or old:
                writer.commit()
        again = math.inf if self.seconds is None else writer.pruned + self.seconds / PARTS
        if writer.pruned > -math.inf and now <= again:
            return []
        writer.pruned = now
        deleted = self.prune(writer.folder, now, writer.part)
        writer.labels_pruned = writer.labels_bytes
        return deleted

    def prune(self, folder: Path, now: float, writing: Path | None = None) -> list[Path]:
        """Delete the oldest whole parts of a folder of records until it keeps to the limits; those deleted.

        Labels go with the frames that they are for.

        Parameters
        ----------
        writing
            A part that is being written, which stays.
        """
        from eex.stream.run.records import forget_labels, labels_of_parts, last_frames, number_of, parts_of

        deleted = []
        try:
            parts = [(path, path.stat()) for path in parts_of(folder)]
            labels = labels_of_parts(folder)
            total = sum(state.st_size for _, state in parts) + sum(path.stat().st_size for _, path in labels)
            # a part that seems to come from the future is at least as old as the next one: the clock was wrong then
            own = [state.st_mtime for _, state in reversed(parts)]
            written = list(itertools.accumulate(own, lambda later, at: at if at <= now else min(later, at)))[::-1]
            for (path, state), at in zip(parts, written, strict=True):
                large = self.bytes is not None and total > self.bytes
                old = self.seconds is not None and now - at > self.seconds
                if path == writing or not (large or old):
                    break
                its = [file for first, file in labels if first <= number_of(path)][-1:]
                gone = last_frames(path) if its else {}
                path.unlink()
                total -= state.st_size + sum(forget_labels(file, gone) for file in its)
                deleted.append(path)
            left = parts_of(folder)
            for (_, path), (following, _) in itertools.pairwise(labels):  # of parts that are all gone
                if left and number_of(left[0]) >= following:
                    path.unlink()
        except OSError as error:
            raise EexError(f"{folder}: old records cannot be deleted: {error.strerror}") from None
        return deleted


def parse_retention(text: str) -> Retention:
    """The retention of `--keep-records`: an amount of bytes, or a time.

    >>> parse_retention("10GB"), parse_retention("7d")
    (Retention(bytes=10000000000, seconds=None), Retention(bytes=None, seconds=604800.0))

    Raises
    ------
    EexError
        If it is neither, or too little to keep anything.
    """
    if (seconds := parse_seconds(text)) is not None:
        if seconds < LEAST_S:
            raise EexError(f"--keep-records: keeps a minute at least, got '{text}'")
        return Retention(seconds=seconds)
    if not text.strip().endswith(tuple(unit for unit in BYTES if unit)):
        raise EexError(f"--keep-records: expected an amount such as 10GB or a time such as 7d, got '{text}'")
    if (size := parse_bytes(text, "--keep-records")) < LEAST_BYTES:
        raise EexError(f"--keep-records: keeps 100kB at least, got '{text}'")
    return Retention(bytes=size)
