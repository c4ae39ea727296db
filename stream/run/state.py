"""State from which an interrupted stream continues: policy, budget and running totals, committed with the records.

`state.npz` holds the number of frames that are done and the number of the first part of the records that does not
belong to them; that part and those after it are deleted, because their frames come again. The file holds arrays
and the policy's class, and is replaced in one step.

A budget continues as full as it was at the commit: the time in between adds nothing to it, and what frames after the
commit spent is returned, because they come again and spend it again.
"""

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Policy, go_on_from
from eex.policies.core.errors import EexError
from eex.policies.core.files import replacing
from eex.policies.core.price import Meter

if TYPE_CHECKING:
    from eex.stream.run.tally import Tally

NAME = "state.npz"


def write(folder: Path, policy: Policy, meter: Meter, tally: "Tally", frames: int, parts: int, seconds: float) -> None:
    """Commit: the stream has done `frames` frames, whose records are in the parts numbered below `parts`.

    Raises
    ------
    EexError
        If it cannot be written; the previous commit stays valid.
    """
    arrays = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    arrays |= {f"meter.{name}": value for name, value in meter.state_dict().items()}
    arrays |= {f"tally.{name}": value for name, value in tally.state_dict().items()}
    arrays |= {
        "made_by": np.array(type(policy).__qualname__),
        "frames": np.array(frames),
        "parts": np.array(parts),
        "seconds": np.array(seconds),
    }
    with replacing(folder / NAME, durable=True) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """The last commit; None if there is none.

    Raises
    ------
    EexError
        If the file cannot be read or is not the state of a stream.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        for name, most in (("frames", 2**53), ("parts", 2**31), ("seconds", 2**53)):
            if arrays[name].shape != () or not 0 <= float(arrays[name]) < most:
                raise ValueError(f"{name} is {arrays[name]}, expected one number in [0, 2^{most.bit_length() - 1})")
            if name != "seconds" and arrays[name].dtype.kind not in "iu":
                raise ValueError(f"{name} is {arrays[name]}, expected a whole number")
        return arrays
    except KeyError as error:
        raise EexError(f"{path}: not the state of a stream: it lacks {error}") from None
    except (ValueError, TypeError) as error:
        raise EexError(f"{path}: not the state of a stream: {error}") from None


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that `np.savez` wrote; together they are no larger than the file.

    Raises
    ------
    EexError
        If the file cannot be read.
    ValueError
        If it is something else, or is compressed, so that its arrays could be of any size.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                    raise ValueError(f"its array {entry.filename} is compressed or larger than the file")
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _array(file, entry.file_size)
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError, MemoryError, SyntaxError, struct.error) as error:
        raise ValueError(str(error)) from None
    return arrays


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """One array in NumPy's format; its header is checked against the size before anything is allocated."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of version {version}")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    count = math.prod(shape)
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} and type {dtype} in {size:,} bytes")
    array = np.frombuffer(file.read(), dtype, count).reshape(shape, order="F" if columns_first else "C")
    return array.copy()


def restore(saved: Mapping[str, NDArray[Any]], policy: Policy, meter: Meter, tally: "Tally") -> float:
    """Restore policy, budget and totals, and return the seconds that the stream had taken until then.

    A state that an older version wrote has no budget; it then starts full.

    Raises
    ------
    EexError
        If the state is that of another policy or price.
    """
    made_by = str(saved.get("made_by", type(policy).__qualname__))  # an older state lacks it
    try:
        if made_by != type(policy).__qualname__:
            raise ValueError(f"its policy is {made_by}, not {type(policy).__qualname__}")
        go_on_from(policy, _under(saved, "policy."))
        tally.load_state_dict(_under(saved, "tally."))
        if metered := _under(saved, "meter."):
            meter.load_state_dict(metered)
    except (ValueError, KeyError, TypeError) as error:
        raise EexError(f"{NAME} does not belong to this run: {error}") from None
    return float(saved["seconds"])


def _under(saved: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
