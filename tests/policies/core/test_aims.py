"""Wishes: what is understood, what it bounds, and what is refused and how."""

import numpy as np
import pytest

from eex.policies.core.aims import came_to, parse_aims
from eex.policies.core.errors import EexError


@pytest.mark.parametrize(
    ("text", "kind", "limit", "shown"),
    [
        ("accuracy within 1 point of the whole network", "accuracy", 0.01, None),
        ("Accuracy within 0.5 points", "accuracy", 0.005, "accuracy within 0.5 points of the whole network"),
        ("accuracy within 2%", "accuracy", 0.02, "accuracy within 2 points of the whole network"),
        ("mean latency <= 8 ms", "latency", 8.0, None),
        ("mean latency≤0.5s", "latency", 500.0, "mean latency <= 500 ms"),
        ("mean latency at most 250 µs", "latency", 0.25, "mean latency <= 0.25 ms"),
        ("p99 <= 40 ms", "quantile", 0.01, None),
        ("P99.9 latency ≤ 40ms", "quantile", 0.001, "p99.9 <= 40 ms"),
        ("offload <= 10 %", "offload", 0.1, None),
        ("offloaded ≤ .25", "offload", 0.25, "offload <= 25 %"),
    ],
)
def test_a_wish_is_understood(text, kind, limit, shown):
    (aim,) = parse_aims(text)
    assert (aim.kind, aim.limit, aim.text) == (kind, pytest.approx(limit), shown or text)
    assert parse_aims(aim.text) == (aim,)


@pytest.mark.parametrize("separated", ["{}, {}", "{}; {}", "{} and {}", "{}\n{}"])
def test_several_wishes_in_one_text(separated):
    texts = ["p50 <= 4 ms", "p99 <= 40 ms"]
    assert [aim.text for aim in parse_aims(separated.format(*texts))] == texts
    assert parse_aims(texts) == parse_aims(separated.format(*texts))


def test_no_wish_is_none():
    assert parse_aims(()) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("be quick", "'be quick' is no wish that eex knows; write 'accuracy within"),
        ("latency <= 8 ms", "'latency <= 8 ms' is no wish"),
        ("mean latency <= 8", "is no wish"),
        ("mean latency >= 8 ms", "is no wish"),
        ("accuracy >= 95 %", "is no wish"),
        ("mean latency <= -8 ms", "is no wish"),
        ("mean latency <= nan ms", "is no wish"),
        ("mean latency <= 0 ms", "a latency must be more than 0 ms"),
        ("p0 <= 8 ms", "a percentile lies between"),
        ("p100 <= 8 ms", "a percentile lies between"),
        ("p99.9999999999999 <= 8 ms", "a percentile lies between"),
        ("offload <= 10", "did you mean 10 %"),
        ("offload <= 0 %", "more than 0 and at most 100 %"),
        ("offload <= 101%", "more than 0 and at most 100 %"),
        ("accuracy within 0 points", "more than 0 and less than 100 points"),
        ("accuracy within 100 points", "more than 0 and less than 100 points"),
        ("", "got nothing"),
        (" , ", "got nothing"),
        ("offload <= 5 %, offload <= 10 %", "are of the same thing"),
        ("p99 <= 8 ms and p99 <= 9 ms", "are of the same thing"),
    ],
)
def test_what_is_no_wish_is_refused(text, says):
    with pytest.raises(EexError, match=says):
        parse_aims(text)


def test_what_came_of_wishes():
    aims = parse_aims("offload <= 50 %, mean latency <= 10 ms, p50 <= 12 ms, accuracy within 30 points")
    differs, sent = np.array([True, False, False, False]), np.array([True, True, True, False])
    rows = came_to(aims, differs, np.array([4.0, 8.0, 12.0, 19.0]), sent)
    assert [row["came_to"] for row in rows] == [0.75, 10.75, 0.25, 0.25]
    assert [row["kept"] for row in rows] == [False, True, True, True]  # to within a tenth of the bound
