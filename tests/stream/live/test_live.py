"""Sources, session and sinks together: every frame that a source gives is accounted for."""

import os
import socket
import threading
import time
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
from clips import Server, clip, jpeg, pyav
from nets import CLASSES, Scale, Scramble

from eex.models.network import Architecture, EarlyExitNet
from eex.stream.live import feeds
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.feeds import start
from eex.stream.live.run import Live
from eex.stream.live.session import Session
from eex.stream.live.sinks import callback, open_sink
from eex.stream.live.streams import SourceOptions, parse_sources
from eex.stream.run.records import ROWS_IN_BATCH, parts_of, read_records

pytestmark = pytest.mark.timeout(60)


class TenLogits(Scale):
    def forward(self, x):
        return super().forward(x)[:, :10]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(feeds, "RETRY_S", (0.01, 0.05))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def net():
    """An edge exit and one in the cloud, over twelve pixels."""
    architecture = Architecture(
        "custom",
        CLASSES,
        (0,),
        ("custom",) * 2,
        experts=("pristine",),
        input_shape=(3, 2, 2),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    stages = [Scramble(7.3 + i) for i in range(2)]
    return EarlyExitNet(stages, [{"pristine": TenLogits(9.0 + 4 * i, 0)} for i in range(2)], architecture).eval()


def open_feeds(session, streams, say=lambda line: None):
    live = Live(session, say)
    return [live.make(name, options) for name, options in streams.items()]


def opened(net, **options):
    return Session(net=net, worker="none", **options)


def test_two_streams_of_images_into_a_file(net, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(40 * number))
    (tmp_path / "bad.jpg").write_bytes(b"")
    sink = open_sink(f"{tmp_path}/out/answers.jsonl")
    with opened(net, sinks=[sink]) as session:
        streams = parse_sources([f"a=images:{tmp_path}", f"b=images:{tmp_path}"])
        fed = open_feeds(session, streams)
        start(fed)
        assert all(feed.join(20) for feed in fed)
    sink.close()
    lines = (tmp_path / "out" / "answers.jsonl").read_bytes().splitlines()
    items = [msgspec.json.decode(line, type=Answer | Refusal) for line in lines]
    for name in "ab":
        mine = sorted((i for i in items if i.stream == name), key=lambda i: i.frame)
        assert [i.frame for i in mine] == list(range(7))
        assert [i.name for i in mine] == [*(f"{k}.jpg" for k in range(6)), "bad.jpg"]
        assert [(i.name, i.reason) for i in mine if isinstance(i, Refusal)] == [("bad.jpg", "undecodable")]
    assert sink.row() == {"sink": sink.name, "delivered": 14, "lost": 0, "problem": ""}


def test_a_slow_session_holds_a_file_back_and_makes_a_camera_stale(net, tmp_path, monkeypatch):
    """Of a file every frame is answered; of a clocked source the newest, and the rest are refused as stale."""
    path = clip(tmp_path / "a.mp4", frames=50, rate=500)
    got = Counter()
    held = threading.Event()

    def slow(item):
        got[item.stream, getattr(item, "reason", "answered")] += 1
        if isinstance(item, Answer):
            held.wait(0.004)

    with opened(net, sinks=[slow], batch=1) as session:
        fed = open_feeds(session, parse_sources([f"file={path}"]) | parse_sources([f"now={path}"], {"realtime": True}))
        start(fed)
        assert all(feed.join(30) for feed in fed)
    assert got["file", "answered"] == 50
    assert got["now", "answered"] + got["now", "stale"] == 50
    assert got["now", "stale"] > 0


def test_a_callback_that_is_slow_holds_no_stream_back(net, tmp_path):
    stuck = threading.Event()
    sink = callback(lambda item: stuck.wait(30), "stuck", capacity=5)
    with opened(net, sinks=[sink]) as session:
        fed = open_feeds(session, parse_sources([f"a={clip(tmp_path / 'a.mp4')}"]))
        start(fed)
        assert fed[0].join(20)
        wait_for(lambda: session.summary()["answered"] == 20)
    stuck.set()
    sink.close()
    assert sink.delivered + sink.lost == 20
    assert sink.lost >= 14


def test_cameras_that_come_and_go_leave_nothing_behind(net, tmp_path):
    pyav()
    import os

    server = Server(tmp_path)
    server.interval = 0.001
    said = []
    descriptors, threads = [], []
    try:
        with opened(net) as session:
            fed = open_feeds(session, parse_sources([f"cam={server.url}/cam"]), said.append)
            start(fed, require_all=True)
            for turn in range(12):
                before = fed[0].report.frames
                wait_for(lambda before=before: fed[0].report.frames > before + 3)
                server.alive.clear()
                wait_for(lambda: fed[0].report.state == "waiting")
                if turn >= 2:
                    wait_for(lambda: threading.active_count() <= max(threads, default=99))
                    descriptors.append(len(os.listdir("/proc/self/fd")))
                    threads.append(threading.active_count())
                server.alive.set()
            fed[0].stop()
            assert fed[0].join(20)
            wait_for(lambda: not session.summary()["streams"][0]["waiting"])
        row = session.summary()["streams"][0]
        assert row["frames"] == fed[0].report.frames == row["answered"] + sum(row["refused"].values())
        assert max(descriptors) - min(descriptors) <= 2
        assert fed[0].report.lost == 12
    finally:
        server.close()


def test_options_of_a_stream_change_while_it_runs(net, tmp_path):
    folder = str(tmp_path)
    said = []
    with opened(net) as session:
        live = Live(session, said.append)
        live.change({"a": SourceOptions(source=folder, overhead=0.5), "b": SourceOptions(source=folder)})
        kept = live.feeds["a"]
        live.change({"a": SourceOptions(source=folder, overhead=0.1, keep="newest", fps=3)})
        assert live.feeds == {"a": kept}
        assert kept.keep == "newest"
        live.change({"a": SourceOptions(source="ftp://10.0.0.7/a")})
        assert live.feeds == {"a": kept}  # a mistake changes nothing
        assert not kept.join(0.01)
        live.change({"a": SourceOptions(source=f"images:{folder}")})
        assert live.feeds["a"] is not kept
        assert kept.join(20)
        live.stop()
    assert said[:4] == ["stream 'a': added", "stream 'b': added", "stream 'b': removed", "stream 'a': changed"]
    assert "unknown scheme 'ftp'" in said[4]


def test_a_stream_that_is_renamed_takes_over_the_address_of_its_source(net):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source, said = f"zmq+pull://127.0.0.1:{free.getsockname()[1]}", []
    with opened(net) as session:
        live = Live(session, said.append)
        for name in ("door", "gate"):
            live.change({name: SourceOptions(source=source)})
            assert live.feeds[name].opened(20)
        live.change({"gate": SourceOptions(source=source + "?plain")})
        assert live.feeds["gate"].opened(20)
        live.stop()
    assert "cannot be bound" not in "".join(said)


def test_what_was_set_by_hand_holds_where_the_source_says_nothing_else(net, tmp_path):
    folder, state = str(tmp_path), tmp_path / "learned.npz"
    with opened(net, state=state) as session:
        session.set_options("a", overhead=0.4, thresholds="frozen")
    with opened(net, state=state) as session:
        live = Live(session, lambda line: None)
        live.change({"a": SourceOptions(source=folder)})
        assert (session.options_of("a").overhead, session.options_of("a").thresholds) == (0.4, "frozen")
        live.change({"a": SourceOptions(source=folder, overhead=0.2, fps=3)})
        assert (session.options_of("a").overhead, session.options_of("a").thresholds) == (0.2, "frozen")
        session.set_options("a", thresholds="learning")  # which keeps nothing of what the source says
        live.change({"a": SourceOptions(source=folder, fps=3)})
        assert session.options_of("a").overhead == 0.4
        live.stop()
    with opened(net, state=state) as session:
        session.set_options("a", deadline_ms=900.0)
    with opened(net, state=state, deadline_ms=500.0) as session:
        assert session.options_of("a").deadline_ms is None
        assert "what was set for it earlier is left out" in session.notes[0]


def test_a_clocked_source_is_not_held_back_by_a_full_queue(net, tmp_path):
    """With everything kept, what a camera brings to a full queue is refused at once, and no frame gets older."""
    path = clip(tmp_path / "a.mp4", frames=60, rate=1000)
    got = Counter()

    def slow(item):
        got[getattr(item, "reason", "answered")] += 1
        if isinstance(item, Answer):
            threading.Event().wait(0.02)

    with opened(net, sinks=[slow], batch=1) as session:
        options = SourceOptions(source=str(path), realtime=True, keep="all", queue=2)
        fed = open_feeds(session, {"a": options})
        start(fed)
        assert fed[0].join(20)
    assert got["full"] > 0
    assert sum(got.values()) == 60


def test_records_of_a_session_are_kept_by_size(net, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 2, 2, 3), dtype=np.uint8)
    total = 8 * ROWS_IN_BATCH
    with opened(net, records=tmp_path / "records", keep_records="400kB", queue=1000) as session:
        for number in range(total):
            session.submit(images[number % 64], "door")
            if number % ROWS_IN_BATCH == 0:
                session.summary()
    assert sum(path.stat().st_size for path in parts_of(tmp_path / "records")) < 700_000
    assert 0 < len(read_records(tmp_path)) < total


def test_records_of_earlier_sessions_go_at_the_start_of_another(net, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 2, 2, 3), dtype=np.uint8)
    for _ in range(3):
        with opened(net, records=tmp_path) as session:
            session.submit(images[0], "door")
    (oldest, *_) = parts_of(tmp_path)
    os.utime(oldest, (0, 0))
    with opened(net, records=tmp_path, keep_records="7d"):
        assert parts_of(tmp_path)
        assert oldest not in parts_of(tmp_path)


def wait_for(what):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)
