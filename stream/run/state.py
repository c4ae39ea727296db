"""What a stream that was cut off goes on from: policy, budget and running totals, committed with the records.

`state.npz` says how many frames are done and how many parts of the records belong to them; parts beyond are of frames
that will come again, and go. The file holds numbers only and is replaced in one step.

A budget goes on as full as it was at the commit: the time for which nothing streamed brings in nothing, and what frames
after the commit spent is given back, for they come again and spend it again.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing
from eex.policies.core.price import Meter

if TYPE_CHECKING:
    from eex.stream.run.tally import Tally

NAME = "state.npz"


def write(folder: Path, policy: Policy, meter: Meter, tally: "Tally", frames: int, parts: int, seconds: float) -> None:
    """Commit: from now on the stream has done so many frames, and their records are the first parts.

    Raises
    ------
    EexError
        If it cannot be written; then the commit before holds.
    """
    arrays = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    arrays |= {f"meter.{name}": value for name, value in meter.state_dict().items()}
    arrays |= {f"tally.{name}": value for name, value in tally.state_dict().items()}
    arrays |= {"frames": np.array(frames), "parts": np.array(parts), "seconds": np.array(seconds)}
    with replacing(folder / NAME, durable=True) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """What was committed last; None if nothing was.

    Raises
    ------
    EexError
        If the file cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        for name in ("frames", "parts", "seconds"):
            float(arrays[name])
        return arrays
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise EexError(f"{path}: not the state of a stream: {error}") from None


def restore(saved: Mapping[str, NDArray[Any]], policy: Policy, meter: Meter, tally: "Tally") -> float:
    """Put policy, budget and totals back to where they were; the seconds taken until then.

    A state that an older eex wrote has no budget: then it starts full.

    Raises
    ------
    EexError
        If the state is that of another policy or price.
    """
    try:
        policy.load_state_dict(_under(saved, "policy."))
        tally.load_state_dict(_under(saved, "tally."))
        if metered := _under(saved, "meter."):
            meter.load_state_dict(metered)
    except (ValueError, KeyError, TypeError) as error:
        raise EexError(f"{NAME} does not belong to this run: {error}") from None
    return float(saved["seconds"])


def drop_uncommitted(folder: Path, resume: bool) -> None:
    """Delete the parts of the records of a resumed run that its state does not know of."""
    saved = read(folder) if resume else None
    kept = 0 if saved is None else int(saved["parts"])
    for path in (folder / "records").glob("part-*.arrows") if resume else ():
        if (number := re.fullmatch(r"part-(\d+)", path.stem)) and int(number[1]) >= kept:
            path.unlink()


def _under(saved: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
