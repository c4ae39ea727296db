"""The connection of a run to its worker: its options, and the offloader that they stand for."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eex.policies.core.errors import EexError, OffloadError
from eex.policies.core.files import take_paths
from eex.policies.core.link import SimulatedLink, parse_link
from eex.stream.wire.encoding import Encoding, parse_encoding

if TYPE_CHECKING:
    from eex.stream.wire.keys import EdgeKeys
    from eex.stream.wire.offload import Offloader

PATIENCE_S = 15.0
"""How long a run waits for its worker over an emulated link, which may be slow or down at first."""


LONGEST_DEADLINE_MS = 86_400_000.0


def check_deadline(deadline_ms: float) -> None:
    """Raise `EexError` if `--deadline-ms` is out of range."""
    if not 0 < deadline_ms <= LONGEST_DEADLINE_MS:
        raise EexError(
            f"--deadline-ms must be more than 0 and at most {LONGEST_DEADLINE_MS:g} (a day), got {deadline_ms:g}"
        )


@dataclass(frozen=True)
class Connection:
    """How frames reach the cloud.

    Attributes
    ----------
    processes
        Of the embedded worker; 0 if there is none.
    endpoints
        Of workers started elsewhere; empty if there are none.
    link
        The emulated link between edge and worker; None without.
    link_text
        As the relay process, which emulates it, parses it again.
    encoding
        How frames are sent; None leaves it to what is fastest.
    deadline_ms
        Wait for a reply at most.
    plain, anywhere
        Without keys; also to other machines.
    keys, key
        Folder of the keys, and the name of this edge's.
    required
        Whether a worker must answer at the start.
    share
        Whether the worker is sent what the policy learns.
    answer_with
        Model with which the embedded worker answers images; None for the edge's own.
    """

    processes: int
    endpoints: tuple[str, ...]
    link: SimulatedLink | None
    link_text: str
    encoding: Encoding | None
    deadline_ms: float
    plain: bool
    anywhere: bool
    keys: Path | None
    key: str
    required: bool
    answer_with: Path | None = None
    share: bool = False

    @property
    def offloads(self) -> bool:
        """Whether there is a worker at all."""
        return bool(self.processes or self.endpoints)


@dataclass(frozen=True)
class ConnectionConfig:
    """Options for how frames reach the cloud."""

    worker: str = "embedded"
    """Cloud worker: 'embedded' starts one on this machine ('embedded:2' with two processes); tcp://host:port connects
    to one that runs elsewhere, or to several, comma-separated; 'none' plays without a worker."""
    keys: Path | None = None
    """Folder that holds this edge's key and worker.pub. By default, where eex-keys puts them."""
    key: str = "edge"
    """Name of this edge's key in that folder."""
    plain: bool = False
    """Send plain text to workers on this machine that were started with --plain, instead of using keys."""
    plain_beyond_loopback: bool = False
    """With --plain: to workers on other machines, too. Everyone on the way can read and change frames."""
    answer_with: str | None = "auto"
    """Model with which the embedded worker answers: a folder of another model of the same classes, of any size, to
    which frames are sent as images, or 'own' for the rest of the edge's network. auto takes eex's cloud model for the
    shipped model, unless --send asks for features, and own for any other."""
    link: str = ""
    """Emulated link between edge and worker: sao-paulo, north-california, paris, wifi or MS@MBIT. Several can follow
    each other, comma-separated, each for a time: 40@10:30s, down:5s, jitter=5."""
    send: str = "auto"
    """Encoding of offloaded frames: features as fp32, fp16 or int8, or the image (input), each optionally with +zstd.
    auto sends the image where another model answers, features as they are to a worker on this machine, and
    otherwise what is fastest over the link."""
    deadline_ms: float = 1000.0
    """Time in milliseconds after which an offloaded frame is answered on the edge."""
    require_worker: bool = False
    """Refuse to start if no worker can be reached. By default, frames are answered on the edge until one can."""

    share: bool = False
    """Share what the policy learns with the other edges of the worker, and start from what they have learned. Sums of
    counts are sent, nothing of a single frame. Needs a worker at tcp://… and the policy stop-curve."""

    def __post_init__(self) -> None:
        take_paths(self)

    def connection(self, usual: Path | None = None) -> Connection:
        """What the options stand for.

        Parameters
        ----------
        usual
            Folder of the model that answers where `answer_with` is "auto"; None for the rest of the edge's own.

        Raises
        ------
        EexError
            If one of them is outside its range or cannot be parsed.
        """
        check_deadline(self.deadline_ms)
        if self.plain_beyond_loopback and not self.plain:
            raise EexError("--plain-beyond-loopback goes with --plain")
        processes, endpoints = _workers(self.worker)
        if self.share and not endpoints:
            raise EexError(
                f"--share goes with a worker that other edges use, tcp://host:port; got --worker {self.worker}"
            )
        link = parse_link(self.link) if self.link else None
        for name in ("link", "require_worker"):
            if getattr(self, name) and not (processes or endpoints):
                raise EexError(f"--{name.replace('_', '-')} goes with a worker, got --worker none")
        encoding = None if self.send == "auto" else parse_encoding(self.send)
        images = encoding is None or encoding.kind == "input"
        if self.answer_with not in ("auto", "own", None):
            if not processes:
                raise EexError("--answer-with goes with an embedded worker; others take it themselves (eex-worker)")
            if not images:
                raise EexError(f"--answer-with answers images: expected --send input or input+zstd, got {self.send}")
        answer_with = answerer(self.answer_with, usual) if processes and images else None
        if answer_with is not None:
            encoding = encoding or Encoding("input")
        return Connection(
            processes,
            endpoints,
            link,
            self.link,
            encoding,
            self.deadline_ms,
            self.plain,
            self.plain_beyond_loopback,
            self.keys,
            self.key,
            self.require_worker,
            answer_with,
            self.share,
        )


def answerer(answer_with: str | None, usual: Path | None) -> Path | None:
    """Folder of the model that answers in the cloud, as --answer-with names it; None for the rest of the edge's own,
    which None stands for in the configurations of older runs.

    Parameters
    ----------
    usual
        Folder that "auto" stands for.
    """
    if answer_with == "auto":
        return usual
    return None if answer_with in (None, "own") else Path(answer_with)


def _workers(text: str) -> tuple[int, tuple[str, ...]]:
    """Processes of the embedded worker, and endpoints of others."""
    if text == "none":
        return 0, ()
    kind, _, count = text.partition(":")
    if kind == "embedded" and (not count or (count.isdecimal() and 1 <= int(count) <= 256)) and text != "embedded:":
        return int(count or 1), ()
    endpoints = tuple(part.strip() for part in text.split(","))
    if not all(endpoint.startswith("tcp://") for endpoint in endpoints):
        raise EexError(f"--worker {text}: expected 'embedded', 'embedded:2', 'none' or tcp://host:port, …")
    return 0, endpoints


@contextlib.contextmanager
def connected(
    connection: Connection,
    fingerprint: str,
    seed: int,
    embedded: "tuple[str, EdgeKeys] | None" = None,
    warn: Callable[[str], None] | None = None,
) -> "Iterator[Offloader]":
    """A connection that knows nothing of any before it; closed with the block.

    Parameters
    ----------
    fingerprint
        Of the model.
    seed
        Of the emulated link's jitter.
    embedded
        Endpoint and keys of the embedded worker; None if there is none.
    warn
        Called with one line if no worker can be reached now; frames fall back until one can. A worker that turns the
        edge away is an error then. None tolerates both and reports neither.

    Raises
    ------
    EexError
        If a worker turns the edge away, or none can be reached and the connection requires one.
    """
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.emulated_link import emulated
    from eex.stream.wire.keys import default_folder, edge_keys
    from eex.stream.wire.offload import NoOffloader
    from eex.stream.wire.reach import UnreachableError, unreachable
    from eex.stream.wire.security import check_plain

    if not connection.offloads:
        yield NoOffloader()
        return
    keys: EdgeKeys | None
    if embedded is not None:
        endpoints, keys = [embedded[0]], embedded[1]
    else:
        endpoints = list(connection.endpoints)
        keys = None if connection.plain else edge_keys(connection.keys or default_folder(), connection.key)
    named = tuple(endpoints)
    if keys is None:
        for endpoint in named:  # an emulated link hides where they lie
            check_plain(endpoint, connection.anywhere)
    with contextlib.ExitStack() as stack:
        if connection.link is not None:
            endpoints = stack.enter_context(emulated(connection.link_text, endpoints, seed))

        def offloader() -> ZmqOffloader:
            made = ZmqOffloader(
                endpoints, fingerprint, connection.deadline_ms, keys=keys, anywhere=connection.anywhere, named=named
            )
            return stack.enter_context(contextlib.closing(made))

        connecting = offloader()
        try:
            if connection.link is not None and all(why := [unreachable(endpoint) for endpoint in named]):
                raise UnreachableError("; ".join(f"{e}: {text}" for e, text in zip(named, why, strict=True)))
            connecting.connect(PATIENCE_S if connection.link is not None else 5.0)
        except OffloadError as error:
            if connection.required or (warn is not None and not isinstance(error, UnreachableError)):
                raise
            if warn is not None:
                warn(f"{error}; frames are answered on the edge until a worker can be reached")
            connecting = offloader()  # the one that gave up is closed
        yield connecting
