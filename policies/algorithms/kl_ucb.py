"""KL-UCB: the highest mean that an arm's rewards do not rule out, by the divergence of Bernoulli distributions."""

from collections.abc import Sequence

import numpy as np

from eex.policies.algorithms.arms import GRID, Arms, scaled
from eex.policies.algorithms.options import not_negative
from eex.policies.core.base import Context, Floats

EDGE = 1e-9
"""How near means come to 0 and 1, where the divergence is infinite."""


class KLUCB(Arms):
    r"""UCB with the bound that is tight for rewards of 0 and 1: never above 1, narrow near 0 and 1.

    Of rewards scaled to [0, 1] (`scaled`), let :math:`\hat\mu_a` be the mean on arm :math:`a`, played :math:`n_a`
    times in :math:`t` rounds with feedback. Play each arm once, then

    .. math:: \arg\max_a \; \max \{ q : n_a \, d(\hat\mu_a, q) \le \ln t + c \ln \ln t \}, \qquad
        d(p, q) = p \ln \frac pq + (1 - p) \ln \frac{1 - p}{1 - q}

    As in `UCB`, :math:`n_a` includes frames whose feedback is pending.

    Parameters
    ----------
    grid
        The arms: confidence thresholds in [0, 1], shape (arms,).
    c
        Weight of ln ln t; the paper proves its bound for 3 and recommends 0.
    exits, runs, seed
        As for every `Policy`; the edge exits share the arm's threshold, and nothing is drawn.

    Raises
    ------
    ValueError
        If the grid is empty or leaves [0, 1], or c is negative or infinite.

    Examples
    --------
    >>> policy = KLUCB([0.7, 0.8, 0.9])
    >>> [int(policy.choose(Context()).arm[0, 0]) for _ in range(5)]  # no reply yet: every arm in turn
    [0, 1, 2, 0, 1]

    References
    ----------
    Garivier and Cappé (2011), The KL-UCB algorithm for bounded stochastic bandits and beyond, COLT, Algorithm 1.
    """

    def __init__(
        self, grid: Sequence[float] = GRID, c: float = 0.0, exits: int = 1, runs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(grid, exits, runs, seed)
        not_negative("c", c)
        self.c = c

    def index(self, played: Floats, context: Context) -> Floats:
        """The formula above."""
        cost = float(np.mean(context.exit_cost)) * (self.exits - 1) if self.exits > 1 else 0.0
        p = scaled(self.mean(), np.reshape(context.overhead, (-1, 1, 1)), self.reward, cost)
        log_t = self.log_t()
        return upper(p, (log_t + self.c * np.log(np.maximum(log_t, 1))) / played)


def upper(p: Floats, divergence: Floats, steps: int = 6) -> Floats:
    """The largest q with d(p, q) at most `divergence`, which is above 0: by Newton's method, from above.

    d rises with q and is convex there, so that the steps approach q from above. They start from the lesser of two
    bounds: Pinsker's, d >= 2 (q - p)^2, and d >= p ln p + (1 - p) ln((1 - p) / (1 - q)), which is tight near 1;
    after six they are within 1e-6 of it, far less unless p is close to 1.
    """
    p = np.clip(p, EDGE, 1 - EDGE)
    log_p, log_rest = np.log(p), np.log1p(-p)
    entropy = p * log_p + (1 - p) * log_rest
    start = np.minimum(p + np.sqrt(divergence / 2), 1 - (1 - p) * np.exp((p * log_p - divergence) / (1 - p)))
    highest = 1 - EDGE**1.5
    q: Floats = np.minimum(start, highest)
    for _ in range(steps):
        excess = entropy - p * np.log(q) - (1 - p) * np.log1p(-q) - divergence
        q = np.minimum(q - excess * q * (1 - q) / (q - p), highest)
    return q
