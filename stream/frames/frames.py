"""Frames of a source under a distortion schedule, in micro-batches."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from eex.policies.core.errors import EexError, ImageError, SourceLost
from eex.policies.core.files import take_paths
from eex.policies.core.options import check_seed, check_words
from eex.policies.core.schedule import PRISTINE, Piece, Schedule, parse_schedule
from eex.stream.frames.decoding import Truncated
from eex.stream.frames.folders import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eex.models.architecture import Network
    from eex.stream.frames.batch import Batch
    from eex.stream.frames.sources import Source

MOST_FRAMES = 10**15
"""Frames of a played stream at most."""
DRIFT = "pristine:2000, gaussian_blur@1:2000, gaussian_noise@20:2000"
"""What happens to the shipped sample, so that there is something to adapt to."""
NAMED = 20
"""Classes that a report names."""
MOST_IN_BATCH = 4096
"""Frames of a micro-batch, at most."""
CACHE_BYTES = 256 << 20
"""Size of the cache of decoded images, so that several policies decode each image once."""


@dataclass(frozen=True)
class NetworkConfig:
    """Options that select the network."""

    model: Path | None = None
    """Folder of the model's weights and card. By default, the shipped model."""
    network: str = ""
    """Your own network, as module:function, or one of a library, such as timm:name."""
    seed: int = 0
    """Random seed for the image order, the distortions and the policies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for the network; when streaming, for its edge part."""
    backend: Literal["auto", "torch", "onnx"] = "auto"
    """What runs the network: torch, or ONNX Runtime for a model that eex-export wrote. auto measures where the model's
    folder has both forms."""
    provider: str = "cpu"
    """Execution provider of ONNX Runtime: cpu, or cuda, tensorrt, openvino, coreml, directml or xnnpack where the
    installed ONNX Runtime has it."""
    spin: bool = False
    """Let ONNX Runtime's threads spin while they wait for work instead of sleeping. Single frames are answered sooner
    where eex has the processors to itself, and many times later where it shares them, with a worker for example."""
    partition: int = 0
    """Number of stages that run on the edge; the rest run in the cloud. 0 = the model's default. eex-partition finds
    the fastest."""

    def __post_init__(self) -> None:
        take_paths(self)

    @property
    def usual_answerer(self) -> Path | None:
        """Folder of the model that answers in the cloud unless another is named: for the shipped model, eex's second
        one; None for the rest of the network itself."""
        from eex.models.card import CLOUD

        return CLOUD if self.model is None and not self.network else None

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        check_words(self)
        check_seed(self.seed)
        self._at_least(partition=0)

    def _at_least(self, **least: int) -> None:
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")


@dataclass(frozen=True)
class SourceConfig:
    """Options that select the frames of a played stream."""

    source: str = "sample"
    """Source of the frames: 'sample' (shipped test images), 'camera', or the path of an image folder, a zip of one, a
    single image, a video, or the original folder of CIFAR-10 or Caltech-256."""
    split: Split = "test"
    """Split of the source, if it has splits."""
    distortion: str = ""
    """Distortion schedule: comma-separated parts kind@level:frames, played in order; a..b as the level is a ramp, +
    combines kinds, 3x(…) repeats, random(…) draws. By default, the sample becomes blurred, then noisy; other sources
    are not distorted."""
    frames: int = 0
    """Number of frames. 0 = the length of the distortion schedule, or the whole source once if it has no length. A
    camera or a video is always played to its end, unless a number is given."""
    shuffle: bool = True
    """Whether the images are shuffled. Frames of a video stay in order."""
    resize: bool = False
    """Scale and crop images of other sizes than the model takes, as its card says, instead of skipping them."""
    truncated: Truncated = "read"
    """Read JPEG and PNG files that end early, as a browser does, if at least half of the image is there, or refuse
    them."""
    batch: int = 32
    """Frames per micro-batch."""


@dataclass(frozen=True)
class FrameConfig(NetworkConfig, SourceConfig):
    """Options that select the frames and the network."""

    def schedule(self) -> Schedule:
        """The distortion schedule, by default the sample's drift, and for other sources none.

        Raises
        ------
        EexError
            If it cannot be parsed.
        """
        return parse_schedule(self.distortion or (DRIFT if self.source == "sample" else PRISTINE), self.seed)

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        NetworkConfig.check(self)
        self._at_least(frames=0, batch=1)
        if self.frames > MOST_FRAMES:
            raise EexError(f"--frames must be at most {MOST_FRAMES:,}, got {self.frames:,}")
        if self.batch > MOST_IN_BATCH:
            raise EexError(f"--batch must be at most {MOST_IN_BATCH}, got {self.batch}")


class Timetable(Protocol):
    """What happens to the frames of a played stream, by their numbers; `Schedule` is that of images."""

    @property
    def length(self) -> int:
        """Frames until it starts again; 0 where all frames are alike."""

    def names(self, frames: "NDArray[np.int64]", /) -> "NDArray[np.str_]":
        """What is applied to each frame, (n,)."""

    def pieces(self, total: int, /) -> list[Piece]:
        """The first `total` frames as pieces in order."""


class Playable(Protocol):
    """What a run plays: `Frames` of images, or batches of anything else that a network takes."""

    total: int
    live: bool

    @property
    def schedule(self) -> Timetable:
        """What happens to the frames."""

    def report(self) -> dict[str, Any]:
        """What is played, as plain JSON values."""

    def batches(self, total: int, skipped: dict[str, str], first: int = 0, /) -> Iterator["Batch"]:
        """Yield micro-batches, as `Frames.batches` does; every pass gives the same."""


class Frames:
    """Frames of a source under a distortion schedule, prepared for a network. Every pass gives the same frames.

    Attributes
    ----------
    total
        Number of frames, at most; 0 = until a live source ends.
    live
        Whether the source is a camera or a video, whose frames can be read only once.
    unknown
        Classes of the source that the model does not have. Their images count as unlabelled.
    lost
        Why the source broke off in the last pass; empty if it did not.

    Raises
    ------
    EexError
        If the source cannot be used.
    """

    def __init__(self, config: FrameConfig, schedule: Schedule, net: "Network") -> None:
        from eex.stream.frames.sources import open_source

        shape = net.architecture.input_shape
        source = open_source(
            config.source,
            split=config.split,
            shape=shape,
            resize=config.resize,
            preprocessing=net.architecture.preprocessing,
            truncated=config.truncated,
        )
        known = matching(source.classes, net.classes)
        self.unknown = tuple(name for name, index in zip(source.classes, known, strict=True) if index < 0)
        self.source = _cached(_relabelled(source, known))
        self.config, self.schedule, self._array = config, schedule, net.array
        self.live = source.stream is not None
        self.classes = net.classes
        asked = config.frames or (0 if self.live else schedule.length)
        self.total = asked or len(source)
        self._once = not asked
        self.lost = ""

    def report(self) -> dict[str, Any]:
        """What is played, as plain JSON values."""
        return {
            "name": self.source.name,
            "items": "images",
            "images": None if self.live else len(self.source),
            "labelled": bool(self.source.classes),
            "unknown_classes": list(self.unknown[:NAMED]),
            "known_classes": len(self.source.classes) - len(self.unknown),
            "model_classes": list(self.classes[:NAMED]),
            "distortion": str(self.schedule),
            "notes": list(self.source.notes),
            "lost": self.lost,
        }

    def batches(self, total: int, skipped: dict[str, str], first: int = 0) -> Iterator["Batch"]:
        """Yield distorted micro-batches as arrays of the network's own.

        Parameters
        ----------
        total
            Number of the frame to stop before; 0 = until the source ends.
        skipped
            Filled with the name of each skipped image and the reason.
        first
            Number of the first frame.
        """
        from eex.stream.frames.batch import Batch
        from eex.stream.frames.decoding import check_finite
        from eex.stream.frames.distortions import distort
        from eex.stream.frames.sources import Frame, Skipped, frames

        def arriving() -> Iterator[Frame | Skipped]:
            try:
                yield from frames(self.source, self.config.seed if self.config.shuffle else None, once=self._once)
            except SourceLost as error:
                self.lost = str(error)

        def usable() -> Iterator[Frame]:
            for frame in arriving():
                if isinstance(frame, Skipped):
                    skipped[frame.name] = frame.reason
                    continue
                try:
                    if frame.image.dtype != np.uint8:
                        check_finite(frame.image)
                except ImageError as error:
                    skipped[frame.name] = str(error)
                    continue
                yield frame

        rest = itertools.islice(usable(), first, None)
        while first < total or not total:
            taken = list(itertools.islice(rest, min(self.config.batch, total - first) if total else self.config.batch))
            if not taken:
                return
            names, labels, images = ([getattr(f, c) for f in taken] for c in ("name", "label", "image"))
            number = np.arange(first, first + len(images))
            levels = self.schedule.levels(number)
            pixels = distort(self._array(_stacked(images)), levels, number, self.config.seed)
            yield Batch(pixels, names, np.array(labels), levels)
            first += len(images)


def nothing_usable(config: FrameConfig, skipped: dict[str, str]) -> EexError:
    """The error for a source without a usable frame; it gives the first reason."""
    name, reason = next(iter(skipped.items()), ("", "it has no frames"))
    return EexError(f"{config.source}: no frame could be used; {name}: {reason}")


def matching(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Index in `ours` of each class name; -1 where there is none.

    Upper and lower case, and blanks, hyphens and underscores, count as equal where only one class is meant.

    Examples
    --------
    >>> matching(["Cat", "traffic_light", "emu"], ["cat", "dog", "Traffic light"])
    [0, 2, -1]
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]+", " ", name.casefold()).strip()

    exact = {name: i for i, name in enumerate(ours)}
    counts, wanted = Counter(map(plain, ours)), Counter(map(plain, theirs))
    alike = {plain(name): i for i, name in enumerate(ours) if counts[plain(name)] == 1}
    return [
        exact[name] if name in exact else alike.get(plain(name), -1) if wanted[plain(name)] == 1 else -1
        for name in theirs
    ]


def _relabelled(source: "Source", index: Sequence[int]) -> "Source":
    """The source with class i as the model's class `index[i]`."""
    if not source.classes:
        return source
    return replace(source, labels=np.where(source.labels >= 0, np.array(index)[source.labels], -1))


def _cached(source: "Source") -> "Source":
    read = source.read
    if read is None or not len(source):
        return source
    kept: dict[int, Any] = {}
    room, lock = CACHE_BYTES, Lock()  # threads read several at once

    def cached(i: int) -> Any:
        nonlocal room
        if i in kept:
            return kept[i]
        image = read(i)
        with lock:
            if room >= image.nbytes and i not in kept:
                room -= image.nbytes
                kept[i] = image
        return image

    return replace(source, read=cached)


def _stacked(images: list[Any]) -> "NDArray[np.float32]":
    """(B, C, H, W) in [0, 1] from images (H, W, C)."""
    first = images[0]
    stacked = np.empty((len(images), first.shape[2], *first.shape[:2]), dtype=np.float32)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image.transpose(2, 0, 1)
        if image.dtype == np.uint8:
            row /= 255
    return stacked
