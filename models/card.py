"""Saving and loading a model: weights in safetensors, and a JSON card that describes them.

torch is imported only by what handles weights; a card is read without it.
"""

import hashlib
import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from eex.models.architecture import Architecture, Costs, check_expert
from eex.policies.core.errors import EexError, ModelError
from eex.policies.core.files import digest_of, parse_json, replacing
from eex.policies.core.trace import MOST_CLASSES, MOST_EXITS

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet

CARD, WEIGHTS = "card.json", "weights.safetensors"
MOST_EXPERTS, MOST_PIXELS = 100, 1 << 24  # pixels with their channels, or tokens
SHIPPED = Path(__file__).parent / "shipped"
CLOUD = SHIPPED / "cloud"
"""The second model that eex ships: it answers images in the cloud for edges that run the first."""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's weights are.

    Attributes
    ----------
    format
        Version of this layout: 1.
    name
        Name of the model, for people.
    architecture
        Enough to make the network again; a "custom" backbone also needs the code that cut it.
    temperatures
        Temperature of each expert, per exit.
    classifier
        The kinds that the distortion classifier distinguishes; empty if there is none.
    abstain_below
        The classifier's top probability below which a frame's distortion counts as unknown, and the pristine branches
        take the frame; 0 never abstains. It is the edge that heeds it, so fingerprints do not depend on it.
    sha256
        SHA-256 of the weights file.
    costs
        Multiply-adds of stages and branches; bytes of features.
    training
        How it was trained.
    measured
        How well it does: accuracy and calibration error by exit, expert, distortion and level.
    """

    format: int
    name: str
    architecture: Architecture
    temperatures: list[dict[str, float]]
    classifier: tuple[str, ...]
    sha256: str
    costs: dict[str, list[int]] = {}
    abstain_below: float = 0.0
    training: dict[str, Any] = {}
    measured: dict[str, Any] = {}


def save(
    net: "EarlyExitNet",
    folder: Path | str,
    *,
    name: str = "model",
    half: bool = True,
    training: dict[str, Any] | None = None,
    measured: dict[str, Any] | None = None,
) -> Card:
    """Write a network's weights and card into a folder; both files are replaced whole, or neither.

    Parameters
    ----------
    half
        Store matrices and kernels in float16, norms and biases in float32, and so what float16 has no range for.

    Raises
    ------
    EexError
        If the folder cannot be written.
    """
    import torch
    from safetensors.torch import save as packed

    from eex.models.spectrum import DistortionClassifier

    folder = Path(folder)

    def stored(tensor: "Tensor") -> "Tensor":
        tensor = tensor.detach().cpu().contiguous().clone()  # a module that stages share is stored with each of them
        if not half or tensor.dim() < 2 or tensor.dtype != torch.float32 or not tensor.numel():
            return tensor
        range_ = torch.finfo(torch.float16)  # beyond it weights become infinite, or 0
        return tensor.half() if range_.smallest_normal <= float(tensor.abs().max()) <= range_.max else tensor

    with replacing(folder / CARD) as card_part, replacing(folder / WEIGHTS) as weights_part:
        # not save_file, which lets nobody else read the file
        weights_part.write_bytes(packed({k: stored(v) for k, v in net.state_dict().items()}))
        card = Card(
            format=1,
            name=name,
            architecture=net.architecture,
            temperatures=net.temperature,
            classifier=net.classifier.kinds if isinstance(net.classifier, DistortionClassifier) else (),
            sha256=digest_of(weights_part),
            abstain_below=net.abstain_below,
            costs={k: list(v) for k, v in asdict(net.costs()).items()},
            training=training or {},
            measured=measured or {},
        )
        card_part.write_bytes(msgspec.json.format(_written(card), indent=1) + b"\n")
    net.fingerprint = fingerprint(card)
    return card


def read_card(folder: Path | str | None = None) -> Card:
    """The card in a folder; by default that of the shipped model.

    Raises
    ------
    ModelError
        If there is none, or its layout is another.
    """
    path = Path(folder or SHIPPED) / CARD
    try:
        card = msgspec.convert(parse_json(path.read_bytes()), type=Card)
        _check_counts(card.architecture)
    except NotADirectoryError:
        raise ModelError(
            f"{folder}: is a file; expected a folder that eex-train wrote. Weights of your own, such as a state dict, "
            "are loaded by the function that --network names: eex.models.read_state reads them"
        ) from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model card; expected a folder that eex-train wrote") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not a model card of this version of eex: {error}") from None
    if card.format != 1:
        raise ModelError(f"{path}: has format {card.format}, expected 1; load it with the version of eex that wrote it")
    return card


def _costs(card: Card) -> Costs | None:
    """The costs in a card; None if it has none of a network of so many exits."""
    names = [f.name for f in fields(Costs)]
    found = [tuple(card.costs.get(name, ())) for name in names]
    whole = all(len(counts) == len(card.temperatures) for counts in found)
    return Costs(*found) if whole else None


def load(folder: Path | str | None = None, device: str = "cpu", net: "EarlyExitNet | None" = None) -> "EarlyExitNet":
    """A network with its weights, temperatures and distortion classifier, ready to infer.

    Parameters
    ----------
    folder
        Folder that `save` wrote to; by default the shipped model's.
    device
        "cpu", "cuda" or "cuda:1".
    net
        For a custom backbone: the network as its own code cuts it; its weights are replaced.

    Raises
    ------
    ModelError
        If files are missing, damaged or do not belong together, or the network differs from the card.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    from eex.models.network import remake
    from eex.models.spectrum import DistortionClassifier

    folder = Path(folder or SHIPPED)
    card = read_card(folder)
    path = folder / WEIGHTS
    if not path.exists():
        raise ModelError(f"{path}: the weights that {CARD} describes are missing")
    try:
        found = digest_of(path)
    except EexError as error:
        raise ModelError(str(error)) from None
    if found != card.sha256:
        raise ModelError(
            f"{path}: does not match its card: expected SHA-256 {card.sha256[:12]}…, found {found[:12]}…; "
            f"copy {WEIGHTS} and {CARD} together again"
        )
    if net is None:
        if card.architecture.backbone == "custom":
            raise ModelError(
                f"{folder}: holds a user's own network; name the function that makes it (--network module:function)"
            )
        try:
            numbers, room = _least_numbers(card.architecture), path.stat().st_size // 2
            if numbers > room:
                raise ModelError(
                    f"{path}: weights do not fit the card: its network has at least {numbers:,} numbers, "
                    f"the file has room for {room:,}"
                )
            net = remake(card.architecture)
        except ModelError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
            raise ModelError(f"{folder / CARD}: describes no network: {' '.join(str(error).split())[:300]}") from None
    if costs := _costs(card):
        net.counted = lambda: costs  # as the card has them: counting loads much of torch
    for expert in card.architecture.experts:
        if expert not in net.experts:
            net.add_expert(expert)
    net.architecture = replace(
        net.architecture, confidence=card.architecture.confidence, preprocessing=card.architecture.preprocessing
    )
    if net.architecture != card.architecture:
        raise ModelError(
            f"{folder}: the network differs from its card: {_difference(net.architecture, card.architecture)}"
        )
    check_temperatures(card, folder / CARD)
    if card.classifier:
        net.classifier = DistortionClassifier(card.classifier)
    try:
        weights = load_tensors(path.read_bytes())  # a path need not be UTF-8, which load_file wants
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError(f"{path}: weights do not fit the card: {' '.join(str(error).split())[:300]}") from None
    net.temperature = [dict(t) for t in card.temperatures]
    net.abstain_below = card.abstain_below
    net.fingerprint = fingerprint(card)
    return net.to(device).eval()


def _least_numbers(architecture: Architecture) -> int:
    """How many weights a network has at least, counted without making any: those of the backbone, and the biases."""
    import torch

    from eex.models.network import BACKBONES

    with torch.device("meta"):
        blocks = BACKBONES[architecture.backbone](**architecture.options) if architecture.backbone in BACKBONES else []
    weights = sum(weight.numel() for block in blocks for weight in block.parameters())
    return weights + len(architecture.structures) * len(architecture.experts) * len(architecture.classes)


def _check_counts(architecture: Architecture) -> None:
    """Raise `ValueError` if an architecture is larger than any network, before anything is made of it."""
    for name, value, most in (
        ("exits", len(architecture.structures), MOST_EXITS),
        ("experts", len(architecture.experts), MOST_EXPERTS),
        ("classes", len(architecture.classes), MOST_CLASSES),
        ("pixels" if architecture.takes_images else "tokens", math.prod(architecture.input_shape), MOST_PIXELS),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"the number of {name} must lie in 1…{most:,}, got {value:,}")
    if len(architecture.input_shape) not in (1, 3) or min(architecture.input_shape) < 1:
        raise ValueError(f"the input shape must be positive, (C, H, W) or (T,); got {architecture.input_shape}")
    architecture.preprocessing.check()
    for expert in architecture.experts:
        check_expert(expert)


def check_temperatures(card: Card, path: Path) -> None:
    """Raise `ModelError` if temperatures or classifier are not those of the card's architecture."""
    architecture = card.architecture
    exits, experts = len(architecture.structures), architecture.experts
    named = [set(t) for t in card.temperatures]
    if named != [set(experts)] * exits:
        raise ModelError(f"{path}: must name a temperature for each of {exits} exits and experts {experts}")
    if not all(0 < value < float("inf") for t in card.temperatures for value in t.values()):
        raise ModelError(f"{path}: temperatures must be positive, got {card.temperatures}")
    if not 0 <= card.abstain_below <= 1:
        raise ModelError(f"{path}: abstain_below must lie in [0, 1], got {card.abstain_below}")
    if card.classifier not in ((), experts):
        raise ModelError(f"{path}: the classifier distinguishes {card.classifier}, but the experts are {experts}")


def fingerprint(card: Card) -> str:
    """16 hexadecimal digits that two models share only if they answer alike."""
    parts = [card.sha256, repr(card.architecture), json.dumps(card.temperatures, sort_keys=True)]
    if card.architecture.confidence != Architecture.confidence:
        parts.append(card.architecture.confidence)
    if card.architecture.preprocessing != Architecture.preprocessing:
        parts.append(repr(card.architecture.preprocessing))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _written(card: Card) -> bytes:
    """A card as JSON. Confidence, preprocessing and abstention are named only where they are not the default: earlier
    cards lack them."""
    plain = msgspec.to_builtins(card)
    for name in ("confidence", "preprocessing"):
        if getattr(card.architecture, name) == getattr(Architecture, name):
            plain["architecture"].pop(name, None)
    if not card.abstain_below:
        plain.pop("abstain_below", None)
    return msgspec.json.encode(plain)


def _difference(here: Architecture, card: Architecture) -> str:
    a, b = asdict(here), asdict(card)
    return "; ".join(f"{k} is {a[k]}, the card says {b[k]}" for k in a if a[k] != b[k])
