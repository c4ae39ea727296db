"""True labels that come after the answers: they count in the accuracy, and the records show them."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eex.policies.core.errors import EexError
from eex.policies.core.files import append

AWAITED = 65_536
"""Latest answers whose true label can still be given, at most."""


class UnknownFrame(EexError):
    """A true label came for a frame that got no answer, or whose answer is long past."""


class Unrecorded(EexError):
    """A true label could not be written to the records."""


@dataclass(frozen=True)
class Labelled:
    """A frame whose true label came: the class before, -1 for none, the true one, and the one that was answered."""

    before: int
    label: int
    answer: int


class Labels:
    """The latest answers, by stream and number of the frame, and where their true labels are recorded.

    Parameters
    ----------
    classes
        Names of the classes.
    records
        File for the labels, that of the records; None if there are none.
    """

    def __init__(self, classes: Sequence[str], records: Path | None) -> None:
        self._number = {name: k for k, name in enumerate(classes)}
        self._records = records
        self._awaited: OrderedDict[tuple[str, int], tuple[int, int, int]] = OrderedDict()

    def answered(self, stream: str, frame: int, recorded: int, answer: int, label: int) -> None:
        """Note an answer.

        Parameters
        ----------
        stream, frame
            As in the answer.
        recorded
            Number of the frame in the records.
        answer, label
            Number of the class that was answered, and of the true one, if it is known; else -1.
        """
        self._awaited[stream, frame] = recorded, answer, label
        if len(self._awaited) > AWAITED:
            self._awaited.popitem(last=False)

    def give(self, stream: str, frame: int, label: str) -> Labelled:
        """Take a true label, and record it.

        Raises
        ------
        UnknownFrame, Unrecorded
            If the frame is not known, or the label cannot be recorded.
        EexError
            If the model has no such class. Nothing is changed then, as in the other cases.
        """
        if (number := self._number.get(label)) is None:
            known = ", ".join(list(self._number)[:10])
            raise EexError(f"'{label[:60]}' is none of the model's classes ({known}{', …' * (len(self._number) > 10)})")
        if (known_of := self._awaited.get((stream, frame))) is None:
            raise UnknownFrame(
                f"frame {frame} of stream '{stream}' is not known: it got no answer, or is not among the latest "
                f"{AWAITED:,} since the start"
            )
        recorded, answer, before = known_of
        if self._records is not None and number != before:
            line = json.dumps({"stream": stream, "frame": recorded, "label": label}) + "\n"
            try:
                with self._records.open("ab") as file:
                    append(file.fileno(), line.encode())
            except OSError as error:
                raise Unrecorded(f"{self._records}: the label cannot be recorded: {error.strerror}") from None
        self._awaited[stream, frame] = recorded, answer, number
        return Labelled(before, number, answer)
