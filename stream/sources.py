"""Where frames come from: the shipped sample, image folders and zips, CIFAR-10, Caltech-256, video."""

import io
import itertools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.errors import EexError, ImageError

Image = NDArray[np.uint8] | NDArray[np.float32]
Split = Literal["train", "validation", "test", "all"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".npy"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"


@dataclass(frozen=True)
class Frame:
    """One image of a source: uint8 (H, W, 3), or float32 in [0, 1]; `label` is -1 where it is unknown."""

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
        What the user typed.
    classes
        Class names; empty where the images have no labels.
    names
        Of each image, for messages.
    labels
        Class of each image, int64, -1 where unknown.
    read
        Image by index: uint8 (H, W, 3) or float32 in [0, 1]. Raises `ImageError`.
    stream
        For what has no index (a camera): yields frames instead; `names` and `labels` are then empty.
    """

    name: str
    classes: tuple[str, ...]
    names: Sequence[str] = ()
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    read: Callable[[int], Image] | None = None
    stream: Callable[[], Iterator[Frame]] | None = None

    def __len__(self) -> int:
        return len(self.names)


def frames(source: Source, seed: int | None = 0) -> Iterator[Frame | Skipped]:
    """All frames of a source, again and again; each pass in another drawn order, or as they lie where `seed` is None.

    A camera or a video is passed once, in its own order.
    """
    if source.stream is not None:
        yield from source.stream()
        return
    assert source.read is not None
    bad: set[int] = set()
    for turn in itertools.count():
        order = np.arange(len(source)) if seed is None else np.random.default_rng((seed, turn)).permutation(len(source))
        for i in order:
            if i in bad:  # told once
                continue
            try:
                yield Frame(source.names[i], source.read(int(i)), int(source.labels[i]))
            except ImageError as error:
                bad.add(int(i))
                yield Skipped(source.names[i], str(error))
        if len(bad) == len(source):
            return


def open_source(
    spec: str, *, split: Split = "test", shape: tuple[int, int, int] | None = None, resize: bool = False, seed: int = 0
) -> Source:
    """The source that a user names.

    Parameters
    ----------
    spec
        "sample" (the shipped test images), "camera" or "camera:N", or a path: an image folder or a zip of one
        (`class/image` or `train/class/image`, or images alone), a folder with CIFAR-10's `cifar-10-batches-py` files, a
        folder with Caltech-256's `256_ObjectCategories`, a video file.
    split
        Part of the source, where it has parts. Caltech-256 is split 80/10/10 with `seed`. "all" takes all.
    shape
        (C, H, W) the model takes: images of other sizes are skipped, or resized where `resize` is set.

    Raises
    ------
    EexError
        If there is no such source, or no images in it.
    """
    if spec == "sample":
        source = _folder(Path(__file__).parent / "shipped" / "cifar10-sample.zip", "all")
    elif spec.partition(":")[0] == "camera":
        source = _video(int(spec.partition(":")[2] or 0), spec)
    else:
        path = Path(spec)
        if not path.exists():
            raise EexError(f"{spec}: no such source; expected 'sample', 'camera' or the path of images or a video")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            source = _video(str(path), spec)
        elif (root := _find(path, "data_batch_1")) is not None:
            source = _cifar10(root, split)
        elif (root := _find(path, "256_ObjectCategories")) is not None:
            source = _caltech256(root / "256_ObjectCategories", split, seed)
        else:
            source = _folder(path, split)
    if source.stream is None and not len(source):
        raise EexError(f"{spec}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))}) in split '{split}'")
    return source if shape is None else _fit(source, shape, resize)


def load_all(source: Source) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Skipped]]:
    """All images of a source at once: uint8 (N, 3, H, W), labels (N,), and what had to be left out.

    Raises
    ------
    EexError
        If no image can be used, or their sizes differ.
    """
    images, labels, skipped = [], [], []
    for frame in itertools.islice(frames(source, seed=None), len(source)):
        if isinstance(frame, Skipped):
            skipped.append(frame)
            continue
        image = frame.image if frame.image.dtype == np.uint8 else (frame.image * 255).round().astype(np.uint8)
        if images and image.shape != images[0].shape:
            raise EexError(f"{source.name}: {frame.name} is {image.shape}, others are {images[0].shape}")
        images.append(image)
        labels.append(frame.label)
        if len(images) + len(skipped) == len(source):
            break
    if not images:
        raise EexError(f"{source.name}: none of its {len(source)} images can be used")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), np.array(labels), skipped


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
            CIFAR10_URL, f"md5:{CIFAR10_MD5}", "cifar-10-python.tar.gz", folder, processor=pooch.Untar(), progressbar=False
        )
    except (OSError, ValueError) as error:
        raise EexError(f"could not download {CIFAR10_URL} into {folder}: {error}") from None
    return Path(next(f for f in files if f.endswith("data_batch_1"))).parent


def decode(data: bytes, name: str) -> Image:
    """An image from a file's bytes: uint8 (H, W, 3), or float32 in [0, 1] from a `.npy` array.

    Raises
    ------
    ImageError
        If the bytes are no image of a known kind, or hold values that are not finite or outside [0, 1].
    """
    if name.lower().endswith(".npy"):
        return _decode_array(data)
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        reason = str(error).split("<")[0].strip().rstrip(".") or type(error).__name__
        raise ImageError(f"not a readable image: {reason}") from None


def _decode_array(data: bytes) -> Image:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ImageError(f"not a readable array: {error}") from None
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"expected an array of shape (H, W, 3), got {array.shape}")
    if array.dtype == np.uint8:
        return array
    return check_finite(array.astype(np.float32))


def check_finite(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image, if all its values are numbers in [0, 1].

    Raises
    ------
    ImageError
        If not.
    """
    low, high = float(image.min(initial=0)), float(image.max(initial=0))
    if not np.isfinite(image).all():
        raise ImageError(f"{int((~np.isfinite(image)).sum())} values are NaN or infinite")
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
        return Source(
            source.name,
            source.classes,
            stream=lambda: (Frame(f.name, _resized(f.image, height, width), f.label) for f in stream()),
        )
    assert read is not None
    return Source(source.name, source.classes, source.names, source.labels, lambda i: fit(read(i)))


def _resized(image: Image, height: int, width: int) -> Image:
    """Scaled so that the shorter side fits, and cropped at the middle."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    if image.dtype != np.uint8:
        image = (image * 255).round().astype(np.uint8)
    return np.asarray(ImageOps.fit(Pillow.fromarray(image), (width, height), Pillow.Resampling.BILINEAR))


def _find(path: Path, entry: str) -> Path | None:
    """The folder that holds an entry: the path itself, or a folder right in it."""
    if not path.is_dir():
        return None
    return next((p for p in [path, *sorted(path.iterdir())] if p.is_dir() and (p / entry).exists()), None)


def _folder(path: Path, split: Split) -> Source:
    """An image folder or a zip of one: [split/]class/image, or images alone."""
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)

        def data(name: str) -> bytes:
            try:
                return (path / name).read_bytes()
            except OSError as error:
                raise ImageError(f"cannot be read: {error.strerror}") from None
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise EexError(f"{path}: neither a folder nor a zip of images ({error})") from None
        names = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES)

        def data(name: str) -> bytes:
            try:
                return archive.read(name)
            except (zipfile.BadZipFile, OSError, EOFError) as error:
                raise ImageError(f"cannot be read: {error}") from None

    if any(n.startswith(("train/", "test/", "validation/")) for n in names):
        names = [n for n in names if split == "all" or n.startswith(f"{split}/")]
    folders = [PurePosixPath(n).parent.name for n in names]
    classes = tuple(sorted(set(folders) - {""}))
    labels = np.array([classes.index(f) if f else -1 for f in folders], dtype=np.int64)
    return Source(str(path), classes, names, labels, lambda i: decode(data(names[i]), names[i]))


def _cifar10(root: Path, split: Split) -> Source:
    """CIFAR-10's own Python batches. They are pickles: their strings and numbers are picked out, nothing is executed."""
    files = [] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    files += [] if split == "train" else ["test_batch"]
    parts = [_cifar10_batch(root / name) for name in files]
    images = np.concatenate([p[0] for p in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([p[1] for p in parts])
    names = [f"{file}#{i}" for file, part in zip(files, parts, strict=True) for i in range(len(part[1]))]
    return Source(str(root), CIFAR10_CLASSES, names, labels, lambda i: images[i])


def _cifar10_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pickletools

    key, pixels, labels, mark = "", b"", [], False
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if isinstance(argument, str | bytes) and "PUT" not in opcode.name and "GLOBAL" not in opcode.name:
                text = argument if isinstance(argument, bytes) else argument.encode("latin-1", "ignore")
                if len(text) > len(pixels) and len(text) % 3072 == 0 and text:
                    pixels = text
                key = text.decode("latin-1") if len(text) < 64 else key
            elif opcode.name == "MARK":
                mark = key == "labels"
            elif opcode.name in ("APPENDS", "SETITEMS"):
                mark = False
            elif mark and opcode.name in ("BININT", "BININT1", "BININT2"):
                labels.append(int(argument))
    except (ValueError, OSError) as error:
        raise EexError(f"{path}: not a batch of CIFAR-10 ({error})") from None
    if not labels or len(pixels) != 3072 * len(labels) or max(labels) > 9:
        raise EexError(f"{path}: not a batch of CIFAR-10: {len(labels)} labels, {len(pixels):,} bytes of pixels")
    return np.frombuffer(pixels, dtype=np.uint8), np.array(labels, dtype=np.int64)


def _caltech256(root: Path, split: Split, seed: int) -> Source:
    """Caltech-256's folder `NNN.name/image`, without its clutter class, 80/10/10 of each class by a seeded draw."""
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.endswith("clutter")))
    names, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p.name for p in (root / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        order = np.random.default_rng((seed, label)).permutation(len(files))
        a, b = round(0.8 * len(files)), round(0.9 * len(files))
        part = {"train": order[:a], "validation": order[a:b], "test": order[b:], "all": order}[split]
        names += [f"{name}/{files[i]}" for i in sorted(part)]
        labels += [label] * len(part)
    return Source(
        str(root), classes, names, np.array(labels, dtype=np.int64), lambda i: decode((root / names[i]).read_bytes(), names[i])
    )


def _video(device: str | int, name: str) -> Source:
    try:
        import cv2
    except ImportError:
        raise EexError(f"{name}: reading video needs OpenCV: pip install 'eex[video]'") from None

    def stream() -> Iterator[Frame]:
        capture = cv2.VideoCapture(device)
        try:
            if not capture.isOpened():
                raise EexError(f"{name}: cannot be opened as a video")
            for i in itertools.count():
                good, image = capture.read()
                if not good:
                    return
                yield Frame(f"{name}#{i}", np.ascontiguousarray(image[:, :, ::-1]))
        finally:
            capture.release()

    return Source(name, (), stream=stream)
