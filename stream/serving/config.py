"""The options of the HTTP service. Heavy libraries are not imported, so --help is instant."""

import functools
import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from eex.policies.core.errors import EexError
from eex.policies.core.files import take_paths

LEAST_TOKEN = 16


@dataclass(frozen=True)
class ServeConfig:
    """Options of the HTTP service: where it listens, who may use it, and how much of it one client may take."""

    host: str = "127.0.0.1"
    """Address to listen on. Addresses that other machines can reach need --token-file, and TLS or
    --http-beyond-loopback."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """File that holds the token which clients must send, as 'Authorization: Bearer TOKEN': one line of at least 16
    printable ASCII characters without spaces."""
    tls_cert: Path | None = None
    """Certificate chain for HTTPS, a PEM file."""
    tls_key: Path | None = None
    """Private key of the certificate, a PEM file."""
    http_beyond_loopback: bool = False
    """Serve other machines without TLS: everyone on the way can read frames, answers and the token."""
    most_body_mb: float = 8.0
    """Largest body of a request, in megabytes. A multipart body counts as a whole."""
    most_pixels: int = 16_777_216
    """Largest image that is decoded, in pixels."""
    most_streams: int = 256
    """Streams that are open at a time, at most. A stream without frames for 10 minutes is closed; what it learned is
    kept."""
    most_connections: int = 2048
    """Connections at a time, at most."""
    rate: float = 2000.0
    """Requests per second of one client address, at most; frames of a WebSocket count as requests."""
    body_s: float = 15.0
    """Seconds that a request's body may take to arrive."""
    thumbnails: bool = False
    """Show the latest frames as small pictures on the live page."""

    def __post_init__(self) -> None:
        take_paths(self)

    def check(self) -> None:
        """Raise `EexError` if an option is out of range, or would serve other machines unprotected."""
        if not 0 <= self.port <= 65535:
            raise EexError(f"a port must lie in 0…65535, 0 for a free one; got {self.port}")
        for name in ("most_body_mb", "most_pixels", "most_streams", "most_connections", "rate", "body_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise EexError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise EexError("--tls-cert and --tls-key are needed together")
        if not self.on_loopback:
            if self.token_file is None:
                raise EexError(
                    f"--host {self.host}: other machines can reach this address, so clients need a token: "
                    "write one to a file and name it with --token-file"
                )
            if self.tls_cert is None and not self.http_beyond_loopback:
                raise EexError(
                    f"--host {self.host}: other machines can reach this address, so it needs --tls-cert and --tls-key; "
                    "or add --http-beyond-loopback to serve it unencrypted"
                )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def most_body(self) -> int:
        """Largest body, in bytes."""
        return int(self.most_body_mb * 1e6)

    def token(self) -> str | None:
        """The token; None if there is none.

        Raises
        ------
        EexError
            If the file cannot be read or holds no token.
        """
        if self.token_file is None:
            return None
        try:
            text = self.token_file.read_text("ascii").strip()
        except OSError as error:
            raise EexError(f"--token-file {self.token_file}: cannot be read: {error.strerror}") from None
        except ValueError:
            text = ""
        if len(text) < LEAST_TOKEN or not text.isprintable() or " " in text:
            raise EexError(
                f"--token-file {self.token_file}: holds no token; expected one line of at least {LEAST_TOKEN} "
                "printable ASCII characters without spaces, as 'openssl rand -hex 32' makes them"
            )
        return text


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "eex.example")]
    [True, True, True, False, False]
    """
    bare = host.strip("[]")
    try:
        return bare == "localhost" or ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def same_token(given: str, token: str) -> bool:
    """Whether a token is the right one, in a time that does not depend on how much of it is."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())
