"""Why a worker cannot be reached: its endpoint, its name, the network, or what listens there."""

import ipaddress
import re
import socket
import threading

from eex.policies.core.errors import OffloadError

LOOKUP_S = 3.0
"""How long a report waits for the addresses of a name."""

PROBE_S = 1.0
"""How long a report waits for a connection."""


class UnreachableError(OffloadError):
    """No worker answers at an endpoint; one may later."""


def split(endpoint: str) -> tuple[str, int]:
    """Host and port of an endpoint; the host of an IPv6 address comes without its brackets.

    Raises
    ------
    OffloadError
        If it is not of the form tcp://host:port.

    Examples
    --------
    >>> split("tcp://[::1]:5555"), split("tcp://cloud.example:80")
    (('::1', 5555), ('cloud.example', 80))
    """
    found = re.fullmatch(r"tcp://(\[[^\[\]]+\]|[^:\[\]/\s;]+):([0-9]{1,9})", endpoint)
    if not found:
        raise OffloadError(f"{endpoint}: not a worker's endpoint, expected tcp://host:port")
    if not 1 <= int(found[2]) <= 65535:
        raise OffloadError(f"{endpoint}: there is no port {found[2]}, expected one in 1…65535")
    return found[1].strip("[]"), int(found[2])


def is_address(host: str) -> bool:
    """Whether a host is an IP address and not a name.

    >>> [is_address(host) for host in ("::1", "127.0.0.1", "fe80::1%eth0", "localhost")]
    [True, True, True, False]
    """
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


class Lookup:
    """Looks up a name in a thread of its own, since an answer may take long.

    Attributes
    ----------
    families
        Of the addresses that were found; empty before.
    problem
        Why there are none; empty while it is not known.
    """

    def __init__(self, host: str) -> None:
        self.families: set[int] = set()
        self.problem = ""
        self._host = host
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def ipv6_only(self) -> bool:
        """Whether all addresses are IPv6 ones."""
        return self.families == {socket.AF_INET6}

    def wait(self, timeout_s: float = LOOKUP_S) -> str:
        """Why no address was found within some time; empty if one was."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"looking up the name '{self._host}' takes longer than {timeout_s:g} s; is a name server reachable?"
        return self.problem

    def _run(self) -> None:
        try:
            self.families = {found[0] for found in socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            self.problem = f"the name '{self._host}' has no address ({reason}); check it for typing errors"


def why_unreachable(endpoint: str) -> str:
    """Find out why no worker answered at an endpoint."""
    return unreachable(endpoint) or "something listens there, but it may not be an eex-worker"


def unreachable(endpoint: str) -> str:
    """Why nothing is reached at an endpoint, found by looking up its name and connecting; empty if something is."""
    host, port = split(endpoint)
    if not is_address(host) and (problem := Lookup(host).wait()):
        return problem
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except ConnectionRefusedError:
        return f"the connection was refused; nothing listens on port {port}: is the worker running there?"
    except TimeoutError:
        return f"the connection timed out; is the host up, and does a firewall block port {port}?"
    except OSError as error:
        return f"the host cannot be reached: {error.strerror or error}"
    return ""
