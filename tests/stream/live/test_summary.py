"""What a session says of itself."""

import pytest
from livenet import Cloud, images, three_exits
from loopback import until

from eex.stream.live import intake
from eex.stream.live.session import Session

pytestmark = pytest.mark.timeout(60)


def test_totals_keep_what_streams_did_that_are_forgotten(monkeypatch):
    monkeypatch.setattr(intake, "STREAMS_KEPT", 1)
    with Session(net=three_exits(), offloader=Cloud(), worker="none") as session:
        for k in range(4):
            session.answer(images(1)[0], f"s{k}")
            session.submit(b"no image", f"s{k}").result(10)
            session.close_stream(f"s{k}")
            until(lambda: not session.streams)
        summary = session.summary()
    assert [row["stream"] for row in summary["streams"]] == ["s3"]
    assert (summary["frames"], summary["answered"], summary["refused"]) == (8, 4, {"undecodable": 4})
