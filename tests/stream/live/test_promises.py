"""The future of an answer."""

import threading
from concurrent.futures import InvalidStateError, wait

import pytest

from eex.stream.live.promises import Promised


def test_a_future_is_one_of_the_standard_library_s():
    """Whether its answer comes before anybody asks, while somebody waits, or with a callback."""
    promises = [Promised() for _ in range(2000)]
    called, got = [], []

    def ask():
        for k, promise in enumerate(promises):
            if k % 3 == 0:
                promise.add_done_callback(lambda p: called.append(p.result()))
            elif k % 3 == 1:
                got.append(promise.result(20))

    asking = threading.Thread(target=ask)
    asking.start()
    for k, promise in enumerate(promises):
        promise.set_result(k)
    asking.join(30)
    assert wait(promises, 20).not_done == set()
    assert sorted(called) == list(range(0, 2000, 3))
    assert got == list(range(1, 2000, 3))
    early = Promised()
    assert not early.done()
    assert not early.cancel()
    with pytest.raises(TimeoutError):
        early.result(0)
    with pytest.raises(InvalidStateError):
        promises[0].set_result(1)
