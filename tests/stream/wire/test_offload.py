"""The seam between engine and cloud: the in-memory twin of the network, and no network at all."""

import subprocess
import sys

import numpy as np
import pytest
from simulated import tail

from eex.policies.core.errors import OffloadError
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader

pytestmark = pytest.mark.timeout(60)


def frames(n=1):
    return np.zeros((n, 2, 2), dtype=np.float32)


def test_in_memory_replies_come_in_order_reversed_or_held():
    cloud = InMemoryOffloader(tail, round_trip_ms=5)
    assert [cloud.submit(id, 1, "blur", frames(2)) for id in range(3)] == [True] * 3
    assert cloud.outstanding == 3
    assert cloud.bytes_sent == 3 * 2 * 16
    replies = cloud.poll()
    assert [r.id for r in replies] == [0, 1, 2]
    np.testing.assert_array_equal(replies[0].confidence, [0.5, 0.5])
    np.testing.assert_array_equal(replies[0].prediction, [1, 1])
    assert (cloud.outstanding, cloud.link_ms, cloud.poll()) == (0, 5, [])

    cloud = InMemoryOffloader(tail, reverse=True)
    for id in range(3):
        cloud.submit(id, 1, "blur", frames())
    assert [r.id for r in cloud.poll()] == [2, 1, 0]

    cloud = InMemoryOffloader(tail, held=True)
    for id in range(3):
        cloud.submit(id, 1, "blur", frames())
    assert cloud.poll(1000) == []
    assert cloud.outstanding == 3
    cloud.release(1)
    assert [r.id for r in cloud.poll()] == [0]
    cloud.release()
    assert [r.id for r in cloud.poll()] == [1, 2]


def test_in_memory_replies_are_lost_or_refused_as_told():
    def refuse(stage, expert, features):
        raise OffloadError("no such stage")

    cloud = InMemoryOffloader(tail, lose=range(0, 10, 2), window=3)
    assert [cloud.submit(id, 1, "blur", frames()) for id in range(4)] == [True, True, True, False]
    assert [bool(r.failed) for r in cloud.poll()] == [True, False, True]
    cloud.connected = False
    assert not cloud.submit(5, 1, "blur", frames())
    cloud = InMemoryOffloader(refuse)
    assert cloud.submit(1, 1, "blur", frames())
    with pytest.raises(ValueError, match="awaited already"):
        cloud.submit(1, 1, "blur", frames())
    (refused,) = cloud.poll()
    assert (refused.failed, len(refused.confidence)) == ("no such stage", 0)
    cloud.submit(2, 1, "blur", frames())
    cloud.close()
    assert (cloud.outstanding, cloud.poll()) == (0, [])


def test_nothing_can_be_sent_without_a_worker():
    nowhere = NoOffloader()
    assert not nowhere.submit(1, 1, "blur", frames())
    assert nowhere.poll(1000) == []
    nowhere.close()


def test_the_seam_needs_neither_torch_nor_a_model():
    modules = "eex.stream.wire.client, eex.stream.worker.embedded"
    code = f"import sys, {modules}; assert not {{'torch', 'tyro'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
