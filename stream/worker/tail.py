"""The rest of a network, as a worker runs it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from eex.policies.core.errors import OffloadError
from eex.stream.wire.offload import Tail
from eex.stream.wire.protocol import MAX_BYTES, MESSAGE_FRAMES, Welcome

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet


def make_tail(net: "EarlyExitNet") -> Tail:
    """The rest of a network, from any stage on to the final exit, as `serve` wants it."""
    import torch

    net.eval()
    shapes = stage_shapes(net)

    @torch.inference_mode()
    def tail(stage: int, expert: str, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        x = features_tensor(net, shapes[stage], stage, features)
        for i in range(stage, net.exits):
            x = net.stage(i, x)
        confidence, prediction = net.confident(net.branch(net.exits - 1, expert, x))
        return confidence.cpu().numpy(), prediction.cpu().numpy()

    return tail


def features_tensor(net: "EarlyExitNet", shape: tuple[int, ...], stage: int, features: NDArray[Any]) -> "Tensor":
    """Features (n, ...) off the wire as a stage takes them.

    Raises
    ------
    OffloadError
        If they are not of the stage's shape.
    """
    import torch

    if features.shape[1:] != shape:
        raise OffloadError(f"stage {stage} takes features (n, {', '.join(map(str, shape))}), got {features.shape}")
    # off the wire they are neither aligned nor ours to write to, which torch wants
    x = torch.from_numpy(np.require(features, np.float32, ["C", "A", "W"])).to(net.mean.device, net.mean.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


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


def load_models(
    models: Sequence[Path],
    network: str,
    threads: int,
    device: str,
    batch_frames: int,
    make: "Callable[[EarlyExitNet], Tail]" = make_tail,
) -> tuple[list[Welcome], dict[str, Tail], dict[str, list[tuple[int, ...]]]]:
    """Load models, the shipped one if there is none; their welcomes, and tails and stages' shapes by fingerprint.

    Parameters
    ----------
    make
        Makes the tail of each network, which it gets in the form that infers fast.

    Raises
    ------
    EexError
        If one cannot be used, or there is no such device.
    """
    import torch

    from eex.models.card import load
    from eex.models.fast import optimised
    from eex.stream.network import make_network, pick_device

    if threads:
        torch.set_num_threads(threads)
    nets = [load(m, pick_device(device), make_network(network)) for m in models or (None,)]
    welcomes: dict[str, Welcome] = {}
    tails: dict[str, Tail] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for net in nets:
        taken = shapes[net.fingerprint] = stage_shapes(net)
        largest = 4 * max(math.prod(shape) for shape in taken)  # bytes of a frame, float32
        most = min(MAX_BYTES, max(MESSAGE_FRAMES, batch_frames) * largest)
        welcomes[net.fingerprint] = Welcome(net.fingerprint, net.exits, net.experts, net.classes, most)
        tails[net.fingerprint] = make(optimised(net))
    return [structs.replace(w, models=tuple(welcomes)) for w in welcomes.values()], tails, shapes
