"""Answers over MQTT, against a real mosquitto."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time

import msgspec
import pytest

from eex.policies.core.errors import EexError
from eex.stream.live import mqtt as module
from eex.stream.live import sinks
from eex.stream.live.answers import Refusal
from eex.stream.live.sinks import open_sink

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
broker_needed = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (Debian: apt-get install mosquitto)")
pytestmark = pytest.mark.timeout(60)


def answer(frame=0, stream="door"):
    return Refusal(stream=stream, frame=frame, name="", reason="stale", detail="", captured="")


class Broker:
    """A mosquitto on a port of its own, which can be stopped and started again."""

    def __init__(self, folder, extra=""):
        self.folder, self.extra, self.process = folder, extra, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self):
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {self.folder}/\n"
            f"user root\n{self.extra or 'allow_anonymous true'}\n"
        )
        self.process = subprocess.Popen([MOSQUITTO, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.answers)

    def answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


@pytest.fixture
def broker(tmp_path, monkeypatch):
    if MOSQUITTO is None:
        pytest.skip("needs mosquitto (Debian: apt-get install mosquitto)")
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt (eex[mqtt])")
    monkeypatch.setattr(sinks, "RETRY_S", (0.01, 0.1))
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


class Listener:
    """A subscriber of everything, which comes back when the broker does."""

    def __init__(self, port, **credentials):
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.got, self.changed, self.ready = [], threading.Condition(), threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2)
        if credentials:
            self.client.username_pw_set(**credentials)
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = self.heard
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(20)

    def heard(self, client, data, message):
        with self.changed:
            self.got.append((message.topic, message.payload, message.retain))
            self.changed.notify_all()

    def frames(self, topic):
        return [msgspec.json.decode(payload)["frame"] for t, payload, _ in self.got if t == topic]

    def status(self, topic="eex/status"):
        return [(payload, retain) for t, payload, retain in self.got if t == topic]

    def wait(self, what):
        with self.changed:
            assert self.changed.wait_for(what, 20), self.got

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def listener(broker):
    listener = Listener(broker.port)
    yield listener
    listener.close()


def test_a_topic_per_stream_and_a_status(broker, listener):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/site/eex")
    for frame in range(5):
        sink(answer(frame))
        sink(answer(frame, "yard"))
    listener.wait(lambda: len(listener.frames("site/eex/answers/yard")) == 5)
    sink.close()
    listener.wait(lambda: len(listener.status("site/eex/status")) == 2)
    assert listener.frames("site/eex/answers/door") == listener.frames("site/eex/answers/yard") == list(range(5))
    assert [payload for payload, _ in listener.status("site/eex/status")] == [b"online", b"offline"]
    assert (sink.delivered, sink.lost) == (10, 0)
    later = Listener(broker.port)
    later.wait(lambda: later.status("site/eex/status"))
    later.close()
    assert later.status("site/eex/status") == [(b"offline", True)]
    assert later.frames("site/eex/answers/door") == []  # answers are not retained


def test_the_last_will_speaks_for_one_that_died(broker, listener):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/eex")
    listener.wait(lambda: listener.status())
    client = sink._target.deliver.__closure__
    client = next(cell.cell_contents for cell in client if hasattr(cell.cell_contents, "loop_stop"))
    client._sock.shutdown(socket.SHUT_RDWR)  # as when the process is killed: no farewell
    listener.wait(lambda: (b"offline", False) in listener.status())
    listener.wait(lambda: [p for p, _ in listener.status()][-1] == b"online")  # it connects again by itself
    sink.close()


def test_a_broker_that_dies_and_returns(broker, listener):
    """Nothing is lost that fits into the queue, and the stream never waits."""
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/eex")
    for frame in range(10):
        sink(answer(frame))
    listener.wait(lambda: len(listener.frames("eex/answers/door")) == 10)
    broker.stop()
    begun = time.perf_counter()
    for frame in range(10, 30):
        sink(answer(frame))
    assert time.perf_counter() - begun < 0.5
    said = f"the connection to 127.0.0.1:{broker.port} is lost", f"no broker at 127.0.0.1:{broker.port}"
    wait_for(lambda: sink.problem in said)  # before, it may have been that there was no connection yet
    listener.ready.clear()
    broker.start()
    assert listener.ready.wait(20)
    sink.close(20)
    listener.wait(lambda: set(listener.frames("eex/answers/door")) == set(range(30)))
    assert (sink.delivered, sink.lost) == (30, 0)


def test_a_broker_that_is_not_there_yet(broker, listener):
    broker.stop()
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/eex")
    sink(answer(1))
    wait_for(lambda: sink.problem)
    begun = time.monotonic()
    sink.close(0.2)
    assert time.monotonic() - begun < 5
    assert (sink.delivered, sink.lost) == (0, 1)


def test_a_broker_that_confirms_nothing(monkeypatch):
    """One that takes messages and hangs: what it did not confirm is lost, and said so."""
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt (eex[mqtt])")
    monkeypatch.setattr(module, "UNCONFIRMED", 5)
    monkeypatch.setattr(sinks, "RETRY_S", (0.01, 0.1))
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def accept():
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"\x20\x02\x00\x00")  # connected
            while connection.recv(4096):
                pass
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    sink = open_sink(f"mqtt://127.0.0.1:{port}/eex")
    for frame in range(20):
        sink(answer(frame))
    wait_for(lambda: "confirms nothing" in sink.problem)
    sink.close(0.3)
    assert (sink.delivered, sink.lost) == (0, 20)
    assert sink.problem == f"the broker at 127.0.0.1:{port} confirms nothing"
    server.close()
    thread.join(20)


@broker_needed
def test_a_password(tmp_path, monkeypatch):
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt (eex[mqtt])")
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "me", "s@crt"], check=True, capture_output=True)
    broker = Broker(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    broker.start()
    monkeypatch.setattr(sinks, "RETRY_S", (0.01, 0.1))
    try:
        listener = Listener(broker.port, username="me", password="s@crt")
        monkeypatch.setenv("EEX_MQTT_PASSWORD", "s@crt")
        sink = open_sink(f"mqtt://me@127.0.0.1:{broker.port}/eex")
        sink(answer(7))
        listener.wait(lambda: listener.frames("eex/answers/door") == [7])
        sink.close()
        said = []
        stranger = open_sink(f"mqtt://me:wrong@127.0.0.1:{broker.port}/eex", say=said.append)
        stranger(answer(8))
        wait_for(lambda: "refuses" in stranger.problem)
        stranger.close(0.2)
        assert stranger.problem == "the broker refuses: not authorized"
        assert "wrong" not in stranger.name + "".join(said)
        assert (stranger.delivered, stranger.lost) == (0, 1)
        listener.close()
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("mqtt://10.0.0.7/eex", r"is not encrypted; use mqtts://, or add \?plain$"),
        ("mqtt://me:secret@10.0.0.7/eex", r"^mqtt://me:\*\*\*@10.0.0.7/eex: is not encrypted"),
        ("mqtt:///eex", r"has no host; expected mqtt://\[USER@\]HOST\[:PORT\]/TOPIC$"),
        ("mqtt://127.0.0.1:x/eex", r"its port is not one; expected mqtt://"),
        ("mqtt://127.0.0.1:99999/eex", r"its port is not one"),
        ("mqtt://127.0.0.1/eex/%23", r"a topic cannot contain '\+' or '#'$"),
        ("mqtt://127.0.0.1/eex?qos=2", r"unknown option 'qos'; expected ca=FILE or plain$"),
        ("mqtts://10.0.0.7/eex?ca=/nowhere", r"^/nowhere: cannot be used as certificates: No such file or directory$"),
    ],
)
def test_a_wrong_specification(spec, reason):
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt (eex[mqtt])")
    with pytest.raises(EexError, match=reason):
        open_sink(spec)


def test_without_paho(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(EexError, match=r"^answers over MQTT need paho-mqtt: pip install 'eex\[mqtt\]'$"):
        open_sink("mqtt://127.0.0.1/eex")


def wait_for(what):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)
