"""Frames of a source under a distortion schedule, in micro-batches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eex.policies.core.errors import EexError, ImageError

if TYPE_CHECKING:
    import torch

    from eex.models.network import EarlyExitNet
    from eex.policies.core.schedule import Schedule
    from eex.stream.frames.batch import Batch
    from eex.stream.frames.sources import Source

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
    """Your own network, as module:function; the function returns it cut into stages."""
    seed: int = 0
    """Random seed for the image order, the distortions and the policies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for the network; when streaming, for its edge part."""
    partition: int = 0
    """Number of stages that run on the edge; the rest run in the cloud. 0 = the model's default. eex-partition finds
    the fastest."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        self._at_least(seed=0, partition=0)

    def _at_least(self, **least: int) -> None:
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")


@dataclass(frozen=True)
class SourceConfig:
    """Options that select the frames of a played stream."""

    source: str = "sample"
    """Source of the frames: 'sample' (shipped test images), 'camera', or the path of an image folder, a zip of one, the
    original folder of CIFAR-10 or Caltech-256, or a video."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Split of the source, if it has splits."""
    distortion: str = "pristine:2000, gaussian_blur@1:2000, gaussian_noise@20:2000"
    """Distortion schedule: comma-separated parts kind@level:frames, played in order; a..b as the level is a ramp, +
    combines kinds, 3x(…) repeats, random(…) draws."""
    frames: int = 0
    """Number of frames. 0 = the length of the distortion schedule, or the whole source once if it has no length."""
    shuffle: bool = True
    """Shuffle the images. Frames of a video stay in order."""
    resize: bool = False
    """Scale and crop images of other sizes than the model takes, instead of skipping them."""
    batch: int = 32
    """Frames per micro-batch."""


@dataclass(frozen=True)
class FrameConfig(NetworkConfig, SourceConfig):
    """Options that select the frames and the network."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        self._at_least(frames=0, batch=1)
        NetworkConfig.check(self)
        if self.batch > MOST_IN_BATCH:
            raise EexError(f"--batch must be at most {MOST_IN_BATCH}, got {self.batch}")


class Frames:
    """Frames of a source under a distortion schedule, prepared for a network. Every pass gives the same frames.

    Attributes
    ----------
    total
        Number of frames; 0 = until a live source ends.
    live
        Whether the source is a camera or a video, whose frames can be read only once.

    Raises
    ------
    EexError
        If the source cannot be used.
    """

    def __init__(self, config: FrameConfig, schedule: "Schedule", net: "EarlyExitNet") -> None:
        from eex.stream.frames.sources import open_source

        shape = net.architecture.input_shape
        source = open_source(config.source, split=config.split, shape=shape, resize=config.resize)
        self.source = _cached(_relabelled(source, net.classes))
        self.config, self.schedule, self.device = config, schedule, net.mean.device
        self.total = config.frames or schedule.length or len(source)
        self.live = source.stream is not None

    def batches(self, total: int, skipped: dict[str, str], first: int = 0) -> Iterator["Batch"]:
        """Yield distorted micro-batches on the network's device.

        Parameters
        ----------
        total
            Number of the frame to stop before; 0 = until the source ends.
        skipped
            Filled with the name of each skipped image and the reason.
        first
            Number of the first frame.
        """
        import torch

        from eex.stream.frames.batch import Batch
        from eex.stream.frames.distortions import distort
        from eex.stream.frames.sources import Frame, Skipped, check_finite, frames

        def usable() -> Iterator[Frame]:
            for frame in frames(self.source, self.config.seed if self.config.shuffle else None):
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

        arriving = itertools.islice(usable(), first, None)
        while first < total or not total:
            taken = list(
                itertools.islice(arriving, min(self.config.batch, total - first) if total else self.config.batch)
            )
            if not taken:
                return
            names, labels, images = ([getattr(f, c) for f in taken] for c in ("name", "label", "image"))
            number = np.arange(first, first + len(images))
            levels = self.schedule.levels(number)
            pixels = _tensor(images).to(self.device)
            pixels = distort(pixels, torch.from_numpy(levels), torch.from_numpy(number), self.config.seed)
            yield Batch(pixels, names, np.array(labels), levels)
            first += len(images)


def nothing_usable(config: FrameConfig, skipped: dict[str, str]) -> EexError:
    """The error for a source without a usable frame; it gives the first reason."""
    name, reason = next(iter(skipped.items()), ("", "it has no frames"))
    return EexError(f"{config.source}: no frame could be used; {name}: {reason}")


def _relabelled(source: "Source", classes: tuple[str, ...]) -> "Source":
    """The source with its labels in the model's order; -1 if the model has no class of that name."""
    if source.classes == classes or not source.classes:
        return source
    index = np.array([classes.index(c) if c in classes else -1 for c in source.classes])
    return replace(source, labels=np.where(source.labels >= 0, index[source.labels], -1))


def _cached(source: "Source") -> "Source":
    read = source.read
    if read is None or not len(source):
        return source
    kept: dict[int, Any] = {}
    room = CACHE_BYTES

    def cached(i: int) -> Any:
        nonlocal room
        if i in kept:
            return kept[i]
        image = read(i)
        if room >= image.nbytes:
            room -= image.nbytes
            kept[i] = image
        return image

    return replace(source, read=cached)


def _tensor(images: list[Any]) -> "torch.Tensor":
    """(B, 3, H, W) in [0, 1] from images (H, W, 3)."""
    import torch

    if all(image.dtype == np.uint8 for image in images):
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    floats = [image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1) for image in images]
    return torch.from_numpy(np.stack(floats)).permute(0, 3, 1, 2)
