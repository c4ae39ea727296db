"""Agents trained by reinforcement: a small network's weights and a JSON card, checked and played without torch."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.algorithms.features import EXPERTS, Features
from eex.policies.core.base import Floats
from eex.policies.core.errors import EexError
from eex.policies.core.files import parse_json, replacing

CARD, WEIGHTS = "card.json", "weights.safetensors"
FORMAT, RECURRENT, WRAPPED = "eex-agent-1", "eex-agent-2", "eex-agent-3"
"""Of cards without and with an LSTM, and of those whose inputs are scaled one by one or stacked: an eex that knows only
the former refuses the latter by name."""
ActionKind = Literal["grid", "box"]
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}

LIMITS = {"exits": (1, 1000), "experts": (1, 1000), "lstm": (0, 100_000), "window": (1, 1_000_000), "stack": (1, 1000)}
"""Smallest and largest value of each count on a card."""


@dataclass(frozen=True)
class AgentCard:
    """What an agent's weights are.

    Attributes
    ----------
    exits
        Edge exits it was trained for.
    observation
        Names of its inputs, in order: `observation_names`. All lie in [0, 1].
    normalisation
        [mean, scale]: its network takes (observation - mean) / scale.
    means, scales, clip
        As VecNormalize has it: instead of an observation x, (x - mean) / scale with a mean and a scale of each, clipped
        to ±clip if that is not 0. Empty for none.
    stack
        Its network takes the latest so many observations, the oldest first; zeros before there are so many.
    experts, rate
        Of the `Features` it observes.
    action
        "grid": its outputs are values of the grid's thresholds, of which the highest is played. "box": they are
        thresholds, one per edge exit, clipped to [0, 1].
    grid
        Thresholds; empty for "box".
    layers
        Width of each layer, from inputs, or the LSTM's units, to outputs.
    activation
        After all layers but the last: "tanh" or "relu".
    squashed
        The thresholds of "box" are (1 + tanh(outputs)) / 2, not the outputs themselves.
    lstm
        Units of the LSTM between the inputs and the layers; 0 without one.
    window
        Frames from one observation that is remembered to the next, as in training; a decision holds for so many. 1 for
        agents that remember none.
    sha256
        Of the weights file.
    trained, evaluated
        How, on what, and how it did.
    """

    format: str
    name: str
    algorithm: str
    exits: int
    observation: tuple[str, ...]
    normalisation: tuple[float, float]
    experts: int
    rate: float
    action: ActionKind
    grid: tuple[float, ...]
    layers: tuple[int, ...]
    activation: str
    squashed: bool = False
    lstm: int = 0
    window: int = 1
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    clip: float = 0.0
    stack: int = 1
    sha256: str = ""
    trained: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)

    @property
    def remembers(self) -> bool:
        """Whether what it plays depends on earlier observations."""
        return self.lstm > 0 or self.stack > 1

    @property
    def memory(self) -> tuple[int, int]:
        """Shape of what it remembers: the LSTM's h and c, or the observations before the latest."""
        return (2, self.lstm) if self.lstm else (self.stack - 1, len(self.observation))


@dataclass(frozen=True)
class Agent:
    """A card and the layers it speaks of, each a matrix (out, in) and a bias (out,).

    Attributes
    ----------
    lstm
        Matrix (4 * units, inputs + units) and bias (4 * units,) of the LSTM in front of them; None without one. Rows
        are in PyTorch's order: input gate, forget gate, candidate, output gate.
    """

    card: AgentCard
    layers: tuple[tuple[Floats, Floats], ...]
    lstm: tuple[Floats, Floats] | None = None

    def __call__(self, x: Floats) -> Floats:
        """The network's outputs (..., outputs) for observations (..., inputs), of an agent that remembers none."""
        return self._through_layers(self._normalised(x))

    def remember(self, x: Floats, memory: Floats) -> tuple[Floats, Floats]:
        r"""Outputs for observations one after another, and what is then remembered: observations, or the LSTM's state.

        Of observation x, with the hidden state h and the cell c that it left, the layers see the new h:

        .. math:: (i, f, g, o) = W [x, h] + b, \quad
            c \leftarrow \sigma(f) c + \sigma(i) \tanh g, \quad h \leftarrow \sigma(o) \tanh c

        Each run and each observation is multiplied by itself, so the memory does not depend, not even by rounding, on
        how many there are at once.

        Parameters
        ----------
        x
            (runs, observations, inputs).
        memory
            h and c, (runs, 2, units), or the normalised observations before these, (runs, stack - 1, inputs); 0 before
            the first observation.

        Returns
        -------
        outputs, memory
            (runs, observations, outputs), and as it was given.

        References
        ----------
        Hochreiter and Schmidhuber (1997), Long short-term memory, Neural Computation 9. Gers, Schmidhuber and Cummins
        (2000), Learning to forget, Neural Computation 12.
        """
        if self.card.stack > 1:
            known = np.concatenate([memory, self._normalised(x)], axis=1)
            stacked = np.stack([known[:, k : k + x.shape[1]] for k in range(self.card.stack)], axis=2)
            flat = stacked.reshape(*x.shape[:2], self.card.stack * x.shape[2])
            return self._through_layers(flat), known[:, x.shape[1] :]
        matrix, bias = self._halved
        units, inputs = self.card.lstm, x.shape[2]
        of_x = self._normalised(x)[:, :, None] @ matrix[:inputs] + bias  # (runs, observations, 1, 4 * units)
        of_hidden = matrix[inputs:]
        hidden, cell = memory[:, :1], memory[:, 1:]  # (runs, 1, units)
        seen: Floats = np.empty((*x.shape[:2], units))
        for k in range(x.shape[1]):
            tanh = np.tanh(of_x[:, k] + hidden @ of_hidden)  # (runs, 1, 4 * units)
            sigmoid = 0.5 * tanh + 0.5
            cell = sigmoid[..., units : 2 * units] * cell + sigmoid[..., :units] * tanh[..., 2 * units : 3 * units]
            hidden = sigmoid[..., 3 * units :] * np.tanh(cell)
            seen[:, k] = hidden[:, 0]
        return self._through_layers(seen), np.concatenate([hidden, cell], axis=1)

    @cached_property
    def _halved(self) -> tuple[Floats, Floats]:
        """The LSTM's matrix, turned, and bias; halved for the gates, as sigmoid(x) = (1 + tanh(x / 2)) / 2."""
        if self.lstm is None:
            raise ValueError("an agent without an LSTM remembers nothing")
        half = np.repeat([0.5, 0.5, 1.0, 0.5], self.card.lstm)
        return (self.lstm[0] * half[:, None]).T, self.lstm[1] * half

    def _normalised(self, x: Floats) -> Floats:
        if self.card.means:
            x = (x - self.card.means) / self.card.scales
        if self.card.clip:
            x = np.clip(x, -self.card.clip, self.card.clip)
        mean, scale = self.card.normalisation
        return (x - mean) / scale

    def _through_layers(self, x: Floats) -> Floats:
        activate = ACTIVATIONS[self.card.activation]
        for k, (matrix, bias) in enumerate(self.layers):
            x = (activate(x) if k else x) @ matrix.T + bias
        return (1 + np.tanh(x)) / 2 if self.card.squashed else x


def observation_names(exits: int, action: ActionKind, experts: int = EXPERTS, rate: float = 0.05) -> tuple[str, ...]:
    """What an agent observes: the features, then the threshold of the last frame with feedback, one per exit for "box".

    Examples
    --------
    >>> observation_names(exits=1, action="grid", experts=1)
    ('distortion_1', 'confidence_1', 'left_1', 'gain', 'round_trip', 'queue', 'overhead', 'previous')
    """
    previous = ("previous",) if action == "grid" else tuple(f"previous_{e + 1}" for e in range(exits))
    return Features(exits=exits, experts=experts, rate=rate).names + previous


def save_agent(agent: Agent, folder: Path | str) -> AgentCard:
    """Write an agent's weights and card into a folder, each file replaced whole; the card that was written.

    Raises
    ------
    EexError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    pairs = {str(k): pair for k, pair in enumerate(agent.layers)} | ({"lstm": agent.lstm} if agent.lstm else {})
    weights = save({f"{k}.{n}": a.astype(np.float32) for k, pair in pairs.items() for n, a in _named(pair)})
    card = replace(agent.card, sha256=hashlib.sha256(weights).hexdigest())
    with replacing(folder / WEIGHTS) as a, replacing(folder / CARD) as b:
        a.write_bytes(weights)
        b.write_text(json.dumps(asdict(card), indent=1) + "\n")
    return card


def load_agent(folder: Path | str) -> Agent:
    """Read an agent, and check that it is whole and its own card's.

    Raises
    ------
    EexError
        If files are missing, damaged, or do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    try:
        text, weights = (folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise EexError(
            f"{error.filename}: {error.strerror}; expected an agent's folder with {CARD} and {WEIGHTS}, "
            "as eex-train-rl exports it"
        ) from None
    card = _read_card(text, folder / CARD)
    found = hashlib.sha256(weights).hexdigest()
    if found != card.sha256:
        raise EexError(
            f"{folder / WEIGHTS}: does not match its card: expected SHA-256 {card.sha256[:12]}…, found {found[:12]}…"
        )
    try:
        tensors: dict[str, NDArray[Any]] = load(weights)
    except (SafetensorError, ValueError) as error:
        raise EexError(f"{folder / WEIGHTS}: not a safetensors file: {error}") from None
    except KeyError as error:
        raise EexError(f"{folder / WEIGHTS}: has tensors of the type {error}; expected F32") from None
    shapes = {name: array.shape for name, array in tensors.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for k, (inputs, outputs) in enumerate(zip(card.layers, card.layers[1:], strict=False)):
        expected |= {f"{k}.matrix": (outputs, inputs), f"{k}.bias": (outputs,)}
    if card.lstm:
        gates = 4 * card.lstm
        expected |= {"lstm.matrix": (gates, len(card.observation) + card.lstm), "lstm.bias": (gates,)}
    if shapes != expected:
        raise EexError(f"{folder / WEIGHTS}: does not fit its card: expected tensors {expected}, found {shapes}")
    arrays = {name: array.astype(np.float64) for name, array in tensors.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise EexError(f"{folder / WEIGHTS}: expected finite weights, found some that are not")
    pairs = tuple((arrays[f"{k}.matrix"], arrays[f"{k}.bias"]) for k in range(len(card.layers) - 1))
    return Agent(card, pairs, (arrays["lstm.matrix"], arrays["lstm.bias"]) if card.lstm else None)


def _named(pair: tuple[Floats, Floats]) -> tuple[tuple[str, Floats], tuple[str, Floats]]:
    return ("matrix", pair[0]), ("bias", pair[1])


def _read_card(text: bytes, path: Path) -> AgentCard:
    import msgspec

    try:
        card = msgspec.convert(parse_json(text), type=AgentCard)
    except ValueError as error:
        raise EexError(f"{path}: not an agent's card: {error}") from None

    def need(what: str, expected: Any, found: Any) -> None:
        if found != expected:
            raise EexError(f"{path}: {what}: expected {_shown(expected)}, found {_shown(found)}")

    wrapped = bool(card.stack != 1 or card.means or card.scales or card.clip)
    need("format", WRAPPED if wrapped else RECURRENT if card.lstm else FORMAT, card.format)
    for name, (low, high) in LIMITS.items():
        if not low <= (value := getattr(card, name)) <= high:
            raise EexError(f"{path}: {name} out of range: expected {low}…{high}, found {value:g}")
    if card.lstm and card.stack > 1:
        raise EexError(f"{path}: stack: expected 1 with an LSTM, found {card.stack}")
    if not 0 < card.rate <= 1:
        raise EexError(f"{path}: rate out of range: expected a number in (0, 1], found {card.rate:g}")
    if card.activation not in ACTIVATIONS:
        raise EexError(f"{path}: activation: expected {' or '.join(ACTIVATIONS)}, found {card.activation}")
    names = observation_names(card.exits, card.action, card.experts, card.rate)
    need(f"observation of an agent for {card.exits} edge exits", names, card.observation)
    if not all(0 <= t <= 1 for t in card.grid) or bool(card.grid) != (card.action == "grid"):
        raise EexError(f"{path}: grid: expected thresholds in [0, 1] for action grid, none for box, found {card.grid}")
    outputs = len(card.grid) if card.action == "grid" else card.exits
    if len(card.layers) < 2 or any(width < 1 for width in card.layers):
        raise EexError(f"{path}: layers: expected inputs, hidden ones and outputs, found {card.layers}")
    need("inputs of the first layer", card.lstm or card.stack * len(names), card.layers[0])
    for values in (card.means, card.scales):
        need("means and scales", len(names) if wrapped and card.means else 0, len(values))
    if not (np.isfinite([*card.means, *card.scales, card.clip]).all() and all(card.scales) and card.clip >= 0):
        raise EexError(f"{path}: means, scales and clip: expected finite numbers, no scale of 0, no clip below 0")
    need(f"outputs of the last layer, action {card.action}", outputs, card.layers[-1])
    if not (np.isfinite(card.normalisation).all() and card.normalisation[1]):
        raise EexError(f"{path}: normalisation: expected a mean and a scale other than 0, found {card.normalisation}")
    return card


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
