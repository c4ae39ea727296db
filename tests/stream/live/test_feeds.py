"""Feeds: what reaches a stream, what is left out, and what is done when a source fails."""

import shutil
import subprocess
import threading
import time

import msgspec
import numpy as np
import pytest
from clips import Server, clip, jpeg, pyav, shade
from rtsp import RTSPServer

from eex.policies.core.errors import EexError
from eex.stream.frames.video import VideoError
from eex.stream.live import feeds, inputs
from eex.stream.live.feeds import Feed, Limits, parts, start
from eex.stream.live.inputs import Broken, Input, Shot
from eex.stream.live.streams import SourceOptions

pytestmark = pytest.mark.timeout(60)


class Taken(list):
    """The arrivals of a feed; waits for so many."""

    def __init__(self):
        self.changed = threading.Condition()
        self.broken, self.said = [], []

    def __call__(self, arrival):
        with self.changed:
            self.append(arrival)
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, 20), f"{len(self)} of {count} frames came"


@pytest.fixture
def fed(monkeypatch):
    """Makes feeds that open a lost source again at once, and stops them in the end."""
    monkeypatch.setattr(feeds, "RETRY_S", (0.01, 0.05))
    made = []

    def make(source, start=True, size=(16, 16), **options):
        taken = Taken()
        feed = Feed(
            "door",
            SourceOptions(source=str(source), **options),
            taken,
            broken=lambda name, reason: taken.broken.append((name, reason)),
            size=size,
            say=taken.said.append,
        )
        made.append(feed)
        if start:
            feed.start()
        return feed, taken

    yield make
    for feed in made:
        feed.stop()


@pytest.fixture
def server(tmp_path):
    pyav()
    server = Server(tmp_path)
    yield server
    server.close()


def scripted(monkeypatch, *lives, **flags):
    """Sources read from lists: each opening gives the next one's shots, and raises the error it ends with."""
    left = list(lives)

    def read(stop):
        for shot in left.pop(0) if left else []:
            if isinstance(shot, Exception):
                raise shot
            yield shot
        if not left and not flags.get("endless"):
            return True
        stop.wait(0 if left else 30)
        return not left

    monkeypatch.setattr(feeds, "open_input", lambda *_: Input(read, **flags))
    return left


def shot(number, seconds=float("nan"), captured=None, grey=0):
    return Shot(f"#{number}", np.full((16, 16, 3), grey, dtype=np.uint8), captured, seconds)


def test_a_video_as_fast_as_possible(tmp_path, fed):
    feed, taken = fed(clip(tmp_path / "a.mp4"))
    assert feed.join(20)
    assert [a.name for a in taken] == [f"#{k}" for k in range(20)]
    assert {(a.stream, a.image.shape, a.label) for a in taken} == {("door", (16, 16, 3), None)}
    assert (feed.report.state, feed.report.frames, feed.report.problem) == ("ended", 20, "")
    assert (feed.keep, feed.clocked) == ("all", False)
    assert all(abs(a.captured - time.time()) < 20 for a in taken)


def test_a_video_in_real_time(tmp_path, fed):
    begun = time.monotonic()
    feed, taken = fed(clip(tmp_path / "a.mp4", frames=11), realtime=True)
    assert feed.join(20)
    assert time.monotonic() - begun >= 0.4
    assert np.diff([a.captured for a in taken]) == pytest.approx(0.04, abs=1e-4)
    assert all(a.arrived >= b.arrived for a, b in zip(taken[1:], taken, strict=False))
    assert (feed.keep, feed.clocked) == ("newest", True)


def test_frames_wait_for_a_stream_that_is_slow(tmp_path, fed):
    held = threading.Event()
    feed, taken = fed(clip(tmp_path / "a.mp4"), start=False)
    feed._take = lambda arrival: (held.wait(20), taken(arrival))
    feed.start()
    assert not feed.join(0.1)
    assert feed.report.frames == 0
    held.set()
    assert feed.join(20)
    assert len(taken) == 20


# ---- what is left out


def test_a_maximum_of_frames_per_second_by_the_videos_own_clock(tmp_path, fed):
    feed, taken = fed(clip(tmp_path / "a.mp4", frames=50), fps=5)
    assert feed.join(20)
    assert [a.name for a in taken] == [f"#{k}" for k in range(0, 50, 5)]
    assert feed.report.left_out == 40


@pytest.mark.parametrize("fps", [1, 7.5, 10, 29, 30, 60])
def test_the_maximum_is_kept_and_used(fps):
    limits, rng = Limits(fps, 0), np.random.default_rng(0)
    taken = 0
    for now in np.arange(900) / 30 + rng.normal(0, 0.002, 900):
        if limits.early(now) == 0:
            limits.taken(now)
            taken += 1
    assert taken == pytest.approx(min(fps, 30) * 30, rel=0.04)


def test_a_clock_that_is_put_back_stops_nothing():
    limits = Limits(10, 0)
    limits.taken(1e9)
    assert limits.early(5.0) <= 0.1


def test_images_without_a_clock_are_played_at_the_rate(tmp_path, fed):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(size=(16, 16)))
    begun = time.monotonic()
    feed, taken = fed(f"images:{tmp_path}", fps=50)
    assert feed.join(20)
    assert time.monotonic() - begun >= 0.06
    assert [a.name for a in taken] == [f"{k}.jpg" for k in range(5)]
    assert feed.report.left_out == 0


def test_only_what_has_changed(monkeypatch, fed):
    greys = [0, 0, 3, 5, 8, 100, 100, 103, 0]  # a slow change counts from the last frame taken
    scripted(monkeypatch, [shot(k, grey=grey) for k, grey in enumerate(greys)])
    feed, taken = fed("-", changed=0.02)
    assert feed.join(20)
    assert [a.name for a in taken] == ["#0", "#4", "#5", "#8"]
    assert feed.report.unchanged == 5


def test_a_small_movement_is_a_change_and_noise_is_not():
    rng = np.random.default_rng(0)
    still = rng.integers(60, 190, (720, 1280, 3), dtype=np.uint8)
    noisy = (still + rng.normal(0, 4, still.shape)).clip(0, 255).astype(np.uint8)
    moved = noisy.copy()
    moved[300:380, 600:700] = 250
    limits = Limits(0, 0.05)
    assert [limits.changed(image) for image in (still, noisy, moved, noisy)] == [True, False, True, True]


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (32, 32), (1080, 1920)])
def test_parts_of_images_of_any_size(shape):
    assert parts(np.full((*shape, 3), 7, dtype=np.uint8)).tolist() == np.full((16, 16, 3), 7).tolist()


def test_limits_can_change_meanwhile(fed, tmp_path):
    feed, _ = fed(clip(tmp_path / "a.mp4"), start=False, fps=5)
    assert feed.change(msgspec.structs.replace(feed.options, fps=0.0, changed=0.5))
    assert not feed.change(msgspec.structs.replace(feed.options, source="camera"))
    feed.start()
    assert feed.join(20)
    assert feed.report.unchanged > 5
    assert feed.report.left_out == 0


def test_a_source_is_opened_anew_only_for_what_it_is_opened_with(fed, tmp_path):
    changed = {"patience_s": 3.0, "verify": False, "realtime": True}
    for source in (str(tmp_path), "zmq+pull://127.0.0.1:5555", "-", "sample"):
        feed, _ = fed(source, start=False)
        assert feed.change(msgspec.structs.replace(feed.options, **changed))
    folder, _ = fed(str(tmp_path), start=False)
    assert not folder.change(msgspec.structs.replace(folder.options, existing=True))
    camera, _ = fed("rtsps://10.0.0.7/main", start=False)
    for key in ("patience_s", "verify"):
        assert not camera.change(msgspec.structs.replace(camera.options, **{key: changed[key]}))


# ---- faults


def test_a_camera_that_goes_and_comes_back(server, fed):
    feed, taken = fed(f"{server.url}/cam")
    taken.wait(5)
    server.alive.clear()
    wait_for(lambda: feed.report.state == "waiting")
    before = len(taken)
    server.alive.set()
    taken.wait(before + 5)
    assert feed.report.lost == 1
    assert feed.report.state == "open"
    assert server.connections == 2
    assert taken.said[0].startswith(f"stream 'door': {server.url}/cam: ")
    assert taken.said[-1] == f"stream 'door': {server.url}/cam: is back"
    assert len(taken.said) <= 4  # once per kind of failure, not per attempt
    assert int(taken[-1].image[-2, -2, 0]) in {value for k in range(36) for value in range(shade(k) - 4, shade(k) + 5)}


def test_frames_without_timestamps_are_captured_when_they_come(server, fed):
    """FFmpeg makes up 25 frames per second for MJPEG: at other rates they would seem ever older, or newer."""
    server.interval = 0.1
    _, taken = fed(f"{server.url}/cam")
    taken.wait(12)
    assert np.diff([a.captured for a in taken[4:]]) == pytest.approx(0.1, abs=0.06)
    ages = [time.time() - time.perf_counter() + a.arrived - a.captured for a in taken]
    assert max(map(abs, ages)) < 0.1


def test_a_stream_that_stalls_without_closing(server, fed):
    feed, taken = fed(f"{server.url}/stalled", patience_s=0.3)
    wait_for(lambda: server.connections >= 3)
    assert feed.report.lost >= 2
    assert "nothing came for 0.3 seconds" in taken.said[0]
    assert len(taken) >= 2


@pytest.fixture
def rtsp():
    pyav()
    server = RTSPServer()
    yield server
    server.stop()


def test_an_rtsp_camera_that_goes_and_comes_back(rtsp, fed):
    feed, taken = fed(rtsp.url, patience_s=5)
    taken.wait(10)
    assert np.diff([a.captured for a in taken[2:]]) == pytest.approx(rtsp.interval, abs=0.015)
    rtsp.stop()
    wait_for(lambda: feed.report.state == "waiting")
    before = len(taken)
    rtsp.start()
    taken.wait(before + 10)
    assert (feed.report.lost, feed.report.state, rtsp.connections) == (1, "open", 2)


def test_an_rtsp_camera_that_stalls(rtsp, fed):
    feed, taken = fed(rtsp.url, patience_s=0.5)
    taken.wait(5)
    rtsp.hangs.set()
    wait_for(lambda: feed.report.lost == 1)
    assert "nothing came for 0.5 seconds" in taken.said[0]
    rtsp.hangs.clear()
    before = len(taken)
    taken.wait(before + 5)


def test_hls(server, fed, tmp_path):
    clip(tmp_path / "live.m3u8", frames=50, codec="mpeg2video", format="hls", options={"hls_time": "1"})
    feed, taken = fed(f"{server.url}/live.m3u8")
    assert feed.join(20)  # a finished playlist is one
    assert len(taken) == 50
    assert feed.report.state == "ended"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_server_whose_certificate_is_not_known_is_refused(fed, tmp_path, monkeypatch):
    pyav()
    certificate = tmp_path / "own.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "9"]
    files = ["-keyout", certificate, "-out", tmp_path / "public.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject], check=True, capture_output=True
    )
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "public.pem").read_bytes())
    clip(tmp_path / "a.mkv")
    server = Server(tmp_path, certificate)
    try:
        feed, _ = fed(f"{server.url}/a.mkv")
        assert not feed.opened(20)
        assert "its certificate is not trusted" in feed.report.problem
        careless, taken = fed(f"{server.url}/a.mkv", verify=False)
        assert careless.join(20)
        assert len(taken) == 20
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
        knowing, taken = fed(f"{server.url}/a.mkv")
        assert knowing.join(20)
        assert len(taken) == 20
    finally:
        server.close()


def test_a_file_by_http_is_played_once(server, fed, tmp_path):
    clip(tmp_path / "a.mkv")
    feed, taken = fed(f"{server.url}/a.mkv")
    assert feed.join(20)
    assert (len(taken), feed.report.state) == (20, "ended")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://127.0.0.1:1/cam", "Connection refused"),
        ("camera:99", "No such file"),
        ("rtsp://u:pass@127.0.0.1:1/", ""),
    ],
)
def test_what_cannot_be_reached_is_tried_again_and_said_once(fed, source, reason):
    pyav()
    feed, taken = fed(source)
    assert not feed.opened(20)
    time.sleep(0.1)
    assert feed.report.state in ("waiting", "opening")
    assert len(taken.said) == 1
    assert taken.said[0].startswith("stream 'door': ")
    assert reason in taken.said[0]
    assert "pass" not in taken.said[0]
    assert reason in feed.report.problem


def test_pauses_between_attempts_double_and_begin_anew_after_a_success(monkeypatch, fed):
    gone = VideoError("is gone")
    scripted(monkeypatch, [gone], [gone], [gone], [gone], [shot(0), gone], [gone], [shot(1)], endless=True)
    monkeypatch.setattr(feeds, "RETRY_S", (1.0, 4.0))
    feed, taken = fed("camera", start=False)
    pauses = []
    wait = feed._stop.wait
    monkeypatch.setattr(feed._stop, "wait", lambda s=None: pauses.append(s) if s != 30 else wait(s))
    feed.start()
    taken.wait(2)
    assert pauses[:6] == [1, 2, 4, 4, 1, 2]
    assert feed.report.lost == 1


def test_a_broken_frame_in_mid_stream(monkeypatch, fed):
    scripted(monkeypatch, [shot(0), Broken("#1", "is torn"), shot(2)])
    feed, taken = fed("-")
    assert feed.join(20)
    assert [a.name for a in taken] == ["#0", "#2"]
    assert taken.broken == [("#1", "is torn")]
    assert (feed.report.frames, feed.report.damaged) == (2, 1)


def frozen(monkeypatch, clock, *, wall=None):
    """The test moves the clocks; `wall` is the one that can be set, where it differs."""
    monkeypatch.setattr(inputs.time, "monotonic", clock)
    monkeypatch.setattr(inputs.time, "time", wall or clock)


@pytest.mark.parametrize("times", [[0, 1, 2, 0.5, 1.5, 2.5], [5, 6, 1e6, 1e6 + 1, 3, 4]])
def test_timestamps_that_jump(times, fed, tmp_path, monkeypatch):
    """In real time a video goes on from a jump at once, and no capture time lies in the future or far in the past."""
    ticks = [0.0]
    frozen(monkeypatch, lambda: ticks[0])
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: ticks.__setitem__(0, ticks[0] + seconds))
    paced = inputs._Paced(stop)
    dues = [paced(t) for t in times]
    assert np.diff(dues).min() >= 0
    assert np.diff(dues).max() <= 1.001
    capture = inputs._Capture()
    for seconds in times:
        ticks[0] += 1
        assert ticks[0] - 1.001 <= capture(seconds) <= ticks[0]


def test_frames_that_the_network_held_back_are_older(monkeypatch):
    now = [100.0]
    frozen(monkeypatch, lambda: now[0])
    capture = inputs._Capture()
    ages = []
    for seconds, late in [(0, 0), (1, 0.1), (2, 0), (3, 5), (4, 4), (5, 3), (6, 2), (7, 1), (8, 0)]:
        now[0] = 100 + seconds + late
        ages.append(now[0] - capture(seconds))
    assert ages == pytest.approx([0, 0.1, 0, 5, 4, 3, 2, 1, 0], abs=0.02)


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_clock_that_is_set_changes_neither_ages_nor_pace(step, monkeypatch):
    now, ahead = [100.0], [0.0]
    frozen(monkeypatch, lambda: now[0], wall=lambda: now[0] + ahead[0])
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: now.__setitem__(0, now[0] + seconds))
    capture, paced = inputs._Capture(), inputs._Paced(stop)
    for seconds in range(6):
        if seconds == 3:
            ahead[0] = step
        assert paced(seconds) == pytest.approx(100 + seconds + ahead[0])
        assert capture(seconds) == pytest.approx(100 + seconds + ahead[0], abs=0.01)
    assert now[0] == pytest.approx(105)


def test_a_camera_whose_clock_is_slow_does_not_fall_back(monkeypatch):
    now = [0.0]
    frozen(monkeypatch, lambda: now[0])
    capture = inputs._Capture()
    for number in range(20_000):
        now[0] = number * 1.0002
        assert now[0] - capture(float(number)) < 0.01


def test_a_source_that_fails_takes_no_other_with_it(monkeypatch, fed, tmp_path):
    other, others = fed(clip(tmp_path / "a.mp4"))
    scripted(monkeypatch, [shot(0), RuntimeError("a bug")])
    feed, taken = fed("-")
    assert feed.join(20)
    assert other.join(20)
    assert len(others) == 20
    assert (feed.report.state, feed.report.problem) == ("failed", "RuntimeError: a bug")
    assert taken.said == ["stream 'door': -: RuntimeError: a bug"]


def test_stopping_takes_no_more_frames(monkeypatch, fed):
    scripted(monkeypatch, (shot(k) for k in range(10**9)))
    feed, taken = fed("-")
    taken.wait(10)
    feed.stop()
    assert feed.join(20)
    assert feed.report.state == "ended"
    assert len(taken) == feed.report.frames


def test_without_pyav_a_stream_fails_and_the_others_go_on(monkeypatch, fed, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.jpg").write_bytes(jpeg(size=(16, 16)))
    feed, taken = fed("camera")
    other, others = fed(f"images:{tmp_path}")
    assert feed.join(20)
    assert other.join(20)
    assert len(others) == 1
    assert feed.report.state == "failed"
    assert taken.said == ["stream 'door': camera: reading video needs PyAV: pip install 'eex[video]'"]


# ---- starting


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("ftp://10.0.0.7/a", r"^stream 'door': ftp://10.0.0.7/a: unknown scheme 'ftp'; expected rtsp, rtsps, http,"),
        ("rtsp:///main", r"^stream 'door': rtsp:///main: has no host; expected rtsp://HOST…$"),
        ("rtsp://[fe80::1%eth0/a", r"^stream 'door': rtsp://\[fe80::1%eth0/a: not a URL: Invalid IPv6 URL$"),
        ("camera:x", r"^stream 'door': camera:x: expected 'camera' or 'camera:N', N a whole number$"),
        ("-:640", r"^stream 'door': -:640: expected '-' or '-:WIDTHxHEIGHT'$"),
        ("zmq+pull://0.0.0.0:5555", r"^stream 'door': zmq\+pull://0.0.0.0:5555: can be reached from other machines;"),
        ("zmq+pull://", r"^stream 'door': zmq\+pull://: expected zmq\+pull://HOST:PORT, or zmq\+pull:///PATH$"),
    ],
)
def test_a_wrong_specification_is_refused(fed, source, reason):
    with pytest.raises(EexError, match=reason):
        fed(source)


def test_all_sources_can_be_required(fed, tmp_path):
    good, _ = fed(clip(tmp_path / "a.mp4"), start=False)
    bad, taken = fed("http://127.0.0.1:1/cam", start=False)
    said = taken.said
    with pytest.raises(
        EexError, match=r"^stream 'door': http://127.0.0.1:1/cam: cannot be opened: Connection refused$"
    ):
        start([good, bad], require_all=True)
    assert said == []  # the error says it
    assert good.join(20)
    assert bad.join(20)


def test_what_can_be_opened_is_enough_unless_all_are_required(fed, tmp_path):
    good, taken = fed(clip(tmp_path / "a.mp4"), start=False)
    bad, others = fed(tmp_path / "nowhere.mp4", start=False)
    start([bad, good])
    assert good.join(20)
    assert len(taken) == 20
    assert len(others.said) == 1
    assert bad.report.state == "failed"


def test_nothing_that_can_be_opened_is_an_error(fed, tmp_path):
    bad, _ = fed(tmp_path / "nowhere.mp4", start=False)
    with pytest.raises(EexError, match=r"^stream 'door': .*nowhere\.mp4: cannot be opened: No such file or directory$"):
        start([bad])


def wait_for(what):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)
