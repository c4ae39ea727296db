"""What decoding a video takes by PyAV, which eex uses, and by OpenCV, if it is installed.

python -m eex.experiments.bench.video
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eex.policies.core.errors import EexError
from eex.stream.frames.video import decode_video
from eex.stream.guard import guarded


@dataclass(frozen=True)
class Bench:
    """Decode a video in several ways, in turns, and count the processor's seconds."""

    video: Path | None = None
    """The video. By default, one is made: 300 frames of moving stripes, 1280x720, H.264."""
    rounds: int = 5
    """Rounds of which the median is shown."""
    size: int = 32
    """Height and width to which frames are scaled, where they are."""


def make_clip(path: Path, frames: int = 300) -> Path:
    """Write a video of moving stripes, with noise."""
    import av

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (720, 1280, 3), dtype=np.uint8)
    stripes = np.broadcast_to((np.arange(1280) // 40 % 8 * 28)[None, :, None], noise.shape).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(frames):
            image = np.roll(stripes, 7 * number, axis=1) + np.roll(noise, number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def by_pyav(path: Path, size: tuple[int, int] | None = None) -> int:
    """Decode all frames as eex does; how many there are."""
    return sum(1 for _ in decode_video(str(path), size=size))


def by_opencv(path: Path, size: tuple[int, int] | None = None) -> int:
    """Decode all frames by OpenCV, as RGB, scaled afterwards; how many there are."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = 0
    while True:
        good, image = capture.read()
        if not good:
            capture.release()
            return frames
        if size is not None:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        np.ascontiguousarray(image[:, :, ::-1])
        frames += 1


def run(bench: Bench, path: Path) -> None:
    """Measure and print."""
    try:
        import cv2  # noqa: F401

        opencv = True
    except ImportError:
        opencv = False
    size = (bench.size, bench.size)
    ways: dict[str, Callable[[], int]] = {"PyAV": lambda: by_pyav(path), "PyAV, scaled": lambda: by_pyav(path, size)}
    if opencv:
        ways |= {"OpenCV": lambda: by_opencv(path), "OpenCV, scaled": lambda: by_opencv(path, size)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    frames = {}
    for _ in range(bench.rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            frames[name] = way()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
    table = Table("way", "frames", "processor, ms per frame", "elapsed, ms per frame", box=None, header_style="bold")
    for name, measured in seconds.items():
        elapsed, used = (1000 * statistics.median(column) / frames[name] for column in zip(*measured, strict=True))
        table.add_row(name, str(frames[name]), f"{used:.2f}", f"{elapsed:.2f}")
    Console(markup=False).print(table)
    if not opencv:
        print("OpenCV is not installed: pip install opencv-python-headless")


def _main() -> None:
    bench = tyro.cli(Bench, prog="python -m eex.experiments.bench.video")
    if bench.rounds < 1 or bench.size < 1:
        raise EexError(f"--rounds and --size must be at least 1, got {bench.rounds} and {bench.size}")
    with tempfile.TemporaryDirectory() as folder:
        run(bench, bench.video or make_clip(Path(folder) / "clip.mp4"))


if __name__ == "__main__":
    sys.exit(guarded(_main))
