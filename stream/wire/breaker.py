"""A circuit breaker: after several failures in a row nothing is tried for a while, then one thing at a time."""


class Breaker:
    """Decides whether to try a peer that has failed before. Times are given, in seconds of any clock.

    Parameters
    ----------
    threshold
        Number of failures in a row that open the breaker.
    first_s, longest_s
        Time until the first trial, and the longest between two trials; each trial doubles it.

    Examples
    --------
    >>> breaker = Breaker(threshold=2, first_s=1.0)
    >>> for _ in range(2):
    ...     breaker.failed(now=10.0)
    >>> breaker.allows(10.5), breaker.allows(11.0)
    (False, True)
    >>> breaker.tries(11.0)
    >>> breaker.allows(11.1), breaker.allows(12.0)  # one trial at a time
    (False, True)
    >>> breaker.succeeded()
    >>> breaker.allows(11.2)
    True
    """

    def __init__(self, threshold: int = 3, first_s: float = 0.25, longest_s: float = 1.0) -> None:
        self.threshold, self.first_s, self.longest_s = threshold, first_s, longest_s
        self.failures = 0
        self._until = 0.0
        self._wait = first_s

    @property
    def closed(self) -> bool:
        """Whether the peer is believed to work."""
        return self.failures < self.threshold

    def allows(self, now: float) -> bool:
        """Whether something may be tried."""
        return self.closed or now >= self._until

    def tries(self, now: float) -> None:
        """Something is tried."""
        if not self.closed:
            self._until = now + self._wait
            self._wait = min(self.longest_s, 2 * self._wait)

    def succeeded(self) -> None:
        """It worked: the breaker closes."""
        self.failures, self._wait = 0, self.first_s

    def failed(self, now: float) -> None:
        """It did not work."""
        self.failures += 1
        if self.failures == self.threshold:
            self._until = now + self._wait
