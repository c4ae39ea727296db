"""Video files, cameras and network streams, decoded by PyAV: with their times, upright, in their colours.

PyAV rather than OpenCV: the same frames for half the processor time, timestamps and colour range of each frame,
damaged frames one by one, limits on waiting, and one library for cameras, files, RTSP, HLS and MJPEG.
"""

import errno
import ssl
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eex.models.architecture import USUAL, Preprocessing
from eex.policies.core.errors import EexError
from eex.stream.frames.decoding import MAX_PIXELS

if TYPE_CHECKING:
    import av
    import av.container

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv"),
        *(".m2v", ".vob", ".mxf", ".3g2", ".f4v", ".divx", ".ivf", ".nut", ".rm", ".rmvb", ".qt", ".mpe", ".m2t"),
        *(".asf", ".flv", ".ogv", ".mjpg", ".mjpeg", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc", ".m3u8"),
    }
)
"""Suffixes of video files, in lower case."""
DAMAGED_IN_A_ROW = 1000
"""Packets in a row that give no frame before a video is given up: more than lie between two key frames."""
DEEPEST_DECODER = 64
"""More packets than any decoder holds back before their frames come."""
ONE_FRAME_PER_PACKET = frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg2video", "mpeg4", "png", "vp9"})
WIDEST_PIXEL = 4
"""Times that a pixel is as wide as high, or as high as wide, at most; what states more is not believed."""
MISSING = "cannot be decoded"
_UNTIMED = frozenset({"mpjpeg", "mjpeg", "jpeg_pipe", "png_pipe", "image2pipe", "h264", "hevc"})
"""Formats without times, which FFmpeg makes up from a rate: they hold for a file, not for what comes over a network."""
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}


class VideoError(EexError):
    """A video, camera or network stream cannot be opened or has stopped; the message names the reason."""


class Readable(Protocol):
    """An open file."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes; empty at the end."""


@dataclass(frozen=True)
class Picture:
    """A decoded frame of a video.

    Attributes
    ----------
    number
        Of the frame, counted from 0; damaged frames count.
    seconds
        Presentation time, in the stream's own clock; NaN if it has none. It may jump.
    image
        uint8 (H, W, 3), RGB, upright.
    """

    number: int
    seconds: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Damaged:
    """A frame of a video that could not be decoded, and why."""

    number: int
    reason: str


def camera(number: int) -> tuple[str, dict[str, str]]:
    """What `decode_video` takes for the camera of a number: its device, and the options to open it with.

    Raises
    ------
    EexError
        If cameras have no numbers on this system.
    """
    if sys.platform not in _CAMERAS:
        raise EexError(
            "cameras can be opened by number on Linux and macOS only; use the camera's rtsp:// or http:// URL"
        )
    kind, device = _CAMERAS[sys.platform]
    return device.format(number), {"format": kind}


def trusted() -> dict[str, str]:
    """FFmpeg options that refuse a server whose certificate neither this machine nor $SSL_CERT_FILE knows."""
    paths = ssl.get_default_verify_paths()
    return {"tls_verify": "1"} | ({"ca_file": paths.cafile} if paths.cafile else {})


def require_pyav(what: str = "") -> None:
    """Raise `EexError` if PyAV is not installed; `what` needs it, and begins the message."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise EexError(f"{what}{': ' if what else ''}reading video needs PyAV: pip install 'eex[video]'") from None


def decode_video(
    video: str | Readable,
    options: dict[str, str] | None = None,
    *,
    patience: float = 10.0,
    size: tuple[int, int] | None = None,
    preprocessing: Preprocessing = USUAL,
) -> Generator[Picture | Damaged, None, bool]:
    """Open a video and yield its frames in order of presentation, and in their places those that are damaged.

    Parameters
    ----------
    video
        Path, device or URL; or an open file, which need not be seekable.
    options
        FFmpeg's options for opening it; `format` names the demuxer.
    patience
        Seconds to wait for a connection, and for each frame.
    size
        (height, width) to which frames are scaled, the shorter side fitted and the longer cropped at the middle. It
        is much cheaper to do that here than afterwards.
    preprocessing
        How they are scaled.

    Returns
    -------
    finite
        Whether the video states a duration, so that its end is one; a camera or a network stream does not.

    Raises
    ------
    VideoError
        If it cannot be opened, has no pictures, or breaks off.
    EexError
        If PyAV is not installed.
    """
    require_pyav()
    import av

    av.logging.set_level(av.logging.PANIC)  # FFmpeg would write of each damaged frame to standard error
    settings = dict(options or {})
    try:
        container = av.open(video, "r", format=settings.pop("format", None), options=settings, timeout=patience)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be opened: {_reason(error, patience)}") from None
    with container:
        if not container.streams.video:
            raise VideoError("cannot be used: it has sound only, or no pictures")
        context = container.streams.video[0].codec_context
        if context is None:
            raise VideoError("cannot be used: FFmpeg does not know its codec")
        if context.width * context.height > MAX_PIXELS:
            raise VideoError(
                f"is too large: {context.width}x{context.height}, at most {MAX_PIXELS:,} pixels are decoded"
            )
        context.options = {"max_pixels": str(MAX_PIXELS)}  # it may grow later
        upright = partial(_upright, stream=container.streams.video[0], size=size, preprocessing=preprocessing)
        remote = isinstance(video, str) and video.startswith(("http:", "https:"))
        yield from _decoded(av, container, patience, upright, timed=not (remote and container.format.name in _UNTIMED))
        return container.duration is not None


def _decoded(
    av: Any,
    container: "av.container.InputContainer",
    patience: float,
    upright: "Callable[[av.VideoFrame], NDArray[np.uint8]]",
    timed: bool,
) -> Iterator[Picture | Damaged]:
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # threads by frame would hold back as many frames as there are threads
    awaited = _Awaited(stream.codec_context.name)
    number = without = 0  # packets in a row without a frame
    packets = container.demux(stream)
    while True:
        packet = None
        found: list[Any] = []
        try:
            packet = next(packets, None)
            if packet is None:
                announced, least = _announced(container, stream)
                if number < least - awaited.cut:
                    yield Damaged(number, f"the file announces {announced} frames and ends after {number:,}")
                return
            awaited.sent(packet)
            found += packet.decode()
        except (av.InvalidDataError, av.PatchWelcomeError) as error:
            if packet is None:
                packets = container.demux(stream)  # a generator that has raised is over
            else:
                awaited.failed(packet)
            found.append(_reason(error, patience))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"broke off after {number} frames: {_reason(error, patience)}") from None
        without += 1
        for frame in found:
            if not isinstance(frame, str):
                for _ in range(awaited.missing(frame)):
                    yield Damaged(number, MISSING)
                    number += 1
            if isinstance(frame, str):
                yield Damaged(number, frame)
            elif frame.is_corrupt:
                yield Damaged(number, "a part of it is damaged")
            else:
                without = 0
                seconds = float(frame.time) if timed and frame.time is not None else float("nan")
                yield Picture(number, seconds, upright(frame))
            number += 1
        if packet is not None and packet.size == 0:  # the last, which empties the decoder
            for _ in range(awaited.left()):
                yield Damaged(number, MISSING)
                number += 1
        if without >= DAMAGED_IN_A_ROW:
            raise VideoError(f"is damaged: {without} packets in a row give no picture")


def _announced(container: "av.container.InputContainer", stream: Any) -> tuple[str, int]:
    """Number of frames that a file announces, in words, and the least that it then holds; 0 if it announces none.

    Some formats state the number, others a duration, which may be that of a longer sound track.
    """
    if stream.frames:
        return f"{stream.frames:,}", stream.frames
    if container.duration is None or not stream.average_rate:
        return "", 0
    about = float(container.duration * stream.average_rate / 1_000_000)  # of microseconds
    return f"about {about:,.0f}", int(0.9 * about) - 1


class _Awaited:
    """Packets whose frames have not come: decoders pass over some damaged packets without a word.

    Frames come in the order of their times, so one that is older than a frame that came is missing. Only of codecs in
    which each packet holds one visible frame.
    """

    def __init__(self, codec: str) -> None:
        self._known = codec in ONE_FRAME_PER_PACKET
        self._times: set[int] = set()
        self._begun = False  # what a stream that is joined halfway sends before its first key frame is not missed
        self._sent_at: int | None = None  # decoding time of the last packet, which rises
        self.cut = 0  # frames that the file marks as not to be shown

    def sent(self, packet: Any) -> None:
        self._begun = self._begun or packet.is_keyframe
        self.cut += bool(packet.is_discard)
        if packet.dts is not None:
            if self._sent_at is not None and packet.dts < self._sent_at:  # timestamps jumped back
                self._times.clear()
            self._sent_at = packet.dts
        if self._known and self._begun and packet.size and packet.pts is not None and not packet.is_discard:
            if len(self._times) >= DEEPEST_DECODER:
                self._times.clear()
            self._times.add(packet.pts)

    def failed(self, packet: Any) -> None:
        self._times.discard(packet.pts)

    def missing(self, frame: Any) -> int:
        """Number of frames that should have come before this one."""
        self._known = self._known and not frame.interlaced_frame  # its two fields may come as two packets
        if not self._known:
            self._times.clear()
        if frame.pts not in self._times:  # one from before a jump
            return 0
        lost = {time for time in self._times if time < frame.pts}
        self._times -= lost | {frame.pts}
        return len(lost)

    def left(self) -> int:
        """Number of frames that have not come by the end."""
        left = len(self._times)
        self._times.clear()
        return left


def _upright(
    frame: "av.VideoFrame", stream: Any, size: tuple[int, int] | None, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """Pixels as they are to be shown, uint8 (H, W, 3). Conversion heeds the frame's colour space and range."""
    turns = round(frame.rotation / 90) % 4
    width, height = frame.width, frame.height
    wider = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1  # the width of a pixel
    if 1 / WIDEST_PIXEL <= wider <= WIDEST_PIXEL and width * wider * height <= MAX_PIXELS:
        width = max(1, round(width * wider))
    if size is not None:
        high, wide = size if turns % 2 == 0 else size[::-1]
        scale = max(high / height, wide / width) / preprocessing.crop
        width, height = max(wide, round(width * scale)), max(high, round(height * scale))
    method = "BICUBIC" if preprocessing.interpolation == "bicubic" else "AREA"  # bilinear over what becomes one pixel
    image = frame.reformat(width, height, "rgb24", interpolation=method).to_ndarray()
    if size is not None:
        top, left = (height - high) // 2, (width - wide) // 2
        image = image[top : top + high, left : left + wide]
    return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)


def _reason(error: Exception, patience: float) -> str:
    import av

    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return f"nothing came for {patience:g} seconds"
    if isinstance(error, av.error.HTTPError):
        return error.strerror or "the server refused"
    if isinstance(error, OSError) and error.errno == errno.EIO:  # FFmpeg reports no more than that
        protected = str(error.filename).startswith(("https:", "rtsps:"))
        return "the host is unknown or does not answer" + (", or its certificate is not trusted" if protected else "")
    return str(getattr(error, "strerror", "") or error).rstrip(".")
