"""What the streams of a session have learned, kept in a file from one session to the next."""

import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import ExitCost, Floats, Policy
from eex.policies.core.errors import EexError
from eex.policies.core.files import parse_json, replacing
from eex.stream.live.config import StreamOptions
from eex.stream.run.state import read_arrays

Learned = tuple[int, dict[str, NDArray[Any]]]
"""Frames that a learner had chosen for, and its state: that of a policy of one run."""
Snapshot = tuple[int, Mapping[str, Learned]]
"""What all streams have learned at one time, and its number: a later one has a higher one."""
FORMAT = 1
STREAMS_KEPT = 1024
"""Streams that were closed whose learning is kept, at most: the latest."""

MOST_FRAMES = 2**53


@dataclass(frozen=True)
class Learner:
    """A copy of a stream's learner.

    Attributes
    ----------
    policy
        Of one run.
    first
        Number of its next frame.
    overhead
        The price of offloading that it chooses by now, in units of confidence.
    frozen
        The thresholds that the stream keeps, `exit_at` and `skip_below`; None if the policy's are played.
    exit_cost
        Price of each further edge exit, one for all or one each.
    """

    policy: Policy
    first: int
    overhead: float
    frozen: tuple[Floats, Floats] | None
    exit_cost: ExitCost = 0.0


class _About(msgspec.Struct):
    """What the file says of itself."""

    format: int
    made_for: dict[str, Any]
    streams: list[str]
    settings: dict[str, dict[str, Any]] = {}


class Kept:
    """What streams that are not open have learned, and the file in which it outlasts the session.

    Parameters
    ----------
    path
        The file; None for none.
    made_for
        As for `write`.
    note
        Receives a line for what cannot be read or saved.

    Attributes
    ----------
    learned
        By name of the stream.
    settings
        Options that were set while a session ran (`Session.set_options`), by name of the stream; they hold whatever
        the policy and the network are.
    """

    def __init__(self, path: Path | None, made_for: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self.path, self.made_for, self._note = path, made_for, note
        self.learned: OrderedDict[str, Learned] = OrderedDict()
        self.settings: OrderedDict[str, StreamOptions] = OrderedDict()
        self._saver: threading.Thread | None = None
        self._numbers, self._writing, self._written = itertools.count(1), threading.Lock(), 0
        if path is not None:
            try:
                self.settings |= read_settings(path)
                self.learned |= read(path, made_for)
            except EexError as error:
                note(f"{error}; the session learns anew{_set_aside(path)}")

    def put_settings(self, name: str, options: StreamOptions) -> None:
        """Keep what was set for a stream."""
        self.settings[name] = options
        self.settings.move_to_end(name)
        while len(self.settings) > STREAMS_KEPT:
            self.settings.popitem(last=False)

    def put(self, name: str, learned: Learned) -> None:
        """Keep what a stream has learned."""
        self.learned[name] = learned
        self.learned.move_to_end(name)
        while len(self.learned) > STREAMS_KEPT:
            self.learned.popitem(last=False)

    def snapshot(self, learned: Mapping[str, Learned]) -> Snapshot:
        """What all streams have learned, to be written."""
        return next(self._numbers), learned

    def write(self, snapshot: Snapshot) -> None:
        """Write the file, from any thread; an earlier snapshot does not replace a later one.

        Raises
        ------
        EexError
            If it cannot be written.
        """
        assert self.path is not None
        number, learned = snapshot
        with self._writing:
            if number > self._written:
                write(self.path, self.made_for, learned, self.settings)
                self._written = number

    def save(self, snapshot: Snapshot) -> None:
        """Write the file; what goes wrong is noted."""
        try:
            self.write(snapshot)
        except EexError as error:
            self._note(str(error))

    def save_aside(self, snapshot: Callable[[], Snapshot]) -> None:
        """Save in a thread of its own, as the disk may be slow, unless that still saves."""
        if self._saver is None or not self._saver.is_alive():
            self._saver = threading.Thread(target=self.save, args=(snapshot(),), name="eex-save", daemon=True)
            self._saver.start()

    def join(self) -> None:
        """Wait for the thread that saves."""
        if self._saver is not None:
            self._saver.join()


def _set_aside(path: Path) -> str:
    """Give a file that is of no use here another name, so that it is not replaced; what there is to say of it."""
    names = (path.with_name(f"{path.name}.old{k or ''}") for k in itertools.count())
    free = next(name for name in names if not name.exists())
    try:
        path.rename(free)
    except OSError as error:
        return f", and that file is replaced: it cannot be renamed: {error.strerror}"
    return f"; that file is now {free}"


def write(
    path: Path,
    made_for: Mapping[str, Any],
    learned: Mapping[str, Learned],
    settings: Mapping[str, StreamOptions] | None = None,
) -> None:
    """Replace the file, in one step.

    Parameters
    ----------
    made_for
        What a session must have in common with this one to take it up: policy, exits, network.
    learned
        By name of the stream; "" for the learner that all share.
    settings
        Options that were set, by name of the stream.

    Raises
    ------
    EexError
        If it cannot be written; the file is then as it was.
    """
    names = list(learned)
    given = {name: msgspec.to_builtins(options) for name, options in list((settings or {}).items())}
    about = {"format": FORMAT, "made_for": dict(made_for), "streams": names, "settings": given}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), "frames": np.array([learned[n][0] for n in names])}
    states = [learned[n][1] for n in names]
    for key in states[0] if states else ():
        columns = [state[key] for state in states]
        if len({column.shape for column in columns}) == 1:
            arrays[f"all.{key}"] = np.concatenate(columns)
        else:  # what is awaited differs in size
            arrays |= {f"{k}.{key}": column for k, column in enumerate(columns)}
    with replacing(path, durable=True) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def read(path: Path, made_for: Mapping[str, Any]) -> dict[str, Learned]:
    """What a session that had as much in common has learned; empty if there is no file.

    Raises
    ------
    EexError
        If the file cannot be read, or is of another policy or network: what differs is named.
    """
    try:
        if not path.exists():
            return {}
        arrays = read_arrays(path)
        about = msgspec.convert(parse_json(str(arrays["about"])), type=_About)
        names, frames, theirs = about.streams, arrays["frames"], about.made_for
        if about.format != FORMAT or frames.shape != (len(names),):
            raise ValueError("of another version of eex")
        if frames.dtype.kind not in "iuf" or not np.all((frames >= 0) & (frames < MOST_FRAMES)):  # empty: of floats
            raise ValueError("the numbers of frames must be whole and at least 0")
        for key, array in arrays.items():
            if key.startswith("all.") and array.shape[:1] != frames.shape:
                raise ValueError(f"the array {key} must have a row for each of {len(names)} streams")
        different = [k for k in {**made_for, **theirs} if made_for.get(k) != theirs.get(k)]
    except EexError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EexError(f"{path}: not what a session has learned: {error}") from None
    if different:
        what = "; ".join(f"{k}: {theirs.get(k)} there, {made_for.get(k)} here" for k in different)
        raise EexError(f"{path}: was learned by another policy or network ({what})")
    learned: dict[str, Learned] = {}
    for k, name in enumerate(names):
        state = {key[4:]: array[k : k + 1] for key, array in arrays.items() if key.startswith("all.")}
        own = f"{k}."
        state |= {key[len(own) :]: array for key, array in arrays.items() if key.startswith(own)}
        learned[name] = int(frames[k]), state
    return learned


def read_settings(path: Path) -> dict[str, StreamOptions]:
    """The options that were set while the session of a file ran, by name of the stream; empty if there is no file.

    Raises
    ------
    EexError
        If the file cannot be read.
    """
    try:
        if not path.exists():
            return {}
        about = msgspec.convert(parse_json(str(read_arrays(path)["about"])), type=_About)
        return {name: msgspec.convert(given, StreamOptions) for name, given in about.settings.items()}
    except EexError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EexError(f"{path}: not what a session has learned: {error}") from None
