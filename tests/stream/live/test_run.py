"""A live run: sources in, answers out, streams that come and go, an end that loses nothing."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from livenet import Cloud, three_exits
from PIL import Image

from eex.policies.core.errors import EexError
from eex.stream.live import run as live_run
from eex.stream.live.answers import Answer
from eex.stream.live.config import LiveConfig
from eex.stream.live.run import Sources, Stop, live, status
from eex.stream.live.session import Session
from eex.stream.run.records import read_records

pytestmark = pytest.mark.timeout(60)

CONFIG = LiveConfig(worker="none")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Sessions on the small network."""

    def opened(config, sinks):
        return Session(config, sinks=sinks, net=three_exits(), offloader=Cloud())

    monkeypatch.setattr(live_run, "Session", opened)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(5):
        Image.new("RGB", (4, 4), (40 * k, 90, 200 - 40 * k)).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def until(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_picture_is_answered_or_refused(pictures, tmp_path):
    out = tmp_path / "answers.jsonl"
    sources = Sources((f"a=images:{pictures}", f"b=images:{pictures}"))
    summary = live(CONFIG, sources, (str(out),))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted((line["stream"], line["frame"]) for line in lines) == [(s, k) for s in "ab" for k in range(6)]
    assert [line["reason"] for line in lines if line["kind"] == "refusal"] == ["undecodable"] * 2
    assert {row["stream"]: (row["answered"], row["refused"]) for row in summary["streams"]} == {
        "a": (5, {"undecodable": 1}),
        "b": (5, {"undecodable": 1}),
    }
    assert summary["streams"][0]["source"]["frames"] == 5
    assert summary["sinks"][0]["delivered"] == 12


def test_a_publisher_is_closed_once(pictures, tmp_path):
    summary = live(CONFIG, Sources((f"a=images:{pictures}",)), (f"zmq+pub://{tmp_path}/p",))
    assert (summary["answered"], summary["sinks"][0]["lost"]) == (5, 0)


def test_a_run_ends_when_its_session_has_failed(pictures):
    def boom(batch):
        raise RuntimeError("no more")

    @contextlib.contextmanager
    def broken(session):
        session._playing.feed = boom
        yield

    folder = f"a={pictures}"  # watched, and so without an end
    with pytest.raises(EexError, match=r"^the session failed: no more$"):
        live(CONFIG, Sources((folder,), defaults={"existing": True}), (), beside=broken)


def test_a_source_that_fails_names_itself_and_the_others_go_on(pictures):
    said = []
    summary = live(CONFIG, Sources((f"good=images:{pictures}", "bad=images:/nowhere")), (), say=said.append)
    assert any("stream 'bad'" in line and "/nowhere" in line for line in said)
    assert next(row for row in summary["streams"] if row["stream"] == "good")["answered"] == 5
    with pytest.raises(EexError, match="stream 'bad'"):
        live(CONFIG, Sources((f"good=images:{pictures}", "bad=images:/nowhere")), (), require_all=True)
    with pytest.raises(EexError, match="stream 'bad'"):
        live(CONFIG, Sources(("bad=images:/nowhere",)), ())


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((), "there is no source"),
        (("a=sample", "a=camera"), "two streams are named 'a'"),
        (("a=gopher://b",), "stream 'a'"),
    ],
)
def test_sources_are_checked(specs, message):
    with pytest.raises(EexError, match=message):
        live(CONFIG, Sources(specs), ())


def test_streams_come_change_and_go_when_the_file_is_read_again(tmp_path):
    folders = {name: tmp_path / name for name in ("one", "two", "late")}
    for name in ("one", "two"):
        folders[name].mkdir()
    file = tmp_path / "streams.toml"

    def describe(*names, **options):
        tables = [f'[streams.{n}]\nsource = "{folders[n]}"\n' for n in names]
        file.write_text("".join(t + "".join(f"{k} = {v}\n" for k, v in options.items()) for t in tables))

    def put(name, k):
        part = folders[name] / f".{k}"
        Image.new("RGB", (2, 2)).save(part, "PNG")
        os.replace(part, folders[name] / f"{k}.png")

    def answered(name):
        numbers = itertools.count()  # images that are there before the folder is watched are not taken
        until(lambda: put(name, next(numbers)) or any(a.stream == name for a in got))

    got, said, stop, summaries = [], [], Stop(), []
    describe("one")
    thread = threading.Thread(
        target=lambda: summaries.append(
            live(CONFIG, Sources(file=file), (), sinks=(got.append,), say=said.append, stop=stop)
        )
    )
    thread.start()
    answered("one")
    describe("two", overhead=0.5)
    stop.ask_to_reread()
    until(lambda: "stream 'one': removed" in said and "stream 'two': added" in said)
    answered("two")
    file.write_text("[streams.two]\nsuorce = 3\n")
    stop.ask_to_reread()
    until(lambda: any("the streams stay as they are" in line for line in said))
    put("two", "last")
    until(lambda: any(a.name == "last.png" for a in got))
    describe("two", "late", overhead=0.5)
    stop.ask_to_reread()
    until(lambda: any("no such source" in line and str(folders["late"]) in line for line in said))
    folders["late"].mkdir()
    stop.ask_to_reread()  # a stream whose source failed is opened anew, though nothing was written
    until(lambda: "stream 'late': opened anew" in said)
    answered("late")
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert all(isinstance(a, Answer) for a in got)
    assert {row["stream"] for row in summaries[0]["streams"]} == {"one", "two", "late"}


def test_a_signal_ends_the_run_and_the_next_one_gets_through():
    before = signal.getsignal(signal.SIGTERM)
    with Stop().by_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        until(lambda: stop.reread())
        assert not stop.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: stop.wait(0))
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_that_are_not_utf8(pictures, tmp_path):
    """Of the source and its images, the records, the answers and the state."""
    name = os.fsdecode(b"caf\xe9")
    folder = tmp_path / name
    pictures.rename(folder)
    (folder / "0.png").rename(folder / f"{name}.png")
    made, got = tmp_path / f"{name}.out", []
    made.mkdir()
    config = replace(CONFIG, records=made / "records", state=made / "state.npz")
    answers = made / "answers.jsonl"
    for source in (f"images:{folder}", f"a=images:{folder}"):
        summary = live(config, Sources((source,)), (str(answers),), sinks=(got.append,))
        assert summary["streams"][0]["answered"] == 5
    assert {a.name for a in got if isinstance(a, Answer)} >= {"caf\\xe9.png"}
    lines = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert sum(line["name"] == "caf\\xe9.png" for line in lines) == 2
    assert read_records(made / "records").num_rows == 10


def test_the_status_is_one_line(pictures):
    said = []
    line = status(live(CONFIG, Sources((f"a=images:{pictures}",)), (), say=said.append))
    assert "5 of 6 frames answered (1 undecodable)" in line
    assert "latency p50" in line
    assert "\n" not in line
