"""What a worker counts."""

import pytest

from eex.stream.worker.stats import Histogram, Stats


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.5, 1), (10.0, 1), (10.1, 2), (1e9, 2)])
def test_a_value_is_counted_in_the_first_bucket_that_holds_it(value, bucket):
    histogram = Histogram((1, 10))
    histogram.add(value)
    assert histogram.counts == [int(k == bucket) for k in range(3)]
    assert histogram.total == value


def test_two_workers_count_apart():
    one, other = Stats(), Stats()
    one.requests["model"] += 1
    one.latency_ms.add(3.0)
    assert not other.requests
    assert not sum(other.latency_ms.counts)
