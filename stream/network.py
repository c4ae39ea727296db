"""The network of a run: the model, its device and partition point."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from eex.policies.core.errors import EexError
from eex.stream.frames.frames import NetworkConfig

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet


def load_network(config: NetworkConfig) -> "EarlyExitNet":
    """Load the configured network, optimised for inference, on its device.

    Raises
    ------
    EexError
        If the network cannot be used, or the device or partition point does not exist.
    """
    from eex.models.card import load
    from eex.models.fast import optimised

    net = optimised(load(config.model, pick_device(config.device), make_network(config.network)))
    if config.partition > net.exits:
        raise EexError(f"--partition must lie in 1…{net.exits}, the model's stages; got {config.partition}")
    net.partition = config.partition or net.partition
    return net


def make_network(name: str) -> "EarlyExitNet | None":
    """Call the user's function "module:function" and return its network; None if the name is empty.

    Raises
    ------
    EexError
        If the function cannot be imported or returns something else.
    """
    if not name:
        return None
    import importlib
    import sys

    from eex.models.network import EarlyExitNet

    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        net = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise EexError(f"--network {name}: cannot be imported: {error}; expected module:function") from None
    if not isinstance(net, EarlyExitNet):
        raise EexError(f"--network {name}: must return an EarlyExitNet (eex.models.cut), got {type(net).__name__}")
    return net


def pick_device(name: str) -> str:
    """Resolve a device name: "cpu", "cuda", "cuda:1", or "auto" for the GPU if there is one.

    Raises
    ------
    EexError
        If there is no such device.
    """
    import torch

    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if not match:
        raise EexError(f"--device {name}: expected auto, cpu, cuda, or cuda:N for the GPU of that number")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        raise EexError(f"--device {name}: this torch sees no GPU")
    if match[1] and int(match[1]) >= (count := torch.cuda.device_count()):
        raise EexError(f"--device {name}: this machine has {count}, counted from cuda:0")
    return name
