"""An agent trained by reinforcement, at work in the stream."""

from pathlib import Path

import numpy as np

from eex.policies.algorithms.agent import Agent, load_agent
from eex.policies.algorithms.features import Features
from eex.policies.core.base import Context, Floats, Ints, Outcomes, Thresholds
from eex.policies.core.errors import EexError
from eex.policies.core.parts import Composite

SHIPPED = Path(__file__).parents[1] / "shipped"
DIGITS = 4
"""Digits to which thresholds of "box" agents are rounded, so that rounding errors of batched products do not show."""


class RL(Composite):
    r"""Play the thresholds of an agent trained by reinforcement learning in `eex/Threshold-v0`.

    A small network :math:`f` sees what is known before inference: the features :math:`x` of `Features` and the
    threshold :math:`p` of the latest frame with feedback. Play

    .. math:: \tau = g_a, \quad a = \arg\max_k f_k(x, p)

    for an agent with a grid :math:`g`, at every exit; or :math:`\tau_i = f_i(x, p)` at edge exit :math:`i`. Nothing is
    drawn. The agent does not keep learning here: its weights are fixed, and only its features follow the stream.
    (On-policy algorithms would need the actions drawn at random, and value-based ones a replay memory and torch in the
    stream.)

    An agent with an LSTM (recurrent-ppo), or of stacked observations, also sees what it remembers of the frames it
    decided for. How far back that reaches is counted in decisions, so it decides as in training: for the first frame of
    each window, and the decision holds for the others. Other agents decide for each frame.

    An agent plays for one number of edge exits. Those shipped, for 1, 2 and 3, were trained on the shipped model; they
    know nothing of another model's confidences, so train one for it with eex-train-rl.

    Parameters
    ----------
    model
        Folder of an agent that eex-train-rl or `eex.envs.export.export_agent` exported, safetensors and a JSON card; by
        default the shipped one.
    exits, runs, seed
        As for every `Policy`.

    Attributes
    ----------
    previous
        Thresholds of the latest frame with feedback, (runs, 1 or exits).
    memory, held, turn
        Of an agent that remembers: the LSTM's hidden state and cell, (runs, 2, units), or the latest observations,
        (runs, stack - 1, inputs); what was decided last, an arm (runs, 1) or thresholds (runs, exits); how many frames
        of the window that was for are over, (runs,).

    Raises
    ------
    ValueError
        If the agent's files are missing or damaged, or it was trained for another number of edge exits.

    References
    ----------
    Schulman, Wolski, Dhariwal, Radford and Klimov (2017), Proximal policy optimization algorithms. Hausknecht and
    Stone (2015), Deep recurrent Q-learning for partially observable MDPs.
    """

    state: tuple[str, ...] = ("previous",)
    parts = ("features",)
    joint = True

    def __init__(self, model: str = "", exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        self.features = Features(exits, runs)  # a part, which must be there first
        super().__init__(exits, runs, seed)
        self.agent = _agent(model, exits)
        card = self.agent.card
        self.features = Features(exits, runs, card.experts, card.rate)
        if card.action == "grid":
            self.grid = np.array(card.grid)
        width = 1 if card.action == "grid" else exits
        self.previous: Floats = np.zeros((runs, width))
        if card.remembers:
            self.state = ("previous", "memory", "held", "turn")
            self.memory: Floats = np.zeros((runs, *card.memory))
            self.held: Floats = np.zeros((runs, width))
            self.turn: Ints = np.zeros(runs, dtype=np.int64)

    def choose(self, context: Context) -> Thresholds:
        """Thresholds for the next frames, each from its own features or from those of the first of its window."""
        x = self.features.vector(context)
        previous = np.broadcast_to(self.previous[:, None], (*x.shape[:2], self.previous.shape[1]))
        seen = np.concatenate([x, previous], axis=2)
        decided = self._by_window(seen) if self.agent.card.remembers else self._decided(self.agent(seen))
        if self.agent.card.action == "grid":
            arm = decided[..., 0].astype(np.int64)
            return self.same_at_every_exit(self.grid[arm], arm)
        chosen = self.same_at_every_exit(decided[..., -1], np.zeros(x.shape[:2], dtype=np.int64))
        chosen.exit_at[..., :-1] = decided
        return chosen

    def learn(self, outcomes: Outcomes) -> None:
        """Follow the stream: its features, and the thresholds of the latest frame with feedback."""
        self.features.update(outcomes)
        returned = ~np.isnan(outcomes.reward)
        width = self.previous.shape[1]
        self.previous[outcomes.run[returned]] = np.minimum(outcomes.exit_at[returned, :width], 1.0)  # of many, the last

    def _decided(self, output: Floats) -> Floats:
        """Arms (..., 1) or thresholds (..., exits) from the network's outputs."""
        if self.agent.card.action == "grid":
            return np.asarray(output.argmax(axis=-1)[..., None], dtype=float)
        return np.clip(np.round(output, DIGITS), 0.0, 1.0)

    def _by_window(self, seen: Floats) -> Floats:
        """What is decided for frames (runs, frames, inputs) at the first of each window, and held for the others."""
        frame, window = np.arange(seen.shape[1]), self.agent.card.window
        decided: Floats = np.empty((*seen.shape[:2], self.held.shape[1]))
        turns = self.turn.copy()
        for turn in np.unique(turns):  # of all runs the same, unless they are of streams that began at other times
            runs = np.flatnonzero(turns == turn)
            first = -turn % window  # frame that begins a window
            output, self.memory[runs] = self.agent.remember(seen[runs, first::window], self.memory[runs])
            decisions = np.concatenate([self.held[runs, None], self._decided(output)], axis=1)
            decided[runs] = decisions[:, (frame - first) // window + 1]
            self.held[runs] = decisions[:, -1]
            self.turn[runs] = (turn + len(frame)) % window
        return decided


def _agent(model: str, exits: int) -> Agent:
    folder = Path(model) if model else SHIPPED / f"rl-{exits}"
    if not model and not folder.exists():
        known = sorted(path.name.removeprefix("rl-") for path in SHIPPED.glob("rl-*"))
        raise EexError(
            f"agents are shipped for {', '.join(known)} edge exits, found {exits}; train one with eex-train-rl and "
            "name it (model=FOLDER)"
        )
    agent = load_agent(folder)
    if agent.card.exits != exits:
        raise EexError(f"{folder}: the agent was trained for {agent.card.exits} edge exits, found {exits}")
    return agent
