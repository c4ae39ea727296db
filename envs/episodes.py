"""The core of the environments, on arrays: many episodes over one trace side by side, a step of all at a time."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

from eex.envs.playlist import EpisodeOrder, Playlist
from eex.policies.algorithms.agent import ActionKind, observation_names
from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.features import EXPERTS, USUAL_MS, USUAL_QUEUE
from eex.policies.core.base import Bools, ExitCost, Floats, Ints, Reward
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import check_exit_cost
from eex.policies.core.link import SimulatedLink, parse_link
from eex.policies.core.options import check_word
from eex.policies.core.reward import way_cost
from eex.policies.core.routing import answer
from eex.policies.core.trace import Trace, read_trace
from eex.policies.core.world import Step, step

RewardKind = Literal["adaee", "utility", "accuracy"]
_OVERHEAD = 10  # purpose of draws
Late = tuple[Ints, Floats, Floats, Floats, Floats]  # envs, confidences, gains (NaN: lost), thresholds, milliseconds
_OF_EACH = ("seeds", "overhead", "recent", "previous", "queue", "link_ms", "row", "played", "exit", "chosen")


class ResetNeeded(EexError, gymnasium.error.ResetNeeded):
    """A step before the first reset, or after the end of an episode."""


class Episodes:
    r"""Episodes over a trace, in which an agent chooses thresholds; all environments are at the same round.

    The numbers of an episode depend on its environment's seed and on how many the seed has given before, not on the
    other environments.

    **Action.** "grid": the number of a threshold in the grid, which holds at every exit. "box": thresholds in [0, 1],
    one per edge exit. It holds for the next `window` frames. A frame leaves at the first edge exit whose confidence
    reaches the threshold, and is offloaded if none does, as `eex.policies.core.routing` has it.

    **Observation.** The features of `eex.policies.algorithms.features.Features`, which documents and bounds them,
    of the next frame, then the threshold of the last frame with feedback (`previous`; `previous_i` at edge exit i), 0
    before there is one. All lie in [0, 1]; `names` has their names.

    **Reward**, summed over the window. "adaee": AdaEE's, :math:`\max(0, \Delta C) - o` for an offloaded frame and
    :math:`-o` for one whose reply never came, else 0. "utility": that and the
    confidence at the last edge exit that it visited. "accuracy": 1 for a right answer, less :math:`o` for an
    offloaded frame. Both less `exit_cost` for each further edge exit. The reward is what the frame earns in the end,
    the observation what is known by now: of an offloaded frame, nothing before its reply has come over the link.

    **Episode end.** Truncated after `rounds` frames; never terminated.

    Parameters
    ----------
    envs
        Environments side by side.
    trace
        A trace, or a file of one.
    action, grid, window, reward, exit_cost
        See above.
    order, rounds, switch
        See `eex.envs.playlist.Playlist`.
    overhead
        Price of offloading a frame, or lowest and highest of what each episode draws evenly.
    link
        Round trips, as a `SimulatedLink` or text for `parse_link`; from its beginning in each episode. By default
        replies come at once.
    experts, rate
        As for `Features`.

    Raises
    ------
    EexError
        If an option is out of range or does not fit the trace.
    """

    def __init__(
        self,
        envs: int,
        trace: Trace | str | Path,
        *,
        action: ActionKind = "grid",
        grid: Sequence[float] = GRID,
        window: int = 1,
        reward: RewardKind = "adaee",
        order: EpisodeOrder = "in-order",
        rounds: int = 0,
        switch: tuple[int, int] = (500, 3000),
        overhead: float | tuple[float, float] = 0.1,
        exit_cost: ExitCost = 0.0,
        link: SimulatedLink | str | None = None,
        experts: int = EXPERTS,
        rate: float = 0.05,
    ) -> None:
        trace = trace if isinstance(trace, Trace) else read_trace(Path(trace))
        self.envs, self.exits, self.window, self.rate = envs, trace.edge_exits, window, rate
        self.playlist = Playlist(trace, order, rounds, switch)
        self.rounds = self.playlist.rounds
        self.grid = np.asarray(grid, dtype=float)
        self.prices = tuple(np.broadcast_to(np.asarray(overhead, dtype=float), 2).tolist())
        self.link = parse_link(link) if isinstance(link, str) else link
        self.action, self.reward = action, reward
        self.exit_cost = exit_cost if np.ndim(exit_cost) == 0 else np.asarray(exit_cost, dtype=float)
        self.kind: Reward = "utility" if reward == "utility" else "adaee"
        _check(self, trace)
        self.names = observation_names(self.exits, action, experts, rate)
        self.actions = 1 if action == "grid" else self.exits  # thresholds that are chosen
        self.experts = experts
        self.confidence = np.ascontiguousarray(trace.confidence.T)  # (exits + 1, frames)
        self.right = trace.correct  # (frames, exits + 1)
        final = np.full(len(trace), self.exits)  # and where the final exit is not sure enough to answer:
        surest = answer(trace.confidence, trace.prediction, final, np.full(len(trace), np.inf))
        self.right_unsure = (surest == trace.label) & (trace.label >= 0)
        self.distortion = _distortion(trace, experts)
        self.seeds: Ints = np.arange(envs)
        self.episode, self.t = -1, 0

    @property
    def over(self) -> bool:
        """Whether the episodes have come to their end."""
        return self.t >= self.rounds

    def reset(self, seeds: Ints | None = None) -> NDArray[np.float32]:
        """Begin the next episode in every environment, or with seeds (envs,) the first; the observations."""
        return self.begin(self.seeds, self.episode + 1) if seeds is None else self.begin(seeds, 0)

    def begin(self, seeds: Ints, episode: int) -> NDArray[np.float32]:
        """Begin an episode of each seed (envs,), counted from 0; the observations. There are as many envs as seeds."""
        self.seeds, self.episode, self.t = np.asarray(seeds, dtype=np.int64), episode, 0
        self.envs = len(self.seeds)
        low, high = self.prices
        u = uniform(0, self.seeds, np.array([self.episode]), 1, _OVERHEAD)[:, 0, 0]
        self.overhead = low + (high - low) * u
        self.recent = np.zeros((2 * self.exits + 1, self.envs))  # as in Features, one column an environment
        self.recent[: self.exits] = 0.5
        self.previous = np.zeros((self.actions, self.envs))
        self.queue = np.zeros(self.envs)
        self.link_ms = np.full(self.envs, np.nan)
        self.late: dict[int, list[Late]] = defaultdict(list)  # by the round before which it is known
        self.playlist.begin(self.seeds, self.episode)
        self.row = self.played = self.playlist.next()  # of the trace: to be played next, and played last
        self.exit: Ints = np.full(self.envs, -1)
        self.chosen: Floats = np.zeros((self.exits, self.envs))
        return self.observe()

    def apart(self) -> Self:
        """Episodes with the same options, to be begun by themselves."""
        other = copy.copy(self)
        other.playlist = copy.copy(self.playlist)
        return other

    def keep(self, envs: Ints) -> None:
        """Go on with some of the environments only, which `envs` numbers in rising order."""
        for name in _OF_EACH:
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[..., envs]))
        self.envs = len(envs)
        self.playlist.keep(envs)
        for when, pieces in self.late.items():
            rows = [np.isin(piece[0], envs) for piece in pieces]
            self.late[when] = [
                (np.searchsorted(envs, who[on]), edge[:, on], gain[on], threshold[:, on], took[on])
                for (who, edge, gain, threshold, took), on in zip(pieces, rows, strict=True)
            ]

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Floats, bool]:
        """Play the next window: observations, rewards (envs,), and whether the episodes are over.

        Parameters
        ----------
        action
            Arms (envs,), or thresholds (envs, exits), of the action space: `eex.envs.threshold.legal` sees to that.

        Raises
        ------
        ResetNeeded
            If no episode has begun, or the episodes are over.
        """
        if self.episode < 0:
            raise ResetNeeded("no episode has begun: call reset before step")
        if self.over:
            raise ResetNeeded(f"the episode is over after {self.rounds} frames: call reset before the next step")
        threshold = self.chosen = self._threshold(action)
        earned = self._frame(threshold)
        for _ in range(min(self.window - 1, self.rounds - self.t)):
            earned = earned + self._frame(threshold)
        return self.observe(), earned, self.over

    def observe(self) -> NDArray[np.float32]:
        """What is known before the next frame, (envs, len(names))."""
        x = np.empty((self.envs, len(self.names)), dtype=np.float32)
        at = self.experts
        x[:, :at] = self.distortion.take(self.row, axis=0)
        x[:, at : at + len(self.recent)] = self.recent.T
        at += len(self.recent)
        if self.link is None:
            x[:, at], x[:, at + 1] = 0.5, 0.0
        else:
            usual = np.where(np.isnan(self.link_ms), USUAL_MS, self.link_ms)
            x[:, at] = 1 - USUAL_MS / (usual + USUAL_MS)
            x[:, at + 1] = 1 - USUAL_QUEUE / (self.queue + USUAL_QUEUE)
        x[:, at + 2] = self.overhead
        x[:, at + 3 :] = self.previous.T
        return x

    def _threshold(self, action: NDArray[Any]) -> Floats:
        """The thresholds that the action stands for, (exits, envs)."""
        if self.action == "grid":
            threshold: Floats = self.grid[action][None].repeat(self.exits, axis=0)
            return threshold
        return np.ascontiguousarray(action.T, dtype=float)

    def _frame(self, threshold: Floats) -> Floats:
        """Play the next frame of every environment, and learn what is due; what the frames earn, (envs,)."""
        row = self.row
        confidence = self.confidence.take(row, axis=1).T
        took, lost = (None, None) if self.link is None else self._round_trip(self.link)
        stepped = step(confidence, threshold.T, None, self.overhead, self.exit_cost, kind=self.kind, lost=lost)
        if took is not None:
            self._send(stepped, confidence, threshold, took)
        self.t += 1
        for late in self.late.pop(self.t, ()):
            self._learn_late(*late)
        self._learn_now(stepped, confidence, threshold)
        self.played, self.row = row, self.playlist.next()
        self.exit = stepped.exit if lost is None else np.where(stepped.offloaded, self.exits, stepped.exit)
        if self.reward == "accuracy":
            return self._accuracy(row, stepped, confidence[:, -1], threshold[-1])
        return stepped.reward

    def _accuracy(self, row: Ints, stepped: Step, cloud: Floats, final_exit_at: Floats) -> Floats:
        """1 for each right answer, less what the frame cost, (envs,)."""
        unsure = stepped.replied & (cloud < final_exit_at)
        right = np.where(unsure, self.right_unsure[row], self.right[row, stepped.exit])
        further: Ints = stepped.visited - 1
        earned: Floats = right - self.overhead * stepped.offloaded - way_cost(self.exit_cost, further)
        return earned

    def _round_trip(self, link: SimulatedLink) -> tuple[Floats, Bools]:
        """How long offloading takes now, and whether it would be in vain, both (envs,)."""
        keys = self.seeds if link.jitter_ms else self.seeds[:1]
        took, lost = link.round_trip_ms(self.t, keys, self.episode)
        return np.broadcast_to(took, self.envs), np.broadcast_to(lost, self.envs)

    def _send(self, stepped: Step, confidence: Floats, threshold: Floats, took: Floats) -> None:
        """Put offloaded frames on the link."""
        link: Any = self.link
        sent = np.flatnonzero(stepped.offloaded)
        due = self.t + 1 + (took[sent] / link.frame_ms).astype(np.int64)
        for when in set(due.tolist()):
            who = sent[due == when]
            gain = np.where(stepped.replied[who], stepped.gain[who], np.nan)
            self.late[when].append((who, confidence[who, :-1].T, gain, threshold[: self.actions, who], took[who]))
        self.queue[sent] += 1

    def _learn_late(self, who: Ints, edge: Floats, gain: Floats, threshold: Floats, took: Floats) -> None:
        """Note offloaded frames whose reply came, or will never come."""
        known = np.vstack([edge, np.zeros_like(edge), gain])
        before = self.recent[:, who]
        change = self.rate * (known - before)
        self.recent[:, who] = before + np.where(np.isnan(change), 0.0, change)
        self.previous[:, who] = threshold
        self.queue[who] -= 1
        usual = self.link_ms[who]
        self.link_ms[who] = np.where(np.isnan(usual), took, 0.8 * usual + 0.2 * took)

    def _learn_now(self, stepped: Step, confidence: Floats, threshold: Floats) -> None:
        """Note frames that are known at once: those answered on the edge, and without a link all."""
        exits, recent = self.exits, self.recent
        known = ~stepped.offloaded if self.link is not None else np.ones(self.envs, dtype=bool)
        weight = self.rate * known
        for e in range(exits):
            visited = weight if e == 0 else weight * (stepped.visited > e)
            recent[e] += visited * (confidence[:, e] - recent[e])
            recent[exits + e] += weight * ((stepped.exit == e) - recent[exits + e])
        if self.link is None:
            recent[-1] += self.rate * stepped.offloaded * (stepped.gain - recent[-1])
        np.copyto(self.previous, threshold[: self.actions], where=known)


def _distortion(trace: Trace, experts: int) -> Floats:
    """The distortion classifier's columns as `Features` has them, (frames, experts)."""
    columns = np.zeros((len(trace), experts))
    if trace.probabilities is not None:
        known = min(trace.probabilities.shape[1], experts)
        columns[:, :known] = trace.probabilities[:, :known]
        columns[:, known - 1] += trace.probabilities[:, known:].sum(axis=1)
    return np.minimum(columns, 1.0)


def _check(episodes: Episodes, trace: Trace) -> None:
    """Raise `EexError` if an option is out of range or does not fit the trace."""
    if episodes.envs < 1 or episodes.window < 1:
        raise EexError(f"envs and window must be at least 1, got {episodes.envs} and {episodes.window}")
    check_word("action", episodes.action, ActionKind)
    check_word("reward", episodes.reward, RewardKind)
    if not episodes.grid.size or not ((episodes.grid >= 0) & (episodes.grid <= 1)).all():
        raise EexError(f"grid must hold thresholds in [0, 1], got {episodes.grid.tolist()}")
    low, high = episodes.prices
    if not 0 <= low <= high <= 1:
        raise EexError(f"overhead must be a number in [0, 1], or lowest and highest, got {low:g} and {high:g}")
    check_exit_cost(episodes.exit_cost, episodes.exits)
    if episodes.reward == "accuracy":
        check_labels(trace)


def check_labels(trace: Trace) -> None:
    """Raise `EexError` if a frame has no label, which the reward "accuracy" takes."""
    if without := int((trace.label < 0).sum()):
        raise EexError(f"reward 'accuracy' needs a trace with labels: {without} of {len(trace)} frames have none")
