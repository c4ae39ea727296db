"""The HTTP service: answers, settings that last, labels that come later, health, an end that loses nothing."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from livenet import Cloud
from nets import CLASSES
from served import picture
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from eex.stream.live.answers import Answer
from eex.stream.live.learning import read_settings
from eex.stream.run.records import read_records
from eex.stream.serving import app as app_module
from eex.stream.serving.settings import _price, _split

pytestmark = pytest.mark.timeout(60)

ALL_TO_CLOUD = {"policy": "fixed", "policy_option": ("p_tar=1.0",)}
ALL_ON_EDGE = {"policy": "fixed", "policy_option": ("p_tar=0.0",)}


def multipart(*parts):
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%d"; filename="%s"\r\n\r\n%s\r\n' % (k, name.encode(), data)
        for k, (name, data) in enumerate(parts)
    )
    return body + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


# ---- answers


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_answered(opened, kind):
    client = opened(live=ALL_TO_CLOUD)
    status, answer = client.answer(body=picture(kind=kind), name="one")
    assert status == 200
    assert (answer["stream"], answer["frame"], answer["name"], answer["label"]) == ("door", 0, "one", "h")
    msgspec.convert({**answer}, Answer)
    assert client("POST", "/v1/answer", picture())[1]["stream"] == "default"


def test_several_images_are_answered_in_their_order(opened):
    client = opened()
    body, headers = multipart(("a.png", picture()), ("b.txt", b"no image"), ("c.png", picture((1, 2, 3))), ("d", b""))
    status, given = client("POST", "/v1/answer?stream=door", body, headers)
    assert status == 200
    first, second, third, fourth = given["answers"]
    assert (first["kind"], first["name"], third["kind"], third["name"]) == ("answer", "a.png", "answer", "c.png")
    assert "not a readable image" in json.dumps(second)
    assert fourth == {"error": "the image is empty"}


def test_a_large_image_holds_nobody_up_and_is_answered(opened):
    client = opened()
    assert client.answer(body=picture(size=(900, 700)))[0] == 200


def test_a_socket_takes_a_stream_of_frames(opened):
    client = opened()
    with connect(client.url.replace("http", "ws") + "/v1/frames?stream=cam", max_size=None) as socket:
        for _ in range(100):
            socket.send(picture())
        answers = [json.loads(socket.recv(timeout=20)) for _ in range(100)]
        socket.send(b"no image")
        refusal = json.loads(socket.recv(timeout=20))
    assert sorted(answer["frame"] for answer in answers) == list(range(100))
    assert (refusal["kind"], refusal["reason"]) == ("refusal", "undecodable")


def test_requests_of_all_clients_share_batches(opened):
    cloud = Cloud(held=True)
    client = opened(live=ALL_TO_CLOUD, cloud=cloud)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.answer, f"s{k}") for k in range(8)]
        until(lambda: client.session.summary()["frames"] == 8)
        cloud.held = False
        cloud.release()
        assert all(given.result()[0] == 200 for given in waiting)


def until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_is_said(opened):
    cloud = Cloud(window=0, held=True)
    client = opened(live={**ALL_TO_CLOUD, "queue": 1}, cloud=cloud)
    client.session._tasks.ask(lambda: None)
    gate = threading.Event()
    blocked = threading.Thread(target=client.session._tasks.ask, args=(gate.wait,))
    blocked.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.answer)
            until(lambda: client.session._intake.arrivals.waiting == 1)
            status, given = client.answer()
            assert status == 429
            assert given["refusal"]["reason"] == "full"
            gate.set()
            cloud.connected = False
            assert first.result()[0] == 200
    finally:
        gate.set()
        blocked.join()


# ---- settings


def test_settings_hold_from_the_next_frame_on_and_are_logged(opened):
    client = opened()
    client.answer()
    status, given = client.settings(overhead=0.4, budget="20%", deadline_ms=50)
    assert status == 200
    assert given == {"stream": "door", "overhead": 0.4, "budget": "20%", "deadline_ms": 50.0, "thresholds": "learning"}
    assert client.get("/v1/settings?stream=door")[1] == given
    assert any("stream 'door': overhead as usual -> 0.4, budget as usual -> \"20%\"" in line for line in client.said)
    assert client.settings(overhead=None, budget=None)[1]["overhead"] is None
    assert client.get("/v1/settings?stream=other")[1]["overhead"] is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"overhead": -1}, "overhead must lie in [0, 1]"),
        ({"overhead": "free"}, "no price"),
        ({"budget": "much"}, "no price"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 1e9}, "deadline_ms"),
        ({"thresholds": "melting"}, "thresholds"),
        ({"thresholds": [0.5]}, "thresholds must be 2"),
        ({"thresholds": [0.5, 1.5]}, "thresholds must be 2"),
        ({"overhed": 1}, "overhed"),
        ({"overhead": [1]}, "overhead"),
    ],
)
def test_settings_out_of_range_change_nothing(opened, given, why):
    client = opened()
    status, problem = client.settings(**given)
    assert status == 400
    assert why in problem["error"]
    assert "\n" not in problem["error"]
    assert client.get("/v1/settings?stream=door")[1]["overhead"] is None


@pytest.mark.parametrize("body", [b"{", b"[" * 60_000, b"\xff\xfe", b'{"overhead": 1e999}', b"null"])
def test_settings_that_are_no_settings(opened, body):
    status, problem = opened()("PUT", "/v1/settings", body)
    assert status == 400
    assert "\n" not in problem["error"]


def test_settings_have_a_size(opened):
    client = opened()
    status, problem = client("PUT", "/v1/settings", b'{"overhead": "0%s"}' % (b"+0" * 40_000))
    assert status == 413
    assert "at most 65,536 bytes" in problem["error"]
    status, problem = client.settings(thresholds=[0.5] * 10_000)
    assert status == 400
    assert "[0.5, 0.5, 0.5] and 9,997 more" in problem["error"]


def test_settings_outlast_the_session(opened, tmp_path):
    client = opened(live={"state": tmp_path / "state.npz"})
    client.answer()
    client.settings(overhead=0.25, thresholds="frozen")
    kept = shutil.copy(tmp_path / "state.npz", tmp_path / "kept.npz")  # as a kill would leave it
    again = opened(live={"state": Path(kept)})
    assert again.get("/v1/settings?stream=door")[1]["overhead"] == 0.25
    assert again.answer()[0] == 200
    assert again.get("/v1/policy?stream=door")[1]["learning"] is False
    assert again.get("/v1/policy?stream=door")[1]["overhead"] == 0.25


def test_frozen_thresholds_stay_and_learn_nothing(opened):
    client = opened(live={"policy": "ucb"})
    for _ in range(5):
        client.answer()
    client.settings(thresholds=[0.3, 0.4])
    before = client.session.learner("door").policy.state_dict()
    for _ in range(8):
        client.answer()
    found = client.get("/v1/policy?stream=door")[1]
    assert (found["exit_at"], found["learning"], found["frame"]) == ([0.3, 0.4], False, 13)
    after = client.session.learner("door").policy.state_dict()
    np.testing.assert_array_equal(after["counts"], before["counts"])
    np.testing.assert_array_equal(after["totals"], before["totals"])
    client.settings(thresholds="learning")
    client.answer()
    client.session.look()
    assert client.session.learner("door").policy.state_dict()["counts"].sum() == before["counts"].sum() + 1


def test_the_policy_is_shown(opened):
    client = opened()
    for _ in range(20):
        client.answer()
    found = client.get("/v1/policy?stream=door")[1]
    curve = found["curve"]
    assert len(curve["confidence"]) == len(curve["gain"]) == len(curve["low"]) == len(curve["high"]) == 50
    assert all(low <= gain <= high for low, gain, high in zip(curve["low"], curve["gain"], curve["high"], strict=True))
    assert len(found["exit_at"]) == 2
    assert found["arms"] is None
    assert client.get("/v1/policy?stream=nobody")[0] == 404


def test_the_arms_of_a_bandit_are_shown(opened):
    client = opened(live={"policy": "ucb"})
    for _ in range(20):
        client.answer()
    arms = client.get("/v1/policy?stream=door")[1]["arms"]
    assert sum(arms["played"]) == 20
    assert len(arms["threshold"]) == len(arms["mean"]) == 11


def test_prices_and_budgets_are_put_together_and_taken_apart():
    assert _price(0.1, "10/s", 0.2) == "0.1+budget=10/s"
    assert _price(None, "10/s", 0.2) == "0.2+budget=10/s"
    assert _price(None, None, 0.2) is None
    assert _split("0.1+0.2/s+budget=10/s") == ("0.1+0.2/s", "10/s")


# ---- labels


def test_a_label_that_comes_later_counts_and_is_recorded(opened, tmp_path):
    client = opened(live={**ALL_TO_CLOUD, "records": tmp_path})
    for _ in range(3):
        client.answer()
    give = [(0, "h", True), (1, "a", False), (1, "h", True)]
    for frame, label, correct in give:
        status, given = client("POST", "/v1/labels", json.dumps({"stream": "door", "frame": frame, "label": label}))
        assert (status, given) == (200, {"correct": correct})
    assert client.get("/v1/streams")[1]["accuracy"] == 1.0
    assert client("POST", "/v1/labels", b'{"stream": "door", "frame": 9, "label": "a"}')[0] == 404
    status, problem = client("POST", "/v1/labels", b'{"stream": "door", "frame": 0, "label": "zebra"}')
    assert status == 400
    assert "none of the model's classes" in problem["error"]
    labels = next(tmp_path.glob("labels-*.jsonl"))
    labels.rename(tmp_path / "given")
    labels.mkdir()  # as a disk that takes nothing
    status, problem = client("POST", "/v1/labels", b'{"stream": "door", "frame": 2, "label": "a"}')
    assert (status, "cannot be recorded" in problem["error"]) == (500, True)
    labels.rmdir()
    (tmp_path / "given").rename(labels)
    client.session.close()
    table = read_records(tmp_path)
    assert table["label"].to_pylist() == ["h", "h", None]
    assert table["correct"].to_pylist() == [True, True, None]
    assert set(CLASSES) >= {"h", "a"}


# ---- what is there


def test_health_metrics_and_pages(opened):
    client = opened()
    client.answer()
    assert client.get("/healthz") == (200, {"status": "ok"})
    assert client.get("/readyz") == (200, {"status": "ok"})
    client.session.look()
    status, metrics = client.get("/metrics")
    assert status == 200
    for line in (
        'eex_stream_answers_total{stream="door"} 1.0',
        'eex_stream_refusals_total{reason="stale",stream="door"} 0.0',
        'eex_stream_latency_seconds_count{stream="door"} 1.0',
        'eex_stream_exits_total{exit="cloud",stream="door"}',
    ):
        assert line in metrics
    assert client.get("/v1/streams")[1]["streams"][0]["answered"] == 1


def test_the_api_is_described_and_its_page_loads_nothing_from_elsewhere(opened):
    client = opened()
    status, document = client.get("/openapi.json")
    assert status == 200
    served = {route.path for route in client.service.routes.routes}
    assert set(document["paths"]) == served - {"/", "/docs", "/page.css", "/page.js", "/openapi.json"}
    for path in ("/docs", "/"):
        status, page = client.get(path)
        assert status == 200
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page


def test_live_events_come_each_second(opened):
    client = opened()
    client.answer()
    with client.raw() as connection:
        connection.sendall(b"GET /v1/live?stream=door HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        got = b""
        while got.count(b"event: tick") < 2:
            got += connection.recv(65536)
    first = json.loads(got.partition(b"data: ")[2].partition(b"\n")[0])
    assert first["stream"]["name"] == "door"
    assert first["streams"][0]["stream"] == "door"


# ---- the end


def test_frames_under_way_are_answered_when_it_stops(opened):
    cloud = Cloud(held=True)
    client = opened(live=ALL_TO_CLOUD, cloud=cloud)
    with ThreadPoolExecutor(4) as pool, connect(client.url.replace("http", "ws") + "/v1/frames?stream=cam") as socket:
        waiting = [pool.submit(client.answer, f"s{k}") for k in range(3)]
        socket.send(picture())
        until(lambda: client.service._under_way == 4)
        drained = pool.submit(client.service.drain)
        until(lambda: client.service.draining)
        assert client.answer("late")[0] == 503
        assert client.get("/readyz")[0] == 503
        assert client.get("/healthz")[0] == 200
        cloud.held = False
        cloud.release()
        drained.result(20)
        assert [given.result()[0] for given in waiting] == [200] * 3
        assert json.loads(socket.recv(timeout=20))["kind"] == "answer"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)


def test_streams_that_nobody_uses_are_closed(opened, monkeypatch):
    monkeypatch.setattr(app_module, "IDLE_STREAM_S", 0.0)
    monkeypatch.setattr(app_module, "SWEEP_S", 0.0)
    client = opened()
    client.answer("first")
    client.answer("second")
    until(lambda: "first" not in client.session.streams)


def test_a_stream_is_not_closed_by_its_own_next_frame(opened, monkeypatch):
    monkeypatch.setattr(app_module, "IDLE_STREAM_S", 0.02)
    monkeypatch.setattr(app_module, "SWEEP_S", 0.0)
    client = opened()
    for _ in range(5):
        assert client.answer("door")[0] == 200
        time.sleep(0.04)


def test_a_stream_that_is_fed_otherwise_is_not_closed(opened, monkeypatch):
    monkeypatch.setattr(app_module, "IDLE_STREAM_S", 0.2)
    monkeypatch.setattr(app_module, "SWEEP_S", 0.0)
    client = opened()
    client.settings(stream="camera", overhead=0.2)
    for _ in range(8):
        time.sleep(0.05)
        client.session.answer(np.zeros((2, 2, 3), np.uint8), "camera")
    client.answer("door")
    assert "camera" in client.session.streams


def test_settings_of_many_clients_at_once_are_all_saved(opened, tmp_path):
    client = opened(live={"state": tmp_path / "state.npz"})
    with ThreadPoolExecutor(8) as pool:
        changes = [pool.submit(client.settings, stream=f"s{k}", overhead=0.01 * k) for k in range(24)]
        assert [change.result()[0] for change in changes] == [200] * 24
    kept = shutil.copy(tmp_path / "state.npz", tmp_path / "kept.npz")
    assert len(read_settings(Path(kept))) == 24
