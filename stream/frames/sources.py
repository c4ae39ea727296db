"""Sources of frames: the shipped sample, image folders and zips, CIFAR-10, Caltech-256, video."""

import io
import itertools
import pickletools
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames.video import VIDEO_SUFFIXES, Damaged, VideoError, camera, decode_video, require_pyav

Image = NDArray[np.uint8] | NDArray[np.float32]
Split = Literal["train", "validation", "test", "all"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".npy"}
IMAGE_FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
)  # the only readers of Pillow that are used: one of the others runs Ghostscript
MAX_FILE_BYTES = 1 << 28
SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
REOPEN_S = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each attempt to open a lost camera again."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"


@dataclass(frozen=True)
class Frame:
    """One image of a source: uint8 (H, W, 3), or float32 in [0, 1]; `label` is -1 if unknown."""

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
    stream
        For sources without an index, such as a camera: yields frames. `names` and `labels` are then empty.
    """

    name: str
    classes: tuple[str, ...]
    names: Sequence[str] = ()
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    read: Callable[[int], Image] | None = None
    stream: Callable[[], Iterator[Frame | Skipped]] | None = None

    def __len__(self) -> int:
        return len(self.names)


def frames(source: Source, seed: int | None = 0) -> Iterator[Frame | Skipped]:
    """Yield all frames of a source, pass after pass, each in a new random order, or in stored order if `seed` is None.

    An unusable image is reported once and left out of later passes. If no image is usable, there is only one pass. A
    camera or a video is read once, in its own order.
    """
    if source.stream is not None:
        yield from source.stream()
        return
    assert source.read is not None
    bad: set[int] = set()
    for turn in itertools.count():
        order = np.arange(len(source)) if seed is None else np.random.default_rng((seed, turn)).permutation(len(source))
        for i in order.tolist():
            if i in bad:
                continue
            try:
                yield Frame(source.names[i], source.read(i), int(source.labels[i]))
            except ImageError as error:
                bad.add(i)
                yield Skipped(source.names[i], str(error))
        if len(bad) == len(source):
            return


def open_source(
    spec: str, *, split: Split = "test", shape: tuple[int, int, int] | None = None, resize: bool = False, seed: int = 0
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
        video are always resized.

    Raises
    ------
    EexError
        If the source does not exist or has no images.
    """
    try:
        source = replace(_open(spec, split, seed), name=spec)
    except OSError as error:
        raise EexError(f"{spec}: cannot be read: {error.strerror}") from None
    if source.stream is None and not len(source):
        raise EexError(f"{spec}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in split '{split}'")
    return source if shape is None else _fit(source, shape, resize)


def _open(spec: str, split: Split, seed: int) -> Source:
    kind, _, number = spec.partition(":")
    if kind == "sample" and not number:
        return _folder(Path(__file__).parents[1] / "shipped" / "cifar10-sample.zip", "all")
    if kind == "camera":
        if number and not number.isdecimal():
            raise EexError(f"{spec}: expected 'camera' or 'camera:N', N a whole number")
        return _video(spec, int(number or 0))
    path = Path(spec)
    if not path.exists():
        raise EexError(f"{spec}: no such source; expected 'sample', 'camera' or the path of images or a video")
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return _video(spec)
    if (root := _find(path, "data_batch_1")) is not None:
        return _cifar10(root, split)
    if path.name == "256_ObjectCategories":
        return _caltech256(path, split, seed)
    if (root := _find(path, "256_ObjectCategories")) is not None:
        return _caltech256(root / "256_ObjectCategories", split, seed)
    return _folder(path, split)


def load_all(source: Source) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Skipped]]:
    """Load all images of a source: uint8 (N, 3, H, W), labels (N,), and the skipped images with their reasons.

    Raises
    ------
    EexError
        If no image can be used, their sizes differ, or the source is a camera or a video.
    """
    if source.stream is not None:
        raise EexError(f"{source.name}: a camera or a video cannot be loaded at once; expected a source of images")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    skipped: list[Skipped] = []
    for frame in itertools.islice(frames(source, seed=None), len(source)):  # one pass
        if isinstance(frame, Skipped):
            skipped.append(frame)
            continue
        image = _as_uint8(frame.image)
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
        raise EexError(f"{source.name}: none of its {len(source)} images can be used{why}")
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


def decode(data: bytes, name: str) -> Image:
    """Decode the bytes of a file: uint8 (H, W, 3), or float32 in [0, 1] from a `.npy` array.

    Raises
    ------
    ImageError
        If the format is unknown, or a value is not finite or outside [0, 1].
    """
    if name.lower().endswith(".npy"):
        return _decode_array(data)
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            image: Pillow.Image = opened
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip, not scale
                image = Pillow.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            if "transparency" in image.info:  # else Pillow warns of palettes with alpha
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's readers raise all kinds of exceptions on damaged files
        reason = " ".join(str(error).split("<")[0].split()).rstrip(".") or type(error).__name__
        raise ImageError(f"not a readable image: {reason}") from None


def _decode_array(data: bytes) -> Image:
    try:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises more than is documented
        raise ImageError(f"not a readable array: {' '.join(str(error).split())}") from None
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ImageError(f"expected an array of uint8 or floats, got {array.dtype}")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(f"expected an array of shape (H, W, 3), got {array.shape}")
    if array.dtype == np.uint8:
        return array
    return check_finite(array).astype(np.float32)


def check_finite(image: NDArray[Any]) -> NDArray[Any]:
    """Return the image if all its values lie in [0, 1].

    Raises
    ------
    ImageError
        If a value is not finite or outside [0, 1].
    """
    if not np.isfinite(image).all():
        raise ImageError(f"{int((~np.isfinite(image)).sum())} values are NaN or infinite")
    low, high = float(image.min(initial=0)), float(image.max(initial=0))
    if low < 0 or high > 1:
        raise ImageError(f"values must lie in [0, 1], got {low:g}…{high:g}")
    return image


def _fit(source: Source, shape: tuple[int, int, int], resize: bool) -> Source:
    """The same source with every image of the height and width of `shape` (C, H, W)."""
    height, width = shape[1:]

    def fit(image: Image) -> Image:
        if image.shape[:2] == (height, width):
            return image
        if not resize:
            raise ImageError(
                f"is {image.shape[1]}x{image.shape[0]}, the model takes {width}x{height} (--resize scales images)"
            )
        return _resized(image, height, width)

    read, stream = source.read, source.stream
    if stream is not None:
        return replace(
            source,
            stream=lambda: (
                f if isinstance(f, Skipped) else replace(f, image=_resized(f.image, height, width)) for f in stream()
            ),
        )
    assert read is not None
    return replace(source, read=lambda i: fit(read(i)))


def _resized(image: Image, height: int, width: int) -> Image:
    """Scaled so that the shorter side fits, and cropped at the middle."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    return np.array(ImageOps.fit(Pillow.fromarray(_as_uint8(image)), (width, height), Pillow.Resampling.BILINEAR))


def _as_uint8(image: Image) -> NDArray[np.uint8]:
    return (image if image.dtype == np.uint8 else (image * 255).round()).astype(np.uint8)


def _find(path: Path, entry: str) -> Path | None:
    """The folder that contains an entry: the path itself, or one of its subfolders."""
    if not path.is_dir():
        return None
    return next((p for p in [path, *sorted(path.iterdir())] if p.is_dir() and (p / entry).exists()), None)


def _folder(path: Path, split: Split) -> Source:
    """An image folder or a zip of one: [top/][split/]class/image, or images alone."""
    if path.is_dir():
        names = _image_names(p.relative_to(path).as_posix() for p in path.rglob("*"))
        data = partial(_file_bytes, path)
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise EexError(f"{path}: neither a folder nor a zip of images ({error})") from None
        names = _image_names(archive.namelist())
        data = partial(_zip_bytes, archive)

    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    depth = _split_depth(list(folders.values()))
    if depth is None:
        within = folders
    else:
        part = {n: SPLITS[f[depth]] for n, f in folders.items() if len(f) > depth and f[depth] in SPLITS}
        within = {n: folders[n][depth + 1 :] for n in part}
        names = [n for n in part if split in ("all", part[n])]
    classes = tuple(sorted({f[-1] for f in within.values() if f}))  # of all splits, so that each numbers them alike
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[within[n][-1]] if within[n] else -1 for n in names], dtype=np.int64)
    return Source(str(path), classes, names, labels, lambda i: decode(data(names[i]), names[i]))


def _split_depth(folders: Sequence[tuple[str, ...]]) -> int | None:
    """Depth of the folders named after splits: at the top, or below a single top folder."""
    for depth in (0, 1):
        here = {f[depth] for f in folders if len(f) > depth}
        if here and (here <= SPLITS.keys() or here >= {"train", "test"}):  # "train" alone among others may be a class
            return depth
        if len(here) != 1:
            break
    return None


def _image_names(names: Iterable[str]) -> list[str]:
    """The sorted names with an image suffix, without hidden files and those that macOS adds to zips."""
    return sorted(
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    )


def _file_bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not path.is_file():  # reading a pipe would block
            raise ImageError("cannot be read: not a file")
        _check_bytes(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def _zip_bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    _check_bytes(archive.getinfo(name).file_size)
    try:
        return archive.read(name)
    except Exception as error:  # encrypted, damaged and unknown compression raise different exceptions
        raise ImageError(f"cannot be read: {error}") from None


def _check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ImageError(f"cannot be read: {size:,} bytes, at most {MAX_FILE_BYTES:,} are possible")


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


def _caltech256(root: Path, split: Split, seed: int) -> Source:
    """Caltech-256's folder `NNN.name/image`, without its clutter class, 80/10/10 of each class by a seeded draw."""
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.endswith("clutter")))
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _image_names(p.name for p in (root / name).iterdir())
        order = np.random.default_rng((seed, label)).permutation(len(files))
        a, b = round(0.8 * len(files)), round(0.9 * len(files))
        part = {"train": order[:a], "validation": order[a:b], "test": order[b:], "all": order}[split]
        names += [f"{name}/{files[i]}" for i in sorted(part)]
        labels += [label] * len(part)
    return Source(
        str(root),
        classes,
        names,
        np.array(labels, dtype=np.int64),
        lambda i: decode(_file_bytes(root, names[i]), names[i]),
    )


def _video(spec: str, device: int | None = None) -> Source:
    """A video file, or the camera of a number; a camera that is lost is opened again a few times."""
    require_pyav(spec)
    video, options = (f"file:{spec}", {}) if device is None else camera(device)

    def stream() -> Iterator[Frame | Skipped]:
        failed = number = 0
        while True:
            try:
                for frame in decode_video(video, options):
                    name = f"{spec}#{number}"
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
                raise EexError(f"{spec}: {problem}")
            time.sleep(REOPEN_S[failed])
            failed += 1

    return Source(spec, (), stream=stream)
