"""The network of a run: the model, its device and partition point."""

import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eex.policies.core.errors import EexError
from eex.stream.frames.frames import NetworkConfig

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.models.network import EarlyExitNet


_threads = 0


def use_threads(count: int) -> None:
    """Let networks that are loaded from now on use so many processor threads; 0 leaves the number to their runtime."""
    global _threads
    _threads = count


def load_network(config: NetworkConfig) -> "Network":
    """Load the configured network, optimised for inference, on its device, to be run by the configured backend.

    With `backend` "auto", a folder that holds both weights and ONNX files is run by the backend that takes less time
    for a micro-batch on this machine; otherwise by the one that can. torch is imported only if it may run the network.

    Raises
    ------
    EexError
        If the network cannot be used, or the device or partition point does not exist.
    """
    from eex.models.card import WEIGHTS

    folder = config.model
    exported = folder is not None and (folder / "onnx.json").exists()
    weights = folder is None or not exported or (folder / WEIGHTS).exists()
    if config.backend == "torch" and not weights:
        raise EexError(f"--backend torch: {folder} holds no {WEIGHTS}, only ONNX files; name the folder they came from")
    if config.backend == "onnx" or (config.backend == "auto" and exported):
        from eex.models.onnx import load_onnx

        if folder is None:
            raise EexError("--backend onnx needs an exported model: run eex-export --out DIR, then add --model DIR")
        if config.device == "cuda":
            raise EexError("--device cuda: ONNX files run on the processor here; expected --device cpu or auto")
        net: Network = load_onnx(folder, _threads, config.provider)
        if config.backend == "auto" and weights and _has_torch():
            from eex.models.comparing import check_same

            torch_net = _torch_network(config)
            check_same(torch_net, net, "the ONNX form of the model", torch_net.mean.dtype)
            net = _faster({"onnx": net, "torch": torch_net}, getattr(config, "batch", 1))
    else:
        net = _torch_network(config)
    if config.partition > net.exits:
        raise EexError(f"--partition must lie in 1…{net.exits}, the model's stages; got {config.partition}")
    net.partition = config.partition or net.partition
    return net


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _torch_network(config: NetworkConfig) -> "EarlyExitNet":
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EexError(
            f"{config.model or 'the shipped model'}: running its weights needs torch: pip install 'eex[torch]'; "
            "without torch, --model names a folder that eex-export wrote elsewhere"
        ) from None
    from eex.models.card import load
    from eex.models.fast import optimised

    if config.provider != "cpu":
        raise EexError(f"--provider {config.provider}: is one of ONNX Runtime's; add --backend onnx")
    if _threads:
        torch.set_num_threads(_threads)
    return optimised(load(config.model, pick_device(config.device), make_network(config.network)))


def _faster(nets: "dict[str, Network]", batch: int) -> "Network":
    """The network that takes less time for all stages and exits of a micro-batch, by medians."""
    from eex.models.arrays import to_numpy

    taken: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(7):  # in turn, so that a busy machine slows all
        for name, net in nets.items():
            images = np.zeros((batch, *net.architecture.input_shape), np.float32)
            with net.inferring():
                x = net.array(images)
                started = time.perf_counter()
                for i in range(net.exits):
                    x = net.stage(i, x)
                    to_numpy(net.confident(net.branch(i, net.experts[0], x))[0])
            taken[name].append(time.perf_counter() - started)
    ms = {name: 1000 * sorted(times[2:])[2] for name, times in taken.items()}  # the first two warm up
    best = min(ms, key=lambda name: ms[name])
    each = ", ".join(f"{took:.2f} ms in {name}" for name, took in ms.items())
    logging.getLogger(__name__).warning("backend %s: a micro-batch of %d takes %s", best, batch, each)
    return nets[best]


def make_network(name: str) -> "EarlyExitNet | None":
    """Call the user's function "module:function" and return its network; None if the name is empty.

    Raises
    ------
    EexError
        If the function cannot be imported, raises an exception, or returns something else.
    """
    if not name:
        return None
    import importlib
    import sys

    from eex.models.network import EarlyExitNet

    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file here must not take the place of a library's module
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise EexError(f"--network {name}: cannot be imported: {error}; expected module:function") from None
    try:
        net = make()
    except EexError as error:
        raise EexError(f"--network {name}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        lines = " ".join(str(error).split())
        hint = ""
        if "module." in lines and isinstance(error, RuntimeError):
            hint = "; its weights come from DataParallel: read them by eex.models.read_state, which removes 'module.'"
        raise EexError(f"--network {name}: the function raised {type(error).__name__}: {lines[:300]}{hint}") from error
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
