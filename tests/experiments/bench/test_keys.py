"""The bench of many keys, with few of them."""

import json
import subprocess
import sys

import pytest


@pytest.mark.process
def test_rows_as_json():
    arguments = ["--keys", "20", "--edges", "5", "--strangers", "3", "--seconds", "0.3", "--json"]
    command = [sys.executable, "-m", "eex.experiments.bench.keys", *arguments]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout)
    found = {row["measured"]: row["value"] for row in rows}
    assert 0 < found["20 keys: 5 edges at once, seconds until all are in again after a restart"] < 60
    assert found["round trip alone, p50 ms"] <= found["round trip alone, p99 ms"]
