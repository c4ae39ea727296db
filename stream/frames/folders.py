"""What lies in an image folder or a zip of one: images, their classes and splits, and what is left out."""

import contextlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError
from eex.stream.frames.decoding import IMAGE_SUFFIXES

Part = Literal["train", "validation", "test"]
Split = Literal["train", "validation", "test", "all"]

SPLITS: tuple[tuple[Part, str], ...] = (
    ("train", "train|training|trn"),
    ("validation", "validation|valid|val|dev"),
    ("test", "test|testing|tst|eval|evaluation"),
)
"""Usual names of splits, as patterns; "_set", "-images" and the like may follow, in upper or lower case."""
PICTURE_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".eps", ".ps", ".pdf", ".psd", ".xcf", ".ico", ".icns"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".exr", ".hdr", ".dcm", ".jxr"),
    }
)
"""Suffixes of pictures that are not decoded, in lower case: a class that has nothing else was meant to be there."""


@dataclass(frozen=True)
class Listing:
    """The images of one split of a folder or zip.

    Attributes
    ----------
    names
        Paths inside the folder, sorted, with slashes.
    labels
        Class of each image, int64; -1 if unknown.
    classes
        Class names of all splits, sorted.
    parts
        Number of images in each split, those not asked for included; empty if there are no splits.
    unreadable
        Classes that hold pictures, but none that can be decoded, with the suffixes of these.
    notes
        Sentences on what was left out.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    parts: Mapping[str, int]
    unreadable: Mapping[str, str]
    notes: tuple[str, ...]


def arrange(files: Sequence[str], split: Split) -> Listing:
    """Sort files into classes and splits by their folders: [top/ …][split/]class/ … image, or images alone.

    The class is the first folder below the split, or below the folders that hold everything. A split whose images all
    lie in one folder that no other split knows, such as `test/images/`, is not labelled.

    Parameters
    ----------
    files
        Paths inside the folder or zip, with slashes. Hidden files and those that macOS adds to zips are left out.
    split
        Which images to take; ignored if there are no splits.
    """
    visible = sorted(f for f in files if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(f).parts))
    images = [name for name in visible if suffix_of(name) in IMAGE_SUFFIXES]
    others = [name for name in visible if suffix_of(name) not in IMAGE_SUFFIXES]
    folders = {name: PurePosixPath(name).parts[:-1] for name in visible}
    depth, split_folders = _depth([folders[name] for name in images])
    notes = []
    if others:
        notes.append(f"{_files(len(others))} not read: {_by_suffix(others)}")
    if not split_folders:
        inside = {name: ("all", folders[name][depth:]) for name in visible}
    else:
        inside = {
            name: (split_folders[f[depth]], f[depth + 1 :])
            for name, f in folders.items()
            if len(f) > depth and f[depth] in split_folders
        }
        if outside := [name for name in images if name not in inside]:
            notes.append(
                f"{_files(len(outside))} outside the splits {', '.join(sorted(split_folders))}: {outside[0]}"
                + (", …" if len(outside) > 1 else "")
            )
    images = [name for name in images if name in inside]
    parts = Counter(inside[name][0] for name in images)
    by_part = {part: {inside[n][1][0] for n in images if inside[n][0] == part and inside[n][1]} for part in parts}
    unlabelled = {part for part in by_part if _is_unlabelled(part, by_part)}
    classes = sorted({name for part in by_part.keys() - unlabelled for name in by_part[part]})
    number = {name: i for i, name in enumerate(classes)}
    chosen = [name for name in images if split == "all" or inside[name][0] in ("all", split)]
    labels = [number[inside[n][1][0]] if inside[n][1] and inside[n][0] not in unlabelled else -1 for n in chosen]
    empty: dict[str, list[str]] = {}
    for name in others:
        part, below = inside.get(name, ("", ()))
        if part and part not in unlabelled and below and below[0] not in number:
            empty.setdefault(below[0], []).append(name)
    for name, found in sorted(empty.items()):
        notes.append(f"no images in {printable(name)}/: {_by_suffix(found)}")
    return Listing(
        tuple(chosen),
        np.array(labels, dtype=np.int64),
        tuple(printable(name) for name in classes),
        dict(parts) if split_folders else {},
        {
            printable(name): _by_suffix(found)
            for name, found in sorted(empty.items())
            if any(suffix_of(n) in PICTURE_SUFFIXES for n in found)
        },
        tuple(printable(note) for note in notes),
    )


def split_of(folder: str) -> Part | None:
    """The split that a folder is named after, if it is.

    Examples
    --------
    >>> split_of("Training_Set"), split_of("valid"), split_of("test1"), split_of("trainer")
    ('train', 'validation', 'test', None)
    """
    for part, names in SPLITS:
        if re.fullmatch(rf"(?:{names})\d?(?:[ _-]?(?:set|split|data|images?|imgs?|pictures))?\d?", folder.casefold()):
            return part
    return None


def _depth(folders: Sequence[tuple[str, ...]]) -> tuple[int, dict[str, Part]]:
    """How deep the folders of splits lie, and which they are; without splits, how deep those of classes lie."""
    depth = 0
    while True:
        here = {f[depth] for f in folders if len(f) > depth}
        splits = {folder: part for folder in here if (part := split_of(folder)) is not None}
        several = "train" in splits.values() and len(set(splits.values())) > 1  # "train" alone may be a class
        if splits and (len(splits) == len(here) or several):
            return depth, splits
        if len(here) != 1 or all(len(f) <= depth + 1 for f in folders):
            return depth, {}
        depth += 1  # one folder holds everything


def _is_unlabelled(part: str, classes: Mapping[str, set[str]]) -> bool:
    """Whether the one folder of a split is no class, by the classes of each split."""
    others = set().union(*(names for other, names in classes.items() if other != part))
    return len(classes[part]) == 1 and len(others) > 1 and not classes[part] & others


def folder_files(folder: Path) -> list[str]:
    """Paths of all files in a folder and its subfolders, links to folders included, with slashes.

    A link to a folder that it lies in is not followed.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    return list(_walk(folder, "", ()))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = prefix + entry.name
            if entry.is_dir() and not entry.name.startswith("."):
                inside = list(_walk(folder / entry.name, f"{name}/", (*above, here)))
                yield from inside
                if inside or suffix_of(name) not in IMAGE_SUFFIXES:
                    continue
            if not entry.is_dir() or suffix_of(name) in IMAGE_SUFFIXES:
                yield name


def zip_files(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open a zip; its files by their paths, with slashes.

    Raises
    ------
    EexError
        If it is not a zip, or damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError:
        raise EexError(
            f"{path}: this zip marks names as UTF-8 that are not; unpack it, and give the folder instead"
        ) from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise EexError(f"{path}: not a readable zip of images ({error})") from None
    return archive, {_zip_name(info): info for info in archive.infolist() if not info.is_dir()}


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:  # not marked as UTF-8, which many programs write all the same
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name if "/" in name else name.replace("\\", "/")  # some programs for Windows write backslashes


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with its dot; empty if it has none."""
    return PurePosixPath(name).suffix.lower()


def printable(name: str) -> str:
    """A file's name as text that can be printed and stored: bytes that are not UTF-8 become escapes.

    Examples
    --------
    >>> printable("caf\\udce9.jpg")
    'caf\\\\xe9.jpg'
    """
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which stands for no byte
        return name.encode(errors="backslashreplace").decode()


def _by_suffix(names: Sequence[str]) -> str:
    counts = Counter(suffix_of(name) or "without a suffix" for name in names)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(6)]
    return ", ".join(shown) + (", …" if len(counts) > 6 else "")


def _files(count: int) -> str:
    return f"{count:,} file was" if count == 1 else f"{count:,} files were"
