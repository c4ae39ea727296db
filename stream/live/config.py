"""The options of a live session. Heavy libraries are not imported, so --help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eex.policies.core.errors import EexError
from eex.policies.core.price import parse_price
from eex.stream.config import PolicyConfig
from eex.stream.frames.frames import MOST_IN_BATCH, NetworkConfig
from eex.stream.wire.connection import ConnectionConfig

if TYPE_CHECKING:
    from eex.stream.run.retention import Retention

Keep = Literal["auto", "all", "newest"]


@dataclass(frozen=True)
class LiveConfig(PolicyConfig, ConnectionConfig, NetworkConfig):
    """Options of a live session: network, worker and policy as for a played stream, and how frames are taken in."""

    batch: int = 32
    """Frames that are run together, at most. What has arrived is run at once, unless --batch-wait-ms says otherwise."""
    batch_wait_ms: float = 0.0
    """Milliseconds that a frame may wait for others to be run with it, if several streams are open. 0 never waits."""
    keep: Keep = "auto"
    """What to keep of a stream's frames that arrive while others are run: 'all', up to --queue, after which whoever
    brings them waits; or only the 'newest', so that answers are never late, and older ones are refused as stale. 'auto'
    keeps the newest of what is live, such as cameras, and all of files and of what a program submits."""
    queue: int = 64
    """Frames of a stream that wait, at most, with --keep all."""
    learn: Literal["each", "shared"] = "each"
    """Whether each stream has its own learner, or all share one."""
    state: Path | None = None
    """File that keeps what was learned, by name of the stream. It is read at the start, if it is there, and replaced
    once a minute and at the end."""
    records: Path | None = None
    """Folder for the records of all frames. By default, nothing is recorded."""
    keep_records: str = ""
    """How much of the records to keep: an amount such as 10GB, or a time such as 7d. By default, all of them."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        NetworkConfig.check(self)
        self._at_least(batch=1, queue=1)
        if self.batch > MOST_IN_BATCH:
            raise EexError(f"--batch must be at most {MOST_IN_BATCH}, got {self.batch}")
        if not 0 <= self.batch_wait_ms < float("inf"):
            raise EexError(f"--batch-wait-ms must be at least 0, got {self.batch_wait_ms:g}")
        if self.keep_records and self.records is None:
            raise EexError("--keep-records goes with --records")
        self.price()
        self.connection(self.usual_answerer)
        self.retention()

    def retention(self) -> "Retention":
        """How much of the records is kept.

        Raises
        ------
        EexError
            If it cannot be parsed.
        """
        from eex.stream.run.retention import Retention, parse_retention

        return parse_retention(self.keep_records) if self.keep_records else Retention()


@dataclass(frozen=True)
class StreamOptions:
    """Options of one stream; None is what the session has.

    Attributes
    ----------
    overhead
        Price of offloading a frame, as `--overhead`; a budget in it is the stream's own.
    deadline_ms
        Milliseconds after which an offloaded frame is answered on the edge; at most the session's.
    keep, queue
        As `LiveConfig`'s.
    thresholds
        "learning": the policy chooses them. "frozen": they stay as they are at the stream's next frame. Or the
        thresholds to play, one per edge exit. While they are not learning, the stream's frames teach nothing.
    """

    overhead: float | str | None = None
    deadline_ms: float | None = None
    keep: Keep | None = None
    queue: int | None = None
    thresholds: Literal["learning", "frozen"] | tuple[float, ...] = "learning"

    def check(self, stream: str, deadline_ms: float, exits: int) -> None:
        """Raise `EexError` if a value is out of range.

        Parameters
        ----------
        stream
            Its name.
        deadline_ms
            The session's.
        exits
            Edge exits of the network.
        """
        where = f"stream '{stream}'"
        try:
            if self.overhead is not None:
                parse_price(self.overhead)
        except EexError as error:
            raise EexError(f"{where}: {error}") from None
        if self.deadline_ms is not None and not 0 < self.deadline_ms <= deadline_ms:
            raise EexError(f"{where}: deadline_ms must lie in (0, {deadline_ms:g}], got {self.deadline_ms:g}")
        if self.queue is not None and self.queue < 1:
            raise EexError(f"{where}: queue must be at least 1, got {self.queue}")
        if self.keep not in (None, "auto", "all", "newest"):
            raise EexError(f"{where}: keep must be auto, all or newest, got {self.keep!r}")
        if isinstance(self.thresholds, tuple):
            if len(self.thresholds) != exits or not all(0 <= threshold <= 1 for threshold in self.thresholds):
                given = list(self.thresholds[: exits + 1])
                more = f" and {more:,} more" if (more := len(self.thresholds) - len(given)) else ""
                raise EexError(f"{where}: thresholds must be {exits} in [0, 1], one per edge exit, got {given}{more}")
        elif self.thresholds not in ("learning", "frozen"):
            raise EexError(
                f"{where}: thresholds must be learning, frozen or one per edge exit, got {self.thresholds!r}"
            )
