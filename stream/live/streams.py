"""Which streams a session has and what each is given: `--source NAME=SPEC` and the tables of a TOML file."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from eex.policies.core.errors import EexError
from eex.policies.core.files import check_plain_values

DEFAULTS, STREAMS = "defaults", "streams"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_PASSWORD = re.compile(r"(://[^/@:]*):(?:[^/]*|(?!\d+/)[^\s?#]*)@")  # the digits of a port are none
_SECRET = re.compile(
    r"(?i)((?:pas|pw|psw|secret|token|key(?!s=)|auth|cred|sig|session)[^=&\s]*=)[^&\s]*?(?=_[a-z]+=|[&\s]|$)"
)


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one stream: its source, what is taken from it, and what the session does differently for it.

    Attributes
    ----------
    source
        Where its frames come from; `eex.stream.live.inputs.open_input` lists what is possible.
    keep
        "newest": only the newest frame waits, and what it replaces is counted as stale. "all": up to `queue` frames
        wait, and a source that can wait is held back. "auto": "newest" for cameras, network streams and files played
        in real time, "all" for the others.
    queue
        Frames that may wait if all are kept; None = as for all streams.
    fps
        Maximum number of frames per second; 0 = no maximum. Frames of a clock in between are left out. Images without
        a clock are played at this rate.
    changed
        Frames are left out unless some part of the picture differs from the last frame taken by more than this share
        of full scale, in [0, 1]; 0 = every frame is taken.
    realtime
        Play a video file at its own speed, and not as fast as possible.
    existing
        Of a watched folder, take the files too that are there at the start.
    patience_s
        Seconds without a frame after which a network stream counts as lost and is opened again.
    verify
        Refuse an https:// or rtsps:// server whose certificate is not known. $SSL_CERT_FILE names those to trust.
    overhead
        What offloading costs, as for `--overhead`; None = as for all streams.
    deadline_ms
        Milliseconds that an offloaded frame may take; None = as for all streams.
    """

    source: str
    keep: Literal["auto", "newest", "all"] = "auto"
    queue: int | None = None
    fps: float = 0.0
    changed: float = 0.0
    realtime: bool = False
    existing: bool = False
    patience_s: float = 10.0
    verify: bool = True
    overhead: float | str | None = None
    deadline_ms: float | None = None


MOST_DOTS = 1000  # in a line of the file

LIMITS = {
    "queue": (1, 100_000),
    "fps": (0, 10_000),
    "changed": (0, 1),
    "patience_s": (0.1, 86_400),
    "deadline_ms": (0, 86_400_000),
}
"""Smallest and largest value of each number."""


def read_streams(path: Path) -> dict[str, SourceOptions]:
    """The streams of a TOML file: a table `[streams.NAME]` each, and `[defaults]` for what they have in common.

    Raises
    ------
    EexError
        If the file cannot be read, or a key or a value is wrong; the error names stream and key.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "streams.toml"
    >>> size = path.write_text('[defaults]\\nfps = 5\\n[streams.door]\\nsource = "rtsp://10.0.0.7/main"\\n')
    >>> streams = read_streams(path)
    >>> streams["door"].fps
    5.0
    """
    try:
        text = path.read_text("utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):  # TOML's reader takes minutes for such keys
            raise ValueError(f"a line has more than {MOST_DOTS} dots")
        content = tomllib.loads(text)
        check_plain_values(content)
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise EexError(f"{path}: not a file of streams: it is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EexError(f"{path}: not TOML: {error}") from None
    except ValueError as error:
        raise EexError(f"{path}: not a file of streams: {error}") from None
    for key in content:
        if key not in (DEFAULTS, STREAMS):
            raise EexError(f"{path}: unknown table '{key}'; expected [{DEFAULTS}] and [{STREAMS}.NAME]")
    common = content.get(DEFAULTS, {})
    tables = content.get(STREAMS, {})
    for name, table in ((DEFAULTS, common), (STREAMS, tables)):
        if not isinstance(table, dict):
            raise EexError(f"{path}: [{name}] must be a table, got {_brief(table)}")
    if "source" in common:
        raise EexError(f"{path}: [{DEFAULTS}] has a source; each stream needs its own, in [{STREAMS}.NAME]")
    _options({**common, "source": "-"}, f"{path}: [{DEFAULTS}]")  # wrong though no stream uses it
    streams = {}
    for name, table in tables.items():
        where = f"{path}: stream '{name}'"
        check_name(name, where)
        if not isinstance(table, dict):
            raise EexError(f"{where}: expected a table [{STREAMS}.{name}], got {_brief(table)}")
        streams[name] = _options({**common, **table}, where)
    return streams


def parse_sources(specs: Sequence[str], defaults: dict[str, Any] | None = None) -> dict[str, SourceOptions]:
    """Streams from the command line: NAME=SPEC, or a SPEC alone, which is named after its file, host or number.

    Parameters
    ----------
    defaults
        Options of all of them, by name.

    Raises
    ------
    EexError
        If a name is not possible or stands twice, or an option is wrong.

    Examples
    --------
    >>> list(parse_sources(["door=rtsp://10.0.0.7/main", "camera:1"]))
    ['door', 'camera-1']
    """
    streams: dict[str, SourceOptions] = {}
    for spec in specs:
        name, source = _named(spec)
        if name in streams:
            raise EexError(f"--source: two streams are named '{name}'; give each a name of its own, as NAME=SPEC")
        check_name(name, f"--source {shown(spec)}")
        streams[name] = _options({**(defaults or {}), "source": source}, f"stream '{name}'")
    return streams


def together(*parts: dict[str, SourceOptions]) -> dict[str, SourceOptions]:
    """The streams of the command line and of a file.

    Raises
    ------
    EexError
        If two have the same name, or read standard input.
    """
    streams: dict[str, SourceOptions] = {}
    for part in parts:
        if twice := sorted(streams.keys() & part.keys()):
            raise EexError(f"two streams are named '{twice[0]}'; give each a name of its own")
        streams |= part
    if len(piped := [name for name, options in streams.items() if options.source.partition(":")[0] == "-"]) > 1:
        raise EexError(f"streams '{piped[0]}' and '{piped[1]}' both read standard input; only one can")
    return streams


def check_name(name: str, where: str) -> None:
    """Raise `EexError` if a stream cannot have this name: it becomes part of topics, files and columns."""
    if not NAME.fullmatch(name):
        raise EexError(f"{where}: '{name}' is no name for a stream; expected 1 to 64 letters, digits, '_', '-' and '.'")


def shown(spec: str) -> str:
    """The specification without the password in it, nor what looks like one in its query or path, for messages.

    >>> shown("door=rtsp://admin:secret@10.0.0.7/main")
    'door=rtsp://admin:***@10.0.0.7/main'
    >>> shown("http://10.0.0.7/videostream.cgi?user=admin&pwd=secret")
    'http://10.0.0.7/videostream.cgi?user=admin&pwd=***'
    """
    before, mark, url = _PASSWORD.sub(r"\1:***@", spec).partition("://")
    return before + mark + _SECRET.sub(r"\1***", url)


def url_of(spec: str) -> SplitResult:
    """The parts of a URL.

    Raises
    ------
    EexError
        If it is none.
    """
    try:
        return urlsplit(spec)
    except ValueError as error:
        raise EexError(f"{shown(spec)}: not a URL: {error}") from None


def _named(spec: str) -> tuple[str, str]:
    name, equals, source = spec.partition("=")
    if equals and not re.search(r"[:/\\]", name):
        return name, source
    url = url_of(spec) if "://" in spec else None
    word = (url.hostname or url.scheme) if url else spec if spec.startswith("camera") else Path(spec).stem
    word = re.sub(r"[^A-Za-z0-9_.-]+", "-", word or "").strip("-.")[:64]
    return word or "stdin", spec


def _options(table: dict[str, Any], where: str) -> SourceOptions:
    fields = {field.name: field for field in msgspec.structs.fields(SourceOptions)}
    for key in table:
        if key not in fields:
            raise EexError(f"{where}: unknown key '{key}'{_meant(key, fields)}")
    if "source" not in table:
        raise EexError(f'{where}: has no source; expected source = "…"')
    try:
        options = msgspec.convert(table, SourceOptions)
    except msgspec.ValidationError as error:
        reason, _, key = str(error).partition(" - at `$.")
        raise EexError(f"{where}: {key.rstrip('`')}: {reason[:1].lower()}{reason[1:]}") from None
    for key, (low, high) in LIMITS.items():
        value = getattr(options, key)
        if value is not None and not low <= value <= high:
            raise EexError(f"{where}: {key} must be between {low:g} and {high:g}, got {value:g}")
    if not options.source:
        raise EexError(f"{where}: its source is empty")
    return options


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known := list(known), 1)
    return f"; did you mean '{close[0]}'?" if close else f"; expected one of {', '.join(known)}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
