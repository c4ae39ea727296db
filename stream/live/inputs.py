"""Where the frames of a live stream come from: cameras, videos, network streams, folders, standard input, sockets."""

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import EexError, ImageError
from eex.stream.frames.video import (
    Damaged,
    Readable,
    VideoError,
    camera,
    decode_video,
    trusted,
)
from eex.stream.live import sockets
from eex.stream.live.streams import SourceOptions, shown, url_of

SCHEMES = ("rtsp", "rtsps", "http", "https", "zmq+pull", "zmq+sub")
MAX_IMAGE_BYTES = 1 << 26
"""Bytes of the largest encoded image taken from standard input or a socket, 64 MiB."""
WAITING_MESSAGES = 16
"""Messages that a ZeroMQ socket holds before its sender is held back, or a publisher drops."""
POLL_S = 0.25
"""Seconds between two looks into a watched folder, and how late a stop may be noticed."""
JUMP_S = 10.0
"""Seconds by which timestamps may jump ahead of the clock or back before they count as beginning anew; and how long a
longer gap in a file takes in real time."""
GAP_S = 3600.0
"""Seconds of the longest gap in a file; further ahead, timestamps are broken."""
DRIFT = 1e-3
"""Seconds per second by which a camera's clock may be slower than ours without its frames seeming ever older."""


@dataclass(frozen=True)
class Shot:
    """An image as a source gives it.

    Attributes
    ----------
    name
        The file's, or "#" and the number of the frame in its video.
    image
        uint8 (H, W, 3), RGB.
    captured
        When it was captured, in seconds on the clock of `time.time`; None if the source does not know.
    seconds
        Its time in the source's own clock, NaN if there is none.
    label
        Its class; None if not known.
    """

    name: str
    image: NDArray[np.uint8]
    captured: float | None = None
    seconds: float = math.nan
    label: int | None = None


@dataclass(frozen=True)
class Broken:
    """A frame that cannot be used, and why."""

    name: str
    reason: str


Shots = Generator["Shot | Broken | None", None, bool]
"""Yields frames; None says that the source is open and has nothing now. Returns whether there are no more to come."""


@dataclass(frozen=True)
class Input:
    """A source that can be opened, and opened again.

    Attributes
    ----------
    read
        Opens it and yields what comes, until the event is set. Raises `VideoError` if opening it again may help, and
        another `EexError` if not.
    clocked
        Whether frames come on a clock of their own, so that the source cannot be held back.
    endless
        Whether it is opened again when it breaks off.
    opened_with
        Options that it is opened with, besides `source`: where they change, it has to be opened anew.
    """

    read: Callable[[Event], Shots]
    clocked: bool = False
    endless: bool = False
    opened_with: tuple[str, ...] = ()


def open_input(
    options: SourceOptions,
    size: tuple[int, int] | None = None,
    classes: tuple[str, ...] = (),
    preprocessing: Preprocessing = USUAL,
) -> Input:
    """Find out what a stream's source is; nothing is opened yet.

    ===================================  =======================================================================
    `camera`, `camera:N`                 a camera by its number
    `clip.mp4`, an animated GIF, …       a video file, as fast as possible or in real time
    `rtsp://…`, `http://…`, `https://…`  a network stream: RTSP, MJPEG, HLS, or a video file
    a folder                             is watched: each new file is a frame
    `images:PATH`, a zip, `sample`       images, each played once
    `-`                                  standard input: JPEG or PNG images one after another, or a video
    `-:WIDTHxHEIGHT`                     standard input: raw frames of three bytes per pixel, RGB
    `zmq+pull://HOST:PORT`               a ZeroMQ socket that senders connect to; `zmq+sub://` connects to a publisher
    ===================================  =======================================================================

    Parameters
    ----------
    size
        (height, width) to which videos are scaled as they are decoded; single images may come larger.
    classes
        The model's class names, by which labelled images get their label.
    preprocessing
        How images are scaled.

    Raises
    ------
    EexError
        If the specification is none of these.
    """
    from eex.stream.frames.sources import is_video

    spec, least = options.source, 0 if size is None else preprocessing.least(*size)
    kind, _, rest = spec.partition(":")
    if kind == "camera":
        if rest and not rest.isdecimal():
            raise EexError(f"{spec}: expected 'camera' or 'camera:N', N a whole number")
        device, settings = camera(int(rest or 0))
        return Input(
            lambda stop: _video(device, settings, options, size, preprocessing, _Capture()),
            clocked=True,
            endless=True,
            opened_with=("patience_s",),
        )
    if kind == "-":
        return Input(_standard_input(rest, options, size, preprocessing))
    as_images = kind == "images" or spec == "sample"
    named = (rest if kind == "images" else spec) or spec
    path = Path(named)
    if not as_images and "://" in spec:
        return _url(spec, options, size, preprocessing)
    if not as_images and os.path.isdir(path):  # False also where that cannot be found out
        taken = Taken()
        return Input(
            lambda stop: watch(path, stop, options.existing, least, taken), endless=True, opened_with=("existing",)
        )
    if is_video(path):
        clock = _Paced if options.realtime else None
        file = f"file:{path}"  # whatever the name looks like, it is no URL
        return Input(
            lambda stop: _video(file, {}, options, size, preprocessing, clock(stop) if clock else None),
            options.realtime,
            opened_with=("realtime", "patience_s"),
        )
    return Input(lambda stop: _images(named, size, classes, preprocessing))


def _url(spec: str, options: SourceOptions, size: tuple[int, int] | None, preprocessing: Preprocessing) -> Input:
    scheme = spec.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise EexError(f"{shown(spec)}: unknown scheme '{scheme}'; expected {', '.join(SCHEMES)}, or a path")
    if scheme.startswith("zmq"):
        sockets.parse(spec)
        return Input(lambda stop: _socket(spec, stop, 0 if size is None else preprocessing.least(*size)), endless=True)
    if not url_of(spec).hostname:
        raise EexError(f"{shown(spec)}: has no host; expected {scheme}://HOST…")
    settings = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}  # over UDP, loss tears pictures
    if scheme in ("https", "rtsps") and options.verify:
        settings |= trusted()
    return Input(
        lambda stop: _video(spec, settings, options, size, preprocessing, _Capture()),
        clocked=True,
        endless=True,
        opened_with=("patience_s", "verify"),
    )


# ---- videos


def _video(
    video: str | Readable,
    settings: dict[str, str],
    options: SourceOptions,
    size: tuple[int, int] | None,
    preprocessing: Preprocessing,
    clock: "Callable[[float], float] | None",
) -> Shots:
    given = decode_video(video, settings, patience=options.patience_s, size=size, preprocessing=preprocessing)
    with contextlib.closing(given) as frames:
        while True:
            try:
                frame = next(frames)
            except StopIteration as end:
                return bool(end.value)
            if isinstance(frame, Damaged):
                yield Broken(f"#{frame.number}", frame.reason)
            else:
                captured = None if clock is None else clock(frame.seconds)
                yield Shot(f"#{frame.number}", frame.image, captured, frame.seconds)


class _Capture:
    """When a frame that has just come was captured, by its timestamp: frames that the network held back are older.

    The frame that came quickest ties the stream's clock to one of ours that is never set. The tie gives way by `DRIFT`,
    so that a camera whose clock is a little slow does not seem to fall ever further back, and is made anew when
    timestamps jump.
    """

    def __init__(self) -> None:
        self._offset = math.inf  # of our clock over the stream's
        self._last = (math.nan, math.nan)  # the stream's time and ours

    def __call__(self, seconds: float) -> float:
        now = time.monotonic()
        if math.isnan(seconds):
            return time.time()
        before, at = self._last
        self._last = seconds, now
        if seconds >= before and seconds - before <= now - at + JUMP_S:
            self._offset += DRIFT * (now - at)
        else:
            self._offset = math.inf  # the first frame, or a jump
        self._offset = min(self._offset, now - seconds)
        return time.time() - (now - (self._offset + seconds))


class _Paced:
    """Waits until a frame of a file is due, and says when that was."""

    def __init__(self, stop: Event) -> None:
        self._stop, self._begin, self._before = stop, math.nan, math.nan  # our time at 0, the time of the last frame

    def __call__(self, seconds: float) -> float:
        now = time.monotonic()
        if math.isnan(seconds):
            return time.time()
        gap = seconds - self._before
        if not 0 <= gap <= GAP_S:  # the first, or a jump: goes on from here
            self._begin = now - seconds
        elif gap > JUMP_S:
            self._begin -= gap - JUMP_S
        self._before = seconds
        due = self._begin + seconds
        if due > now:
            self._stop.wait(due - now)
        return time.time() - (time.monotonic() - due)


# ---- images


def decoded(data: bytes, name: str, least: int = 0) -> NDArray[np.uint8]:
    """The image of a file or message, uint8 (H, W, 3); each side keeps at least so many pixels, 0 for all of them.

    Raises
    ------
    ImageError
        If it cannot be decoded.
    """
    from eex.stream.frames.decoding import as_uint8, decode

    if not data:
        raise ImageError("is empty: zero bytes")
    return as_uint8(decode(data, "array.npy" if data.startswith(b"\x93NUMPY") else name, least=least))


def _shot(data: bytes, name: str, captured: float | None = None, least: int = 0) -> Shot | Broken:
    try:
        return Shot(name, decoded(data, name, least), captured)
    except ImageError as error:
        return Broken(name, str(error))


def _images(spec: str, size: tuple[int, int] | None, classes: tuple[str, ...], preprocessing: Preprocessing) -> Shots:
    from eex.stream.frames.decoding import as_uint8
    from eex.stream.frames.sources import Skipped, frames, open_source

    fitted: dict[str, Any] = {} if size is None else {"shape": (3, *size), "resize": True}
    source = open_source(spec, split="all", preprocessing=preprocessing, **fitted)
    if source.stream is not None:
        raise EexError(f"{source.name}: cannot be read as images")
    index = [classes.index(name) if name in classes else None for name in source.classes]
    one_pass = frames(source, seed=None)
    for _ in range(len(source)):
        frame = next(one_pass)
        if isinstance(frame, Skipped):
            yield Broken(frame.name, frame.reason)
        else:
            label = index[frame.label] if frame.label >= 0 and index else None
            yield Shot(frame.name, as_uint8(frame.image), label=label)
    return True


@dataclass
class Taken:
    """What was taken of a watched folder: time in ns and size of each image by name; None before the first look."""

    files: dict[str, tuple[int, int]] | None = None


def watch(folder: Path, stop: Event, existing: bool = False, least: int = 0, taken: Taken | None = None) -> Shots:
    """Yield each file that is new in a folder, or written anew, once its size and time stand still; oldest first.

    Hidden files and those that end in .part or .tmp are left alone: write a file under such a name and rename it, and
    it is taken whole and at once. Each side of a frame keeps at least `least` pixels, 0 for all of them. Given what an
    earlier watch has `taken`, whose folder could not be read for a while, it goes on from there.
    """
    from eex.stream.frames.decoding import IMAGE_SUFFIXES, read_bytes

    def look() -> dict[str, tuple[int, int]]:
        """Time in ns and size of each image."""
        found = {}
        for path in folder.iterdir():
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                try:
                    state = path.stat()
                    found[path.name] = state.st_mtime_ns, state.st_size
                except FileNotFoundError:  # deleted meanwhile
                    continue
                except OSError:  # links in a circle, say: reading it will tell
                    found[path.name] = 0, 0
        return found

    def take(name: str) -> Shot | Broken:
        shown_as = os.fsencode(name).decode("utf-8", "replace")  # a name need not be UTF-8
        try:
            return _shot(read_bytes(folder / name), shown_as, found[name][0] / 1e9, least)
        except ImageError as error:
            return Broken(shown_as, str(error))

    taken = taken or Taken()
    before: dict[str, tuple[int, int]] | None = None
    while not stop.is_set():
        begun = time.perf_counter()
        try:
            found = look()
        except OSError as error:
            raise VideoError(f"{folder}: cannot be watched: {error.strerror}") from None
        if taken.files is None:
            taken.files = {} if existing else found
        ready = [n for n, state in found.items() if taken.files.get(n) != state and (before or {}).get(n) == state]
        for name in sorted(ready, key=lambda name: (found[name], name)):
            if stop.is_set():
                return True
            yield take(name)
        if found:  # an empty folder may be one whose disk is away for a while
            taken.files = {n: state for n, state in taken.files.items() if n in found} | {n: found[n] for n in ready}
        before = found
        yield None
        stop.wait(max(POLL_S, 10 * (time.perf_counter() - begun)) if not ready else 0)
    return True


# ---- standard input


def _standard_input(
    geometry: str, options: SourceOptions, size: tuple[int, int] | None, preprocessing: Preprocessing
) -> Callable[[Event], Shots]:
    if not geometry:
        return lambda stop: read_pipe(_Unbuffered(sys.stdin.fileno()), options, size, preprocessing)
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", geometry)
    if not match or not int(match[1]) or not int(match[2]):
        raise EexError(f"-:{geometry}: expected '-' or '-:WIDTHxHEIGHT'")
    return lambda stop: _raw(_Unbuffered(sys.stdin.fileno()), int(match[1]), int(match[2]))


def read_pipe(
    pipe: Any,
    options: SourceOptions,
    size: tuple[int, int] | None = None,
    preprocessing: Preprocessing = USUAL,
) -> Shots:
    """Yield the frames of a pipe: JPEG or PNG images one after another, or a video of any kind that PyAV knows."""
    least = 0 if size is None else preprocessing.least(*size)
    yield None
    head = pipe.read(len(JPEG))
    if head in (JPEG, PNG[: len(JPEG)]):
        for number, data in enumerate(split_images(_Rest(head, pipe).read)):
            yield _shot(data, f"#{number}", least=least)
    elif head:
        yield from _video(_Rest(head, pipe), {}, options, size, preprocessing, None)
    return True


class _Unbuffered:
    """A pipe by its descriptor.

    Its thread may still wait for data when the interpreter ends, which aborts if that thread has the lock of a buffer.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read1(self, size: int) -> bytes:
        """What there is, up to so many bytes; empty at the end."""
        return os.read(self._descriptor, min(size, 1 << 20))

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end."""
        data = bytearray()
        while len(data) < size and (more := self.read1(size - len(data))):
            data += more
        return bytes(data)


class _Rest:
    """A pipe whose first bytes have been read."""

    def __init__(self, head: bytes, pipe: Any) -> None:
        self._head, self._pipe = head, pipe

    def read(self, size: int) -> bytes:
        """What there is, up to so many bytes; empty at the end."""
        head, self._head = self._head, b""
        data: bytes = head or self._pipe.read1(size)
        return data


def _raw(pipe: "_Unbuffered", width: int, height: int) -> Shots:
    yield None
    number = 0
    while data := pipe.read(3 * width * height):
        if len(data) < 3 * width * height:
            yield Broken(f"#{number}", f"is cut off: {len(data):,} of {3 * width * height:,} bytes")
            return True
        image = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        yield Shot(f"#{number}", image)
        number += 1
    return True


JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_BEGIN = re.compile(re.escape(JPEG) + b"|" + re.escape(PNG))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: neither a stuffed zero, a restart nor a fill byte


def split_images(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Cut a stream of JPEG and PNG images into its images; what lies between them is skipped.

    An image that is not whole, or too large, is yielded as far as it goes, for the decoder to refuse.
    """
    held = bytearray()
    more = True
    while more:
        data = read(1 << 20)
        more = bool(data)
        held += data
        while match := _BEGIN.search(held):
            del held[: match.start()]
            end, whole = _end_of_image(held)
            if whole is None and more and len(held) <= MAX_IMAGE_BYTES:
                break  # the rest is to come
            if not whole:
                after = _BEGIN.search(held, end)
                # the beginning of the next may have come in part
                end = after.start() if after else len(held) - (len(PNG) - 1 if more else 0)
                if end <= 0:
                    break
            yield bytes(held[:end])
            del held[:end]
        else:
            del held[: 1 - len(PNG)]


def _end_of_image(data: bytearray) -> tuple[int, bool | None]:
    """Where the image that `data` begins with ends, and True; False if it is damaged, None if it goes on after `data`.

    Then the place is that of the last part that began well: the next image begins after it.
    """
    return _end_of_png(data) if data.startswith(PNG) else _end_of_jpeg(data)


def _end_of_png(data: bytearray) -> tuple[int, bool | None]:
    well, at = len(PNG), len(PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        if not kind.isalpha():
            return well, False
        well, at = at, at + 12 + length
        if kind == b"IEND":
            return (at, True) if at <= len(data) else (well, None)
    return well, None


def _end_of_jpeg(data: bytearray) -> tuple[int, bool | None]:
    well, at = 2, 2
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        marker = data[at + 1]
        if marker == 0xD9 and data[at] == 0xFF:
            return at + 2, True
        if data[at] != 0xFF or marker in (0x00, 0xD8):  # 0xD8: the next image, so that this one has no end
            return well, False
        if marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
            continue
        well, at = at, at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                return well, None
            at = found.start()
    return well, None


# ---- sockets


class Header(msgspec.Struct):
    """What may come before an image in a ZeroMQ message, as JSON: its name, and seconds since 1970 at its capture."""

    name: str = ""
    captured: float | None = None


def _socket(spec: str, stop: Event, least: int) -> Shots:
    """Images from a ZeroMQ socket. Each message is an image, or a JSON object (see `Header`) and an image."""
    import zmq

    with sockets.opened(spec, {zmq.RCVHWM: WAITING_MESSAGES, zmq.MAXMSGSIZE: MAX_IMAGE_BYTES}) as socket:
        number = 0
        yield None
        while not stop.is_set():
            if not socket.poll(int(1000 * POLL_S)):
                yield None
                continue
            yield _message(socket.recv_multipart(), f"#{number}", least)
            number += 1
    return True


def _message(frames: list[bytes], name: str, least: int = 0) -> Shot | Broken:
    *headers, data = frames
    header = Header()
    if headers:
        try:
            header = msgspec.json.decode(headers[-1], type=Header)
        except msgspec.DecodeError as error:
            return Broken(name, f"its header is not JSON with name and captured: {error}")
    captured = time.time() if header.captured is None else header.captured
    return _shot(data, header.name or name, captured, least)
