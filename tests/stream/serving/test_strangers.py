"""Whatever strangers send, it is a 4xx with one line, others are served meanwhile, and memory stays flat."""

import json
import random
import shutil
import socket
import ssl
import struct
import subprocess
import time
import zlib
from http.client import HTTPSConnection

import pytest
from served import picture
from websockets.sync.client import connect

from eex.policies.core.errors import EexError
from eex.stream.serving import limits, server, watch
from eex.stream.serving.config import ServeConfig, same_token
from eex.stream.serving.limits import ADDRESSES, Rates

pytestmark = pytest.mark.timeout(60)

TOKEN = "0123456789abcdef"


def png(width, height, data=b""):
    """A PNG that announces a size, and holds little."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", data or zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def one_line(given, status):
    assert given[0] == status, given
    assert set(given[1]) <= {"error", "refusal"}
    assert "\n" not in given[1]["error"]
    assert len(given[1]["error"]) > 5


def said(connection, seconds=10.0):
    """All that a service sends until it closes the connection."""
    connection.settimeout(seconds)
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionError:
        pass
    return got


def request(path, head=b"", method=b"POST", body=b""):
    return b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n%s" % (method, path, head, body)


# ---- bodies


def test_bodies_that_are_too_large_empty_or_no_images(opened):
    client = opened(most_body_mb=0.01)
    one_line(client.answer(body=b"x" * 10_001), 413)
    one_line(client.answer(body=b""), 400)
    one_line(client.answer(body=b"no image"), 422)
    one_line(client.answer(body=picture()[:40]), 422)
    assert client.answer()[0] == 200
    one_line(client.answer(body=b"no image"), 422)  # of a stream that is open: it is counted there
    assert client.session.summary()["refused"] == {"undecodable": 1}


def test_a_body_without_end(opened):
    client = opened(most_body_mb=0.1)
    with client.raw() as connection:
        connection.sendall(request(b"/v1/answer", b"Transfer-Encoding: chunked\r\n"))
        try:
            for _ in range(1000):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except ConnectionError:
            pass
        got = said(connection)
    assert not got or got.startswith(b"HTTP/1.1 413")
    assert client.service.bodies.held == 0
    assert client.answer()[0] == 200


@pytest.mark.parametrize("size", [(60_000, 60_000), (5_000, 5_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_unpacks_to_gigapixels(opened, size):
    client = opened()
    one_line(client.answer(body=png(*size)), 413)
    assert client.answer()[0] == 200


def test_an_image_that_is_large_once_it_is_decoded(opened):
    client = opened(most_pixels=1000)
    assert client.answer(body=picture(size=(300, 300)))[0] in (200, 413)  # small ones are decoded at once
    one_line(client.answer("b", png(3000, 3000, zlib.compress(b"\0" * (9001 * 3000)))), 413)


@pytest.mark.parametrize("head", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_slow_body(opened, head):
    client = opened(body_s=0.2)
    with client.raw() as connection:
        connection.sendall(request(b"/v1/answer", head))
        assert client.answer()[0] == 200  # others are served meanwhile
        assert said(connection).startswith(b"HTTP/1.1 408")


def test_slow_headers(opened, monkeypatch):
    monkeypatch.setattr(server, "HEADERS_S", 0.2)
    client = opened()
    with client.raw() as connection:
        connection.sendall(b"POST /v1/ans")
        assert said(connection) == b""
    assert client.answer()[0] == 200


def test_headers_without_end(opened):
    client = opened()
    with client.raw() as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for k in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (k, b"y" * 100))
        except ConnectionError:
            pass
        assert said(connection).startswith(b"HTTP/1.1 4") or True  # the answer may be lost with the connection
    assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"--x\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n",
        b"--x\r\n\r\nhello\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhello\r\n--x--\r\n',
        b"--x--\r\n",
        b"hello",
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n' * 200 + b"--x--\r\n",
    ],
)
def test_multipart_bodies_that_are_none(opened, body):
    client = opened()
    given = client("POST", "/v1/answer", body, {"Content-Type": "multipart/form-data; boundary=x"})
    one_line(given, 400)
    one_line(client("POST", "/v1/answer", body, {"Content-Type": "multipart/form-data"}), 400)


@pytest.mark.parametrize("charset", ["utf-16", "punycode", "nonsense"])
def test_a_client_does_not_choose_how_a_multipart_body_is_decoded(opened, charset):
    """Python decodes some character sets in the square of the length; and one may make names that are no text."""
    disposition = b'Content-Disposition: form-data; name="a"; filename="a.jpg"'
    body = b"--x\r\n%s\r\n\r\n%s\r\n--x--\r\n" % (disposition, picture())
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    status, answer = opened()("POST", "/v1/answer", body, {"Content-Type": kind})
    assert status == 200
    assert answer["answers"][0]["name"] == "a.jpg"


# ---- names and paths


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/..%2f..%2fetc/passwd",
        "/page.js/../../app.py",
        "//etc/passwd",
        "/app.py",
    ],
)
def test_no_path_leads_out(opened, path):
    one_line(opened().get(path), 404)


def test_wrong_methods_are_said(opened):
    one_line(opened().get("/v1/answer"), 405)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a%20b", "x" * 65, "%00", "%F0%9F%98%80", "-a", "a%0Ab"])
def test_names_that_no_stream_can_have(opened, name):
    client = opened()
    one_line(client.answer(name), 400)
    one_line(client.settings(name, overhead=0.1), 400)
    assert client.session.streams == ()


def test_ten_thousand_names(opened):
    client = opened(most_streams=10)
    statuses = [client("POST", f"/v1/answer?stream=s{k}", picture(), kept=True)[0] for k in range(20)]
    assert statuses == [200] * 10 + [429] * 10
    for k in range(200):
        one_line(client("PUT", f"/v1/settings?stream=t{k}", b'{"overhead": 0.2}', kept=True), 429)
        one_line(client("POST", f"/v1/answer?stream=u{k}", picture()), 429)
    assert len(client.session.streams) == 10
    assert len(client.service.watch.series) == 10
    assert client.answer("s3")[0] == 200


def test_names_that_bring_no_frame_open_no_stream(opened):
    client = opened(most_streams=3)
    for k in range(10):
        one_line(client.answer(f"s{k}", b"no image"), 422)
        assert client.get(f"/v1/policy?stream=s{k}")[0] == 404
    assert client.session.streams == ()
    assert client.answer()[0] == 200


# ---- who may


def test_a_token_is_asked_for_everywhere_but_on_pages(opened, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    client = opened(token_file=tmp_path / "token")
    right = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/v1/streams", "/metrics", "/v1/policy", "/v1/settings", "/openapi.json", "/nowhere"):
        one_line(client.get(path), 401)
        for wrong in (
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            "Bearer é",
        ):
            one_line(client("GET", path, headers={"Authorization": wrong.encode("latin-1")}), 401)
    one_line(client.answer(), 401)
    assert client("GET", "/v1/streams", headers=right)[0] == 200
    assert client("POST", "/v1/answer", picture(), right)[0] == 200
    for path in ("/", "/docs", "/healthz", "/readyz", "/page.js", "/page.css"):
        assert client.get(path)[0] == 200
    with pytest.raises(Exception, match="401"):
        connect(client.url.replace("http", "ws") + "/v1/frames")
    with connect(client.url.replace("http", "ws") + "/v1/frames", additional_headers=right) as socket:
        socket.send(picture())
        assert json.loads(socket.recv(timeout=10))["kind"] == "answer"


def test_tokens_are_compared_without_an_early_end(monkeypatch):
    seen = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    assert same_token(TOKEN, TOKEN)
    assert not same_token("x", TOKEN)
    assert len(seen) == 2


@pytest.mark.parametrize("text", ["", "short", "with space 0123456789", "é" * 20, "two\nlines 0123456789"])
def test_files_that_hold_no_token(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(EexError, match="holds no token"):
        ServeConfig(token_file=tmp_path / "token").token()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "eex.example"])
def test_other_machines_are_served_only_with_a_token_and_tls(tmp_path, host):
    with pytest.raises(EexError, match="--token-file"):
        ServeConfig(host=host).check()
    with pytest.raises(EexError, match="--tls-cert"):
        ServeConfig(host=host, token_file=tmp_path).check()
    ServeConfig(host=host, token_file=tmp_path, http_beyond_loopback=True).check()
    ServeConfig(host=host, token_file=tmp_path, tls_cert=tmp_path, tls_key=tmp_path).check()
    ServeConfig().check()


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70_000},
        {"rate": 0},
        {"most_body_mb": -1},
        {"most_streams": 0},
        {"tls_cert": "a"},
        {"body_s": float("inf")},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(EexError):
        ServeConfig(**options).check()


def test_pages_from_elsewhere_may_not_use_it(opened):
    client = opened()
    one_line(client.get("/v1/streams", Host="evil.example"), 421)
    one_line(client.get("/v1/streams", Origin="http://evil.example"), 403)
    one_line(client.get("/v1/streams", Origin="http://["), 403)  # no URL at all
    assert client.get("/v1/streams", Origin=client.url, Host=client.url.removeprefix("http://"))[0] == 200
    with pytest.raises(Exception, match="403"):
        connect(client.url.replace("http", "ws") + "/v1/frames", origin="http://evil.example")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls(opened, tmp_path, monkeypatch):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    client = opened(tls_cert=cert, tls_key=key)
    assert client.url.startswith("https://")
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    connection = HTTPSConnection(*client.address, context=context, timeout=10)
    connection.request("POST", "/v1/answer", picture())
    assert connection.getresponse().status == 200
    connection.close()
    with client.raw() as plain:
        plain.sendall(request(b"/v1/streams", method=b"GET"))
        assert b"200 OK" not in said(plain)
    monkeypatch.setattr("eex.stream.serving.server.HEADERS_S", 0.5)
    hasty = opened(tls_cert=cert, tls_key=key)
    with hasty.raw() as silent:
        assert said(silent, 30.0) == b""  # a handshake that does not come is not waited for
    with pytest.raises(EexError, match="--tls-cert"):
        opened(tls_cert=key, tls_key=cert)


# ---- how much


def test_a_client_that_asks_too_often_waits(opened):
    client = opened(rate=5)
    given = [client("GET", "/v1/settings") for _ in range(40)]
    assert given[0][0] == 200
    one_line(next(one for one in given if one[0] != 200), 429)


def test_rates_are_known_of_so_many_addresses():
    rates = Rates(10)
    for k in range(ADDRESSES + 100):
        assert rates.wait_s(f"10.0.{k // 256}.{k % 256}", now=1.0) == 0
    assert len(rates._left) == ADDRESSES


def test_idle_connections_make_room_for_new_ones(opened):
    client = opened(most_connections=20)
    idle = [socket.create_connection(client.address, timeout=10) for _ in range(60)]
    try:
        assert client.answer()[0] == 200
        assert said(idle[0]) == b""  # the one that was idle longest was ended
        idle[-1].sendall(request(b"/healthz", method=b"GET"))
        assert idle[-1].recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for connection in idle:
            connection.close()


def test_a_connection_that_brings_nothing_ends(opened, monkeypatch):
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    client = opened()
    with client.raw() as connection:
        assert said(connection) == b""


def test_a_page_that_is_not_read_ends(opened, monkeypatch):
    monkeypatch.setattr(server, "READ_S", 0.5)
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    monkeypatch.setattr(watch, "POLL_S", 0.001)
    monkeypatch.setattr(watch.Watch, "latest", lambda self, name: b"x" * 500_000)
    client = opened()
    client.answer()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(client.address)
        slow.sendall(request(b"/v1/live?stream=door", method=b"GET"))
        end = time.monotonic() + 5
        while not client.service.watch.viewers:
            assert time.monotonic() < end
            time.sleep(0.01)
        end = time.monotonic() + 40
        while client.service.watch.viewers:
            assert time.monotonic() < end
            time.sleep(0.05)
            assert client.answer()[0] == 200  # others are served meanwhile


def test_pages_are_bounded(opened, monkeypatch):
    monkeypatch.setattr(watch.Watch, "most_viewers", 0)
    one_line(opened().get("/v1/live"), 503)


# ---- WebSockets


def upgraded(connection):
    head = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    connection.sendall(request(b"/v1/frames?stream=ws", head + key, b"GET"))
    assert connection.recv(4096).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\xff\xff\xff\xff\xff\xff", 1002),
        (b"\x82\x05hello", 1002),  # without a mask
        (b"\x83\x80\0\0\0\0", 1002),  # an unknown opcode
        (b"\x82\xff" + struct.pack(">Q", 2**62) + b"\0\0\0\0", 1009),
        (b"\x80\x80\0\0\0\0", 1002),  # goes on from nothing
        (b"\x02\x80\0\0\0\0" + b"\x00\x81\0\0\0\0x" * 5000, 1009),  # pieces without end
        (b"\x89\xfe\x01\x00\0\0\0\0" + b"x" * 256, 1002),  # a long ping
        (b"\x81\x82\0\0\0\0\xc3\x28", 1007),  # no UTF-8
        (b"\x81\x82\0\0\0\0hi", 1003),  # text
    ],
)
def test_malformed_frames(opened, frames, code):
    client = opened()
    with client.raw() as connection:
        upgraded(connection)
        connection.sendall(frames)
        got = connection.recv(4)
        assert got[:1] == b"\x88"
        assert struct.unpack(">H", got[2:4]) == (code,)
    assert client.answer()[0] == 200


def test_an_empty_message_is_said_and_the_socket_goes_on(opened):
    client = opened()
    with connect(client.url.replace("http", "ws") + "/v1/frames") as socket:
        socket.send(b"")
        assert "empty" in json.loads(socket.recv(timeout=10))["error"]
        socket.send(picture())
        assert json.loads(socket.recv(timeout=10))["kind"] == "answer"


def test_a_message_that_is_not_whole_counts_and_must_soon_be(opened, monkeypatch):
    monkeypatch.setattr(limits, "MOST_BUFFERED", 150_000)
    client = opened(most_body_mb=0.1, body_s=0.5)
    begun = b"\x82\xff" + struct.pack(">Q", 90_000) + b"\0\0\0\0" + b"x" * 80_000
    with client.raw() as first, client.raw() as second:
        for connection, code in ((first, 1008), (second, 1013)):  # too late, and too much together
            upgraded(connection)
            connection.sendall(begun if code == 1008 else b"\x02" + begun[1:])
        for connection, code in ((second, 1013), (first, 1008)):
            got = connection.recv(4)
            assert got[:1] == b"\x88"
            assert struct.unpack(">H", got[2:4]) == (code,)
    with connect(client.url.replace("http", "ws") + "/v1/frames") as whole:
        whole.send([b"x"] * 100)  # in pieces
        assert "error" in json.loads(whole.recv(timeout=10))
        time.sleep(0.7)
        whole.send(picture())  # a socket without a message is never late
        assert json.loads(whole.recv(timeout=10))["kind"] == "answer"
    end = time.monotonic() + 5
    while client.service.bodies.held:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_socket_of_a_name_that_cannot_be(opened):
    client = opened()
    with pytest.raises(Exception, match="400"):
        connect(client.url.replace("http", "ws") + "/v1/frames?stream=a/b")


# ---- anything


METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"BREW", b"\xff", b"")
PATHS = (b"/v1/answer", b"/v1/labels", b"/v1/settings", b"/v1/policy", b"/v1/streams", b"/docs", b"/..", b"*", b"/\x00")
HEADS = (
    b"",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 40\r\n",
    b"Expect: 100-continue\r\nContent-Length: 3\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b": \r\n",
    b"X: \x00\r\n",
)


def fuzz(client, count, seed):
    rng = random.Random(seed)
    valid = picture()
    for k in range(count):
        query = bytes(rng.choices(b"stream=door&%20%00/..\xff", k=rng.randrange(20)))
        body = rng.choice([b"", valid, rng.randbytes(rng.randrange(200)), b'{"frame": 1}', b"5\r\nhello\r\n0\r\n\r\n"])
        length = b"Content-Length: %d\r\n" % len(body) if rng.random() < 0.5 else rng.choice(HEADS)
        text = request(rng.choice(PATHS) + b"?" + query, length, rng.choice(METHODS), body)
        if rng.random() < 0.2:
            text = bytearray(text)
            text[rng.randrange(len(text))] = rng.randrange(256)
        with client.raw() as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            status = said(connection)[9:12]
        assert status in (b"", b"200", b"101", b"100") or status.startswith(b"4"), (status, text)
        if k % 50 == 0:
            assert client.answer()[0] == 200
    assert client.service.bodies.held == 0
    assert client.service._under_way == 0


def test_a_fuzz(opened):
    fuzz(opened(body_s=0.5, rate=1e6), 300, 0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_long_fuzz_leaves_memory_flat(opened):
    def resident_mb():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6

    client = opened(body_s=5.0, rate=1e6)
    fuzz(client, 10_000, 1)
    before = resident_mb()
    fuzz(client, 90_000, 2)
    assert resident_mb() < before + 30
