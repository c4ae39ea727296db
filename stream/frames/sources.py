"""Sources of frames: the shipped sample, image folders and zips, CIFAR-10, Caltech-256, video."""

import itertools
import os
import pickletools
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import EexError, ImageError, SourceLost
from eex.stream.frames.decoding import (
    IMAGE_SUFFIXES,
    Image,
    Truncated,
    as_uint8,
    check_bytes,
    check_channels,
    decode,
    grey,
    read_bytes,
    resized,
)
from eex.stream.frames.folders import Listing, Split, arrange, folder_files, printable, suffix_of, zip_files
from eex.stream.frames.video import VIDEO_SUFFIXES, Damaged, VideoError, camera, decode_video, require_pyav

ANIMATED = {".gif", ".apng", ".png"}
"""Suffixes of images that may be videos, if they are a source by themselves."""
REOPEN_S = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each attempt to open a lost camera again."""
THREADS = min(4, os.cpu_count() or 1)
"""Threads that decode images ahead of their use. Decoders leave Python's lock to others."""
AHEAD = 16 * THREADS
"""Images that are decoded ahead, at most."""
WORTH_THREADS = 128 * 128
"""Pixels of the network's input from which on images are decoded in threads; a small one takes less than a thread's
turn."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"


@dataclass(frozen=True)
class Frame:
    """One image of a source: uint8 (H, W, 3), or float32 in [0, 1]; `label` is -1 if unknown.

    A source that is opened for a network of one channel gives (H, W, 1).
    """

    name: str
    image: Image
    label: int = -1


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A named list of images that are decoded when they are read.

    Attributes
    ----------
    name
        The source as the user typed it.
    classes
        Class names; empty if the images have no labels.
    names
        Name of each image, for messages.
    labels
        Class of each image, int64; -1 if unknown.
    read
        Returns an image by index: uint8 (H, W, 3) or float32 in [0, 1]. Raises `ImageError`.
    threads
        Threads that may call `read` at once; with several, images are read ahead of their use.
    stream
        For sources without an index, such as a camera: yields frames. `names` and `labels` are then empty.
    notes
        Sentences on what lies there and was left out.
    unreadable
        Classes without an image that can be decoded, and the suffixes of what they hold instead.
    """

    name: str
    classes: tuple[str, ...]
    names: Sequence[str] = ()
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    read: Callable[[int], Image] | None = None
    stream: Callable[[], Iterator[Frame | Skipped]] | None = None
    notes: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    def __len__(self) -> int:
        return len(self.names)


def frames(source: Source, seed: int | None = 0, *, once: bool = False) -> Iterator[Frame | Skipped]:
    """Yield all frames of a source, pass after pass, each in a new random order, or in stored order if `seed` is None.

    An unusable image is reported once and left out of later passes. If no image is usable, there is only one pass. A
    camera or a video is read once, in its own order.

    Parameters
    ----------
    once
        End after one pass.
    """
    if source.stream is not None:
        yield from source.stream()
        return
    assert source.read is not None
    bad: set[int] = set()
    for turn in itertools.count():
        order = np.arange(len(source)) if seed is None else np.random.default_rng((seed, turn)).permutation(len(source))
        for i, image in _read(source.read, [i for i in order.tolist() if i not in bad], source.threads):
            if isinstance(image, ImageError):
                bad.add(i)
                yield Skipped(source.names[i], str(image))
            else:
                yield Frame(source.names[i], image, int(source.labels[i]))
        if once or len(bad) == len(source):
            return


def _read(
    read: Callable[[int], Image], indices: Iterable[int], threads: int
) -> Iterator[tuple[int, Image | ImageError]]:
    """Read images in order, several ahead where there are threads for it."""

    def attempt(i: int) -> Image | ImageError:
        try:
            return read(i)
        except ImageError as error:
            return error

    if threads < 2:
        for i in indices:
            yield i, attempt(i)
        return
    pool, ahead = ThreadPoolExecutor(threads, "decoding"), deque[tuple[int, Future[Image | ImageError]]]()
    try:
        for i in indices:
            ahead.append((i, pool.submit(attempt, i)))
            if len(ahead) > AHEAD:
                first, image = ahead.popleft()
                yield first, image.result()
        while ahead:
            first, image = ahead.popleft()
            yield first, image.result()
    finally:
        pool.shutdown(cancel_futures=True)


def open_source(
    spec: Path | str,
    *,
    split: Split = "test",
    shape: tuple[int, ...] | None = None,
    resize: bool = False,
    seed: int = 0,
    preprocessing: Preprocessing = USUAL,
    truncated: Truncated = "refuse",
) -> Source:
    """Open a source.

    Parameters
    ----------
    spec
        "sample" (the shipped test images), "camera" or "camera:N", or a path: an image folder or a zip of one
        (`class/image` or `train/class/image`, or images alone), a folder with CIFAR-10's `cifar-10-batches-py` files, a
        folder with Caltech-256's `256_ObjectCategories`, a video file.
    split
        Split of the source, if it has splits; "all" takes all. Caltech-256 is split 80/10/10 with `seed`.
    shape
        Input shape (C, H, W) of the model. Images of other sizes are skipped, or resized if `resize` is set. Camera and
        video are always resized. A model of one channel gets grey images.
    preprocessing
        How images are resized; part of a model's card.
    truncated
        What to do with files that end early (`decode`).

    Raises
    ------
    EexError
        If the source does not exist or has no images, or the model takes neither RGB nor grey images.
    """
    spec = str(spec)
    if shape is not None:
        check_channels(shape)
    least = preprocessing.least(*shape[1:]) if shape is not None and resize else 0
    decoded = partial(decode, least=least, truncated=truncated)
    try:
        source = replace(_open(spec, split, seed, decoded), name=printable(spec))
    except OSError as error:
        where = f"{printable(str(error.filename))}: " if error.filename not in (None, spec) else ""
        raise EexError(f"{printable(spec)}: cannot be read: {where}{error.strerror}") from None
    if source.stream is None and not len(source):
        suffixes, notes = ", ".join(sorted(IMAGE_SUFFIXES)), "".join(f"; {note}" for note in source.notes)
        raise EexError(f"{printable(spec)}: no images ({suffixes}) in split '{split}'{notes}")
    return source if shape is None else _fit(source, shape, resize, preprocessing)


Decoder = Callable[[bytes, str], Image]
"""Makes an image of a file's bytes and its name."""


def _open(spec: str, split: Split, seed: int, decoded: Decoder) -> Source:
    kind, _, number = spec.partition(":")
    if kind == "sample" and not number:
        return _zip(Path(__file__).parents[1] / "shipped" / "cifar10-sample.zip", "all", decoded)
    if kind == "camera":
        if number and not number.isdecimal():
            raise EexError(f"{spec}: expected 'camera' or 'camera:N', N a whole number")
        return _video(spec, int(number or 0))
    path = Path(spec)
    if not path.exists():
        raise EexError(
            f"{printable(spec)}: no such source; expected 'sample', 'camera' or the path of images or a video"
        )
    if not path.is_dir():
        return _file(path, spec, split, decoded)
    if (root := _find(path, "data_batch_1")) is not None:
        return _cifar10(root, split)
    if path.name == "256_ObjectCategories":
        return _caltech256(path, split, seed, decoded)
    if (root := _find(path, "256_ObjectCategories")) is not None:
        return _caltech256(root / "256_ObjectCategories", split, seed, decoded)
    return _arranged(path, arrange(folder_files(path), split), lambda name: _from_file(path / name, decoded))


def _file(path: Path, spec: str, split: Split, decoded: Decoder) -> Source:
    """A file that is a source by itself: a zip, a video or an image."""
    suffix = path.suffix.lower()
    if is_video(path):
        return _video(spec)
    if suffix in IMAGE_SUFFIXES:
        return Source(str(path), (), [printable(path.name)], np.array([-1]), lambda i: _from_file(path, decoded))
    if suffix == ".zip" or zipfile.is_zipfile(path):
        return _zip(path, split, decoded)
    raise EexError(f"{printable(spec)}: neither a folder nor a zip of images, nor an image or a video")


def is_video(path: Path) -> bool:
    """Whether a path is that of a video, or of an image that moves."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or (suffix in ANIMATED and os.path.isfile(path) and _is_animated(path))


def _is_animated(path: Path) -> bool:
    from PIL import Image as Pillow

    try:
        with Pillow.open(path, formats=["GIF", "PNG"]) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow's readers raise all kinds of exceptions on damaged files
        return False


def load_all(source: Source, most: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Skipped]]:
    """Load all images of a source: uint8 (N, C, H, W), labels (N,), and the skipped images with their reasons.

    Parameters
    ----------
    most
        Frames of a camera or a video to load, at most; with 0, neither is loaded.

    Raises
    ------
    EexError
        If no image can be used, their sizes differ, or the source is a camera or a video and `most` is 0.
    """
    if source.stream is not None and not most:
        raise EexError(f"{source.name}: a camera or a video cannot be loaded at once; expected a source of images")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    skipped: list[Skipped] = []
    for frame in itertools.islice(frames(source, seed=None, once=True), None if source.stream is None else most):
        if isinstance(frame, Skipped):
            skipped.append(frame)
            continue
        image = as_uint8(frame.image)
        if images and image.shape != images[0].shape:
            (height, width), (others_height, others_width) = image.shape[:2], images[0].shape[:2]
            raise EexError(
                f"{source.name}: {frame.name} is {width}x{height}, others are {others_width}x{others_height}; "
                "expected images of one size"
            )
        images.append(image)
        labels.append(frame.label)
    if not images:
        why = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        count = len(source) if source.stream is None else len(skipped)
        raise EexError(f"{source.name}: none of its {count} images can be used{why}")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), np.array(labels, dtype=np.int64), skipped


def download_cifar10(folder: Path) -> Path:
    """Fetch CIFAR-10 (170 MB) into a folder, check its MD5 and unpack it; returns the folder of the batches.

    Raises
    ------
    EexError
        If the download fails or is damaged.
    """
    import pooch

    try:
        files = pooch.retrieve(
            CIFAR10_URL,
            f"md5:{CIFAR10_MD5}",
            "cifar-10-python.tar.gz",
            folder,
            processor=pooch.Untar(),
            progressbar=False,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split())
        raise EexError(
            f"could not download {CIFAR10_URL} into {folder}: {reason}; "
            "or fetch and unpack it by hand, and name its folder"
        ) from None
    return Path(next(f for f in files if f.endswith("data_batch_1"))).parent


def _fit(source: Source, shape: tuple[int, ...], resize: bool, preprocessing: Preprocessing) -> Source:
    """The same source with every image of the height and width of `shape` (C, H, W), RGB or grey."""
    channels, height, width = shape

    def fit(image: Image, resize: bool) -> Image:
        if image.shape[:2] == (height, width):
            return grey(image) if channels == 1 else image
        if not resize:
            raise ImageError(
                f"is {image.shape[1]}x{image.shape[0]}, the model takes {width}x{height} (--resize scales images)"
            )
        image = resized(image, height, width, preprocessing)
        return grey(image) if channels == 1 else image

    read, stream = source.read, source.stream
    if stream is not None:
        return replace(
            source,
            stream=lambda: (
                replace(f, image=fit(f.image, resize=True)) if isinstance(f, Frame) else f for f in stream()
            ),
        )
    assert read is not None
    threads = source.threads if height * width >= WORTH_THREADS else 1
    return replace(source, read=lambda i: fit(read(i), resize), threads=threads)


def _find(path: Path, entry: str) -> Path | None:
    """The folder that contains an entry: the path itself, or one of its subfolders."""
    if not path.is_dir():
        return None
    return next((p for p in [path, *sorted(path.iterdir())] if p.is_dir() and (p / entry).exists()), None)


def _from_file(path: Path, decoded: Decoder) -> Image:
    return decoded(read_bytes(path), path.name)


def _zip(path: Path, split: Split, decoded: Decoder) -> Source:
    """A zip of an image folder."""
    archive, files = zip_files(path)
    return _arranged(path, arrange(list(files), split), lambda name: _from_zip(archive, files[name], decoded))


def _arranged(path: Path, found: Listing, read: Callable[[str], Image]) -> Source:
    if not found.names and found.parts:
        has = ", ".join(f"'{part}' ({count:,} images)" for part, count in found.parts.items())
        notes: tuple[str, ...] = (f"it has {has}", *found.notes)
    else:
        notes = found.notes
    return Source(
        str(path),
        found.classes,
        [printable(name) for name in found.names],
        found.labels,
        lambda i: read(found.names[i]),
        notes=notes,
        unreadable=found.unreadable,
        threads=THREADS,
    )


def _from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, decoded: Decoder) -> Image:
    check_bytes(info.file_size)
    try:
        data = archive.read(info)
    except Exception as error:  # encrypted, damaged and unknown compression raise different exceptions
        raise ImageError(f"cannot be read: {error}") from None
    return decoded(data, info.filename)


def _cifar10(root: Path, split: Split) -> Source:
    """CIFAR-10's Python batches. They are pickles: strings and numbers are read from them, nothing is executed."""
    train, test = [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]
    files = {"train": train, "test": test, "all": train + test, "validation": []}[split]
    if not files:
        raise EexError(f"{root}: CIFAR-10 has no split '{split}'; expected 'train', 'test' or 'all'")
    parts = [_cifar10_batch(root / name) for name in files]
    images = np.concatenate([p[0] for p in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([p[1] for p in parts])
    names = [f"{file}#{i}" for file, part in zip(files, parts, strict=True) for i in range(len(part[1]))]
    return Source(str(root), CIFAR10_CLASSES, names, labels, lambda i: images[i])


def _cifar10_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (N · 3072,) and labels (N,): the longest string under the key "data", the small numbers under "labels"."""
    key, pixels, labels = "", b"", []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            text = argument.decode("latin-1") if isinstance(argument, bytes) else argument
            if text in ("batch_label", "labels", "data", "filenames"):
                key = text
            elif key == "data" and isinstance(text, str):
                pixels = max(pixels, text.encode("latin-1", "ignore"), key=len)
            elif key == "labels" and isinstance(text, int) and opcode.name in ("BININT", "BININT1", "BININT2"):
                labels.append(text)
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # genops raises more than ValueError on files that are not pickles
        raise EexError(f"{path}: not a batch of CIFAR-10 ({error})") from None
    if not labels or len(pixels) != 3072 * len(labels) or not 0 <= min(labels) <= max(labels) <= 9:
        raise EexError(f"{path}: not a batch of CIFAR-10: {len(labels)} labels, {len(pixels):,} bytes of pixels")
    return np.frombuffer(pixels, dtype=np.uint8), np.array(labels, dtype=np.int64)


def _caltech256(root: Path, split: Split, seed: int, decoded: Decoder) -> Source:
    """Caltech-256's folder `NNN.name/image`, without its clutter class, 80/10/10 of each class by a seeded draw."""
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.endswith("clutter")))
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(p.name for p in (root / name).iterdir() if suffix_of(p.name) in IMAGE_SUFFIXES)
        order = np.random.default_rng((seed, label)).permutation(len(files))
        a, b = round(0.8 * len(files)), round(0.9 * len(files))
        part = {"train": order[:a], "validation": order[a:b], "test": order[b:], "all": order}[split]
        names += [f"{name}/{files[i]}" for i in sorted(part)]
        labels += [label] * len(part)
    return Source(
        str(root),
        classes,
        [printable(name) for name in names],
        np.array(labels, dtype=np.int64),
        lambda i: _from_file(root / names[i], decoded),
        threads=THREADS,
    )


def _video(spec: str, device: int | None = None) -> Source:
    """A video file, or the camera of a number; a camera that is lost is opened again a few times."""
    require_pyav(printable(spec))
    video, options = (f"file:{spec}", {}) if device is None else camera(device)

    def stream() -> Iterator[Frame | Skipped]:
        failed = number = 0
        while True:
            try:
                for frame in decode_video(video, options):
                    name = f"{printable(spec)}#{number}"
                    number += 1
                    if isinstance(frame, Damaged):
                        yield Skipped(name, frame.reason)
                    else:
                        failed = 0
                        yield Frame(name, frame.image)
                if device is None:
                    return
                problem = "gives no more frames"
            except VideoError as error:
                problem = str(error)
            if device is None or not number or failed == len(REOPEN_S):
                raise (SourceLost if number else EexError)(f"{printable(spec)}: {problem}")
            time.sleep(REOPEN_S[failed])
            failed += 1

    return Source(spec, (), stream=stream)
