"""A session gives each frame one answer or one refusal, whatever happens, and each as soon as it can."""

import contextlib
import gc
import io
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from livenet import Cloud, images, three_exits
from loopback import until
from nets import CLASSES
from PIL import Image

from eex.models.network import make
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.engine import exit_cost_of
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.guard import keep_memory_flat
from eex.stream.live import learning, playing
from eex.stream.live import session as module
from eex.stream.live.answers import Answer, Refusal
from eex.stream.live.promises import Refused
from eex.stream.live.run import status
from eex.stream.live.session import Session
from eex.stream.run.estimates import estimates_of
from eex.stream.run.records import feedback_of, read_records
from eex.stream.wire.offload import NoOffloader

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def net():
    return three_exits()


def opened(net, offloader=None, **options):
    return Session(net=net, offloader=Cloud() if offloader is None else offloader, **{"worker": "none"} | options)


ALL_TO_CLOUD = {"policy": "fixed", "policy_option": ("p_tar=1.0",)}
ALL_ON_EDGE = {"policy": "fixed", "policy_option": ("p_tar=0.0",)}


# ---- one answer each


def test_an_answer_says_who_gave_it_and_when(net):
    before = time.time()
    with opened(net, **ALL_TO_CLOUD) as session:
        answer = session.answer(images(1)[0], "door", at=before - 0.5, name="one.jpg")
        assert (answer.stream, answer.frame, answer.name) == ("door", 0, "one.jpg")
        assert (answer.label, answer.index, answer.exit, answer.where) == ("h", 7, 3, "cloud")
        assert answer.confidence == 0.99
        assert not answer.fallback
        assert 500 <= answer.latency_ms <= 500 + 1000 * (time.time() - before)  # from the capture on
        assert answer.captured.startswith(time.strftime("%Y-", time.gmtime(before)))
        assert session.answer(images(1)[0], "door").frame == 1
        assert session.answer(images(1)[0], "gate").frame == 0


def test_a_frame_cannot_be_cancelled(net):
    with opened(net, Cloud(held=True), **ALL_TO_CLOUD) as session:
        future = session.submit(images(1)[0])
        assert not future.cancel()
        session._playing.offloader.held = False
        session._playing.offloader.release()
        assert future.result(10).where == "cloud"


def test_a_played_stream_makes_the_same_choices(net):
    given = images(300)
    policy = make_policy("ucb", exits=2)
    driver, rows = Driver(net, policy, Cloud(), overhead=0.1, kind="utility", exit_cost=exit_cost_of("auto", net)), []
    for image in given:
        pixels = torch.from_numpy(image[None]).permute(0, 3, 1, 2).float() / 255
        driver.feed(Batch(pixels, [""], np.array([-1])))
        driver.drain()
        rows += driver.take()
    with opened(net, policy="ucb") as session:
        answers = [session.answer(image) for image in given]
    assert [a.index for a in answers] == [int(a) for r in rows for a in r.answer]
    assert [a.exit for a in answers] == [int(e) + 1 for r in rows for e in r.exit]


def test_many_threads_each_frame_once(net):
    count, threads = 2000, 8
    given = images(64)
    with opened(net, policy="gain-curve") as session:

        def push(thread):
            return [session.submit(given[k % 64], f"stream {(k + thread) % 11}") for k in range(count // threads)]

        with ThreadPoolExecutor(threads) as pool:
            futures = [future for some in pool.map(push, range(threads)) for future in some]
        answers = [future.result(30) for future in futures]
        summary = session.summary()
    assert all(isinstance(answer, Answer) for answer in answers)
    numbers = defaultdict(list)
    for answer in answers:
        numbers[answer.stream].append(answer.frame)
    assert sum(map(len, numbers.values())) == count
    for stream, frames in numbers.items():
        assert sorted(frames) == list(range(len(frames))), stream
    assert summary["answered"] == count == sum(row["answered"] for row in summary["streams"])
    assert sum(sum(row["exit_shares"].values()) > 0.999 for row in summary["streams"]) == 11


def test_answers_come_from_all_streams_until_the_session_is_closed(net):
    session = opened(net)
    for k in range(20):
        session.submit(images(1)[0], "ab"[k % 2])
    got = []
    reader = threading.Thread(target=lambda: got.extend(session.answers()))
    reader.start()
    session.close()
    reader.join(10)
    assert Counter(a.stream for a in got) == {"a": 10, "b": 10}
    assert list(session.answers()) == []


# ---- nothing waits for the cloud


def test_a_frame_never_waits_for_one_in_the_cloud(net):
    cloud = Cloud(held=True)
    with opened(net, cloud, policy="fixed", policy_option=("p_tar=0.9",)) as session:
        futures = [session.submit(image, "door") for image in images(50)]
        deadline = time.monotonic() + 10
        while sum(future.done() for future in futures) + len(cloud._held) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        early = [future.result(0) for future in futures if future.done()]
        assert early
        assert len(early) < 50  # some wait for the cloud
        assert all(answer.where == "edge" for answer in early)
        cloud.held = False
        cloud.release()
    assert all(isinstance(future.result(0), Answer) for future in futures)


def test_a_full_window_holds_nothing_back(net):
    cloud = Cloud(held=True, window=1)
    with opened(net, cloud, **ALL_TO_CLOUD, batch=1) as session:
        futures = [session.submit(image, "far") for image in images(5)]
        session.open_stream("near", overhead=1.0)
        cloud.held = False
        time.sleep(0.05)
        cloud.release()
        assert [future.result(10).where for future in futures] == ["cloud"] * 5


def test_a_worker_that_is_lost_under_load(net):
    cloud = Cloud(held=True)
    with opened(net, cloud, **ALL_TO_CLOUD) as session:
        futures = [session.submit(image) for image in images(20)]
        while len(cloud._held) == 0:
            time.sleep(0.001)
        cloud.connected = False
        futures += [session.submit(image) for image in images(20)]
        cloud.lose = range(10**9)
        for reply in cloud._held:
            object.__setattr__(reply, "failed", "no reply within 1000 ms")
        cloud.release()
    answers = [future.result(0) for future in futures]
    assert len(answers) == 40
    assert sum(answer.fallback for answer in answers) >= 20


def test_without_a_worker_the_edge_answers(net):
    with opened(net, NoOffloader(), **ALL_TO_CLOUD) as session:
        answer = session.answer(images(1)[0])
        assert answer.fallback
        assert answer.where == "edge"


def test_a_stream_has_a_deadline_of_its_own(net):
    cloud = Cloud(held=True)
    with opened(net, cloud, **ALL_TO_CLOUD) as session:
        session.open_stream("hasty", deadline_ms=20)
        patient = session.submit(images(1)[0], "patient")
        hasty = session.answer(images(1)[0], "hasty", timeout_s=10)
        assert hasty.fallback
        assert hasty.latency_ms >= 20
        assert not patient.done()
        cloud.held = False
        cloud.release()
        assert patient.result(10).where == "cloud"


def test_a_late_reply_comes_after_the_deadline_was_taken_away(net):
    cloud = Cloud(held=True)
    with opened(net, cloud, **ALL_TO_CLOUD) as session:
        session.open_stream("hasty", deadline_ms=20)
        assert session.answer(images(1)[0], "hasty", timeout_s=10).fallback
        session.open_stream("hasty")
        cloud.held = False
        cloud.release()
        assert session.answer(images(1)[0], "hasty", timeout_s=10).where == "cloud"


def test_a_stream_has_a_price_of_its_own(net):
    given = images(200)
    with opened(net, policy="gain-curve", overhead=0.01) as session:
        session.open_stream("dear", overhead=1.0)
        for image in given:
            session.submit(image, "cheap"), session.submit(image, "dear")
    shares = {row["stream"]: row["offloaded_share"] for row in session.summary()["streams"]}
    assert shares["dear"] == 0.0
    assert shares["cheap"] > 0.1


def test_gathered_frames_are_answered_though_no_others_come(net):
    with opened(net, gather=1000, **ALL_TO_CLOUD) as session:
        assert session.answer(images(1)[0], timeout_s=10).where == "cloud"


# ---- refusals


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff\xe0 cut off",
        np.zeros((0, 0, 3), dtype=np.uint8),
        np.zeros((2, 2, 4), dtype=np.uint8),
        np.zeros((2, 2, 2, 3), dtype=np.uint8),
        np.full((2, 2, 3), np.nan),
        np.full((2, 2, 3), 3.0),
        np.zeros((2, 2, 3), dtype=np.int64),
        "cat.jpg",
        None,
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_and_the_others_go_on(net, image):
    with opened(net) as session:
        refusal = session.submit(image, "door", name="odd").result(10)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.stream, refusal.frame, refusal.name) == ("undecodable", "door", 0, "odd")
        assert refusal.detail
        with pytest.raises(Refused, match="frame 1 of stream 'door': undecodable"):
            session.answer(image, "door")
        assert session.answer(images(1)[0], "door").frame == 2
        assert session.summary()["streams"][0]["refused"] == {"undecodable": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stream": 3}, "stream: expected a name, as text in UTF-8, got 3"),
        ({"stream": None}, "stream: expected a name"),
        ({"stream": b"door"}, "stream: expected a name"),
        ({"stream": "caf\udce9"}, "stream: expected a name"),
        ({"name": 7}, "name: expected text, got 7"),
        ({"label": "cat"}, "label: expected the number of a class, below 10, or -1, got 'cat'"),
        ({"label": float("nan")}, "label: expected the number"),
        ({"label": 10}, "label: expected the number"),
        ({"label": -2}, "label: expected the number"),
    ],
    ids=str,
)
def test_a_frame_that_cannot_be_recorded_is_the_callers_error_and_the_others_go_on(net, tmp_path, given, message):
    with opened(net, records=tmp_path) as session:
        session.answer(images(1)[0], "door")
        with pytest.raises(EexError, match=message):
            session.submit(images(1)[0], **given)
        session.submit(images(1)[0], "door", name="caf\udce9.jpg", label=np.int8(2)).result(10)
    assert read_records(tmp_path)["name"].to_pylist() == ["", "caf\\xe9.jpg"]
    assert read_records(tmp_path)["label"].to_pylist() == [None, "c"]


def test_a_stream_whose_name_is_none_cannot_be_opened(net):
    with opened(net) as session:
        for name in (3, "caf\udce9"):
            with pytest.raises(EexError, match="stream: expected a name"):
                session.open_stream(name)
            with pytest.raises(EexError, match="stream: expected a name"):
                session.set_options(name)
        session.answer(images(1)[0], "door")


def jpeg(size):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((480, 640, 3), dtype=np.uint8),
        np.zeros((1, 1, 3), dtype=np.uint8),
        np.zeros((2, 2), dtype=np.uint8),
        np.zeros((7, 5, 1), dtype=np.uint8),
        np.zeros((2, 2, 3), dtype=np.uint16),
        np.full((2, 2, 3), 0.5),
        np.full((2, 2, 3), 0.5, dtype=np.float32),
        jpeg((9, 4)),
        bytearray(jpeg((2, 2))),
        memoryview(jpeg((2, 2))),
    ],
    ids=lambda image: str(getattr(image, "shape", type(image))),
)
def test_other_sizes_and_types_are_fitted(net, image):
    with opened(net) as session:
        assert session.answer(image).label in CLASSES


def test_the_callers_array_may_change_after_submit(net):
    image = images(1)[0]
    with opened(net, **ALL_ON_EDGE) as session:
        expected = session.answer(image).index
        for _ in range(20):
            given = image.copy()
            future = session.submit(given)
            given[:] = 255 - given
            assert future.result(10).index == expected


class Stuck:
    """A sink that holds the session up, so that frames have to wait."""

    def __init__(self):
        self.held, self.go = threading.Event(), threading.Event()

    def __call__(self, given):
        self.held.set()
        assert self.go.wait(30)


def test_the_newest_frame_replaces_what_waits(net):
    stuck = Stuck()
    with opened(net, **ALL_ON_EDGE, keep="newest", sinks=[stuck]) as session:
        first = session.submit(images(1)[0], "door")
        assert stuck.held.wait(10)
        # refusals go to the same sink: let them be given by threads of their own
        pushed = [threading.Thread(target=session.submit, args=(image, "door")) for image in images(4)]
        for thread in pushed:
            thread.start()
            time.sleep(0.05)
        stuck.go.set()
        for thread in pushed:
            thread.join(10)
        assert isinstance(first.result(10), Answer)
    row = session.summary()["streams"][0]
    assert row["frames"] == 5
    assert row["answered"] == 2
    assert row["refused"] == {"stale": 3}


def test_a_full_queue_makes_the_source_wait_or_refuses(net):
    stuck = Stuck()
    with opened(net, **ALL_ON_EDGE, queue=2, batch=1, sinks=[stuck]) as session:
        futures = [session.submit(images(1)[0], "door")]
        assert stuck.held.wait(10)
        futures += [session.submit(images(1)[0], "door") for _ in range(2)]
        waiting = threading.Thread(target=lambda: futures.append(session.submit(images(1)[0], "door")))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()  # back-pressure
        refused = threading.Thread(target=lambda: futures.append(session.submit(images(1)[0], "door", wait=False)))
        refused.start()
        time.sleep(0.05)
        stuck.go.set()
        waiting.join(10)
        refused.join(10)
        reasons = [getattr(future.result(10), "reason", "") for future in futures]
    assert sorted(reasons) == ["", "", "", "", "full"]


def test_submit_after_close_is_refused(net):
    session = opened(net)
    session.close()
    refusal = session.submit(images(1)[0], "door").result(0)
    assert (refusal.reason, refusal.detail) == ("closed", "the session is closed")
    with pytest.raises(Refused, match="closed"):
        session.answer(images(1)[0])
    session.close()  # again does nothing
    with pytest.raises(EexError, match="the session is closed"):
        session.open_stream("door")


def test_closing_drains_or_refuses(net):
    cloud = Cloud(held=True)
    session = opened(net, cloud, **ALL_TO_CLOUD)
    futures = [session.submit(image) for image in images(40)]
    threading.Timer(0.1, lambda: (setattr(cloud, "held", False), cloud.release())).start()
    session.close()
    assert all(isinstance(future.result(0), Answer) for future in futures)

    stuck = Stuck()
    session = opened(net, **ALL_ON_EDGE, batch=1, sinks=[stuck])
    futures = [session.submit(image) for image in images(10)]
    assert stuck.held.wait(10)
    threading.Timer(0.1, stuck.go.set).start()
    session.close(drain=False)
    given = [future.result(0) for future in futures]
    assert isinstance(given[0], Answer)
    assert {refusal.reason for refusal in given[2:]} == {"closed"}


def test_a_sink_that_raises_is_counted_and_stops_nothing(net):
    got = []

    def broken(given):
        raise RuntimeError("no disk")

    with opened(net, sinks=[broken, got.append]) as session:
        for image in images(10):
            session.submit(image)
    assert len(got) == 10
    sink = session.summary()["sinks"][0]
    assert sink["errors"] == {"RuntimeError: no disk": 10}
    assert "broken" in sink["sink"]


def test_a_sink_may_submit_and_close(net):
    def again(given):
        if given.stream == "first":
            session.submit(images(1)[0], "second")
        elif isinstance(given, Answer):
            session.close()

    session = opened(net, sinks=[again])
    session.submit(images(1)[0], "first")
    got = list(session.answers())
    assert [a.stream for a in got] == ["first", "second"]
    session.close()


def test_a_session_that_fails_refuses_and_says_so(net, caplog):
    session = opened(net)
    session._playing.driver.feed = lambda batch: (_ for _ in ()).throw(RuntimeError("out of memory"))
    futures = [session.submit(image) for image in images(5)]
    assert {future.result(10).reason for future in futures} == {"failed"}
    assert "out of memory" in futures[0].result().detail
    with pytest.raises(EexError, match="the session failed: out of memory"):
        session.close()
    assert session.submit(images(1)[0]).result(0).reason == "failed"


def test_a_fault_between_replies_leaves_no_frame_without_an_end(net, monkeypatch):
    with contextlib.suppress(EexError), opened(net, Cloud(held=True), **ALL_TO_CLOUD) as session:
        futures = [session.submit(image) for image in images(6)]
        until(lambda: session._playing.driver.engine.awaited == 6)
        built = itertools.count()

        def third_is_faulty(**given):
            if next(built) == 2:
                raise RuntimeError("a fault")
            return Answer(**given)

        monkeypatch.setattr(playing, "Answer", third_is_faulty)
        session._playing.offloader.held = False
        session._playing.offloader.release()
        ends = [future.result(10) for future in futures]
        assert any(isinstance(end, Refusal) and end.reason == "failed" for end in ends)


def test_a_sink_may_close_the_session_from_a_thread_that_submits(net):
    session = opened(net, sinks=[lambda given: session.close() if isinstance(given, Refusal) else None])
    futures = [session.submit(image) for image in images(20)]
    assert session.submit(b"no image").result(10).reason == "undecodable"
    assert all(isinstance(future.result(10), Answer) for future in futures)
    session.close()
    assert session.closed


def test_a_sink_may_submit_to_a_full_queue_from_a_thread_that_submits(net):
    ends = []

    def again(given):
        ends.append(given)
        if isinstance(given, Refusal) and given.reason == "undecodable":
            session.submit(images(1)[0], "door")

    cloud = Cloud(held=True)
    with opened(net, cloud, sinks=[again], queue=1, **ALL_TO_CLOUD) as session:
        entered, go_on = threading.Event(), threading.Event()
        session._tasks.put(lambda: (entered.set(), go_on.wait(20)))
        assert entered.wait(20)
        session.submit(images(1)[0], "door")  # the queue is full
        session.submit(b"no image", "door")
        assert ends[-1].reason == "full"
        cloud.held = False
        go_on.set()
        cloud.release()


# ---- streams


def test_streams_learn_apart_or_together(net):
    given = images(100)
    for learn, learned in (("each", 100), ("shared", 300)):
        with opened(net, policy="ucb", learn=learn) as session:
            for image in given:
                for stream in "abc":
                    session.submit(image, stream)
            while session.summary()["answered"] < 300:
                time.sleep(0.01)
            row = int(session._playing.engine_streams.learner[0])
            assert session._playing.engine_streams.learners.learned[row] == learned


def test_each_stream_keeps_the_wishes_and_says_what_came_of_them(net):
    given = images(700)
    wishes = ("offload <= 30 %", "mean latency <= 0.0001 ms")
    with opened(net, policy="stop-curve", overhead=0.0, aim=wishes) as session:
        for image in given:
            session.answer(image, "door")
        session.answer(given[0], "gate")
        session.close_stream("gate")
        while len(session.streams) > 1:
            time.sleep(0.01)
        summary = session.summary()
    door, gate = summary["streams"]
    assert [row["wish"] for row in door["aims"]] == list(wishes)
    assert door["aims"][0]["kept"] is True
    assert door["aims"][0]["came_to"] == pytest.approx(door["offloaded_share"], abs=0.005)
    assert door["aims"][1]["problem"].startswith(f"'{wishes[1]}' cannot be kept: the mean latency is ")
    assert any(note.startswith(f"stream 'door': '{wishes[1]}' cannot be kept") for note in summary["notes"])
    assert gate["aims"][0]["problem"] == ""
    assert "1 streams cannot keep a wish" in status(summary)


def test_streams_that_share_a_learner_share_their_wishes(net):
    with opened(net, policy="stop-curve", learn="shared", aim="offload <= 30 %") as session:
        for image in images(20):
            session.answer(image, "door")
        assert session.summary()["streams"][0]["aims"][0]["wish"] == "offload <= 30 %"


def test_a_streams_choices_do_not_depend_on_the_others(net):
    given = images(200)

    def exits(*others):
        with opened(net, policy="epsilon-greedy") as session:
            answers = []
            for image in given:
                for other in others:
                    session.submit(image, other)
                answers.append(session.answer(image, "door"))
            return [answer.exit for answer in answers]

    alone = exits()
    assert len(set(alone)) > 1
    assert exits("gate", "yard") == alone


def test_a_stream_that_comes_back_goes_on(net):
    with opened(net, policy="ucb") as session:
        for image in images(50):
            session.answer(image, "door")
        session.close_stream("door")
        while session.streams:
            time.sleep(0.01)
        assert session._playing.kept.learned["door"][0] == 50
        assert session.answer(images(1)[0], "door").frame == 50
        assert "door" not in session._playing.kept.learned
        row = session.summary()["streams"][0]
    assert (row["stream"], row["frames"], row["answered"]) == ("door", 51, 51)
    assert session.summary()["agreement"] == row["agreement"]
    assert row["agreement"]["replies"] <= 51


def test_a_stream_is_closed_with_frames_under_way(net):
    cloud = Cloud(held=True)
    with opened(net, cloud, **ALL_TO_CLOUD) as session:
        futures = [session.submit(image, "door") for image in images(10)]
        session.close_stream("door")
        assert session.submit(images(1)[0], "door").result(10).reason == "closed"
        cloud.held = False
        deadline = time.monotonic() + 10
        while session.streams and time.monotonic() < deadline:
            cloud.release()
            time.sleep(0.01)
        assert session.streams == ()
        assert all(isinstance(future.result(0), Answer) for future in futures)


def test_a_closing_stream_may_be_opened_again(net):
    with opened(net) as session:
        session.open_stream("door")
        go_on = threading.Event()
        session._tasks.put(lambda: go_on.wait(20))
        session.close_stream("door")
        session.open_stream("door", overhead=0.3)
        go_on.set()
        assert isinstance(session.submit(images(1)[0], "door").result(20), Answer)
        assert session.streams == ("door",)


def test_a_label_counts_for_its_stream_before_its_frames_do(net):
    cloud = Cloud(held=True)
    with opened(net, cloud) as session:
        session.take_labels()
        session.open_stream("far", thresholds=(1.0, 1.0))
        session.open_stream("near", thresholds=(0.0, 0.0))
        far = session.submit(images(1)[0], "far")
        near = session.answer(images(1)[0], "near", timeout_s=20)  # which is behind the other
        assert session.label("near", near.frame, near.label)
        cloud.held = False
        cloud.release()
        far.result(20)
        rows = {row["stream"]: row for row in session.summary()["streams"]}
        assert rows["near"]["accuracy"] == 1.0


def test_streams_that_come_and_go_leave_nothing_behind(net):
    with opened(net, policy="ucb") as session:
        before = threading.active_count()
        for k in range(100):
            session.answer(images(1)[0], f"stream {k}")
            session.close_stream(f"stream {k}")
            while session.streams:
                time.sleep(0.001)
        assert len(session._playing.engine_streams.name) == 8
        assert len(session._playing.engine_streams.learners.next) == 8
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overhead": "cheap"}, "stream 'door': overhead"),
        ({"deadline_ms": 5000}, r"stream 'door': deadline_ms must lie in \(0, 1000\], got 5000"),
        ({"deadline_ms": -1}, "deadline_ms"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"keep": "oldest"}, "keep must be auto, all or newest"),
        ({"fps": 3}, "unknown option 'fps'"),
    ],
)
def test_options_of_a_stream_are_checked(net, options, message):
    with opened(net) as session:
        with pytest.raises(EexError, match=message):
            session.open_stream("door", **options)
        assert session.streams == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polciy": "ucb"}, "unknown option 'polciy'"),
        ({"policy": "ubc"}, "unknown policy 'ubc'"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"batch_wait_ms": -1}, "--batch-wait-ms must be at least 0"),
        ({"keep_records": "10GB"}, "--keep-records goes with --records"),
        ({"keep": "some"}, "--keep must be auto, all or newest"),
        ({"learn": "none"}, "--learn must be each or shared"),
        ({"overhead": 7}, "overhead"),
        ({"aim": ("be quick",)}, "--aim: 'be quick' is no wish"),
        ({"aim": ("offload <= 5 %",), "policy": "ucb"}, "--aim: policy ucb heeds no price"),
        ({"deadline_ms": 0}, "--deadline-ms must be more than 0"),
    ],
)
def test_options_of_a_session_are_checked(net, options, message):
    keep_memory_flat()  # whose thread stays
    threads = threading.active_count()
    with pytest.raises(EexError, match=message):
        opened(net, **options)
    assert threading.active_count() == threads


# ---- what is kept


def test_what_was_answered_before_a_failure_is_recorded_and_the_folder_is_free(net, tmp_path):
    def boom(batch):
        raise RuntimeError("no more")

    session = opened(net, records=tmp_path)
    session.answer(images(1)[0], "door")
    session._playing.feed = boom
    with pytest.raises(Refused, match="no more"):
        session.answer(images(1)[0], "door")
    until(lambda: session.closed)
    with opened(net, records=tmp_path):  # though the other one was not closed
        pass
    assert len(read_records(tmp_path)) == 1
    with pytest.raises(EexError, match="no more"):
        session.close()


def test_estimates_from_the_records_of_a_session(net, tmp_path):
    with opened(net, policy="random", records=tmp_path, exit_cost=0.25) as session:
        for image in images(200):
            session.answer(image)
    (estimate,), _ = estimates_of(tmp_path, [[0.0]], None)  # all leave at the first exit, which has no price
    assert estimate.dr.value == pytest.approx(np.mean(read_records(tmp_path)["confidence_1"].to_numpy()), abs=1e-3)
    assert json.loads((tmp_path / "priced.json").read_text()) == {"reward": "utility", "exit_cost": "0.25"}


def test_records_name_the_stream_and_replay(net, tmp_path):
    given = images(60)
    with opened(net, policy="ucb", records=tmp_path / "records") as session:
        for image in given:
            session.submit(image, "door", label=3), session.submit(image, "gate")
    table = read_records(tmp_path)
    assert Counter(table["stream"].to_pylist()) == {"door": 60, "gate": 60}
    assert table["latency_ms"].null_count == 0
    for name in ("door", "gate"):
        its = table.filter([stream == name for stream in table["stream"].to_pylist()])
        feedback = feedback_of(its)
        assert sorted(feedback.frame) == list(range(60))
        assert (np.diff(feedback.chosen) >= 0).all()


@pytest.mark.parametrize("learn", ["each", "shared"])
@pytest.mark.parametrize("policy", ["ucb", "linucb"])
def test_what_was_learned_is_taken_up_again(net, tmp_path, learn, policy):
    path = tmp_path / "state.npz"
    with opened(net, policy=policy, learn=learn, state=path) as session:
        for image in images(40):
            session.submit(image, "door")
    with opened(net, policy=policy, learn=learn, state=path) as session:
        session.answer(images(1)[0], "door")
        assert session.notes == []
    _, learned = session._rounds.snapshot()
    frames, state = learned["door" if learn == "each" else ""]
    assert frames == 41
    assert state["counts"].sum() == 41


def test_a_state_that_does_not_fit_is_named_and_left(net, tmp_path, caplog):
    path = tmp_path / "state.npz"
    with opened(net, policy="ucb", state=path) as session:
        session.answer(images(1)[0])
    with opened(net, policy="gain-curve", state=path) as session:
        session.answer(images(1)[0])
        assert "policy: ucb there, gain-curve here" in session.notes[0]
    assert f"the session learns anew; that file is now {path}.old" in caplog.text
    path.with_name("state.npz.old").rename(path)
    with opened(net, policy="ucb", state=path) as session:
        session.answer(images(1)[0])
        assert session.notes == []


def test_a_state_is_kept_by_one_session_at_a_time(net, tmp_path):
    path = tmp_path / "state.npz"
    with opened(net, state=path) as session:
        with pytest.raises(EexError, match=r"state\.npz: another process is writing there"):
            opened(net, state=path)
        session.answer(images(1)[0])
    with opened(net, state=path) as session:
        session.answer(images(1)[0])
    assert [at.name for at in tmp_path.iterdir()] == ["state.npz"]


def test_it_is_said_once_when_no_worker_can_be_reached_and_when_one_is_again(net, monkeypatch):
    cloud, there = Cloud(), [False]
    monkeypatch.setattr(Cloud, "reachable", property(lambda self: there[0]))
    cloud.report = lambda: {"workers": [{"endpoint": "tcp://10.0.0.5:1", "state": "not connected"}]}
    with opened(net, cloud) as session:
        look = lambda: session._tasks.ask(session._playing.sum_up)  # noqa: E731
        look()
        look()
        assert session.notes == [
            "no worker can be reached (tcp://10.0.0.5:1: not connected); frames are answered on the edge until one is"
        ]
        there[0] = True
        look()
        look()
        assert session.notes[1:] == ["a worker is reached again"]


def test_a_file_that_is_no_state_is_kept(net, tmp_path):
    path = tmp_path / "mine.toml"
    for kept in ("mine.toml.old", "mine.toml.old1"):
        path.write_text("mine")
        with opened(net, state=path) as session:
            session.answer(images(1)[0])
            assert "not what a session has learned" in session.notes[0]
        assert (tmp_path / kept).read_text() == "mine"
    assert path.read_bytes().startswith(b"PK")


def test_frames_are_recorded_before_the_state_that_learned_from_them_is_saved(net, tmp_path):
    path, records = tmp_path / "state.npz", tmp_path / "records"
    with opened(net, policy="ucb", state=path, records=records) as session:
        session.answer(images(1)[0], "door")
        session.summary()  # sums up
        session.save()
        frames, _ = learning.read(path, session._playing.kept.made_for)["door"]
        assert read_records(records)["frame"].to_pylist() == list(range(frames)) == [0]


def test_what_was_learned_of_streams_that_did_not_come_back_is_kept(net, tmp_path):
    path = tmp_path / "state.npz"
    for stream in ("a", "b"):
        with opened(net, policy="ucb", state=path) as session:
            session.answer(images(1)[0], stream)
    with opened(net, policy="ucb", state=path) as session:
        assert set(session._rounds.snapshot()[1]) == {"a", "b"}


def test_a_state_that_cannot_be_written_is_said(net, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with opened(net, state=tmp_path / "file" / "state.npz") as session:
        session.answer(images(1)[0])
    assert "cannot be written" in session.notes[-1]


def test_a_network_of_one_channel_gets_grey_images():
    net = make("resnet", CLASSES, uniform=2, width=8, input_shape=(1, 16, 16)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    with torch.inference_mode():
        expected = every_exit(net, torch.from_numpy(pixels)[None, None].float() / 255)[0][0]
    with Session(net=net, offloader=Cloud(), policy="fixed", policy_option=("p_tar=0",), worker="none") as session:
        for image in (pixels, np.repeat(pixels[:, :, None], 3, axis=2), pixels[:, :, None], pixels / 255):
            assert session.answer(image, timeout_s=30).confidence == pytest.approx(float(expected[0]), abs=1e-3)


def test_full_collections_do_not_walk_what_was_there_before_it_opened(net, monkeypatch):
    monkeypatch.setattr(module, "gc", gc)  # tests/conftest.py has taken it away
    before = gc.get_freeze_count()
    with opened(net, **ALL_ON_EDGE) as session:
        assert gc.get_freeze_count() > before + 10_000
        session.answer(images(1)[0])
    assert gc.get_freeze_count() == 0
