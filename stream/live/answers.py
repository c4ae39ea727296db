"""What goes into a session and what comes out of it: an arrival in, one answer or one refusal out."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Version of these fields. A reader should ignore fields that it does not know; any other change is a new version."""

Reason = Literal["stale", "full", "undecodable", "closed", "failed"]
"""Why a frame got no answer.

stale
    A newer frame of its stream replaced it before it was run.
full
    Its stream's queue was full, and whoever submitted it did not want to wait.
undecodable
    No image can be made of it.
closed
    The session was closed before it was run, and not for draining; or it was submitted after that.
failed
    The session itself failed, through an error that `detail` names.
"""


@dataclass(frozen=True)
class Arrival:
    """A frame as a source hands it over.

    Attributes
    ----------
    stream
        Name of its stream.
    image
        (H, W, 3), uint8, RGB.
    captured
        When it was captured, in seconds since 1970, on the clock of `time.time`.
    arrived
        When it arrived here, in seconds, on the clock of `time.perf_counter`.
    name
        Of the image.
    label
        True class, if it is known.
    """

    stream: str
    image: NDArray[np.uint8]
    captured: float
    arrived: float
    name: str = ""
    label: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="answer"):
    """The answer to one frame.

    Attributes
    ----------
    stream
        Name of its stream.
    frame
        Number of the frame in its stream, counted from 0 over all frames submitted.
    name
        Of the image, as submitted.
    label
        Name of the class; empty for a frame that was dropped (`--drop-below`).
    index
        Number of the class, from 0; -1 for a frame that was dropped.
    confidence
        Of the exit that answered, in [0, 1].
    exit
        Exit that answered, counted from 1; the last one is in the cloud. 0 for a frame that was dropped.
    where
        Whether that exit is on the edge or in the cloud.
    fallback
        Whether the cloud should have answered and did not, so that the most confident edge exit answered.
    latency_ms
        Milliseconds from capture to answer, waiting included.
    captured
        When the frame was captured, ISO 8601 in UTC.
    version
        Of these fields.
    """

    stream: str
    frame: int
    name: str
    label: str
    index: int
    confidence: float
    exit: int
    where: Literal["edge", "cloud"]
    fallback: bool
    latency_ms: float
    captured: str
    version: int = VERSION


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="refusal"):
    """Why a frame got no answer.

    Attributes
    ----------
    stream, frame, name, captured, version
        As for an `Answer`.
    reason
        One word, see `Reason`.
    detail
        One sentence.
    """

    stream: str
    frame: int
    name: str
    reason: Reason
    detail: str
    captured: str
    version: int = VERSION


Sink = Callable[[Answer | Refusal], None]
"""Takes every answer and refusal as it is known, in the session's thread or a submitting one: it must not wait."""


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the microsecond.

    >>> iso(0.25)
    '1970-01-01T00:00:00.250000+00:00'
    """
    whole, rest = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_to_the_second(whole)}.{rest:06d}+00:00"


@functools.lru_cache(maxsize=1024)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[: len("1970-01-01T00:00:00")]


def schema() -> dict[str, Any]:
    """JSON Schema of a line of answers."""
    return msgspec.json.schema(Answer | Refusal)
