"""ZeroMQ sockets by which frames come in and answers go out: `zmq+pull://`, `zmq+sub://`, `zmq+pub://`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from eex.policies.core.errors import EexError
from eex.stream.live.streams import url_of

if TYPE_CHECKING:
    import zmq

KINDS = {"zmq+pull": ("PULL", True), "zmq+sub": ("SUB", False), "zmq+pub": ("PUB", True)}
"""Type of the socket, and whether it is bound; else it connects."""


@contextlib.contextmanager
def opened(spec: str, options: dict[int, int]) -> "Iterator[zmq.Socket[bytes]]":
    """A bound or connected socket with these options of ZeroMQ, in a context of its own.

    Parameters
    ----------
    spec
        KIND://HOST:PORT, or KIND:///PATH for a socket file on this machine. Beyond this machine it takes
        `?keys=FOLDER`: the socket proves itself by FOLDER/edge.key; if it is bound, it lets in whose public halves lie
        in the folder, else it talks to the holder of FOLDER/worker.key alone. Or `?plain`, unprotected.

    Raises
    ------
    EexError
        If the specification is wrong, a key cannot be read, or the address cannot be used.
    """
    import zmq

    from eex.stream.wire import keys, security

    kind, bound, endpoint, folder = parse(spec)
    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as socket, contextlib.ExitStack() as stack:
        socket.linger = 0
        for option, value in options.items():
            socket.setsockopt(option, value)
        if kind == "SUB":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        if folder is not None and bound:
            stack.enter_context(_guarded(context, folder))
            own = keys.read_pair(folder / f"{keys.EDGE}.key")
            security.secure_worker(socket, keys.WorkerKeys(own, lambda public: ""))
        elif folder is not None:
            security.secure_edge(socket, keys.edge_keys(folder))
        try:
            (socket.bind if bound else socket.connect)(endpoint)
        except zmq.ZMQError as error:
            verb = "bound" if bound else "connected to"
            raise EexError(f"{spec}: cannot be {verb}: {zmq.strerror(error.errno or 0)}") from None
        yield socket


def parse(spec: str) -> tuple[str, bool, str, Path | None]:
    """Type of the socket, whether it is bound, ZeroMQ's endpoint, and the folder of keys.

    >>> parse("zmq+pub://127.0.0.1:5556")
    ('PUB', True, 'tcp://127.0.0.1:5556', None)

    Raises
    ------
    EexError
        If the specification is wrong, or would be unprotected beyond this machine.
    """
    from eex.stream.wire.security import is_loopback

    url = url_of(spec)
    if url.scheme not in KINDS:
        raise EexError(f"{spec}: unknown scheme '{url.scheme}'; expected {', '.join(KINDS)}")
    kind, bound = KINDS[url.scheme]
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := sorted(query.keys() - {"keys", "plain"}):
        raise EexError(f"{spec}: unknown option '{unknown[0]}'; expected keys=FOLDER or plain")
    port = url.netloc.rpartition(":")[2]
    if url.netloc and not (port.isdecimal() and 0 < int(port) < 65536 and url.netloc.rpartition(":")[0]):
        raise EexError(f"{spec}: expected {url.scheme}://HOST:PORT, or {url.scheme}:///PATH")
    if not url.netloc and url.path in ("", "/"):
        raise EexError(f"{spec}: expected {url.scheme}://HOST:PORT, or {url.scheme}:///PATH")
    endpoint = f"tcp://{url.netloc}" if url.netloc else f"ipc://{url.path}"
    if not query and not is_loopback(endpoint):
        raise EexError(
            f"{spec}: can be reached from other machines; add ?keys=FOLDER with keys from eex-keys, "
            "or ?plain to do without protection"
        )
    return kind, bound, endpoint, Path(query["keys"]).expanduser() if "keys" in query else None


@contextlib.contextmanager
def _guarded(context: Any, folder: Path) -> Iterator[None]:
    """Let in only clients whose public halves lie in the folder; they may come and go meanwhile."""
    from zmq.auth.thread import ThreadAuthenticator

    from eex.stream.wire import keys, security

    class Known:
        def callback(self, domain: str, key: bytes) -> bool:
            for path in folder.glob("*.pub"):
                with contextlib.suppress(EexError):
                    if path.stem != keys.EDGE and keys.read_public(path) == key:
                        return True
            return False

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    try:
        authenticator.configure_curve_callback(domain=security.DOMAIN, credentials_provider=Known())
        yield
    finally:
        authenticator.stop()
