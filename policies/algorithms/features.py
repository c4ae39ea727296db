"""Features: what is known of a frame before inference, named and bounded, for policies and environments alike."""

import numpy as np

from eex.policies.algorithms.arms import turns
from eex.policies.algorithms.options import at_least, share
from eex.policies.core.base import Arrays, Context, Floats, Ints, Outcomes
from eex.policies.core.errors import EexError

EXPERTS = 4
USUAL_MS, USUAL_QUEUE = 100.0, 32.0  # that are squashed to 1/2


class Features(Arrays):
    r"""What is known before the backbone runs, as numbers in [0, 1], for each run and frame.

    ==============  ====================================================================  ==============
    name            what it is                                                            until known
    ==============  ====================================================================  ==============
    distortion_k    the distortion classifier's probability of expert k                   0
    confidence_i    recent confidence at edge exit i, of the frames that visited it       1/2
    left_i          recent share of frames that left at edge exit i                       0
    gain            recent :math:`\max(0, \Delta C)` of frames whose cloud reply came     0
    round_trip      :math:`x / (x + 100)` for a round trip of x ms                        1/2
    queue           :math:`x / (x + 32)` for x offloaded frames whose reply is awaited    0
    overhead        price of offloading                                                   given
    ==============  ====================================================================  ==============

    Recent values are exponential means over the frames with feedback, in the order in which it comes; pending
    frames are not included. Frames whose reward is NaN change nothing.

    Parameters
    ----------
    exits
        Edge exits.
    runs
        Independent streams side by side.
    experts
        Columns for the distortion classifier, at least 1. Columns beyond its experts are 0; experts beyond the columns
        are added to the last.
    rate
        Weight of the newest frame in recent values, in (0, 1].

    Attributes
    ----------
    names
        Names of the features, in order.
    recent
        confidence_i, left_i and gain, (runs, 2 * exits + 1).

    Raises
    ------
    ValueError
        If exits, runs, experts or rate is outside its range.

    Examples
    --------
    >>> features = Features(exits=1, experts=2)
    >>> features.names
    ('distortion_1', 'distortion_2', 'confidence_1', 'left_1', 'gain', 'round_trip', 'queue', 'overhead')
    >>> features.vector(Context(frames=1, overhead=0.1, link_ms=300.0))
    array([[[0.  , 0.  , 0.5 , 0.  , 0.  , 0.75, 0.  , 0.1 ]]])
    """

    state = ("recent",)

    def __init__(self, exits: int = 1, runs: int = 1, experts: int = EXPERTS, rate: float = 0.05) -> None:
        if exits < 1 or runs < 1:
            raise EexError(f"exits and runs must be at least 1, got {exits} and {runs}")
        at_least("experts", experts, 1)
        share("rate", rate)
        self.exits, self.runs, self.experts, self.rate = exits, runs, experts, rate
        self.names = (
            *(f"distortion_{k + 1}" for k in range(experts)),
            *(f"{what}_{i + 1}" for what in ("confidence", "left") for i in range(exits)),
            *("gain", "round_trip", "queue", "overhead"),
        )
        self.recent: Floats = np.zeros((runs, 2 * exits + 1))
        self.recent[:, :exits] = 0.5

    def update(self, outcomes: Outcomes) -> None:
        """Take in finished frames."""
        returned = outcomes[~np.isnan(outcomes.reward)]
        edge, cloud = returned.confidence[:, :-1], returned.confidence[:, -1]
        visited = np.maximum((~np.isnan(edge)).sum(axis=1), 1)
        gain = np.maximum(0.0, cloud - edge[np.arange(len(edge)), visited - 1])  # NaN where no reply came
        left = (returned.exit[:, None] == np.arange(self.exits)) & ~returned.offloaded[:, None]
        seen = np.column_stack([edge, left, gain])
        for rows in turns(returned.run) if len(returned) else ():
            before = self.recent[returned.run[rows]]
            change = self.rate * (seen[rows] - before)
            self.recent[returned.run[rows]] = before + np.where(np.isnan(change), 0.0, change)

    def vector(self, context: Context) -> Floats:
        """The features of the next frames, (runs, frames, features)."""
        x: Floats = np.zeros((self.runs, context.frames, len(self.names)))
        if context.distortion is not None:
            known = min(context.distortion.shape[2], self.experts)
            x[..., :known] = context.distortion[..., :known]
            x[..., known - 1] += context.distortion[..., known:].sum(axis=2)
        x[..., self.experts : -3] = self.recent[:, None, :]
        x[..., -3] = _per_run(_squashed(context.link_ms, USUAL_MS))
        x[..., -2] = _per_run(_squashed(context.queue, USUAL_QUEUE))
        x[..., -1] = _per_run(context.overhead)
        return np.clip(x, 0.0, 1.0)


def _squashed(value: float | Floats | Ints, usual: float) -> Floats:
    """From [0, inf] to [0, 1]; `usual`, or NaN, to 1/2."""
    x = np.asarray(value, dtype=float)
    return 1 - usual / (np.where(np.isnan(x), usual, np.maximum(x, 0.0)) + usual)


def _per_run(value: float | Floats) -> Floats:
    """One number, or one per run as a column."""
    x = np.asarray(value, dtype=float)
    return x if x.ndim == 0 else x[:, None]
