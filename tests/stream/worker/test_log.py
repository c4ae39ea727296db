"""Logging neither blocks nor raises, and what strangers can make it write is bounded."""

import os
import time

import pytest

from eex.stream.worker.log import LINES_A_SECOND, LINES_AN_HOUR, REPEAT_S, Log, Throttled


def test_lines_are_written_in_order():
    end, descriptor = os.pipe()
    log = Log(descriptor, "eex: ")
    for k in range(50):
        log(f"line {k}")
    assert log.flush(5)
    assert os.read(end, 1 << 16).decode().splitlines() == [f"eex: line {k}" for k in range(50)]
    os.close(end)


def test_nobody_reads():
    end, descriptor = os.pipe()
    log = Log(descriptor)
    began = time.monotonic()
    for _ in range(20_000):
        log("x" * 1000)
    assert time.monotonic() - began < 5
    assert log.dropped > 10_000
    os.close(end)  # its thread ends its write, and takes the next lines to nowhere


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_device_is_full():
    log = Log(os.open("/dev/full", os.O_WRONLY))
    for _ in range(10):
        log("line")
    assert log.flush(5)
    assert log.dropped == 10


def test_a_line_that_comes_again_is_counted():
    lines, now = [], [0.0]
    log = Throttled(lines.append, lambda: now[0])
    for _ in range(5):
        log("rejected")
    now[0] = REPEAT_S + 1
    log("rejected")
    assert lines == ["rejected", "rejected (and 4 times before)"]
    assert log.dropped == 4


def test_strangers_cannot_fill_a_disk():
    lines, now = [], [0.0]
    log = Throttled(lines.append, lambda: now[0])
    for k in range(100_000):
        now[0] = k * 0.03  # fifty minutes
        log(f"stranger {k}")
    assert len(lines) == LINES_AN_HOUR
    assert LINES_A_SECOND < LINES_AN_HOUR < log.dropped


def test_a_log_that_raises_stops_nobody():
    def broken(line):
        raise OSError("no space left")

    Throttled(broken)("line")
