"""The columns of a frame, written once: name, type, unit, default, type in the records, documentation.

`Outcomes` holds what a policy learns from, `Rows` all that the engine knows of a finished frame. `COLUMNS` is read off
them; the engine's ring, the records and the documentation are made from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

_KINDS: dict[Any, tuple[str, Any]] = {
    Floats: ("float", np.nan),
    Ints: ("int", -1),
    Bools: ("bool", False),
    Texts: ("text", ""),
}
DTYPES: dict[str, Any] = {"float": np.float64, "int": np.int64, "bool": np.bool_, "text": np.object_}
"""Types in memory, by kind of column."""


@dataclass(frozen=True)
class Column:
    """One column of the schema.

    Attributes
    ----------
    doc
        One line.
    stored
        Arrow type in the records, "class" and "expert" for names, "exit" for an exit counted from 1; a "?" after it
        stores a missing value as null. Empty if the column is not recorded.
    width
        Values per frame: "" for one, "kinds" of distortion, "edge" exits, or "exits", the final one included.
    unit
        Of the values; empty for pure numbers.
    default
        Value when a frame enters; by default NaN, -1, false or "".
    name, kind
        As an attribute of `Rows`, and its type in memory, a key of `DTYPES`; read off the class.
    """

    doc: str
    stored: str = ""
    width: str = ""
    unit: str = ""
    default: Any = None
    name: str = ""
    kind: str = ""

    def values(self, exits: int, kinds: int) -> int:
        """Values per frame, for a network with so many exits, the final one included, and kinds of distortion."""
        return {"": 1, "kinds": kinds, "edge": exits - 1, "exits": exits}[self.width]


@dataclass(frozen=True)
class Outcomes:
    """What a policy learns from: finished frames, one row per frame; late, in any order and number.

    Exits are counted from 0. The last column of `exit_at`, `confidence` and `prediction` is the final exit's, in the
    cloud.
    """

    run: Annotated[Ints, Column("Which of the learners played side by side; 0 in a single stream.", default=0)]
    frame: Annotated[Ints, Column("Number of the frame among those that its learner chose for.", "int64")]
    arm: Annotated[Ints, Column("Arm that the policy chose; 0 for policies without arms.", "int32")]
    probability: Annotated[Floats, Column("Probability of the arm, for policies that draw at random.", "float64?")]
    audited: Annotated[Bools, Column("Offloaded to learn from it, regardless of the arm.", "bool")]
    exit_at: Annotated[
        Floats,
        Column(
            "Confidence at which the exit answers; below the final exit's, the most confident exit answers.",
            "float64",
            "exits",
        ),
    ]
    confidence: Annotated[
        Floats, Column("Confidence of each exit that was visited; missing at the others.", "float64?", "exits")
    ]
    prediction: Annotated[
        Ints, Column("Class predicted by each exit that was visited; missing at the others.", "class", "exits")
    ]
    exit: Annotated[Ints, Column("Exit that answered, the last one in the cloud; missing for a dropped frame.", "exit")]
    offloaded: Annotated[Bools, Column("No edge exit answered: the frame was meant for the cloud.", "bool")]
    sent: Annotated[Bools, Column("The frame left for the cloud. Offloaded but not sent, it teaches nothing.", "bool")]
    fallback: Annotated[Bools, Column("No reply came in time: the most confident edge exit answered.", "bool")]
    overhead: Annotated[
        Floats,
        Column("Price of offloading: as expected, or as paid if the frame was sent.", "float64", "", "confidence"),
    ]
    reward: Annotated[
        Floats,
        Column("Reward, as `--reward` says; missing where the frame teaches nothing.", "float64?", "", "confidence"),
    ]
    latency_ms: Annotated[
        Floats, Column("From capture or arrival to the answer, waiting included.", "float32", "", "ms")
    ]

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: Any) -> Self:
        """The same columns with some of the rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Rows(Outcomes):
    """All that is known of finished frames, one row per frame, in the order in which the frames entered.

    Replay needs `queue`, `link_estimate_ms`, `reachable`, `feedback_rank` and `feedback_at` to make the choices of a
    recorded run again (`eex.policies.core.replay.Feedback`).
    """

    stream: Annotated[Texts, Column("Name of the frame's stream; empty for a played one.", "string")]
    name: Annotated[Texts, Column("Name of the image.", "string")]
    label: Annotated[Ints, Column("True class; missing where it is unknown.", "class")]
    answer: Annotated[Ints, Column("Class that was answered; missing for a dropped frame.", "class")]
    levels: Annotated[Floats, Column("Level of each kind of distortion; 0 for none.", "float32", "kinds")]
    expert: Annotated[
        Ints,
        Column(
            "Expert whose branches the distortion classifier selected; unknown where it abstained, and the branches "
            "of the first expert ran.",
            "expert",
        ),
    ]
    queue: Annotated[Ints, Column("Frames awaiting a reply when the policy chose.", "int32")]
    link_estimate_ms: Annotated[
        Floats, Column("Estimated round trip to the worker when the policy chose.", "float64?", "", "ms")
    ]
    skip_below: Annotated[
        Floats, Column("Confidence below which the exit sends the frame to the cloud at once.", "float64", "edge")
    ]
    feedback_rank: Annotated[Ints, Column("Rank of the frame in the policy's feedback.", "int64")]
    feedback_at: Annotated[Ints, Column("Frames that the policy had chosen for when that feedback came.", "int64")]
    bytes: Annotated[Floats, Column("Bytes sent for the frame, headers included.", "float32", "", "bytes", 0.0)]
    edge_ms: Annotated[Floats, Column("From capture or arrival to leaving the edge.", "float32", "", "ms")]
    link_ms: Annotated[
        Floats, Column("Round trip less the worker's computing; the whole wait if it failed.", "float32", "", "ms", 0.0)
    ]
    cloud_ms: Annotated[Floats, Column("The worker's computing.", "float32", "", "ms", 0.0)]
    dropped: Annotated[Bools, Column("Given up instead of offloaded (--drop-below); nobody answered.", "bool")]
    reachable: Annotated[Bools, Column("A worker was believed reachable when the policy chose.", "bool")]
    captured: Annotated[
        Floats, Column("When the frame was captured or arrived, since 1970 in UTC.", "float64?", "", "s")
    ]


def _schema(kind: type[Outcomes]) -> Iterator[Column]:
    hints = get_type_hints(kind, include_extras=True)
    for f in fields(kind):
        array, column = hints[f.name].__origin__, hints[f.name].__metadata__[0]
        name, missing = _KINDS[array]
        yield replace(column, name=f.name, kind=name, default=missing if column.default is None else column.default)


COLUMNS: tuple[Column, ...] = tuple(_schema(Rows))
"""The schema of a frame."""
OUTCOMES: tuple[str, ...] = tuple(f.name for f in fields(Outcomes))
"""Names of the columns that policies learn from."""


def joined(pieces: Sequence[Rows]) -> Rows:
    """Pieces of rows, at least one, joined into one."""
    return Rows(**{c.name: np.concatenate([getattr(piece, c.name) for piece in pieces]) for c in COLUMNS})


def blank(count: int, exits: int, kinds: int = 2) -> Rows:
    """Rows in which every column holds its default.

    Parameters
    ----------
    count
        Rows.
    exits
        Exits of the network, the final one included.
    kinds
        Kinds of distortion.
    """
    columns = {}
    for c in COLUMNS:
        columns[c.name] = np.full((count, c.values(exits, kinds)) if c.width else count, c.default, DTYPES[c.kind])
    return Rows(**columns)
