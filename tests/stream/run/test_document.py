"""Runs in one HTML file: what it holds, that it needs nothing else, how large it is."""

import html
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.stream.config import StreamConfig, to_json
from eex.stream.run.document import document, read_run
from eex.stream.run.records import RecordWriter
from eex.stream.run.summary import write_curves, write_json

pytestmark = pytest.mark.timeout(120)

CLASSES, EXPERTS = ("a", "b", "c", "d"), ("pristine", "blur")
SENT = {"encoding": None, "why": "", "candidates": []}


def recorded(folder, make_rows, frames=2000, stream=""):
    with RecordWriter(folder / "records", CLASSES, EXPERTS) as writer:
        for first in range(0, frames, 1000):
            rows = make_rows(first, 1000)
            writer.write(replace(rows, stream=np.full(1000, stream, dtype=object)))
    return folder


def played(folder, make_rows, frames=2000, **options):
    """A run of two policies, as `eex-stream` leaves one."""
    recorded(folder, make_rows, frames)
    write_json(folder / "config.json", to_json(StreamConfig(frames=frames, **options)))
    row = {
        "policy": "gain-curve",
        "frames": frames,
        "accuracy": 0.83,
        "mean_reward": 0.01,
        "regret_best_arm": 1.0,
        "regret_oracle": 2.0,
        "exit_shares": {"exit 1": 0.5, "exit 2": 0.3, "cloud": 0.2},
        "offloaded_share": 0.2,
        "bytes_offloaded": 1000,
        "bytes_per_offloaded_frame": 5.0,
        "seconds": 2.0,
        "frames_per_second": 1000.0,
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "agreement": {"overconfident": False},
        "link": {"workers": [], "requests": 7, "missed_deadlines": 3},
    }
    summary = row | {
        "policies": [row, row | {"policy": "ucb"}],
        "best_fixed_threshold": 0.7,
        "overhead": 0.1,
        "price": "0.1",
        "send": SENT,
        "withheld": 0,
        "fallbacks": 3,
        "worker": True,
        "unrecorded": "",
        "skipped": 0,
        "interrupted": False,
        "by_class": [],
        "folder": str(folder),
        "source": {
            "name": "<script>alert(1)</script>",
            "images": 100,
            "distortion": "pristine",
            "notes": [],
            "unknown_classes": [],
            "known_classes": 4,
            "model_classes": list(CLASSES),
            "labelled": True,
        },
        "by_exit": [
            {"distortion": d, "exit": e + 1, "frames": 10, "accuracy": 0.8, "confidence": 0.8}
            for d in ("pristine", "gaussian_blur")
            for e in range(3)
        ],
    }
    write_json(folder / "summary.json", summary)
    start = np.arange(0, frames, 32.0)
    ones = np.ones(len(start))
    columns = {"start": start, "frames": 32 * ones, "threshold": 16 * ones, "offloaded": 8 * ones, "reward": ones}
    columns |= {"correct": 20 * ones, "labelled": 30 * ones, **{f"exit_{e}": 10 * ones for e in (1, 2, 3)}}
    hindsight = {"start": start, "best_fixed": 2 * ones, "oracle": 3 * ones}
    write_curves(folder / "curves.arrow", {"gain-curve": columns, "ucb": columns, "hindsight": hindsight})
    return folder


def test_two_runs_side_by_side(tmp_path, make_rows):
    one = played(tmp_path / "one", make_rows, policy="ucb")
    two = played(tmp_path / "two", make_rows, deadline_ms=123.0)
    text = document([read_run(one), read_run(two)])
    for title in ("What was run", "Results", "Regret", "Reliability", "by distortion", "Faults"):
        assert title in text
    assert text.count("<svg") == 8  # curves, regret, reliability and exits of each
    assert text.count("--deadline-ms") == 2  # what differs is shown for both
    assert "123.0" in text
    assert "missed deadlines" in text
    assert "reward per frame" in text


def test_it_needs_nothing_else_and_no_script(tmp_path, make_rows):
    text = document([read_run(played(tmp_path / "one", make_rows))])
    assert "<script>alert" not in text
    assert all(target.startswith("#") for target in re.findall(r"""(?:src|href)=["']([^"']*)""", text))
    assert "url(http" not in text
    still = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert still.count("<svg") == 4
    ids = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    data = json.loads(html.unescape(re.search(r'data-curves="([^"]+)"', text)[1]))
    assert len(data["start"]) == len(data["series"]["threshold"]) == 63
    assert data["series"]["threshold"][0] == 0.5


def test_faults_have_their_times(tmp_path, make_rows):
    rows = make_rows(0, 1000)
    rows.fallback[:], rows.captured[:] = False, 1.8e9 + np.arange(1000) / 10
    rows.fallback[[200, 225]] = True
    with RecordWriter(tmp_path / "timed" / "records", CLASSES, EXPERTS) as writer:
        writer.write(rows)
    text = document([read_run(tmp_path / "timed")])
    assert "<td>2027-01-15 08:00:20</td><td>2.5</td><td>200…225</td><td>2</td>" in text
    assert "2027-01-15 08:00:00, 2027-01-15 08:01:39" in text
    with RecordWriter(tmp_path / "old" / "records", CLASSES, EXPERTS) as writer:
        writer.write(replace(rows, captured=np.full(1000, np.nan)))
    assert "<td>–</td><td>–</td><td>200…225</td>" in document([read_run(tmp_path / "old")])


def test_records_of_a_live_session_are_enough(tmp_path, make_rows):
    folder = recorded(tmp_path / "live", make_rows, stream="door")
    text = document([read_run(folder)])
    assert "door" in text
    assert "answered at exit 1" in text
    assert "Regret" not in text
    assert text.count("<svg") == 2
    assert document([read_run(folder / "records")])


@pytest.mark.parametrize("content", ["", "[]", "{}", *(f'{{"policies": {r}}}' for r in ("3", "[]", "[1]", "[{}]"))])
def test_a_damaged_summary_is_one_line(tmp_path, make_rows, content):
    folder = recorded(tmp_path, make_rows, 1000)
    (folder / "summary.json").write_text(content)
    with pytest.raises(EexError, match=r"summary\.json: not the summary of a run"):
        read_run(folder)


def test_it_stays_small(tmp_path, make_rows):
    folders = [recorded(tmp_path / name, make_rows, 40_000, stream="door") for name in ("one", "two")]
    assert len(document([read_run(folder) for folder in folders])) < 1_500_000


@pytest.mark.soak
def test_a_million_frames_take_two_megabytes(tmp_path, make_rows):
    rows = make_rows(0, 10_000)
    with RecordWriter(tmp_path / "records", CLASSES, EXPERTS) as writer:
        for _ in range(100):
            writer.write(rows)
    started = time.monotonic()
    assert len(document([read_run(tmp_path)])) < 2_000_000
    assert time.monotonic() - started < 60
