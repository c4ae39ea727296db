"""Why a worker cannot be reached is found out and said."""

import socket

import pytest

from eex.policies.core.errors import OffloadError
from eex.stream.wire import reach
from eex.stream.wire.reach import Lookup, is_address, split, why_unreachable


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("tcp://127.0.0.1:5555", "127.0.0.1", 5555),
        ("tcp://cloud.example:1", "cloud.example", 1),
        ("tcp://[::1]:65535", "::1", 65535),
    ],
)
def test_endpoints(endpoint, host, port):
    assert split(endpoint) == (host, port)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://a:99999", r"there is no port 99999, expected one in 1…65535"),
        ("tcp://a:0", "there is no port 0"),
        ("tcp://a:" + "9" * 5000, "not a worker's endpoint"),
        ("tcp://a", "not a worker's endpoint"),
        ("tcp://::1:5555", "not a worker's endpoint"),
        ("http://a:80", "not a worker's endpoint"),
        ("tcp://a b:80", "not a worker's endpoint"),
        ("", "not a worker's endpoint"),
    ],
)
def test_endpoints_that_are_none(endpoint, message):
    with pytest.raises(OffloadError, match=message):
        split(endpoint)


def test_addresses_and_names():
    assert is_address("127.0.0.1")
    assert is_address("::1")
    assert not is_address("cloud.example")


def test_a_refused_connection():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert why_unreachable(f"tcp://127.0.0.1:{port}").startswith(
            "the connection was refused; nothing listens on port"
        )


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        why = why_unreachable(f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert why == "something listens there, but it may not be an eex-worker"


def test_a_connection_that_times_out(monkeypatch):
    def never(*_):
        raise TimeoutError

    monkeypatch.setattr(reach.socket, "create_connection", never)
    assert why_unreachable("tcp://127.0.0.1:80").startswith("the connection timed out")


def test_a_name_without_an_address(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(reach.socket, "getaddrinfo", unknown)
    expected = "the name 'nowhere.example' has no address (Name or service not known); check it for typing errors"
    assert why_unreachable("tcp://nowhere.example:80") == expected


@pytest.mark.parametrize(("families", "only"), [([socket.AF_INET6], True), ([socket.AF_INET6, socket.AF_INET], False)])
def test_names_with_ipv6_addresses_only(monkeypatch, families, only):
    monkeypatch.setattr(reach.socket, "getaddrinfo", lambda *_, **__: [(family,) for family in families])
    lookup = Lookup("cloud.example")
    assert lookup.wait() == ""
    assert lookup.ipv6_only is only
