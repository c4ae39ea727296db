"""The description of the service: whatever comes, its status is in there."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from livenet import Cloud
from loopback import until
from served import picture

from eex.stream.serving import app, openapi
from eex.stream.serving.limits import OPEN_PATHS

pytestmark = pytest.mark.timeout(60)

METHODS = [(method.upper(), path) for path, methods in openapi.PATHS.items() for method in methods]


def told(client, wanted, method, path, body=None, **headers):
    """Ask, get the status that is wanted, and find it in the description."""
    status, given = client(method, path, body, headers)
    documented = openapi.PATHS[path.partition("?")[0]]
    assert status == wanted, given
    found = next((about for name, about in documented.items() if name.upper() == method), None)
    assert all(str(status) in about["responses"] for about in ([found] if found else documented.values())), (
        path,
        status,
    )


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_what_is_refused_everywhere(opened, tmp_path, method, path):
    client = opened()
    told(client, 403, method, path, Origin="http://evil.example")
    told(client, 421, method, path, Host="evil.example")
    told(client, 404 if path == "/v1/frames" else 405, "DELETE", path)
    (tmp_path / "token").write_text("0123456789abcdef")
    if path not in OPEN_PATHS:
        told(opened(token_file=tmp_path / "token"), 401, method, path)
    assert ("401" in openapi.PATHS[path][method.lower()]["responses"]) == (path not in OPEN_PATHS)
    hasty = opened(rate=0.01)
    hasty("GET", "/healthz")
    told(hasty, 429, method, path)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/answer"), ("PUT", "/v1/settings?stream=a"), ("POST", "/v1/labels")]
)
def test_what_is_said_of_bodies(opened, method, path):
    client = opened(most_body_mb=0.01, body_s=0.2)
    told(client, 413, method, path, b"x" * 20_000)
    told(client, 400, method, path, b"")
    with client.raw() as slow:
        slow.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n".encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    assert "408" in openapi.PATHS[path.partition("?")[0]][method.lower()]["responses"]


def test_why_frames_are_refused(opened):
    assert {str(status) for status in app.STATUS.values()} <= set(openapi.PATHS["/v1/answer"]["post"]["responses"])
    client = opened(live={"queue": 1, "keep": "newest"}, cloud=Cloud(window=0, held=True))
    told(client, 422, "POST", "/v1/answer", b"no image")
    told(client, 404, "GET", "/v1/policy?stream=none")
    told(client, 404, "POST", "/v1/labels", b'{"frame": 1, "label": "a"}')
    told(client, 400, "GET", "/v1/settings?stream=a%20b")
    gate = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        pool.submit(client.session._tasks.ask, gate.wait)  # nothing is run meanwhile
        try:
            older = pool.submit(told, client, 409, "POST", "/v1/answer", picture())
            until(lambda: client.service._under_way)
            pool.submit(client.answer, "default")
            older.result(10)
        finally:
            gate.set()
