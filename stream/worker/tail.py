"""The rest of a network, as a worker runs it, and what a worker serves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from eex.models.arrays import choose_experts, rows_of, to_numpy
from eex.policies.core.errors import OffloadError
from eex.stream.wire.offload import Answers, Tail
from eex.stream.wire.protocol import MAX_BYTES, MESSAGE_FRAMES, Welcome
from eex.stream.worker.pool import Replica

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.models.network import EarlyExitNet

Shapes = dict[str, list[tuple[int, ...]]]
"""What each stage of each model takes, by fingerprint, without the axis of frames: (C, H, W) or (C,)."""


@dataclass(frozen=True)
class Models:
    """The models of a worker, and how they run.

    Attributes
    ----------
    folders
        Of weights and cards; the shipped model if there is none.
    network
        For a network of the user's own, "module:function".
    threads
        CPU threads per model; 0 leaves it to torch.
    device
        "auto", "cpu" or "cuda".
    batch_frames
        Most frames in one call of a model.
    answer_with
        Folder of a model that answers frames sent as images in place of these; None for none.
    answer_network
        For an answerer that is a network of the user's own, "module:function".
    """

    folders: tuple[Path, ...] = ()
    network: str = ""
    threads: int = 0
    device: str = "cpu"
    batch_frames: int = 64
    answer_with: Path | None = None
    answer_network: str = ""


class Loaded(NamedTuple):
    """Models in this process: their welcomes, their tails by fingerprint, and what their stages take."""

    welcomes: list[Welcome]
    tails: dict[str, Tail]
    shapes: Shapes


class Served(NamedTuple):
    """What a front needs: replicas, the welcomes of their models, and what the stages take, as far as known here."""

    replicas: list[Replica]
    welcomes: list[Welcome]
    shapes: Shapes


def make_tail(net: "EarlyExitNet") -> Tail:
    """The rest of a network, from any stage on to the final exit."""
    import torch

    net.eval()
    shapes = stage_shapes(net)

    @torch.inference_mode()
    def tail(stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        x = features_array(net, shapes[stage], stage, features)
        for i in range(stage, net.exits):
            x = net.stage(i, x)
        confidence, prediction = net.confident(net.branch(net.exits - 1, expert, x))
        return confidence.cpu().numpy(), prediction.cpu().numpy()

    return tail


def features_array(net: "Network", shape: tuple[int, ...], stage: int, features: NDArray[Any]) -> Any:
    """Features (n, ...) that were received, as a stage takes them.

    Raises
    ------
    OffloadError
        If they are not of the stage's shape.
    """
    if features.shape[1:] != shape:
        raise OffloadError(f"stage {stage} takes features (n, {', '.join(map(str, shape))}), got {features.shape}")
    # views of a message are neither aligned nor writable, and torch wants both
    return net.array(np.require(features, np.float32, ["C", "A", "W"]), stage)


def load_answerer(folder: Path, network: str, device: str) -> "Network":
    """The model that answers images: weights, or ONNX files alone.

    Raises
    ------
    EexError
        If it cannot be used.
    """
    from eex.models.card import WEIGHTS, load
    from eex.models.fast import optimised
    from eex.models.onnx import MANIFEST, load_onnx
    from eex.stream.network import make_network

    if (folder / MANIFEST).exists() and not (folder / WEIGHTS).exists():
        return load_onnx(folder)
    return optimised(load(folder, device, make_network(network, folder)))


def answering(tail: Tail, net: "Network", answerer: "Network") -> Tail:
    """A tail of `net` that has another model answer images; frames that come as features are answered by `tail`.

    Raises
    ------
    OffloadError
        If the two models do not go together.
    """
    answer = image_answers(net, answerer)

    def both(stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return tail(stage, expert, features) if stage else answer(features)

    return both


def image_answers(net: "Network", answerer: "Network") -> Answers:
    """How another model answers the images of `net`: by its final exit and, where it has experts, by that expert which
    its own distortion classifier selects. Images are scaled to the size that it takes.

    Raises
    ------
    OffloadError
        If the two models do not know the same classes, take images of another number of channels, or texts of another
        length.
    """
    import torch

    theirs = {name: i for i, name in enumerate(net.classes)}
    if set(theirs) != set(answerer.classes) or len(theirs) != len(answerer.classes):
        missing = sorted(set(net.classes) ^ set(answerer.classes))
        raise OffloadError(
            f"--answer-with: its classes are not those of the model {net.fingerprint}, which its answers are for: "
            f"{len(answerer.classes)} and {len(net.classes)} classes, only one of the two knows "
            f"{', '.join(missing[:5])}"
        )
    shape, wanted = net.architecture.input_shape, answerer.architecture.input_shape
    if shape != wanted and not (net.architecture.takes_images and answerer.architecture.takes_images):
        raise OffloadError(f"--answer-with: takes frames of shape {wanted}, the edge's model of {shape}")
    if shape[0] != wanted[0]:
        raise OffloadError(f"--answer-with: takes images of {wanted[0]} channels, the edge's model of {shape[0]}")
    how = answerer.architecture.preprocessing.interpolation
    index = np.array([theirs[name] for name in answerer.classes])

    def answer(images: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        with answerer.inferring():
            x = features_array(answerer, shape, 0, to_numpy(images))
            if wanted != shape:
                scaled = torch.nn.functional.interpolate(
                    torch.from_numpy(to_numpy(x)), wanted[1:], mode=how, antialias=True
                )
                x = answerer.array(scaled.clamp(0, 1).numpy())
            chosen = np.zeros(len(x), dtype=np.int64)
            if answerer.classifier is not None:
                chosen, _, _ = choose_experts(to_numpy(answerer.classifier(x)), answerer.abstain_below)
            for i in range(answerer.exits):
                x = answerer.stage(i, x)
            confidence, prediction = np.zeros(len(x), dtype=np.float32), np.zeros(len(x), dtype=np.int64)
            for number in sorted(set(chosen.tolist())):
                at = np.flatnonzero(chosen == number)
                logits = answerer.branch(answerer.exits - 1, answerer.experts[number], rows_of(x, at))
                found = answerer.confident(logits)
                confidence[at], prediction[at] = to_numpy(found[0]), index[to_numpy(found[1])]
        return confidence, prediction

    return answer


def stage_shapes(net: "EarlyExitNet") -> list[tuple[int, ...]]:
    """What each stage takes, without the axis of frames."""
    import torch

    shapes = []
    with torch.inference_mode():
        x = torch.zeros(1, *net.architecture.input_shape, device=net.mean.device)
        for i in range(net.exits):
            shapes.append(tuple(x.shape[1:]))
            x = net.stage(i, x)
    return shapes


def load_models(models: Models, make: "Callable[[EarlyExitNet], Tail]" = make_tail) -> Loaded:
    """Load models in this process.

    Parameters
    ----------
    make
        Makes the tail of each network, which it gets in the form that infers fast.

    Raises
    ------
    EexError
        If a model cannot be used, or there is no such device.
    """
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.network import make_network, pick_device

    if models.threads:
        torch.set_num_threads(models.threads)
    welcomes: dict[str, Welcome] = {}
    tails: dict[str, Tail] = {}
    shapes: Shapes = {}
    device = pick_device(models.device)
    answerer = None
    if models.answer_with is not None:
        answerer = load_answerer(models.answer_with, models.answer_network, device)
    for net in [load(folder, device, make_network(models.network, folder)) for folder in models.folders or (None,)]:
        taken = shapes[net.fingerprint] = stage_shapes(net)
        largest = 4 * max(math.prod(shape) for shape in taken)  # bytes of a frame, float32
        most = min(MAX_BYTES, max(MESSAGE_FRAMES, models.batch_frames) * largest)
        welcomes[net.fingerprint] = Welcome(net.fingerprint, net.exits, net.experts, net.classes, most)
        tails[net.fingerprint] = make(optimised(net))
        if answerer is not None:
            tails[net.fingerprint] = answering(tails[net.fingerprint], net, answerer)
            welcomes[net.fingerprint] = structs.replace(welcomes[net.fingerprint], answerer=answerer.fingerprint)
    return Loaded([structs.replace(w, models=tuple(welcomes)) for w in welcomes.values()], tails, shapes)
