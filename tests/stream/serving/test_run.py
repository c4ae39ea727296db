"""A session and its HTTP service: beside sources, on their own, as a command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from livenet import Cloud, three_exits
from PIL import Image
from served import picture

from eex.policies.core.errors import EexError
from eex.stream.live import run as live_run
from eex.stream.live.config import LiveConfig
from eex.stream.live.run import Sources, Stop, live
from eex.stream.live.session import Session
from eex.stream.serving import run as serving_run
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.run import beside, serve

pytestmark = pytest.mark.timeout(120)

CONFIG = LiveConfig(worker="none")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Sessions on the small network."""

    def opened(config, sinks=()):
        return Session(config, sinks=sinks, net=three_exits(), offloader=Cloud())

    monkeypatch.setattr(live_run, "Session", opened)
    monkeypatch.setattr(serving_run, "Session", opened)


def read(url, data=None):
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as response:
        return response.status, response.read()


def until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_service_until_it_is_stopped():
    said, stop, summaries = [], Stop(), []
    thread = threading.Thread(
        target=lambda: summaries.append(serve(CONFIG, ServeConfig(port=0), say=said.append, stop=stop))
    )
    thread.start()
    until(lambda: said)
    url = said[0].split()[2]
    assert read(url + "/v1/answer?stream=door", picture())[0] == 200
    stop.set()
    thread.join(30)
    assert summaries[0]["streams"][0]["answered"] == 1


def test_the_page_of_a_live_run_shows_its_sources(tmp_path):
    for k in range(5):
        Image.new("RGB", (4, 4), (40 * k, 90, 200)).save(tmp_path / f"{k}.png")
    said, stop = [], Stop()
    page = beside(ServeConfig(port=0), said.append)
    sources = Sources((f"door={tmp_path}",), defaults={"existing": True})
    thread = threading.Thread(target=lambda: live(CONFIG, sources, (), say=said.append, stop=stop, beside=page))
    thread.start()
    try:
        until(lambda: any("the live page is" in line for line in said))
        url = next(line.split()[-1] for line in said if "the live page is" in line)
        until(lambda: json.loads(read(url + "v1/streams")[1])["answered"] == 5)
        with urllib.request.urlopen(url + "v1/live?stream=door", timeout=20) as events:
            first = json.loads(next(line for line in events if line.startswith(b"data: "))[6:])
        assert [answer["name"] for answer in first["stream"]["last"]] == [f"{k}.png" for k in (4, 3, 2, 1, 0)]
    finally:
        stop.set()
        thread.join(30)


def test_a_port_that_is_taken_is_said(opened):
    taken = opened().address[1]
    with pytest.raises(EexError, match=f"--port {taken}: cannot listen"):
        serve(CONFIG, ServeConfig(port=taken))


@pytest.mark.process
def test_the_command_answers_and_ends_at_sigterm(tmp_path):
    command = [sys.executable, "-m", "eex.stream.commands.serve", "--port", "0", "--worker", "none"]
    process = subprocess.Popen(
        [*command, "--summary", str(tmp_path / "summary.json")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        url = next(line for line in process.stderr if line.startswith("serving on ")).split()[2]
        status, body = read(url + "/v1/answer", picture(size=(32, 32)))
        assert (status, json.loads(body)["kind"]) == (200, "answer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
        assert json.loads((tmp_path / "summary.json").read_text())["answered"] == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
