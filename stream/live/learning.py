"""What the streams of a session have learned, kept in a file from one session to the next."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing

Learned = tuple[int, dict[str, NDArray[Any]]]
"""Frames that a learner had chosen for, and its state: that of a policy of one run."""
FORMAT = 1


def write(path: Path, made_for: Mapping[str, Any], learned: Mapping[str, Learned]) -> None:
    """Replace the file, in one step.

    Parameters
    ----------
    made_for
        What a session must have in common with this one to take it up: policy, exits, network.
    learned
        By name of the stream; "" for the learner that all share.

    Raises
    ------
    EexError
        If it cannot be written; the file is then as it was.
    """
    names = list(learned)
    about = {"format": FORMAT, "made_for": dict(made_for), "streams": names}
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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        about = json.loads(str(arrays["about"]))
        names, frames = about["streams"], arrays["frames"].tolist()
        if about["format"] != FORMAT or len(frames) != len(names):
            raise ValueError("of another version of eex")
        theirs = about["made_for"]
        different = [k for k in {**made_for, **theirs} if made_for.get(k) != theirs.get(k)]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
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
