"""Agents trained by reinforcement: a small network's weights and a JSON card, checked and played without torch."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eex.policies.base import Floats
from eex.policies.errors import EexError
from eex.policies.features import EXPERTS, Features

CARD, WEIGHTS = "card.json", "weights.safetensors"
FORMAT = "eex-agent-1"
ActionKind = Literal["grid", "box"]
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}


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
    experts, rate
        Of the `Features` it observes.
    action
        "grid": its outputs are values of the grid's thresholds, of which the highest is played. "box": they are
        thresholds, one an edge exit, clipped to [0, 1].
    grid
        Thresholds; empty for "box".
    layers
        Width of each layer, from inputs to outputs.
    activation
        Behind all layers but the last: "tanh" or "relu".
    squashed
        The thresholds of "box" are (1 + tanh(outputs)) / 2, not the outputs themselves.
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
    sha256: str = ""
    trained: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Agent:
    """A card and the layers it speaks of, each a matrix (out, in) and a bias (out,)."""

    card: AgentCard
    layers: tuple[tuple[Floats, Floats], ...]

    def __call__(self, x: Floats) -> Floats:
        """The network's outputs (..., outputs) for observations (..., inputs)."""
        activate = ACTIVATIONS[self.card.activation]
        mean, scale = self.card.normalisation
        x = (x - mean) / scale
        for k, (matrix, bias) in enumerate(self.layers):
            x = (activate(x) if k else x) @ matrix.T + bias
        return (1 + np.tanh(x)) / 2 if self.card.squashed else x


def observation_names(exits: int, action: ActionKind, experts: int = EXPERTS, rate: float = 0.05) -> tuple[str, ...]:
    """What an agent observes: the features, then the threshold of the frame last heard of, one an exit for "box".

    Examples
    --------
    >>> observation_names(exits=1, action="grid", experts=1)
    ('distortion_1', 'confidence_1', 'left_1', 'gain', 'round_trip', 'queue', 'overhead', 'previous')
    """
    previous = ("previous",) if action == "grid" else tuple(f"previous_{e + 1}" for e in range(exits))
    return Features(exits=exits, experts=experts, rate=rate).names + previous


def save_agent(agent: Agent, folder: Path) -> None:
    """Write an agent's weights and card into a folder; each file is replaced whole.

    Raises
    ------
    EexError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    tensors = {f"{k}.{n}": a.astype(np.float32) for k, pair in enumerate(agent.layers) for n, a in _named(pair)}
    weights = save(tensors)
    card = replace(agent.card, sha256=hashlib.sha256(weights).hexdigest())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((WEIGHTS, weights), (CARD, (json.dumps(asdict(card), indent=1) + "\n").encode())):
            part = folder / (name + ".part")
            part.write_bytes(content)
            os.replace(part, folder / name)
    except OSError as error:
        raise EexError(f"{folder}: cannot write the agent: {error.strerror}") from None


def load_agent(folder: Path) -> Agent:
    """Read an agent, and check that it is whole and its own card's.

    Raises
    ------
    EexError
        If files are missing, damaged, or do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

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
    except (SafetensorError, ValueError, KeyError) as error:
        raise EexError(f"{folder / WEIGHTS}: not a safetensors file: {error}") from None
    shapes = {name: array.shape for name, array in tensors.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for k, (inputs, outputs) in enumerate(zip(card.layers, card.layers[1:], strict=False)):
        expected |= {f"{k}.matrix": (outputs, inputs), f"{k}.bias": (outputs,)}
    if shapes != expected:
        raise EexError(f"{folder / WEIGHTS}: does not fit its card: expected tensors {expected}, found {shapes}")
    arrays = {name: array.astype(np.float64) for name, array in tensors.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise EexError(f"{folder / WEIGHTS}: expected finite weights, found some that are not")
    pairs = tuple((arrays[f"{k}.matrix"], arrays[f"{k}.bias"]) for k in range(len(card.layers) - 1))
    return Agent(card, pairs)


def _named(pair: tuple[Floats, Floats]) -> tuple[tuple[str, Floats], tuple[str, Floats]]:
    return ("matrix", pair[0]), ("bias", pair[1])


def _read_card(text: bytes, path: Path) -> AgentCard:
    import msgspec

    try:
        card = msgspec.json.decode(text, type=AgentCard)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EexError(f"{path}: not an agent's card: {error}") from None

    def need(what: str, expected: Any, found: Any) -> None:
        if found != expected:
            raise EexError(f"{path}: {what}: expected {_shown(expected)}, found {_shown(found)}")

    need("format", FORMAT, card.format)
    if card.exits < 1 or card.experts < 1 or not 0 < card.rate <= 1:
        raise EexError(f"{path}: exits, experts or rate out of range: {card.exits}, {card.experts}, {card.rate:g}")
    if card.activation not in ACTIVATIONS:
        raise EexError(f"{path}: activation: expected {' or '.join(ACTIVATIONS)}, found {card.activation}")
    names = observation_names(card.exits, card.action, card.experts, card.rate)
    need(f"observation of an agent for {card.exits} edge exits", names, card.observation)
    if not all(0 <= t <= 1 for t in card.grid) or bool(card.grid) != (card.action == "grid"):
        raise EexError(f"{path}: grid: expected thresholds in [0, 1] for action grid, none for box, found {card.grid}")
    outputs = len(card.grid) if card.action == "grid" else card.exits
    if len(card.layers) < 2 or any(width < 1 for width in card.layers):
        raise EexError(f"{path}: layers: expected inputs, hidden ones and outputs, found {card.layers}")
    need("inputs of the first layer", len(names), card.layers[0])
    need(f"outputs of the last layer, action {card.action}", outputs, card.layers[-1])
    if not (np.isfinite(card.normalisation).all() and card.normalisation[1]):
        raise EexError(f"{path}: normalisation: expected a mean and a scale other than 0, found {card.normalisation}")
    return card


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
