"""The circuit breaker opens after failures in a row, and tries again at growing distances."""

from eex.stream.wire.breaker import Breaker


def test_it_opens_after_failures_in_a_row_only():
    breaker = Breaker(threshold=3)
    for _ in range(9):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.closed
    for _ in range(3):
        breaker.failed(1.0)
    assert not breaker.closed
    assert not breaker.allows(1.0)


def test_trials_are_further_and_further_apart_up_to_a_limit():
    breaker, trials = Breaker(threshold=1, first_s=0.25, longest_s=1.0), []
    breaker.failed(0.0)
    for ms in range(6000):
        if breaker.allows(ms / 1000):
            trials.append(ms / 1000)
            breaker.tries(ms / 1000)
            breaker.failed(ms / 1000)
    assert trials == [0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0]
    breaker.succeeded()
    assert breaker.allows(5.5)
    breaker.failed(6.0)
    assert (breaker.allows(6.2), breaker.allows(6.25)) == (False, True)  # from the beginning
