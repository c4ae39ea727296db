"""A wrapper that keeps the answers close to the cloud's: a floor under the thresholds, certified by audits."""

from dataclasses import replace

import numpy as np

from eex.policies.algorithms.one_sided import as_if
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Policy, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.parts import Awaited, Composite

FLOORS = np.linspace(0.0, 1.0, 101)
BETS = (np.arange(8) + 0.5) / 8
BLOCK = 1024
"""Numbers of audits that are looked up together."""
_PURPOSE = 3  # of draws


class Safe(Composite):
    r"""Keep the share of answers that differ from the cloud's below a bound, whatever the inner policy does.

    A few frames, drawn at random, are audited: sent to the cloud however sure the edge is. One whose edge exits
    disagree with the cloud at confidence :math:`w` (the highest, where several do) speaks against every floor
    :math:`\lambda \le w`: had thresholds been that low, it could have been answered differently. The risk
    :math:`R(\lambda) = P(w \ge \lambda)` bounds the disagreement of any thresholds that are at least :math:`\lambda` at
    every edge exit, however they are chosen, and falls with :math:`\lambda`. After :math:`n` audits, :math:`k` of them
    against :math:`\lambda`, the floor is certified if a bet against :math:`R(\lambda) \ge b` has made a gambler rich:

    .. math:: M = \frac18 \sum_{i=1}^{8} \Big(\frac{p_i}{b}\Big)^k \Big(\frac{1 - p_i}{1 - b}\Big)^{n-k}
              \ge \frac1\delta, \quad p_i = b\,\frac{i - 1/2}{8}

    If :math:`R(\lambda) \ge b` then :math:`M` ever reaches :math:`1/\delta` with probability :math:`\delta` at most
    (Ville). As :math:`k` falls with :math:`\lambda`, floors are certified from above, so a wrong one implies that the
    highest wrong one was: no correction for the number of floors or of looks. The thresholds inside are raised to the
    lowest certified floor. Until there is one, every frame is offloaded, and so is an audit; then frames are audited
    with probability :math:`\max(\text{audit}, \ln(1/\delta) / (b n))`. No labels are needed, and the cloud has the last
    word on what is sent to it.

    The policy inside learns what its own thresholds would have earned: nothing of what it would not have seen.

    **What is promised** (`promise`). On a stream that stands still: with probability 1 - delta, at no time more than a
    share `bound` of the answers is expected to differ from the cloud's, but for those that the cloud never answered
    (fallbacks). Replies must not come or fail to come depending on what is in the frame. After a drift, with
    `window=0`: nothing, until audits of the new stream outweigh the old ones. With a window, of the latest `window` to
    twice as many audits: at any one time, with probability 1 - delta, if the stream stood still since the oldest of
    them; so after a drift the promise holds again once at most `2 * window` more frames were audited.
    `drift@safe@…` withdraws the floor once drift is detected, and certifies anew.

    Parameters
    ----------
    inner
        The policy.
    bound
        Share of answers that may differ from the cloud's, in (0, 1).
    delta
        Probability that the promise fails, in (0, 1).
    audit
        Share of frames that is audited in the long run, in (0, 1].
    window
        Audits after which old ones begin to be dropped; 0 = never.
    seed
        As for every `Policy`.

    Attributes
    ----------
    floor
        The lowest certified threshold of each run, inf where there is none, (runs,).
    audits, against
        Audits with feedback, (runs, 2), and how many of those speak against each floor, (runs, 2, floors): in the
        last full window, and since.

    Raises
    ------
    ValueError
        If an option is outside its range.

    Examples
    --------
    >>> from eex.policies.algorithms.fixed import Fixed
    >>> policy = Safe(Fixed(p_tar=0.7), bound=0.05)
    >>> policy.choose(Context()).exit_at  # nothing is certified yet
    array([[[inf,  0.]]])

    References
    ----------
    Jazbec et al. (2024), Fast yet safe: early-exiting with risk control, arXiv 2405.20915. Waudby-Smith and Ramdas
    (2024), Estimating means of bounded random variables by betting.
    """

    state = ("audits", "against")
    parts = ("inner", "awaited")

    def __init__(
        self,
        inner: Policy,
        bound: float = 0.02,
        delta: float = 0.05,
        audit: float = 0.02,
        window: int = 0,
        seed: int = 0,
    ) -> None:
        self.inner, self.priced = inner, inner.priced
        self.awaited = Awaited(inner.runs, 2 * inner.exits + 2)  # chosen inside: exit_at, skip_below, audited
        super().__init__(inner.exits, inner.runs, seed)
        for name, value in (("bound", bound), ("delta", delta)):
            if not 0 < value < 1:
                raise EexError(f"{name} must lie between 0 and 1, got {value:g}")
        if not 0 < audit <= 1:
            raise EexError(f"audit must lie in (0, 1], got {audit:g}")
        if window < 0:
            raise EexError(f"window must be at least 0 audits, got {window}")
        self.bound, self.delta, self.audit, self.window = bound, delta, audit, window
        if hasattr(inner, "grid"):
            self.grid = inner.grid
        self.audits: Ints = np.zeros((self.runs, 2), dtype=np.int64)
        self.against: Ints = np.zeros((self.runs, 2, len(FLOORS)), dtype=np.int64)
        self._allowed: dict[int, Ints] = {}  # by block of numbers of audits

    @property
    def floor(self) -> Floats:
        """The lowest certified threshold of each run, inf where there is none, (runs,)."""
        allowed = self.allowed(self.audits.sum(axis=1))
        good = self.against.sum(axis=1) <= allowed[:, None]  # once true, true for all higher floors
        return np.where(good[:, -1], FLOORS[good.argmax(axis=1)], np.inf)

    def allowed(self, audits: Ints) -> Ints:
        """Most audits that may speak against a floor that is still certified, -1 if none is; shaped like `audits`."""
        block, place = np.divmod(audits, BLOCK)
        found = np.empty_like(audits)
        for number in set(block.ravel().tolist()):
            here = block == number
            if number not in self._allowed:
                self._allowed[number] = self._block(number * BLOCK + np.arange(BLOCK))
            found[here] = self._allowed[number][place[here]]
        return found

    def _block(self, audits: Ints) -> Ints:
        """`allowed`, by bisection: the gambler is the richer, the fewer audits speak against the floor."""
        p = self.bound * BETS
        win, lose = np.log1p(-p) - np.log1p(-self.bound), np.log(p) - np.log(self.bound)
        low, high = np.full(len(audits), -1), audits.copy()  # if all speak against it, he is not
        while (high - low > 1).any():
            middle = (low + high) // 2
            wealth = np.logaddexp.reduce(np.outer(audits - middle, win) + np.outer(middle, lose), axis=1)
            rich = wealth - np.log(len(p)) >= -np.log(self.delta)
            low, high = np.where(rich, middle, low), np.where(rich, high, middle)
        return low

    def promise(self) -> str:
        """What is promised now, in a sentence."""
        certain, share = f"with probability {1 - self.delta:g}", f"{100 * self.bound:g} %"
        certified = int(np.isfinite(self.floor).sum())
        if not self.window:
            still = "as long as the stream stands still as it has from its first frame; after a drift, nothing"
        else:
            still = f"if the stream stood still over the last {int(self.audits.sum(axis=1).max())} audits"
        where = "" if self.runs == 1 else f" ({certified} of {self.runs} runs have a floor)"
        if not certified:
            return "no floor is certified yet: every frame is offloaded, and no answer differs from the cloud's"
        return f"{certain}, at most {share} of the answers differ from the cloud's{where}, {still}"

    def choose(self, context: Context) -> Thresholds:
        """As the policy inside chooses, but nowhere below the floor; audits go to the cloud."""
        wanted = self.inner.choose(context)
        frames = context.numbers
        self.awaited.put(frames, np.concatenate([wanted.exit_at, wanted.skip_below, wanted.audited[..., None]], axis=2))
        floor, audits = self.floor, np.maximum(self.audits.sum(axis=1), 1)
        share = np.maximum(self.audit, -np.log(self.delta) / (self.bound * audits))
        u = uniform(self.seed, self.keys, frames, 1, _PURPOSE)[..., 0]
        audited = (u < share[:, None]) | np.isinf(floor)[:, None] | wanted.audited  # (runs, frames)
        exit_at = np.maximum(wanted.exit_at, np.where(audited, np.inf, floor[:, None])[..., None])
        exit_at[..., -1] = 0.0  # the cloud has the last word
        skip_below = np.where(audited[..., None], 0.0, wanted.skip_below)
        return replace(wanted, exit_at=exit_at, skip_below=skip_below, audited=audited)

    def learn(self, outcomes: Outcomes) -> None:
        """Count the audits, and let the policy inside learn what its own thresholds would have earned."""
        found, wanted = self.awaited.take(outcomes.run, outcomes.frame)
        exits = self.exits + 1
        own = as_if(outcomes, wanted[:, :exits], wanted[:, exits:-1], self.reward, self.exit_cost)
        # a frame so late that its choice is forgotten teaches nothing
        reward = np.where(found, own.reward, np.nan)
        self.inner.learn(replace(own, reward=reward, audited=outcomes.audited & (wanted[:, -1] > 0)))
        returned = outcomes.audited & ~np.isnan(outcomes.confidence[:, -1]) & ~np.isnan(outcomes.reward)
        rows = outcomes[returned]
        differs = rows.prediction[:, :-1] != rows.prediction[:, -1:]
        worst = np.where(differs, rows.confidence[:, :-1], -1.0).max(axis=1)
        np.add.at(self.audits[:, 1], rows.run, 1)
        np.add.at(self.against[:, 1], rows.run, worst[:, None] >= FLOORS)
        if self.window:
            full = self.audits[:, 1] >= self.window
            self.audits[full] = np.column_stack([self.audits[full, 1], np.zeros(full.sum(), dtype=np.int64)])
            self.against[full, 0], self.against[full, 1] = self.against[full, 1], 0
