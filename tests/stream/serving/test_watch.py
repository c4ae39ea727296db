"""What the live page is told: curves of seconds, alarms, savings, in bounded memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
from livenet import Cloud, images, three_exits

from eex.stream.live.session import Session
from eex.stream.serving import watch as watch_module
from eex.stream.serving.watch import POINTS, Series, Watch

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def watched(monkeypatch):
    """A session and its watch, whose seconds the test ends."""
    monkeypatch.setattr(watch_module, "TICK_S", 1e6)
    with Session(net=three_exits(), offloader=Cloud(), worker="none") as session:
        watch = Watch(session)
        yield session, watch
        watch.end()


def test_a_second_is_what_its_frames_were(make_rows):
    series, rows = Series(3), make_rows(0, 500)
    series.add(rows)
    series.tick(100.0)
    (point,) = series.points
    time, frames, first, second, *shares = point
    assert (time, frames) == (100.0, 500)
    for threshold, column in ((first, 0), (second, 1)):
        values = rows.exit_at[:, column]
        assert threshold == pytest.approx(values[np.isfinite(values)].mean(), abs=1e-3)
    assert shares[:3] == pytest.approx([(rows.exit == e).mean() for e in range(3)], abs=1e-3)
    assert shares[5] == pytest.approx(np.median(rows.latency_ms), rel=1e-3)
    assert series.confidence[0].sum() == (~np.isnan(rows.confidence[:, 0])).sum()
    assert series.buckets.sum() == 500


def test_seconds_without_frames_are_a_gap_and_the_past_is_bounded(make_rows):
    series = Series(3)
    series.tick(0.0)
    assert not series.points
    for second in range(POINTS + 50):
        series.add(make_rows(second, 3))
        series.tick(float(second))
    assert len(series.points) == POINTS
    for second in range(20):
        series.tick(1000.0 + second)
    gaps = [point for point in series.points if not point[1]]
    assert 1 <= len(gaps) < 6
    assert all(value is None for value in gaps[0][2:])
    assert len({len(point) for point in series.points}) == 1


def test_what_was_saved_against_always_offloading(make_rows):
    series, rows = Series(2), make_rows(0, 4, exits=2)
    assert series.saved() == {"ms": None, "bytes": None}
    sent = np.array([True, False, False, False])
    rows = replace(
        rows,
        offloaded=sent,
        sent=sent,
        dropped=np.zeros(4, dtype=bool),
        bytes=np.where(sent, 1000.0, 0.0),
        latency_ms=np.where(sent, 50.0, 10.0),
    )
    series.add(rows)
    assert series.saved() == {"ms": 120.0, "bytes": 3000}


def test_alarms_are_seen_and_pages_get_them(watched):
    session, watch = watched
    for image in images(640):
        session.answer(image, "door")
    watch.tick()
    assert not watch.series["door"].alarms
    for _ in range(640):
        session.answer(np.full((2, 2, 3), 255, dtype=np.uint8), "door")
        if _ % 64 == 0:
            watch.tick()
    watch.tick()
    shown = json.loads(watch.history("door"))
    assert len(shown["stream"]["alarms"]) >= 1
    assert shown["streams"][0]["alarms"] == len(shown["stream"]["alarms"])
    assert len(json.loads(watch.latest("door"))["stream"]["points"]) == 1


def test_a_stream_is_forgotten(watched):
    session, watch = watched
    session.answer(images(1)[0], "door")
    watch.tick()
    assert list(watch.series) == ["door"]
    watch.forget("door")
    assert json.loads(watch.history("door"))["stream"] is None


def test_a_stream_that_is_gone_is_not_replaced_by_another(watched):
    session, watch = watched
    for name in ("door", "yard"):
        session.answer(images(1)[0], name)
    watch.tick()
    assert json.loads(watch.history(""))["stream"]["name"] == "door"
    watch.forget("door")
    assert json.loads(watch.latest("door"))["stream"] is None
    assert json.loads(watch.history(""))["stream"]["name"] == "yard"


def test_a_page_that_opens_sees_what_is_so_now(watched):
    session, watch = watched
    for frames in (1, 2, 3):
        session.answer(images(1)[0], "door")
        watch.tick()
        with watch.viewing():
            assert json.loads(watch.history("door"))["frames"] == frames
